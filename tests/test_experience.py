"""Rollouts of whole episodes, and the replay buffer that keeps them."""

import resource
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch

from point_mass import PointMassEnvs
from vlmrm_exp.config import ConfigError, ForeignError, TaskConfig
from vlmrm_exp.envs import world_of
from vlmrm_exp.rl import network_input
from vlmrm_exp.rl.checkpoint import save_policy
from vlmrm_exp.rl.remembering import RememberingReplay, make_replay
from vlmrm_exp.rl.replay import Replay
from vlmrm_exp.rl.rollout import collect
from worlds import make_envs

T, N = 4, 3
CPU = torch.device("cpu")


def test_a_buffer_that_nothing_is_learned_from_is_refused(compose):
    """As soon as an episode's length is known: Gymnasium's own may be any."""
    asked = ("task=gym", "task.env_id=Pendulum-v1", "prompt=a", "baseline=b",
             "reward=environment", "algo.num_envs=2", "env_steps=2000")  # fmt: skip
    for words, told in (
        (("buffer_size=300",), r"less than one rollout \(2 episodes of 200 steps"),
        (("buffer_size=900", "learning_starts=850"), "buffer of 800 .* never learn"),
    ):
        config = compose(*asked, *(f"algo.{word}" for word in words))
        envs = make_envs(config.task, 2)
        with pytest.raises(ConfigError, match=told):
            make_replay(config, envs, False, CPU)


def make_buffer(
    capacity: int = 3,
    seed: int = 0,
    discrete: bool = False,
    normalise: bool = False,
    keep_states: bool = False,
    state_shape: tuple[int, ...] = (2,),
):
    box = gym.spaces.Box(-1, 1, (1,), np.float32)
    envs = SimpleNamespace(
        num_envs=N,
        episode_length=T,
        observation_space=gym.spaces.Box(-np.inf, np.inf, (2,), np.float32),
        action_space=gym.spaces.Discrete(9) if discrete else box,
        states=lambda: np.zeros((N, *state_shape)),
    )
    kind = RememberingReplay if keep_states else Replay
    return kind(capacity * T * N, envs, seed, CPU, normalise)


def rollout(number: int):
    """Observation (rollout and env, step); action and reward tell the same."""
    t, n = np.mgrid[: T + 1, :N]
    name = (number * N + n).astype(np.float32)
    observation = np.stack([name, t.astype(np.float32)], axis=-1)
    reward = 100 * name[:-1] + t[:-1].astype(np.float32)
    return observation, reward[..., None].copy(), reward


def test_replay_keeps_transitions_together():
    buffer = make_buffer()
    for number in range(3):
        buffer.add(*rollout(number))
    batch = buffer.gather(buffer.draw(500))
    name, t = batch.observation.T
    assert torch.equal(batch.reward, 100 * name + t)
    assert torch.equal(batch.action[:, 0], batch.reward)
    assert torch.equal(batch.next_observation, torch.stack([name, t + 1], dim=1))
    assert torch.equal(batch.last, t == T - 1)


def test_replay_draws_every_transition_about_equally():
    buffer = make_buffer()
    for number in range(2):
        buffer.add(*rollout(number))
    values, counts = buffer.gather(buffer.draw(24_000)).reward.unique(
        return_counts=True
    )
    assert buffer.size == len(values) == 2 * T * N
    # 1000 each on average with a standard deviation of 31.
    assert counts.min() > 800
    assert counts.max() < 1200


def test_replay_forgets_the_oldest_rollout():
    buffer = make_buffer(capacity=2)
    for number in range(5):
        buffer.add(*rollout(number))
    drawn = (buffer.gather(buffer.draw(500)).observation[:, 0] // N).unique()
    assert drawn.tolist() == [3, 4]
    assert buffer.size == 2 * T * N


def test_rewards_are_normalised_over_what_is_stored():
    """Of the two newest rollouts: the first of three is forgotten, its scale too."""
    buffer = make_buffer(capacity=2, normalise=True)
    rewards = []
    for number in (7, 1, 2):
        observation, action, reward = rollout(number)
        buffer.add(observation, action, reward)
        rewards.append(reward)
    stored = np.stack(rewards[1:])
    batch = buffer.gather(buffer.draw(500))
    expected = (batch.action[:, 0].numpy() - stored.mean()) / stored.std()
    np.testing.assert_allclose(batch.reward, expected, atol=1e-5)
    again = make_buffer(capacity=2, seed=5, normalise=True)
    again.load_state_dict(buffer.state_dict())
    assert torch.equal(
        again.gather(again.draw(99)).reward, buffer.gather(buffer.draw(99)).reward
    )


def test_equal_rewards_are_only_centred():
    buffer = make_buffer(normalise=True)
    observation, action, reward = rollout(0)
    buffer.add(observation, action, np.full_like(reward, 0.3))
    assert buffer.gather(buffer.draw(9)).reward.abs().max() < 1e-6


def test_replay_holds_discrete_actions():
    buffer = make_buffer(discrete=True)
    observation, _, reward = rollout(0)
    buffer.add(observation, np.full((T, N), 7), reward)
    action = buffer.gather(buffer.draw(5)).action
    assert action.dtype == torch.int64
    assert action.tolist() == [7] * 5


def test_replay_seed_decides_the_draws():
    draws = []
    for seed in (0, 0, 1):
        buffer = make_buffer(seed=seed)
        buffer.add(*rollout(0))
        draws.append(buffer.gather(buffer.draw(50)).reward)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_replay_goes_on_from_a_saved_state(tmp_path):
    buffer, other = make_buffer(), make_buffer(seed=9)
    for number in range(4):  # the ring has wrapped
        buffer.add(*rollout(number))
    buffer.gather(buffer.draw(10))
    torch.save(buffer.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for each in (buffer, other):
        each.add(*rollout(4))
    for ours, theirs in zip(
        buffer.gather(buffer.draw(99)), other.gather(other.draw(99)), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_old_states_and_their_rewards_stay_together():
    """A reward model that learns rewards all of them anew: here by their own name."""
    buffer = make_buffer(capacity=2, keep_states=True)
    for number in range(3):  # the ring has wrapped
        observation, action, reward = rollout(number)
        buffer.add(observation, action, reward, observation[1:].astype(float))
    states = buffer.episodes().states
    assert states.shape == (T, 2 * N, 2)
    assert sorted(set(states[..., 0].ravel())) == list(range(N, 3 * N))
    buffer.set_rewards((-100 * states[..., 0] - states[..., 1]).astype(np.float32))
    batch = buffer.gather(buffer.draw(500))
    name, t = batch.next_observation.T
    assert torch.equal(batch.reward, -100 * name - t)


def test_rewards_that_did_not_come_are_told_from_those_that_did():
    buffer = make_buffer(capacity=2, keep_states=True)
    for number in range(3):  # the ring has wrapped
        observation, action, reward = rollout(number)
        reward = np.where(np.arange(T)[:, None] == number, reward, np.nan)
        buffer.add(observation, action, reward, observation[1:].astype(float))
    states, given = buffer.newest()
    np.testing.assert_array_equal(states, rollout(2)[0][1:])
    np.testing.assert_array_equal(given[2], rollout(2)[2][2])
    assert np.isfinite(given).sum() == N
    states, rewards = buffer.draw_rewarded(500, np.random.default_rng(0))
    expected = {
        (*rollout(number)[0][number + 1, n], rollout(number)[2][number, n])
        for number in (1, 2)
        for n in range(N)
    }
    found = torch.cat([states, rewards[:, None]], dim=1).tolist()
    assert set(map(tuple, found)) == expected

    def named(states: np.ndarray, given: np.ndarray) -> np.ndarray:
        """Of the rollout and the environment; what came stays."""
        return np.where(np.isfinite(given), given, -states[..., 0]).astype(np.float32)

    buffer.relabel(lambda states, given: np.zeros_like(given), newest=False)
    spread = buffer.relabel(named, newest=True)
    of_newest = named(*buffer.newest())
    both = np.concatenate([of_newest.ravel(), np.zeros(T * N)])
    assert spread == pytest.approx(both.std(), rel=1e-6)
    np.testing.assert_array_equal(buffer.newest_reward(), of_newest)
    reward = buffer.gather(buffer.draw(999)).reward
    assert set(reward.tolist()) == {*of_newest.ravel().tolist(), 0}


def test_old_states_that_are_frames_are_refused_with_their_size():
    with pytest.raises(ConfigError, match=r"36 of them are 0\.00354 GB") as caught:
        make_buffer(keep_states=True, state_shape=(64, 64, 3))
    assert "frames of 64 x 64 x 3" in str(caught.value)


def push(observation: np.ndarray) -> np.ndarray:
    return np.ones((len(observation), 1), np.float32)


def test_collect_gives_whole_episodes():
    envs = PointMassEnvs(3, 5)
    rollout = collect(envs, push, seed=7)
    assert rollout.observation.shape == (6, 3, 1)
    assert rollout.action.shape == (5, 3, 1)
    assert rollout.states.shape == (5, 3, 2)
    np.testing.assert_array_equal(rollout.states[:, 0, 1], [1, 2, 3, 4, 5])
    # The state after each step belongs to the observation after it, also the last one.
    np.testing.assert_allclose(rollout.states[..., 0], rollout.observation[1:, :, 0])
    np.testing.assert_allclose(rollout.env_reward, -np.abs(rollout.states[..., 0]))


def test_collect_goes_on_with_the_random_stream_unless_seeded():
    envs = PointMassEnvs(3, 5)
    starts = [collect(envs, push, seed).observation[0] for seed in (1, None, 1)]
    np.testing.assert_array_equal(starts[0], starts[2])
    assert not np.array_equal(starts[0], starts[1])


def test_collect_can_leave_states_out():
    assert collect(PointMassEnvs(3, 5), push, keep_states=False).states is None


def test_network_input_squashes_on_both_sides():
    observation = np.float32([[0, np.e - 1, -(np.e**2 - 1)]])
    squashed = network_input(observation, squash=True)
    assert squashed.dtype == np.float32
    np.testing.assert_allclose(squashed, [[0, 1, -2]], rtol=1e-6)
    np.testing.assert_array_equal(network_input(observation, False), observation)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("raise", "RuntimeError: out of range"),
        ("start", r"its observation is \(1, 1\), not \(3, 1\)"),
        ("goal", r"its goal is \(1,\), not \(3,\)"),
        ("kind", "its goal is of int64, not bool"),
        ("nan", "its env_reward is not finite"),
        ("shape", r"its observation is \(3, 0\), not \(3, 1\)"),
        ("states", "its states are not finite"),
        ("grow", r"its states are \(3, 4\), not as before"),
    ],
)
def test_what_a_world_of_ones_own_does_wrong_is_told_with_its_step(fault, sentence):
    task = TaskConfig("p", "faulty:WORLD", episode_length=9, options={"fault": fault})
    envs = world_of(task).make_envs(task, 3, 1)
    step = 0 if fault == "start" else 3
    told = rf"^faulty:Envs failed at step {step} of an episode \(.*{sentence}"
    with pytest.raises(ForeignError, match=told):
        collect(envs, lambda _: np.zeros((3, 1), np.float32))


def test_a_world_may_fill_its_own_array_again():
    rollouts = []
    for fault in ("buffer", "nothing"):
        options = {"fault": fault}
        task = TaskConfig("p", "faulty:WORLD", episode_length=9, options=options)
        envs = world_of(task).make_envs(task, 3, 1)
        rollouts.append(collect(envs, lambda _: np.ones((3, 1), np.float32), seed=0))
    for one, other in zip(*(vars(r).values() for r in rollouts), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_keeps_pytorch_from_writing_is_told_and_nothing_is_left(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))  # bytes a file
    try:
        with pytest.raises(OSError, match="File too large"):
            save_policy(tmp_path / "last.pt", {"weight": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not [*tmp_path.iterdir()]
