"""A run that was cut anywhere goes on as if nothing had been."""

import json
import os
import pickle
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import open_dict

from point_mass import Parts, point_mass, read_metrics, trained
from vlmrm_exp import __main__ as training
from vlmrm_exp import composition
from vlmrm_exp.config import ConfigError, ForeignError
from vlmrm_exp.reward import learned
from vlmrm_exp.rl.checkpoint import Checkpoint, load
from vlmrm_exp.settings import settings_hash
from vlmrm_exp.signals import requeue

BOTH = pytest.mark.parametrize("name", ["sac", "dqn"])
REWARDS = [
    {"model": "point_mass:Distance"},
    {"model": "point_mass:Learned"},
    # With an error from the first rollout on, which changes how many are looked at.
    {"model": "point_mass:Distance", "query_share": 0.2, "max_error": 0.05},
    {"model": "point_mass:Rare"},
]


class Cut(Exception):
    """The run ends here, as if it were killed."""


def train_until(parts: Parts, reports: int, saved=None):
    """Train, save after each rollout, and be cut after some."""
    states = Checkpoint(parts.log, 0)
    left = [reports]

    def save(state) -> None:
        states.save_when_due(state)
        left[0] -= 1
        if left[0] == 0:
            raise Cut

    return parts.train(saved, save)


def go_on(folder: Path, name: str, reports: int, **changes):
    """Go on from what is on disk, in new environments, agent and pool."""
    kept = load(folder)
    with point_mass(folder, name, saved=kept["log"], **changes) as parts:
        return train_until(parts, reports, kept["state"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reward"),
    [
        ("sac", REWARDS[0]),
        ("dqn", REWARDS[0]),
        ("sac", REWARDS[1]),
        ("dqn", REWARDS[2]),
        ("sac", REWARDS[3]),
    ],
)
@pytest.mark.parametrize("overlap", [True, False])
def test_a_run_cut_after_any_rollout_is_that_of_one_piece(
    tmp_path, name, overlap, reward, monkeypatch
):
    monkeypatch.setattr(learned, "WARM_UP", 1)
    monkeypatch.setattr(learned, "RELABELLED", 0.4)
    changes = {
        "compute": {"overlap": overlap},
        "reward": reward,
        "algo": {"buffer_size": 480},  # three rollouts of five
    }
    whole = trained(tmp_path / "whole", name, **changes)
    for cut in range(1, 5):
        folder = tmp_path / str(cut)
        with point_mass(folder, name, **changes) as parts:
            with pytest.raises(Cut):
                train_until(parts, cut)
            parts.log.metrics(9999, {"loss/x": 1.0})  # after what was saved
        if cut < 4:  # and once more
            with pytest.raises(Cut):
                go_on(folder, name, 1, **changes)
        state = go_on(folder, name, 99, **changes)
        assert read_metrics(folder) == read_metrics(tmp_path / "whole")
        assert state.gradient_steps == whole.gradient_steps
        for key, tensor in whole.best["policy"].items():
            assert torch.equal(state.best["policy"][key], tensor)


@BOTH
def test_a_run_may_go_further_than_was_asked_at_first(tmp_path, name):
    """Its replay was full, as large as the run, and has more room now."""
    changes = {"compute": {"overlap": False}}
    trained(tmp_path / "whole", name, env_steps=1600, **changes)
    with point_mass(tmp_path / "far", name, env_steps=800, **changes) as parts:
        train_until(parts, 99)
    state = go_on(tmp_path / "far", name, 99, env_steps=1600, **changes)
    assert state.replay.size == 1600
    metrics = [
        [
            {k: v for k, v in line.items() if not k.startswith("eval/")}
            for line in read_metrics(tmp_path / folder)
        ]
        for folder in ("whole", "far")
    ]
    assert metrics[0] == metrics[1]


def test_a_gymnasium_ids_run_goes_on_with_new_episodes_and_says_so(tmp_path, capsys):
    from vlmrm_exp.config import TaskConfig
    from vlmrm_exp.envs.any_gym import GymEnvs

    task = TaskConfig("gym", "gym", env_id="Pendulum-v1", episode_length=3)
    first, second = GymEnvs(task, 2), GymEnvs(task, 2)
    first.reset(7)
    second.load_state_dict(first.state_dict())
    assert "Pendulum-v1's simulators cannot be saved" in capsys.readouterr().out
    np.testing.assert_array_equal(first.reset(), second.reset())


def saved_run(folder: Path) -> list[Path]:
    """A run that was cut after two rollouts; its states, the newest first."""
    with point_mass(folder) as parts, pytest.raises(Cut):
        train_until(parts, 2)
    return [folder / "checkpoints" / name for name in ("state.pt", "state-before.pt")]


def test_a_damaged_state_gives_way_to_the_one_before(tmp_path, capsys):
    newest, before = saved_run(tmp_path)
    newest.write_bytes(newest.read_bytes()[:1000])
    assert load(tmp_path)["state"]["learned_steps"] == 160
    told = capsys.readouterr().out
    assert "state.pt is damaged or no state of a run" in told
    assert "going on from the state before it" in told
    before.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"state-before\.pt is damaged .*anew"):
        load(tmp_path)


def test_a_state_runs_no_code_when_it_is_read(tmp_path):
    newest, before = saved_run(tmp_path)
    sprung = tmp_path / "sprung"

    class Trap:
        def __reduce__(self):
            return Path.touch, (sprung,)

    torch.save({"format": 3, "state": Trap()}, newest)
    before.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ConfigError):
        load(tmp_path)
    assert not sprung.exists()


def test_a_state_is_read_as_it_was_written(tmp_path):
    held = {
        "array": np.float32(2) * np.ones((2, 3), np.float32)[:, ::2],
        "point": np.array(3),
        "of": (1, [2.5, None], {"array": torch.zeros(2), "bias": b"x"}),
    }
    with point_mass(tmp_path) as parts:
        states = Checkpoint(parts.log, 0)
        states.save(SimpleNamespace(state_dict=lambda: held))
    found = load(tmp_path)["state"]
    np.testing.assert_array_equal(found["array"], held["array"])
    assert found["point"].shape == ()
    number, several, inner = found["of"]
    assert (number, several, inner["bias"]) == (1, [2.5, None], b"x")
    assert torch.equal(inner["array"], torch.zeros(2))
    assert isinstance(found["of"], tuple)


def test_what_no_file_can_hold_is_told_when_it_is_saved(tmp_path, monkeypatch):
    with point_mass(tmp_path) as parts:
        odd = {"generator": np.random.default_rng(0)}
        monkeypatch.setattr(parts.pool, "state_dict", lambda: odd)
        with pytest.raises(ForeignError, match="holds a Generator, which cannot be"):
            train_until(parts, 1)


def test_a_state_of_another_format_is_refused(tmp_path):
    newest, _ = saved_run(tmp_path)
    kept = torch.load(newest, weights_only=True)
    torch.save(kept | {"format": 99}, newest)
    with pytest.raises(ConfigError, match=r"format 99, but this version reads 4.*anew"):
        load(tmp_path)


@pytest.mark.parametrize("reward", [REWARDS[0], REWARDS[1]])
def test_a_state_of_the_format_before_is_read_where_no_reward_learns(tmp_path, reward):
    with point_mass(tmp_path, reward=reward) as parts:
        whole = read_metrics(tmp_path) if parts.train() else []
    with point_mass(tmp_path / "cut", reward=reward) as parts, pytest.raises(Cut):
        train_until(parts, 2)
    newest = tmp_path / "cut" / "checkpoints" / "state.pt"
    kept = torch.load(newest, weights_only=True)
    kept["format"], kept["state"]["pool"] = 3, kept["state"]["pool"]["learned"]
    del kept["state"]["best_version"]
    torch.save(kept, newest)
    if reward == REWARDS[1]:
        with pytest.raises(ConfigError, match="has format 3"):
            load(tmp_path / "cut")
    else:
        go_on(tmp_path / "cut", "sac", 99, reward=reward)
        assert read_metrics(tmp_path / "cut") == whole


def test_a_view_of_a_large_buffer_is_saved_alone(tmp_path):
    with point_mass(tmp_path, algo={"buffer_size": 10**6}, env_steps=10**6) as parts:
        with pytest.raises(Cut):
            train_until(parts, 1)
    assert (tmp_path / "checkpoints" / "state.pt").stat().st_size < 200_000


def test_saving_takes_a_small_share_of_the_time(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with point_mass(tmp_path) as parts:
        states, saved = Checkpoint(parts.log, 60), []

        class Slow:
            def state_dict(self):
                clock[0] += 3.0  # seconds that saving takes
                saved.append(clock[0])
                return {}

        for _ in range(600):
            clock[0] += 1.0
            states.save_when_due(Slow())
    assert saved == [4.0, 157.0, 310.0, 463.0]  # at once, then each 3 s / 0.02 = 150 s


SMALL = (
    "task=mountaincar clip=nano log=none env_steps=2400 algo.gradient_steps=20 "
    "task.episode_length=100 algo.random_steps=800 evaluation.every=800 "
    "evaluation.episodes=2 "
    "evaluation.final_episodes=4 evaluation.video_episodes=0 name=mine "
    "compute.workers=0"
).split()


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "vlmrm_exp", *SMALL, *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(
        command, cwd=folder, start_new_session=True, text=True, **pipes
    )


def wait_for_state(process, run: Path) -> None:
    deadline = time.monotonic() + 600  # of a busy machine
    while not ((run / "checkpoints" / "state.pt").exists() and read_metrics(run)):
        assert time.monotonic() < deadline, "no state"
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)


@pytest.mark.long
def test_the_same_command_goes_on_after_a_kill(tmp_path, program, monkeypatch):
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole, cut = (tmp_path / n / "outputs/mountaincar/mine" for n in ("whole", "cut"))
    monkeypatch.chdir(tmp_path / "whole")
    assert program(*SMALL).code == 0
    words = "compute.checkpoint_s=0", "compute.workers=1"  # the last one counts
    process = start(tmp_path / "cut", *words)
    wait_for_state(process, cut)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (cut / "summary.json").exists()
    monkeypatch.chdir(tmp_path / "cut")

    kept = torch.load(cut / "checkpoints" / "state.pt", weights_only=True)
    kept["log"]["wall_s"] = 5000.0  # as if it had taken so long until then
    torch.save(kept, cut / "checkpoints" / "state.pt")

    other = program(*SMALL, "seed=1")
    assert other.code == 2
    assert "holds a run of other settings, seed=1 (was 0)" in other.err
    config = (cut / "config.yaml").read_bytes()
    fewer = program(*SMALL, "env_steps=1")
    assert fewer.code == 2
    assert "give that many at least" in fewer.err
    assert (cut / "config.yaml").read_bytes() == config

    assert program(*SMALL).code == 0
    assert read_metrics(cut) == read_metrics(whole)
    summaries = [json.loads((f / "summary.json").read_text()) for f in (whole, cut)]
    timed = ("perf/", "wall_s", "train_wall_s", "ended")
    for key in summaries[0]:
        if not key.startswith(timed):
            assert summaries[0][key] == summaries[1][key], key
    assert summaries[0]["wall_s"] < 5000 < summaries[1]["train_wall_s"]
    assert sorted(p.name for p in (cut / "checkpoints").iterdir()) == [
        "best.pt", "last.pt"]  # fmt: skip

    again = program(*SMALL)
    assert again.code == 0
    composed = composition.compose("config", *SMALL)
    value = training.train(replace(composed, folder=cut))  # what a sweeper is told
    assert value == summaries[1]["eval/reward_mean"]
    assert "is finished: nothing is left to do" in again.out


@pytest.mark.slow
def test_a_sweep_that_is_started_again_does_what_is_missing(
    tmp_path, program, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    small = ("experiment=smoke", "reward=environment", "log=none", "sweep=mine", "-m")
    assert program(*small, "seed=0,1").code == 0
    sweep = tmp_path / "outputs" / "sweeps" / "mine"
    written = {path: path.stat().st_mtime_ns for path in sweep.glob("*/summary.json")}
    assert len(written) == 2
    ended = program(*small, "seed=2,1,0")  # numbered in another way
    assert ended.code == 0
    assert ended.out.count("is finished: nothing is left to do") == 2
    after = {path: path.stat().st_mtime_ns for path in sweep.glob("*/summary.json")}
    assert len(after) == 3
    assert written.items() < after.items()


@pytest.mark.slow
def test_resume_is_short_for_the_words_of_a_run(tmp_path, program, monkeypatch):
    folder = tmp_path / "it's mine, (1)"
    folder.mkdir()
    monkeypatch.chdir(folder)
    words = ("experiment=smoke", "reward=environment", "log=none", "name=mine")
    prompt = "prompt=a ${5} car, on a 'hill'"
    assert program(*words, prompt).code == 0
    run = folder / "outputs" / "mountaincar" / "mine"
    expected = read_metrics(run)
    (run / "summary.json").unlink()  # as if killed before its first state
    for path in (run / "checkpoints").glob("state*"):
        path.unlink()
    ended = program(f"resume={run}")
    assert ended.code == 0, ended.err
    assert read_metrics(run) == expected
    assert "nothing is left to do" in program(f"resume={run}").out
    ended = program(f"resume={run}", "seed=1")
    assert "other settings, seed=1 (was 0)" in ended.err
    assert program(f"resume={run}", "-m").code == 2
    assert "is not the folder of a run" in program(f"resume={tmp_path}").err


@pytest.mark.slow
def test_overlap_is_a_setting_like_others_for_it_changes_what_is_learned(
    tmp_path, program, monkeypatch
):
    _, small = finished_run(tmp_path, program, monkeypatch)
    ended = program(*small, "compute.overlap=false")
    assert "other settings, compute.overlap=False (was True)" in ended.err
    ended = program(*small, "compute.torch_threads=2")
    assert "is finished" in ended.out
    jobs = [
        composition.compose("config", f"compute.overlap={x}").cfg for x in (True, False)
    ]
    assert len({settings_hash(_root_=job) for job in jobs}) == 2


def test_a_sweep_finds_its_jobs_although_there_are_new_settings():
    """In what was composed before there was one, it is not."""
    cfg = composition.compose("config", "task=kneeling").cfg
    names = {settings_hash(_root_=cfg)}
    with open_dict(cfg):
        del cfg.reward.query_share, cfg.compute
    names.add(settings_hash(_root_=cfg))
    assert len(names) == 1
    cfg.reward.every = 5
    names.add(settings_hash(_root_=cfg))
    assert len(names) == 2


@pytest.mark.slow
def test_a_finished_run_of_a_version_with_less_settings_is_finished(
    tmp_path, program, monkeypatch
):
    run, small = finished_run(tmp_path, program, monkeypatch)
    older = yaml.safe_load((run / "config.yaml").read_text())
    del older["reward"]["query_share"]
    (run / "config.yaml").write_text(yaml.safe_dump(older))
    ended = program(*small)
    assert (ended.code, "is finished" in ended.out) == (0, True)
    ended = program(*small, "reward.query_share=0.5")
    assert ended.code == 2
    assert "reward.query_share=0.5 (was 1.0)" in ended.err


@pytest.mark.slow
def test_a_run_that_was_killed_before_its_first_state_starts_anew(
    tmp_path, program, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    small = "experiment=smoke", "reward=environment", "log=none", "name=mine"
    assert program(*small).code == 0
    run = tmp_path / "outputs" / "mountaincar" / "mine"
    expected = read_metrics(run)
    (run / "summary.json").unlink()
    assert program(*small).code == 0
    assert read_metrics(run) == expected

    versions = json.loads((run / "versions.json").read_text())
    del versions["run_format"]  # as before states were saved
    (run / "versions.json").write_text(json.dumps(versions))
    (run / "summary.json").unlink()
    ended = program(*small)
    assert ended.code == 2
    assert "holds a run of an older version" in ended.err
    assert read_metrics(run) == expected


def finished_run(tmp_path, program, monkeypatch) -> tuple[Path, tuple[str, ...]]:
    monkeypatch.chdir(tmp_path)
    small = "experiment=smoke", "reward=environment", "log=none", "name=mine"
    assert program(*small).code == 0
    return tmp_path / "outputs" / "mountaincar" / "mine", small


@pytest.mark.slow
def test_what_a_damaged_folder_lacks_is_one_sentence(tmp_path, program, monkeypatch):
    run, small = finished_run(tmp_path, program, monkeypatch)
    (run / "config.yaml").write_text("")
    ended = program(*small)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "holds a run of other settings, algo.batch_size=" in ended.err
    (tmp_path / "own").mkdir()
    for name in ("config.yaml", "summary.json"):
        (tmp_path / "own" / name).write_text("mine: 1")
    ended = program(*small[:-1], "hydra.run.dir=own")
    assert "holds files that a run would overwrite" in ended.err
    # As a full disk leaves a run: a policy, but neither metrics nor a state.
    (run / "metrics.jsonl").write_text("")
    for name in ("summary.json", "config.yaml"):
        (run / name).unlink()
    assert (run / "checkpoints" / "last.pt").exists()
    assert program(*small).code == 0
    assert sorted(p.name for p in (tmp_path / "own").iterdir()) == [
        "config.yaml", "summary.json"]  # fmt: skip


def test_metrics_that_lost_lines_are_told(tmp_path):
    saved_run(tmp_path)
    kept = load(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match="shorter than when the run's state was"):
        with point_mass(tmp_path, saved=kept["log"]):
            pass
    assert (tmp_path / "metrics.jsonl").read_text() == "{}\n"


@pytest.mark.slow
def test_jobs_that_would_share_a_folder_are_refused(tmp_path, program, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ("experiment=smoke", "reward=environment", "log=none", "sweep=mine", "-m")
    ended = program(*small, "compute.torch_threads=1,2")
    assert ended.code == 2
    assert "job 0 has the same settings but for compute and log" in ended.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_a_schedulers_signal_saves_and_asks_to_be_started_again(tmp_path):
    run = tmp_path / "outputs/mountaincar/mine"
    process = start(tmp_path, "env_steps=160000")
    deadline = time.monotonic() + 600  # of a busy machine
    while not ((run / "metrics.jsonl").exists() and read_metrics(run)):
        assert time.monotonic() < deadline, "no report"
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert f"hydra.run.dir={run} goes on from here" in told
    assert load(run)["state"]["learned_steps"] == read_metrics(run)[-1]["env_steps"]
    assert not (run / "summary.json").exists()


@pytest.mark.parametrize("name", ["sweep", "lr=1,2 (a's)"])
def test_what_goes_on_is_told_as_it_was_begun(tmp_path, capsys, name):
    run = tmp_path / name / "job"
    for key, path in ("hydra.run.dir", run), ("hydra.sweep.dir", run.parent):
        with pytest.raises(SystemExit):
            requeue(signal.SIGTERM, run)
        told = capsys.readouterr().out.partition(" with ")[2].partition(" goes on")[0]
        (word,) = shlex.split(told)
        override = OverridesParser.create().parse_override(word)
        assert (override.key_or_group, override.value()) == (key, str(path))
        run.mkdir(parents=True, exist_ok=True)
        (run.parent / "multirun.yaml").touch()


@pytest.mark.long
def test_a_signal_in_the_final_evaluation_asks_to_be_started_again(
    tmp_path, program, monkeypatch
):
    words = ("env_steps=1600", "task.episode_length=200")
    words += ("evaluation.final_episodes=300",)  # time enough for the signal
    process, run = start(tmp_path, *words), tmp_path / "outputs/mountaincar/mine"
    wait_for_state(process, run)  # after the only rollout, so training is over
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert not (run / "summary.json").exists()
    monkeypatch.chdir(tmp_path)
    again = program(*SMALL, *words)
    assert again.code == 0, again.err
    assert "Going on with" in again.out
    assert json.loads((run / "summary.json").read_text())["eval/episodes"] == 300


@pytest.mark.long
def test_a_sweep_whose_processes_are_killed_ends_as_an_undisturbed_one(tmp_path):
    """A short form of scripts/chaos.py's fifty kills."""
    script = Path(__file__).resolve().parents[1] / "scripts" / "chaos.py"
    words = [sys.executable, str(script), "--kills", "4", "--folder", str(tmp_path)]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout
    assert ended.stdout.endswith("no difference.\n")
