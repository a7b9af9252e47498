import numpy as np
import pytest

from point_mass import DistanceScorer, PointMassEnvs
from vlmrm_exp.rl.rollout import collect, network_input, play, receive, submit


def push(observation: np.ndarray) -> np.ndarray:
    return np.ones((len(observation), 1), np.float32)


def test_collect_gives_whole_episodes():
    envs = PointMassEnvs(3, 5)
    rollout = collect(envs, push, seed=7)
    assert rollout.observation.shape == (6, 3, 1)
    assert rollout.action.shape == (5, 3, 1)
    assert rollout.rows.shape == (5, 3, 2)
    np.testing.assert_array_equal(rollout.rows[:, 0, 1], [1, 2, 3, 4, 5])
    # The row after each step belongs to the observation after it, also the last one.
    np.testing.assert_allclose(rollout.rows[..., 0], rollout.observation[1:, :, 0])
    np.testing.assert_allclose(rollout.env_reward, -np.abs(rollout.rows[..., 0]))


def test_collect_goes_on_with_the_random_stream_unless_seeded():
    envs = PointMassEnvs(3, 5)
    starts = [collect(envs, push, seed).observation[0] for seed in (1, None, 1)]
    np.testing.assert_array_equal(starts[0], starts[2])
    assert not np.array_equal(starts[0], starts[1])


def test_collect_can_leave_rows_out():
    assert collect(PointMassEnvs(3, 5), push, keep_rows=False).rows is None


def test_play_gives_exactly_as_many_episodes_with_fixed_starts():
    envs = PointMassEnvs(3, 5)
    once, again = (list(play(envs, push, 7, seed=2)) for _ in range(2))
    assert [rollout.episodes for rollout in once] == [3, 3, 1]
    starts = np.concatenate([rollout.observation[0] for rollout in once])
    assert len(np.unique(starts)) == 7
    for one, other in zip(once, again, strict=True):
        np.testing.assert_array_equal(one.observation, other.observation)
        assert one.rows.shape == (5, one.episodes, 2)


def test_rewards_return_to_their_steps():
    rollout = collect(PointMassEnvs(3, 5), push)
    scorer = DistanceScorer()
    reward = receive(scorer, submit(scorer, rollout), rollout)
    np.testing.assert_allclose(reward, -np.abs(rollout.rows[..., 0]))


@pytest.mark.parametrize("every", [2, 3, 7])
def test_steps_that_are_not_scored_lie_between_their_neighbours(every):
    rollout = collect(PointMassEnvs(3, 5), push)
    scorer = DistanceScorer()
    reward = receive(scorer, submit(scorer, rollout, every), rollout, every)
    exact = -np.abs(rollout.rows[..., 0])
    # By hand: the last of 5 steps is scored, and each `every`-th before it.
    at = {2: [0, 2, 4], 3: [1, 4], 7: [4]}[every]
    np.testing.assert_allclose(reward[at], exact[at], rtol=1e-6)
    if every == 2:
        np.testing.assert_allclose(reward[1], (exact[0] + exact[2]) / 2, rtol=1e-6)
        np.testing.assert_allclose(reward[3], (exact[2] + exact[4]) / 2, rtol=1e-6)
    if every == 3:
        between = exact[1] + (exact[4] - exact[1]) * [[1 / 3], [2 / 3]]
        np.testing.assert_allclose(reward[2:4], between, rtol=1e-5)
        np.testing.assert_allclose(reward[0], exact[1], rtol=1e-6)
    if every == 7:
        np.testing.assert_allclose(reward, np.tile(exact[4], (5, 1)), rtol=1e-6)


def test_without_a_scorer_the_environment_rewards():
    rollout = collect(PointMassEnvs(3, 5), push, keep_rows=False)
    assert receive(None, submit(None, rollout), rollout) is rollout.env_reward


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_reward_that_is_not_finite_is_refused(bad):
    rollout = collect(PointMassEnvs(3, 5), push)
    scorer = DistanceScorer()
    rollout.rows[2, 1, 0] = bad
    ticket = submit(scorer, rollout)
    with pytest.raises(FloatingPointError, match=r"step 3 of episode 2 .* 1 of 15 are"):
        receive(scorer, ticket, rollout)


def test_network_input_squashes_on_both_sides():
    observation = np.float32([[0, np.e - 1, -(np.e**2 - 1)]])
    squashed = network_input(observation, squash=True)
    assert squashed.dtype == np.float32
    np.testing.assert_allclose(squashed, [[0, 1, -2]], rtol=1e-6)
    np.testing.assert_array_equal(network_input(observation, False), observation)
