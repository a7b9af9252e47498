"""`scripts/train_on_captions.py`: what a perfect embedded model would reward."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from vlmrm_exp.envs.goals import GOALS, HumanoidGoal
from vlmrm_exp.peak import search

SCRIPT = Path(__file__).parents[1] / "scripts" / "train_on_captions.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("task", GOALS)
def test_pose_of_highest_reward_meets_the_task(script, task):
    """Else nothing that is trained on the captions could be a good reward."""
    scorer = script.CaptionScorer(task)
    searched = [
        search(scorer.score, 30, np.random.default_rng(seed), upright=seed == 0)
        for seed in range(2)
    ]
    rows, _ = max(searched, key=lambda found: found[1][0])
    assert HumanoidGoal(task)(rows).mean() > 0.5


@pytest.mark.slow
def test_training_needs_no_model(tmp_path):
    settings = ["task=lotus", "experiment=smoke", "log=none", "compute.overlap=false"]
    subprocess.run(
        [sys.executable, SCRIPT, *settings, f"hydra.run.dir={tmp_path}"], check=True
    )
    versions = json.loads((tmp_path / "versions.json").read_text())
    assert "encoder" not in versions
    assert versions["reward"] == "the captions' own probabilities"
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["eval/reward_mean"] < 0.3  # nobody sits by chance
