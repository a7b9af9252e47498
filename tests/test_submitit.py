"""Sweeps whose jobs are started by submitit, with its executor of this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from point_mass import read_metrics

pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
pytestmark = pytest.mark.long

SWEEP = (
    "-m sweep=mine task=mountaincar reward=environment log=none seed=0 env_steps=4800 "
    "algo.gradient_steps=100 algo.random_steps=1600 evaluation.every=1600 "
    "evaluation.episodes=2 evaluation.final_episodes=4 evaluation.reward_episodes=2 "
    "evaluation.video_episodes=1 compute=cpu compute.checkpoint_s=0"
).split()
SUBMITIT = ("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10")
PATIENCE_S = 300


def start(folder: Path, *words: str) -> "subprocess.Popen[str]":
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "vlmrm_exp", *SWEEP, *words]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def the_run(folder: Path) -> Path:
    (run,) = (folder / "outputs" / "sweeps" / "mine").glob("mountaincar-*")
    return run


def tasks_of(folder: Path) -> list[int]:
    """Processes that do a job of submitit's whose records are in this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_text().split("\0")
            ours = Path(os.readlink(path / "cwd")) == folder
        except OSError:
            continue
        if ours and "submitit.core._submit" in command:
            found.append(int(path.name))
    return found


def test_a_preempted_job_is_started_again_and_goes_on(tmp_path, program, monkeypatch):
    """Its scheduler sends SIGUSR2; the run is that of an undisturbed sweep."""
    (tmp_path / "calm").mkdir()
    monkeypatch.chdir(tmp_path / "calm")
    assert program(*SWEEP).code == 0
    folder = tmp_path / "preempted"
    sweep = start(folder, *SUBMITIT)
    deadline = time.monotonic() + PATIENCE_S
    while not list(folder.glob("outputs/sweeps/mine/*/checkpoints/state.pt")):
        assert time.monotonic() < deadline, sweep.communicate()
        time.sleep(0.1)
    (task,) = tasks_of(folder)
    os.kill(task, signal.SIGUSR2)
    text, _ = sweep.communicate(timeout=PATIENCE_S)
    assert sweep.returncode == 0, text
    (log,) = folder.glob("outputs/sweeps/mine/.submitit/*/*_log.out")
    assert "Going on with" in log.read_text()
    calm, preempted = the_run(tmp_path / "calm"), the_run(folder)
    assert read_metrics(preempted) == read_metrics(calm)
    summaries = [
        json.loads((x / "summary.json").read_text()) for x in (calm, preempted)
    ]
    assert summaries[0]["eval/reward_mean"] == summaries[1]["eval/reward_mean"]
    assert not list(preempted.glob("**/.*.part*"))
