"""`python -m vlmrm_exp.peak`: the search, against a peak that is known."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from vlmrm_exp.cli import composed
from vlmrm_exp.study.embeddings import Embedder
from vlmrm_exp.study.state_sets import StateSet, draw_states

from vlmrm_exp.config import ConfigError
from vlmrm_exp.envs.goals import HumanoidGoal
from vlmrm_exp.envs.humanoid import NUM_QPOS
from vlmrm_exp.envs.poses import ARMS, LEGS, PoseLibrary
from vlmrm_exp.peak import GOAL_STATES, look_for, parse, report, resolve, search
from vlmrm_exp.vlm.source import EMBEDDED


@pytest.mark.parametrize("upright", [True, False])
def test_search_finds_the_pose_that_is_rewarded(upright):
    """Of 17 angles; the reward falls with the squared distance to a kneeling pose."""
    legs = next(pose for pose in LEGS if pose.name == "kneeling")
    arms = next(pose for pose in ARMS if pose.name == "raised")
    wanted = PoseLibrary().row(legs, arms)

    def reward(rows: np.ndarray) -> np.ndarray:
        turned = 1 - (rows[:, 3:7] @ wanted[3:7]) ** 2
        apart = rows[:, 7:NUM_QPOS] - wanted[7:NUM_QPOS]
        return -(apart**2).sum(axis=1) - 10 * turned

    rows, rewards = search(reward, 60, np.random.default_rng(0), upright)
    assert (np.diff(rewards) <= 0).all()
    np.testing.assert_allclose(rewards, reward(rows))
    assert rewards[0] > -0.1  # all 17 angles within 4 degrees, on average
    assert HumanoidGoal("kneeling")(rows).mean() > 0.5


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["searches=0"], "searches is 0"),
        (["rounds=-1"], "rounds is -1"),
        (["seed=-1"], "seed is -1"),
        (["alpha=2"], "alpha is 2"),
        (["task=cartpole"], "task=cartpole has no poses"),
        (["task=gym"], "task=gym has no poses"),
        (["task=kneel"], "Did you mean kneeling"),
        (["task=kneeling,lotus", "prompt=a robot"], "prompt is of one task"),
        (["prompt="], "prompt is empty"),
        (["task=kneeling,kneeling"], "twice"),
    ],
)
def test_impossible_search_is_one_sentence(arguments, says):
    with pytest.raises(ConfigError, match=says):
        resolve(parse(arguments))


def test_rewards_that_are_no_numbers_are_refused(tmp_path):
    """Else a model of damaged weights has a table of nan."""
    model = tmp_path / "model"
    shutil.copytree(EMBEDDED / "nano", model)
    weights = load_file(model / "open_clip_model.safetensors")
    for name, value in weights.items():
        if name.startswith("visual.") and value.is_floating_point():
            value.fill_(float("nan"))
    save_file(weights, model / "open_clip_model.safetensors")
    asked = [f"clip=local-dir:{model}", "rounds=1", "searches=1"]
    with pytest.raises(ConfigError, match="not a finite number"):
        look_for(parse([*asked, f"cache={tmp_path}/cache", f"out={tmp_path}/out"]))


def test_search_that_fell_short_is_said():
    row = {"task": "lotus", "clip": "nano", "alpha": 0.0, "meets": 0.0,
           "meets_each_search": [0.0], "reward_goal_states": 0.5,
           "reward_peak": 0.4}  # fmt: skip
    assert "says nothing there: lotus" in report([{**row, "fell_short": True}])
    assert "says nothing" not in report([{**row, "fell_short": False}])


@pytest.mark.slow
def test_peak_is_the_reward_that_a_run_would_give(tmp_path, capsys):
    base = "a robot that is small"
    asked = ["task=kneeling,lotus", "clip=nano", "alpha=0.5", "camera=track+side"]
    asked.append(f"baseline={base}")
    small = ["rounds=2", "searches=2", f"cache={tmp_path}/cache", f"out={tmp_path}/out"]
    look_for(parse([*asked, *small]))
    written = json.loads((tmp_path / "out" / "peak.json").read_text())
    rows = written["rows"]
    assert written["models"]["nano"]["model"] == "embedded"
    assert [row["task"] for row in rows] == ["kneeling", "lotus"]
    for row in rows:
        found = np.array(row["rows"])
        assert row["meets"] == HumanoidGoal(row["task"])(found).mean()
        config = composed(
            f"task={row['task']}",
            "clip=nano",
            "task.camera=track+side",
            "alpha=0.5",
            f"baseline={base}",
        )
        embedder = Embedder(config.clip, torch.device("cpu"), tmp_path / "kept")
        states = StateSet("humanoid", np.full(len(found), "found"), found)
        reward = embedder.reward(
            embedder.embed(states, config.task), config.prompts, config.baselines, 0.5
        )
        np.testing.assert_allclose(row["rewards"], reward, atol=1e-5)
        assert row["reward_peak"] == max(row["rewards"])
        assert row["reward_peak"] == max(row["reward_each_search"])
        assert len(set(row["reward_each_search"])) == 2
        drawn = draw_states(config.task, GOAL_STATES)
        goals = drawn.rows[HumanoidGoal(row["task"])(drawn.rows)]
        assert row["goal_states"] == len(goals) > 10
        states = StateSet("humanoid", np.full(len(goals), "goal"), goals)
        of_goals = embedder.reward(
            embedder.embed(states, config.task), config.prompts, config.baselines, 0.5
        )
        assert row["reward_goal_states"] == pytest.approx(of_goals.max(), abs=1e-5)
        assert row["fell_short"] == (row["reward_peak"] < row["reward_goal_states"])
        assert row["camera"] == "track+side"
    assert "highest of goal states" in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "peak.png") as picture:
        assert picture.width > 800
