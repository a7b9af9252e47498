"""`scripts/train_on_captions.py`: what a perfect embedded model would reward."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from vlmrm_exp.envs.goals import GOALS, HumanoidGoal
from vlmrm_exp.reward import Episodes

SCRIPTS = Path("/work/main/scripts")


@pytest.fixture
def script(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("train_on_captions")


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
