"""`scripts/train_on_captions.py`: what a perfect embedded model would reward."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from vlmrm_exp.envs.goals import GOALS, HumanoidGoal
from vlmrm_exp.peak import search
from vlmrm_exp.reward import Episodes

pytestmark = pytest.mark.slow

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def script(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("train_on_captions")


@pytest.mark.slow
@pytest.mark.parametrize("task", GOALS)
def test_pose_of_highest_reward_meets_the_task(script, compose, task):
    """Else nothing that is trained on the captions could be a good reward."""
    model = script.CaptionReward(compose(f"task={task}"))

    def reward(states: np.ndarray) -> np.ndarray:
        return model.rewards(Episodes(states=states[None]))[0]

    searched = [
        search(reward, 30, np.random.default_rng(seed), upright=seed == 0)
        for seed in range(2)
    ]
    states, _ = max(searched, key=lambda found: found[1][0])
    assert HumanoidGoal(task)(states).mean() > 0.5


@pytest.mark.slow
def test_training_needs_no_model(script, program, tmp_path):
    settings = ["task=lotus", "experiment=smoke", "log=none", "compute.overlap=false"]
    ended = program(*script.WORDS, *settings, f"hydra.run.dir={tmp_path}/run")
    assert ended.code == 0, ended.err
    versions = json.loads((tmp_path / "run" / "versions.json").read_text())
    assert "encoder" not in versions
    assert versions["reward"] == "the captions' own probabilities"
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["eval/reward_mean"] < 0.3  # nobody sits by chance
