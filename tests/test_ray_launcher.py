"""A sweep whose jobs Ray starts, on a cluster of this machine alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from point_mass import read_metrics

pytest.importorskip("hydra_plugins.hydra_ray_launcher")
pytestmark = pytest.mark.slow

SWEEP = (
    "-m sweep=mine experiment=smoke reward=environment log=none seed=0,1 compute=cpu"
).split()
RAY = (
    "hydra/launcher=ray_cluster hydra.launcher.ray.init.address=null "
    "hydra.launcher.ray.remote.num_gpus=0 hydra.launcher.ray.remote.num_cpus=1"
).split()


def sweep(folder: Path, *words: str) -> str:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "vlmrm_exp", *SWEEP, *words]
    told = os.environ | {"RAY_AUTH_MODE": "disabled"}  # or it writes into the home
    done = subprocess.run(command, cwd=folder, env=told, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_jobs_on_ray_are_those_of_this_process(tmp_path):
    sweep(tmp_path / "here")
    sweep(tmp_path / "ray", *RAY)
    jobs = [
        sorted((tmp_path / kind / "outputs/sweeps/mine").glob("mountaincar-*"))
        for kind in ("here", "ray")
    ]
    assert [job.name for job in jobs[0]] == [job.name for job in jobs[1]]
    assert len(jobs[0]) == 2
    for here, there in zip(*jobs, strict=True):
        assert read_metrics(here) == read_metrics(there)
        assert json.loads((there / "summary.json").read_text())["eval/episodes"]
    assert "nothing is left to do" in sweep(tmp_path / "ray", *RAY)
