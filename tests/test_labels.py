"""What labels states when it is not the vision-language model."""

import numpy as np

from vlmrm_exp.envs import make_envs
from vlmrm_exp.envs.goals import HumanoidGoal
from vlmrm_exp.rl.labels import make_labeller
from vlmrm_exp.rl.rollout import collect, receive, submit


def test_ground_truth_of_a_toy_task_is_its_own_reward(compose):
    config = compose("task=mountaincar", "reward=ground_truth")
    assert make_labeller(config, make_envs(config.task, 1)) is None


def test_ground_truth_of_a_humanoid_task_is_its_predicate(compose):
    """Not Gymnasium's reward, which is for running forward."""
    config = compose(
        "task=standing_up", "reward=ground_truth", "task.episode_length=100"
    )
    envs = make_envs(config.task, 2)
    labeller = make_labeller(config, envs)
    assert labeller.facts() == {"predicate": "standing_up"}
    limp = np.zeros((2, 17), np.float32)
    rollout = collect(envs, lambda observation: limp, seed=0)
    reward = receive(labeller, submit(labeller, rollout), rollout)
    assert reward.shape == (100, 2)
    assert reward.any()  # a body without torque lands on its feet,
    assert not reward[-1].any()  # and breaks down
    np.testing.assert_array_equal(reward, rollout.goal)
    judged = HumanoidGoal("standing_up")(rollout.rows.reshape(-1, 47))
    np.testing.assert_array_equal(reward.ravel(), judged)


def test_a_humanoid_task_without_a_predicate_has_gymnasiums_reward(compose):
    config = compose("task=kneeling", "task.goal=", "reward=ground_truth")
    envs = make_envs(config.task, 1)
    assert make_labeller(config, envs) is None
    envs.reset(0)
    assert envs.step(np.zeros((1, 17), np.float32)).goal is None
