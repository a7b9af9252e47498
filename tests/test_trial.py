import numpy as np
import pytest

from point_mass import DistanceScorer, PointMassEnvs
from vlmrm_exp.config import ClipConfig, TaskConfig
from vlmrm_exp.envs import make_envs
from vlmrm_exp.rl.trial import Trial, judge, try_policy, wilson_interval, write_video


def towards_zero(observation: np.ndarray) -> np.ndarray:
    return np.clip(-5 * observation, -0.5, 1.5)


def test_trial_scores_every_episode_and_keeps_some_rows():
    envs = PointMassEnvs(3, 5)
    trial = try_policy(envs, towards_zero, DistanceScorer(), 7, seed=3, keep_rows=4)
    assert trial.reward.shape == trial.env_reward.shape == (5, 7)
    np.testing.assert_allclose(trial.reward, trial.env_reward)
    assert [rows.shape for rows in trial.rows] == [(5, 2)] * 4
    for n, rows in enumerate(trial.rows):
        np.testing.assert_allclose(-np.abs(rows[:, 0]), trial.reward[:, n], rtol=1e-6)


def test_trial_needs_no_scorer_for_the_environments_own_reward():
    trial = try_policy(PointMassEnvs(3, 5), towards_zero, None, 2, seed=3)
    assert trial.reward.shape == (5, 2)
    assert trial.rows == []


def test_trial_on_equal_seeds_has_equal_starts():
    envs = PointMassEnvs(2, 5)
    one, other, third = (
        try_policy(envs, towards_zero, None, 5, seed).reward for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, other)
    assert not np.array_equal(one, third)


def test_judge_averages_steps_and_sums_returns():
    trial = Trial(
        reward=np.float32([[1, 2], [3, 6]]),
        env_reward=np.float32([[1, 10], [2, 20]]),
        success=np.array([True, False]),
        goal_share=np.array([1.0, 0.0]),
        rows=[],
    )
    values = judge(trial)
    assert values["eval/reward_mean"] == 3.0
    assert values["eval/return_mean"] == 16.5
    assert values["eval/success_rate"] == 0.5
    assert values["eval/episodes"] == 2


def test_judge_has_no_success_without_a_predicate():
    ones = np.ones((2, 3), np.float32)
    nothing = Trial(ones, ones, success=None, goal_share=None, rows=[])
    values = judge(nothing)
    keys = ("eval/success_rate", "eval/success_low", "eval/success_high")
    assert [values[key] for key in (*keys, "eval/buckets")] == [None] * 4


def test_judge_puts_episodes_into_the_nearest_of_five_buckets():
    share = np.array([0, 0.12, 0.13, 0.37, 0.38, 0.49, 0.62, 0.63, 0.9, 1])
    ones = np.ones((2, len(share)), np.float32)
    values = judge(Trial(ones, ones, share >= 0.5, share, rows=[]))
    # 0: .00 .12; 25: .13 .37; 50: .38 .49 .62; 75: .63; 100: .90 1.00
    assert values["eval/buckets"] == [0.2, 0.2, 0.3, 0.1, 0.2]


def test_trial_tells_each_episodes_share_of_goal_steps():
    envs = PointMassEnvs(3, 5)
    trial = try_policy(envs, towards_zero, DistanceScorer(), 4, seed=3, keep_rows=4)
    by_hand = [float(np.mean(np.abs(rows[:, 0]) < 0.1)) for rows in trial.rows]
    np.testing.assert_allclose(trial.goal_share, by_hand)


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I; the last by hand.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilson_interval_equals_published_values(successes, episodes, low, high):
    interval = wilson_interval(successes, episodes)
    assert interval == pytest.approx((low, high), abs=5e-5)


def test_video_is_drawn_from_the_rows_that_were_kept(tmp_path):
    task = TaskConfig(name="cartpole", env="cartpole", episode_length=6)
    task.frame_height = 64
    clip = ClipConfig(name="none", model="none")
    envs = make_envs(task, 2)

    def left(observation: np.ndarray) -> np.ndarray:
        return np.zeros(len(observation), np.int64)

    trial = try_policy(envs, left, None, 2, seed=0, keep_rows=1)
    envs.close()
    path = tmp_path / "videos" / "eval.mp4"
    write_video(path, task, clip, trial, title="a pole")
    assert path.read_bytes()[4:8] == b"ftyp"
