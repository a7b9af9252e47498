"""Wrapped environments against pictures that are drawn and scored one by one."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from PIL import Image
from stable_baselines3 import DQN, SAC, TD3
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.env_checker import check_env as check_env_of_sb3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecNormalize,
)

from vlmrm_exp import composition, sb3, score
from vlmrm_exp.config import ConfigError
from vlmrm_exp.envs import world_of
from vlmrm_exp.reward import Episodes, make_model
from vlmrm_exp.sb3 import VecVLMReward, VLMReplayBuffer
from vlmrm_exp.scorer import Scorer
from vlmrm_exp.words import to_keys
from vlmrm_exp.wrappers import FrameInInfo, VectorVLMReward, VLMReward
from worlds import composed

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SENTENCE: Any = {
    "prompt": "a car at the peak of the mountain, next to the yellow flag",
    "baseline": "a car in the mountains",
    "alpha": 0.5,
    "clip": "nano",
    "overrides": ["compute=cpu"],
}
WORDS = [f"{key}={SENTENCE[key]}" for key in ("prompt", "baseline", "alpha", "clip")]
LENGTHS = (3, 4)
"""Env steps of an episode in the first and the second environment."""
STEPS = 8
CLOSE = {"rtol": 0, "atol": 2e-6}


def mountain(length: int = 999) -> gym.Env:
    return gym.make(
        "MountainCarContinuous-v0", render_mode="rgb_array", max_episode_steps=length
    )


def put(env: gym.Env, position: float) -> None:
    env.unwrapped.state = np.array([position, 0], np.float32)


def makers(wrapper: Callable[[gym.Env], gym.Env]) -> list[Callable[[], gym.Env]]:
    return [lambda length=length: wrapper(mountain(length)) for length in LENGTHS]


ACTIONS = np.random.default_rng(0).uniform(-1, 1, (STEPS, 2, 1)).astype(np.float32)


def one_by_one(resets_within_step: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(T, N) rewards, the environments' own, and which step ends; drawn by hand."""
    scorer = Scorer(**SENTENCE)
    rewards, own = np.zeros((2, STEPS, 2))
    ends = np.zeros((STEPS, 2), bool)
    for n, length in enumerate(LENGTHS):
        env = mountain(length)
        env.reset(seed=n)
        t, ended = 0, False
        while t < STEPS:
            if ended:
                env.reset()
            if not ended or resets_within_step:
                _, own[t, n], _, ended, _ = env.step(ACTIONS[t, n])
                [rewards[t, n]] = scorer([env.render()])
                ends[t, n] = ended
            else:  # this step only resets
                ended = False
            t += 1
    return rewards, own, ends


def bare(env: gym.Env) -> gym.Env:
    return env


@pytest.mark.parametrize(
    ("kind", "mode", "wrapper"),
    [
        (SyncVectorEnv, AutoresetMode.NEXT_STEP, bare),
        (SyncVectorEnv, AutoresetMode.NEXT_STEP, FrameInInfo),
        (SyncVectorEnv, AutoresetMode.SAME_STEP, FrameInInfo),
        (SyncVectorEnv, AutoresetMode.DISABLED, bare),
        (AsyncVectorEnv, AutoresetMode.NEXT_STEP, bare),
        (AsyncVectorEnv, AutoresetMode.SAME_STEP, FrameInInfo),
    ],
)
def test_vector_steps_are_rewarded_by_their_own_frames(kind, mode, wrapper):
    envs = VectorVLMReward(kind(makers(wrapper), autoreset_mode=mode), **SENTENCE)
    expected, own, ends = one_by_one(mode != AutoresetMode.NEXT_STEP)
    assert ends.sum() == 4 - (mode == AutoresetMode.NEXT_STEP)
    envs.reset(seed=0)
    for t in range(STEPS):
        _, rewards, _, truncated, infos = envs.step(ACTIONS[t])
        np.testing.assert_allclose(rewards, expected[t], **CLOSE)
        np.testing.assert_allclose(infos["env_reward"], own[t])
        np.testing.assert_array_equal(truncated, ends[t])
        assert "frame" not in infos
        if mode == AutoresetMode.DISABLED and truncated.any():
            envs.reset(options={"reset_mask": truncated})
    envs.close()


def test_a_lost_last_frame_is_refused_at_the_first_step():
    envs = SyncVectorEnv(makers(bare), autoreset_mode=AutoresetMode.SAME_STEP)
    envs = VectorVLMReward(envs, **SENTENCE)
    envs.reset(seed=0)
    with pytest.raises(ConfigError, match="last frame of an episode is gone"):
        envs.step(ACTIONS[0])


def subprocesses(makers: list[Callable[[], gym.Env]]) -> SubprocVecEnv:
    return SubprocVecEnv(makers, start_method="fork")  # the others import for long


@pytest.mark.parametrize("kind", [DummyVecEnv, subprocesses])
def test_vec_steps_are_rewarded_by_their_own_frames(kind):
    envs = VecVLMReward(kind(makers(FrameInInfo)), **SENTENCE)
    expected, own, ends = one_by_one(resets_within_step=True)
    envs.seed(0)
    envs.reset()
    for t in range(STEPS):
        _, rewards, dones, infos = envs.step(ACTIONS[t])
        np.testing.assert_allclose(rewards, expected[t], **CLOSE)
        np.testing.assert_allclose([i["env_reward"] for i in infos], own[t], rtol=1e-6)
        np.testing.assert_array_equal(dones, ends[t])
        assert "frame" not in infos[0]
    envs.close()


def test_a_rewards_frame_is_the_episodes_last_and_not_the_nexts_first():
    """What the tests above would not see if both frames looked alike."""
    env, scorer = mountain(), Scorer(**SENTENCE)
    env.reset(seed=0)
    put(env, 0.4)
    last = env.render()
    env.reset()
    assert np.ptp(scorer([last, env.render()])) > 0.05


def test_the_reward_is_that_of_score_and_of_training(tmp_path):
    env = VLMReward(mountain(), **SENTENCE)
    env.reset(seed=0)
    frames, rewards = [], []
    for number, position in enumerate((-1.0, -0.5, 0.2, 0.4)):
        put(env, position)
        _, reward, _, _, info = env.step(np.float32([1]))
        assert info["env_reward"] == pytest.approx(-0.1)
        frames.append(env.render())
        rewards.append(reward)
        Image.fromarray(frames[-1]).save(tmp_path / f"{number}.png")
    assert np.ptp(rewards) > 0.05

    out = tmp_path / "out"
    out.mkdir()
    words = [str(tmp_path), *WORDS, "compute=cpu", f"out={out}"]
    keys = to_keys(words, score.PLURAL, files=True)
    score.score(score.check(composition.compose("score", *keys)))
    of_score = pd.read_csv(out / "scores.csv").iloc[:, 3]
    np.testing.assert_allclose(rewards, of_score, **CLOSE)

    task = ["task=gym", "task.env_id=MountainCarContinuous-v0", "compute=cpu"]
    config = composed(*task, "task.frame_height=400", *WORDS)  # its frames' own
    envs = world_of(config.task).make_envs(config.task, 1, 1)
    put(envs._envs[0], env.unwrapped.state[0])
    model = make_model(config)
    of_training = model.rewards(
        Episodes(states=np.stack([*frames, *envs.states()])[:, None])
    )
    envs.close()
    np.testing.assert_allclose([*rewards, rewards[-1]], of_training[:, 0], **CLOSE)


@pytest.mark.filterwarnings("ignore:.*different from the unwrapped version")
@pytest.mark.filterwarnings("ignore:.*we recommend using a symmetric")
@pytest.mark.parametrize("wrapper", ["VLMReward", "FrameInInfo"])
def test_gymnasiums_own_check(wrapper):
    env = gym.make("Pendulum-v1", render_mode="rgb_array")
    env = VLMReward(env, **SENTENCE) if wrapper == "VLMReward" else FrameInInfo(env)
    check_env(env, skip_render_check=True)


def test_stable_baselines3_own_check():
    check_env_of_sb3(VLMReward(mountain(), **SENTENCE))


def test_sac_of_stable_baselines3_learns_from_the_rewards():
    """A car's picture depends on its position alone, which the replay buffer holds."""
    options = {"render_mode": "rgb_array", "max_episode_steps": 40}
    envs = make_vec_env(
        "MountainCarContinuous-v0", 2, seed=0, wrapper_class=FrameInInfo,
        env_kwargs=options,
    )  # fmt: skip
    agent = SAC("MlpPolicy", VecVLMReward(envs, **SENTENCE), seed=0, learning_starts=50)
    before = agent.actor.mu.weight.detach().clone()
    agent.learn(200)
    assert not before.equal(agent.actor.mu.weight)
    buffer = agent.replay_buffer
    assert buffer.pos == 100
    assert buffer.dones[:100].sum() == 4
    expected = of_positions("MountainCarContinuous-v0", buffer)
    np.testing.assert_allclose(buffer.rewards[:100].ravel(), expected, **CLOSE)


def of_positions(env_id: str, buffer: ReplayBuffer) -> np.ndarray:
    """Rewards of the cars that a replay buffer holds, drawn anew."""
    env, frames = gym.make(env_id, render_mode="rgb_array"), []
    env.reset()
    for position in buffer.next_observations[: buffer.pos, :, 0].ravel():
        put(env, position)
        frames.append(env.render())
    return Scorer(**SENTENCE)(frames)


@pytest.mark.long
def test_sac_of_stable_baselines3_learns_in_one_environment():
    env = gym.make("Pendulum-v1", render_mode="rgb_array", max_episode_steps=50)
    env = VLMReward(env, prompt="a pendulum standing upright", clip="nano")
    agent = SAC("MlpPolicy", env, seed=0, learning_starts=50)
    agent.learn(200)
    rewards = agent.replay_buffer.rewards[:200]
    assert (np.abs(rewards) <= 1).all()
    assert rewards.std() > 1e-3
    assert np.isfinite([info["r"] for info in agent.ep_info_buffer]).all()


def drawn_envs(env_id: str) -> VecEnv:
    """Two environments whose episodes take 40 steps."""
    options = {"render_mode": "rgb_array", "max_episode_steps": 40}
    return make_vec_env(
        env_id, 2, seed=0, wrapper_class=FrameInInfo, env_kwargs=options
    )


LATER: Any = {"replay_buffer_class": VLMReplayBuffer}


@pytest.mark.parametrize(
    ("env_id", "options", "of_buffer"),
    [
        ("MountainCarContinuous-v0", {}, {}),
        ("Pendulum-v1", {"buffer_size": 100}, {}),  # old steps are overwritten
        ("Pendulum-v1", {"optimize_memory_usage": True},
         {"handle_timeout_termination": False}),
    ],
)  # fmt: skip
def test_rewards_that_come_later_are_those_of_each_step(env_id, options, of_buffer):
    """Random actions of the same seed, so both see the same steps."""
    options |= {"seed": 0, "learning_starts": 200}
    at_once = SAC("MlpPolicy", VecVLMReward(drawn_envs(env_id), **SENTENCE),
                  replay_buffer_kwargs=of_buffer, **options)  # fmt: skip
    later = SAC("MlpPolicy", drawn_envs(env_id), **options, **LATER,
                replay_buffer_kwargs=SENTENCE | of_buffer)  # fmt: skip
    for agent in (at_once, later):
        agent.learn(160)
    expected, buffer = at_once.replay_buffer, later.replay_buffer
    steps = min(80, buffer.buffer_size)
    assert np.isnan(buffer.rewards[:steps]).all()
    set_random_seed(0)
    sampled = buffer.sample(64)
    set_random_seed(0)
    for one, same in zip(sampled, expected.sample(64), strict=True):
        if one is not None:
            np.testing.assert_allclose(one, same, **CLOSE)
    np.testing.assert_allclose(buffer.rewards, expected.rewards, **CLOSE)
    assert np.ptp(buffer.rewards[:steps]) > 1e-3
    assert (buffer.dones[:steps].sum(), buffer.timeouts.sum()) == (
        (expected.dones[:steps].sum(), expected.timeouts.sum())
    )
    assert buffer.dones.any()


class Watched(VLMReplayBuffer):
    """Notes what is sampled, and how many steps wait before."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.waited, self.sampled = [], []

    def sample(self, *args: Any, **kwargs: Any) -> ReplayBufferSamples:
        self.waited.append(len(self._pending))
        sample = super().sample(*args, **kwargs)
        self.sampled.append(sample.rewards.numpy())
        return sample


@pytest.mark.long
@pytest.mark.parametrize(
    ("algorithm", "env_id"),
    [(SAC, "MountainCarContinuous-v0"), (TD3, "MountainCarContinuous-v0"),
     (DQN, "MountainCar-v0")],
)  # fmt: skip
def test_off_policy_algorithms_learn_from_rewards_that_come_later(algorithm, env_id):
    agent = algorithm(
        "MlpPolicy", drawn_envs(env_id), seed=0, learning_starts=50, train_freq=30,
        gradient_steps=5, replay_buffer_class=Watched, replay_buffer_kwargs=SENTENCE,
    )  # fmt: skip
    before = [one.detach().clone() for one in agent.policy.parameters()]
    agent.learn(300)
    after = agent.policy.parameters()
    assert any(not a.equal(b) for a, b in zip(before, after, strict=True))
    buffer = agent.replay_buffer
    assert buffer.waited == 5 * [30, 0, 0, 0, 0]  # scored together, once
    assert np.isfinite(buffer.sampled).all()
    expected = of_positions(env_id, buffer)
    assert len(expected) == 300
    np.testing.assert_allclose(buffer.rewards[:150].ravel(), expected, **CLOSE)


def test_only_so_many_frames_wait(monkeypatch):
    monkeypatch.setattr(sb3, "PENDING", 20)
    agent = SAC("MlpPolicy", drawn_envs("Pendulum-v1"), **LATER,
                replay_buffer_kwargs=SENTENCE)  # fmt: skip
    agent.learn(50)
    assert np.isnan(agent.replay_buffer.rewards[:25]).all(1).tolist() == (
        20 * [False] + 5 * [True]
    )
    agent.replay_buffer.reset()
    agent.replay_buffer.score_pending()
    assert np.isnan(agent.replay_buffer.rewards[20:25]).all()


def test_a_saved_buffer_has_its_rewards_and_goes_on(tmp_path):
    agent = SAC("MlpPolicy", drawn_envs("Pendulum-v1"), seed=0, buffer_size=400,
                **LATER, replay_buffer_kwargs=SENTENCE)  # fmt: skip
    agent.learn(40)
    agent.save_replay_buffer(tmp_path / "buffer.pkl")
    agent.save(tmp_path / "agent.zip")
    assert (tmp_path / "buffer.pkl").stat().st_size < 50_000  # neither model nor frames
    other = SAC.load(tmp_path / "agent.zip", drawn_envs("Pendulum-v1"))
    other.load_replay_buffer(tmp_path / "buffer.pkl")
    rewards = other.replay_buffer.rewards
    np.testing.assert_array_equal(rewards, agent.replay_buffer.rewards)
    assert np.ptp(rewards[:20]) > 1e-3
    other.learn(120, reset_num_timesteps=False)
    assert np.isfinite(other.replay_buffer.sample(64).rewards.numpy()).all()
    assert other.replay_buffer.pos == 80


def test_a_buffer_refuses_rewards_of_something_else():
    undrawn = make_vec_env("Pendulum-v1", 2, env_kwargs={"render_mode": "rgb_array"})
    scaled = VecNormalize(drawn_envs("Pendulum-v1"))
    for envs, told in ((undrawn, "wrap it in FrameInInfo"),
                       (scaled, "give it norm_reward=False")):  # fmt: skip
        agent = SAC("MlpPolicy", envs, **LATER, replay_buffer_kwargs=SENTENCE)
        with pytest.raises(ConfigError, match=told):
            agent.learn(110)
    scaled = VecNormalize(drawn_envs("Pendulum-v1"), norm_reward=False)
    SAC("MlpPolicy", scaled, **LATER, replay_buffer_kwargs=SENTENCE).learn(110)
    with pytest.raises(ConfigError, match="prompt is an empty list"):
        SAC("MlpPolicy", scaled, **LATER,
            replay_buffer_kwargs=SENTENCE | {"prompt": []})  # fmt: skip


def test_what_cannot_be_rewarded_is_refused_before_a_model_loads():
    undrawn: Any = {"prompt": "a", "clip": "there is none"}
    for make, wrapper in (
        (lambda: gym.make("Pendulum-v1"), VLMReward),
        (lambda: gym.make("Pendulum-v1", render_mode="rgb_array_list"), VLMReward),
        (lambda: gym.make_vec("Pendulum-v1", 2), VectorVLMReward),
    ):
        with pytest.raises(ConfigError, match='make it with render_mode="rgb_array"'):
            wrapper(make(), **undrawn)
    with pytest.raises(ConfigError, match="wrap it in FrameInInfo"):
        VecVLMReward(DummyVecEnv([mountain]), **undrawn)
    envs = gym.make_vec("Pendulum-v1", 2, render_mode="rgb_array")
    del envs.metadata["autoreset_mode"]
    with pytest.raises(ConfigError, match="does not say when it is reset"):
        VectorVLMReward(envs, **undrawn)
    space = gym.spaces.Dict(angle=gym.spaces.Box(-1, 1))
    with pytest.raises(ConfigError, match="not dictionaries: use VecVLMReward"):
        VLMReplayBuffer(10, space, gym.spaces.Box(-1, 1), **undrawn)


@pytest.mark.long
@pytest.mark.parametrize(("name", "amount"), [("sac_sb3", "120"), ("plain_loop", "1")])
def test_example(name, amount, tmp_path):
    command = [sys.executable, EXAMPLES / f"{name}.py", amount]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if name == "sac_sb3":
        assert (tmp_path / "sac_mountaincar.zip").stat().st_size > 100_000
    else:
        assert "round 0: return" in done.stdout
