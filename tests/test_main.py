"""The program as its users start it: real renders, real embeddings, real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from point_mass import read_metrics
from vlmrm_exp.rl.policy import load_policy
from vlmrm_exp.run_folder import load_run_config

pytestmark = pytest.mark.slow

SMOKE = ("experiment=smoke", "log=none", "clip=nano")


def smoke(program, folder: Path, *words: str) -> dict:
    """Run in `folder` and return the summary."""
    ended = program(*SMOKE, f"hydra.run.dir={folder}", *words)
    assert ended.code == 0, ended.err
    return json.loads((folder / "summary.json").read_text())


def test_run_leaves_the_folder_that_is_promised(program, tmp_path):
    (tmp_path / "error.txt").write_text("of a start that failed")
    words = "experiment=smoke", "log=offline", "clip=nano", "compute.workers=0"
    assert program(*words, f"hydra.run.dir={tmp_path}").code == 0
    for name in (
        ".hydra/overrides.yaml",
        "config.yaml",
        "versions.json",
        "metrics.jsonl",
        "checkpoints/best.pt",
        "checkpoints/last.pt",
        "videos/eval.mp4",
        "wandb",
    ):
        assert (tmp_path / name).exists(), name
    assert not (tmp_path / "error.txt").exists()
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    summary = json.loads((tmp_path / "summary.json").read_text())
    expected = {"task": "mountaincar", "clip": "nano", "seed": 0, "env_steps": 40}
    assert expected.items() <= summary.items()
    assert summary["gradient_steps"] == 4
    assert summary["eval/episodes"] == 2
    versions = json.loads((tmp_path / "versions.json").read_text())
    assert versions["drawn_by"].startswith("pygame-ce")
    kept = load_policy(tmp_path / "checkpoints" / "best.pt").env_steps
    assert kept == summary["best_env_steps"]
    assert load_policy(tmp_path / "checkpoints" / "last.pt").env_steps == 40


@pytest.mark.parametrize(
    ("task", "workers"),
    [
        ("mountaincar", 0),
        ("cartpole", 0),
        pytest.param("kneeling", 2, marks=pytest.mark.long),
    ],
)
def test_same_seed_gives_the_same_metrics_with_any_number_of_workers(
    program, tmp_path, task, workers
):
    metrics = []
    for seed, count in ((3, 0), (3, workers), (4, 0)):
        folder = tmp_path / str(len(metrics))
        words = f"task={task}", f"seed={seed}", f"compute.workers={count}"
        smoke(program, folder, *words)
        metrics.append(read_metrics(folder))
    assert len(metrics[0]) == 2  # one line per rollout
    assert metrics[0] == metrics[1]
    assert metrics[0] != metrics[2]


@pytest.mark.parametrize(
    ("env_id", "algo"), [("Pendulum-v1", "sac"), ("Acrobot-v1", "dqn")]
)
def test_any_gymnasium_id_is_learned_from_a_sentence(program, tmp_path, env_id, algo):
    summary = smoke(
        program,
        tmp_path,
        "task=gym",
        f"task.env_id={env_id}",
        f"algo={algo}",
        "compute.workers=0",
        "prompt=a pendulum, standing upright",
        "baseline=a pendulum",
        "alpha=0.5",
    )
    assert summary["task"] == f"gym-{env_id}"
    assert summary["prompt"] == ["a pendulum, standing upright"]
    assert summary["gradient_steps"] == 4


@pytest.mark.long
@pytest.mark.parametrize("clip", ["rn50", "vitb32"])
def test_backbones_take_the_same_path_with_random_weights(program, tmp_path, clip):
    words = f"clip={clip}", "clip.pretrained=random", "clip.frame_height=64"
    summary = smoke(program, tmp_path, *words, "compute.workers=0")
    assert summary["clip"] == clip
    assert summary["eval/reward_mean"] is not None
    encoder = json.loads((tmp_path / "versions.json").read_text())["encoder"]
    assert encoder["image_size"] == [224, 224]
    assert encoder["weights"].startswith("random")


def test_the_environments_reward_needs_no_model(program, tmp_path):
    missing = f"clip.model=local-dir:{tmp_path}/nothing"
    summary = smoke(program, tmp_path, "reward=environment", missing)
    assert summary["eval/return_mean"] == pytest.approx(
        summary["eval/reward_mean"] * 10, rel=1e-4
    )


def test_any_sentence_is_read_back_as_it_was_typed(program, tmp_path):
    sentence = r"a car ${x}, $y: it's \ 'there' #1"
    words = "reward=environment", "env_steps=20", f"prompt={sentence}"
    assert smoke(program, tmp_path, *words)["prompt"] == [sentence]
    assert load_run_config(tmp_path).prompts == [sentence]


def test_a_predicate_needs_no_model(program, tmp_path):
    missing = f"clip.model=local-dir:{tmp_path}/nothing"
    words = "task=cartpole", "reward=predicate", "task.episode_length=20", missing
    summary = smoke(program, tmp_path, *words)
    assert 0 < summary["eval/reward_mean"] <= 1
    assert summary["eval/return_mean"] == pytest.approx(
        summary["eval/reward_mean"] * 20, rel=1e-4
    )


def test_sweep_goes_on_after_failed_jobs_and_tells_of_each(program, tmp_path):
    sweep = f"hydra.sweep.dir={tmp_path}/sweep"
    rates = "algo.learning_rate=1e30,2e30,3e-4"
    ended = program("-m", *SMOKE, "reward=environment", rates, sweep)
    folders = [path for path in (tmp_path / "sweep").iterdir() if path.is_dir()]
    failed = [path for path in folders if (path / "error.txt").exists()]
    [done] = [path for path in folders if path not in failed]
    assert ended.code == 1
    for number, folder in enumerate(failed):
        assert f"Job {number} (" in ended.err
        assert "learning diverged" in (folder / "error.txt").read_text()
    assert "2 of the sweep's jobs failed" in ended.err.splitlines()[-1]
    assert (done / "summary.json").exists()
    assert not (done / "error.txt").exists()


def test_a_sweep_with_an_impossible_job_does_not_begin(program, tmp_path):
    sweep = f"hydra.sweep.dir={tmp_path}/sweep"
    ended = program("-m", *SMOKE, "reward=environment", "alpha=0,2", sweep)
    assert ended.code == 2
    assert "Job 1 of 2 (" in ended.err
    assert "alpha is 2.0" in ended.err
    words = "seed=1,0", "evaluation.episodes=${seed}"  # of each job, not seed's default
    ended = program("-m", *SMOKE, "reward=environment", *words, sweep)
    assert "Job 1 of 2 (" in ended.err
    assert "evaluation.episodes is 0" in ended.err
    assert list(tmp_path.iterdir()) == []


def test_a_choice_of_prompts_is_swept(program, tmp_path):
    sweep = f"hydra.sweep.dir={tmp_path}/sweep"
    words = "reward=environment", "env_steps=20", 'prompt=choice("a car, red",[b, c])'
    assert program("-m", *SMOKE, *words, sweep).code == 0
    folders = (tmp_path / "sweep").glob("mountaincar-*")
    prompts = [load_run_config(folder).prompts for folder in folders]
    assert sorted(prompts) == [["a car, red"], ["b", "c"]]


def test_a_sweep_file_has_options_of_ones_own(program, tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(
        "defaults: [config, _self_]\n"
        f"hydra: {{mode: MULTIRUN, sweep: {{dir: {tmp_path}/sweep}}, sweeper: "
        "{params: {reward.options.mine: '1,2', ++task.options.mass: 3}}}\n"
    )
    ended = program(str(file), *SMOKE, "reward=environment", "env_steps=20")
    assert ended.code == 0, ended.err
    jobs = [load_run_config(f) for f in (tmp_path / "sweep").glob("mountaincar-*")]
    options = sorted((job.reward.options["mine"], job.task.options) for job in jobs)
    assert options == [(1, {"mass": 3}), (2, {"mass": 3})]


def test_what_is_refused_late_leaves_things_as_they_were(
    program, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    wrong = "task=gym", "task.env_id=Nope-v0", "prompt=a", "baseline=b"
    assert program(*SMOKE, *wrong).code == 2
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert program(*SMOKE, *wrong, "hydra.run.dir=mine").code == 2
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_name_that_is_taken_leaves_that_run_as_it_is(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "outputs" / "mountaincar" / "mine"
    (run / ".hydra").mkdir(parents=True)
    (run / "metrics.jsonl").write_text("{}\n")
    for words in (["seed=1"], ["alpha=2"]):
        ended = program(*SMOKE, *words, "name=mine")
        assert ended.code == 2
        assert list((run / ".hydra").iterdir()) == []
        assert sorted(path.name for path in run.iterdir()) == [
            ".hydra", "metrics.jsonl"]  # fmt: skip
    assert "alpha is 2.0" in ended.err
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "metrics.jsonl").write_text("{}\n")
    ended = program(*SMOKE, f"hydra.run.dir={elsewhere}")
    assert ended.code == 2
    assert "holds a run of other settings" in ended.err
    assert not (elsewhere / "error.txt").exists()


@pytest.mark.long
def test_ctrl_c_writes_summary_checkpoint_and_video(tmp_path):
    words = "clip=nano", "task.episode_length=20", "compute.workers=1"
    process = start(tmp_path, *words)
    wait_for_report(process, tmp_path)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: workers get it too
    process.communicate(timeout=120)
    assert process.returncode == 130
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["interrupted"] is True
    assert 0 < summary["env_steps"] < 40_000
    for name in ("checkpoints/best.pt", "checkpoints/last.pt", "videos/eval.mp4"):
        assert (tmp_path / name).exists(), name


@pytest.mark.long
def test_ctrl_c_again_stops_at_once_and_says_what_is_there(tmp_path):
    process = start(
        tmp_path, "reward=environment", "evaluation.episodes=1000",
        "evaluation.every=1000000",
    )  # fmt: skip
    wait_for_report(process, tmp_path)
    os.killpg(process.pid, signal.SIGINT)
    told = ""
    while "Interrupted: writing" not in told:
        told = process.stdout.readline()
        assert told, "ended by itself"
    os.killpg(process.pid, signal.SIGINT)
    rest, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Stopped at once" in rest
    assert "nothing was learned" not in rest
    assert not (tmp_path / "summary.json").exists()


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "vlmrm_exp", "log=none", *words,
         f"hydra.run.dir={folder}"],
        cwd=folder, start_new_session=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for_report(process, folder):
    deadline = time.monotonic() + 120
    while not ((folder / "metrics.jsonl").exists() and read_metrics(folder)):
        assert time.monotonic() < deadline, "no first report"
        assert process.poll() is None, "ended by itself"
        time.sleep(0.2)


def test_prompt_longer_than_the_context_is_refused_before_weights(program, tmp_path):
    words = f"prompt={'a car ' * 60}", "compute.workers=0"
    ended = program(*SMOKE, *words, f"hydra.run.dir={tmp_path}/a/run")
    assert ended.code == 2
    assert ended.err.count("\n") == 1, ended.err
    assert "tokens" in ended.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../../evil", "", ".."])
def test_a_name_that_is_another_folder_is_refused_before_any_is_made(
    program, tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    ended = program(f"name={name}")
    assert ended.code == 2
    assert f"name is {name!r}, but it becomes a folder" in ended.err
    assert list(tmp_path.parent.glob("evil")) == list(tmp_path.iterdir()) == []
