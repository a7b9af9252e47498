"""The program as its users start it: real renders, real embeddings, real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vlmrm_exp.rl.policy import load_policy

pytestmark = pytest.mark.slow

SMOKE = ("experiment=smoke", "log=none")


def start(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vlmrm_exp", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def smoke(folder: Path, *arguments: str) -> dict:
    """Run in `folder` and return the summary."""
    result = start(folder, *SMOKE, f"hydra.run.dir={folder}", *arguments)
    assert result.returncode == 0, result.stderr
    return json.loads((folder / "summary.json").read_text())


def metrics(folder: Path) -> list[dict]:
    """Lines of metrics.jsonl without times."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in m.items() if not k.startswith("perf/")} for m in lines]


def test_run_leaves_the_folder_that_is_promised(tmp_path):
    (tmp_path / "error.txt").write_text("of a start that failed")
    summary = smoke(tmp_path, "log=offline")
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
    expected = {"task": "mountaincar", "clip": "base", "seed": 0, "env_steps": 40}
    assert expected.items() <= summary.items()
    assert summary["gradient_steps"] == 4
    assert summary["eval/episodes"] == 2
    versions = json.loads((tmp_path / "versions.json").read_text())
    assert versions["drawn_by"].startswith("pygame-ce")
    kept = load_policy(tmp_path / "checkpoints" / "best.pt").env_steps
    assert kept == summary["best_env_steps"]
    assert load_policy(tmp_path / "checkpoints" / "last.pt").env_steps == 40


@pytest.mark.parametrize(
    ("task", "workers", "seeds"),
    [("mountaincar", 1, (3, 3, 4)), ("cartpole", 0, (3, 3)), ("kneeling", 0, (3, 3))],
)
def test_same_seed_gives_the_same_metrics(tmp_path, task, workers, seeds):
    runs = []
    for number, seed in enumerate(seeds):
        folder = tmp_path / str(number)
        folder.mkdir()
        choices = f"task={task}", f"seed={seed}", f"compute.scorer_workers={workers}"
        smoke(folder, *choices)
        runs.append(metrics(folder))
    assert len(runs[0]) == 2  # one line per labelled rollout
    assert runs[0] == runs[1]
    assert runs[0] not in runs[2:]


@pytest.mark.parametrize(
    ("env_id", "algo"), [("Pendulum-v1", "sac"), ("Acrobot-v1", "dqn")]
)
def test_any_gymnasium_id_is_learned_from_a_sentence(tmp_path, env_id, algo):
    summary = smoke(
        tmp_path,
        "task=gym",
        f"task.env_id={env_id}",
        f"algo={algo}",
        "prompt=a pendulum, standing upright",
        "baseline=a pendulum",
        "alpha=0.5",
    )
    assert summary["task"] == f"gym-{env_id}"
    assert summary["prompt"] == ["a pendulum, standing upright"]
    assert summary["gradient_steps"] == 4


@pytest.mark.parametrize("clip", ["rn50", "vitb32"])
def test_backbones_take_the_same_path_with_random_weights(tmp_path, clip):
    summary = smoke(
        tmp_path, f"clip={clip}", "clip.pretrained=random", "clip.frame_height=64"
    )
    assert summary["clip"] == clip
    assert summary["eval/reward_mean"] is not None
    encoder = json.loads((tmp_path / "versions.json").read_text())["encoder"]
    assert encoder["image_size"] == [224, 224]
    assert encoder["weights"].startswith("random")


def test_ground_truth_needs_no_model(tmp_path):
    missing = f"clip.model=local-dir:{tmp_path}/nothing"
    summary = smoke(tmp_path, "reward=ground_truth", missing)
    assert summary["eval/return_mean"] == pytest.approx(
        summary["eval/reward_mean"] * 10, rel=1e-4
    )


def test_sweep_goes_on_after_a_failed_job(tmp_path):
    result = start(tmp_path, "-m", *SMOKE, "alpha=2,0", "hydra.sweep.dir=sweep")
    failed, done = sorted((tmp_path / "sweep").glob("[01]-*"))
    assert result.returncode != 0
    assert "alpha is 2.0" in result.stderr
    assert "alpha is 2.0" in (failed / "error.txt").read_text()
    assert (done / "summary.json").exists()
    assert not (done / "error.txt").exists()


@pytest.mark.parametrize("setting", ["seed=1", "alpha=2"])
def test_a_refused_start_leaves_a_run_as_it_is(tmp_path, setting):
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    result = start(tmp_path, *SMOKE, setting, f"hydra.run.dir={tmp_path}")
    assert result.returncode == 2
    assert "holds a run already" in result.stderr
    assert not (tmp_path / "error.txt").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_writes_summary_checkpoint_and_video(tmp_path, number):
    process = subprocess.Popen(
        [sys.executable, "-m", "vlmrm_exp", "task=mountaincar", "log=none",
         "task.episode_length=20", f"hydra.run.dir={tmp_path}"],
        cwd=tmp_path, start_new_session=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for_report(process, tmp_path)
    os.killpg(process.pid, number)  # as a terminal does: workers get it too
    assert process.wait(timeout=120) == 130
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["interrupted"] is True
    assert 0 < summary["env_steps"] < 40_000
    for name in ("checkpoints/best.pt", "checkpoints/last.pt", "videos/eval.mp4"):
        assert (tmp_path / name).exists(), name


def test_ctrl_c_again_stops_at_once_and_says_what_is_there(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "vlmrm_exp", "task=mountaincar", "log=none",
         "evaluation.episodes=1000", "evaluation.every=1000000",
         "task.episode_length=200", f"hydra.run.dir={tmp_path}"],
        cwd=tmp_path, start_new_session=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for_report(process, tmp_path)
    os.killpg(process.pid, signal.SIGINT)
    assert process.stdout is not None
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


def wait_for_report(process, folder):
    deadline = time.monotonic() + 120
    while not ((folder / "metrics.jsonl").exists() and metrics(folder)):
        assert time.monotonic() < deadline, "no first report"
        assert process.poll() is None, "ended by itself"
        time.sleep(0.2)


def test_prompt_longer_than_the_context_is_refused_before_weights(tmp_path):
    long = "a car " * 60
    result = start(tmp_path, *SMOKE, f"prompt={long}", f"hydra.run.dir={tmp_path}")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1, result.stderr
    assert "context" in result.stderr or "tokens" in result.stderr


@pytest.mark.parametrize("name", ["../../evil", "", ".."])
def test_a_name_that_is_another_folder_is_refused_before_any_is_made(tmp_path, name):
    result = start(tmp_path, f"name={name}")
    assert result.returncode == 2
    assert f"name is {name!r}, but it becomes a folder" in result.stderr
    assert list(tmp_path.parent.glob("evil")) == list(tmp_path.iterdir()) == []
