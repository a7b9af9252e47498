"""`python -m vlmrm_exp.peak`: the search, against a peak that is known."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import studies
from studies import Folders
from vlmrm_exp import peak
from vlmrm_exp.config import ConfigError
from vlmrm_exp.envs import world_of
from vlmrm_exp.envs.goals import HumanoidGoal
from vlmrm_exp.envs.humanoid import NUM_QPOS
from vlmrm_exp.envs.poses import ARMS, LEGS, PoseLibrary
from vlmrm_exp.peak import report, search
from vlmrm_exp.studies.rewards import Clip
from vlmrm_exp.studies.state_sets import StateSet

pytestmark = pytest.mark.slow


def asked(*words: str) -> peak.Study:
    return studies.asked(peak, *words)


@pytest.mark.parametrize("upright", [True, False])
def test_search_finds_the_pose_that_is_rewarded(upright):
    """Of 17 angles; the reward falls with the squared distance to a kneeling pose."""
    legs = next(pose for pose in LEGS if pose.name == "kneeling")
    arms = next(pose for pose in ARMS if pose.name == "raised")
    wanted = PoseLibrary().state(legs, arms)

    def reward(states: np.ndarray) -> np.ndarray:
        turned = 1 - (states[:, 3:7] @ wanted[3:7]) ** 2
        apart = states[:, 7:NUM_QPOS] - wanted[7:NUM_QPOS]
        return -(apart**2).sum(axis=1) - 10 * turned

    states, rewards = search(reward, 50, np.random.default_rng(0), upright)
    assert (np.diff(rewards) <= 0).all()
    np.testing.assert_allclose(rewards, reward(states))
    assert rewards[0] > -0.1  # all 17 angles within 4 degrees, on average
    assert HumanoidGoal("kneeling")(states).mean() > 0.5


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["searches=0"], "searches is 0"),
        (["rounds=-1"], "rounds is -1"),
        (["task=cartpole"], "task=cartpole is no humanoid task with a goal"),
        (["task.goal="], "task=kneeling is no humanoid task with a goal"),
        (["task=gym"], "task=gym has no states"),
        (["task=kneeling,lotus", "prompt=a robot"], "prompt is of one task"),
        (["task=kneeling,kneeling"], "twice"),
    ],
)
def test_impossible_search_is_one_sentence(words, says):
    with pytest.raises(ConfigError, match=says) as caught:
        asked(*words, "out=x")
    assert "\n" not in str(caught.value)


@pytest.fixture
def folders(tmp_path, monkeypatch) -> Folders:
    """For a search in small."""
    monkeypatch.setattr(peak, "GOAL_STATES", 100)
    monkeypatch.setattr(peak, "POPULATION", 24)
    return Folders(tmp_path)


def test_rewards_that_are_no_numbers_are_refused(tmp_path, folders):
    """Else a model of damaged weights has a table of nan."""
    clip = studies.damaged_model(tmp_path / "model")
    words = [f"clip={clip}", "rounds=1", "searches=1", *folders]
    with pytest.raises(ConfigError, match="not a finite number"):
        peak.measure(asked(*words))


def test_search_that_fell_short_is_said():
    row = {"task": "lotus", "clip": "nano", "alpha": 0.0, "meets": 0.0,
           "meets_each_search": [0.0], "reward_goal_states": 0.5,
           "reward_peak": 0.4}  # fmt: skip
    assert "says nothing there: lotus" in report([{**row, "fell_short": True}])
    assert "says nothing" not in report([{**row, "fell_short": False}])


def test_peak_is_the_reward_that_a_run_would_give(folders, tmp_path, capsys):
    words = ["task=kneeling", "clip=nano", "alpha=0.5", "task.camera=track+side"]
    words += ["baseline=a robot that is small", "rounds=2", "searches=2"]
    study = asked(*words, *folders)
    peak.measure(study)
    written = json.loads((folders.out / "peak.json").read_text())
    assert written["models"]["nano"]["model"] == "embedded"
    (row,) = written["rows"]
    (job,) = study.jobs(study.tasks[0], study.models[0])
    rewarder = Clip(job.clip, torch.device("cpu"), tmp_path / "kept")

    def reward(states: np.ndarray) -> np.ndarray:
        source = np.full(len(states), "found")
        return rewarder.rewards(StateSet("humanoid", source, states), [job])[0]

    found = np.array(row["states"])
    assert row["meets"] == HumanoidGoal("kneeling")(found).mean()
    np.testing.assert_allclose(row["rewards"], reward(found), atol=1e-6)
    assert row["reward_peak"] == max(row["rewards"])
    assert row["reward_peak"] == max(row["reward_each_search"])
    assert len(set(row["reward_each_search"])) == 2
    sampled = world_of(job.task).sample_states(job.task, peak.GOAL_STATES, 0).states
    goals = sampled[HumanoidGoal("kneeling")(sampled)]
    assert row["goal_states"] == len(goals) > 0
    assert row["reward_goal_states"] == pytest.approx(reward(goals).max(), abs=1e-6)
    assert row["fell_short"] == (row["reward_peak"] < row["reward_goal_states"])
    assert row["camera"] == "track+side"
    assert "highest of goal states" in capsys.readouterr().out
    with Image.open(folders.out / "peak.png") as picture:
        assert picture.width > 800


def test_a_reward_without_a_model_is_searched_once(folders):
    words = ["task=arms_raised", "reward=predicate", "clip=nano,tiny", "rounds=1"]
    result = peak.measure(asked(*words, "searches=1", *folders))
    (row,) = result["rows"]
    assert (row["clip"], row["reward_goal_states"]) == ("predicate", 1)
    assert row["meets"] == np.mean(row["rewards"])
