"""Stable-Baselines3's environments, rewarded by a sentence.

In each step (`VecVLMReward`, any algorithm), or later and in larger batches, when the
replay buffer is read (`VLMReplayBuffer`: SAC, TD3, DQN).
"""

from typing import Any, Unpack

import numpy as np
from gymnasium.spaces import Dict, Space

from vlmrm_exp.config import ConfigError
from vlmrm_exp.scorer import Scorer, ScorerArgs
from vlmrm_exp.wrappers import FRAME, FrameInInfo

try:
    from stable_baselines3.common.buffers import ReplayBuffer
    from stable_baselines3.common.type_aliases import ReplayBufferSamples
    from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize
    from stable_baselines3.common.vec_env.base_vec_env import (
        VecEnvObs,
        VecEnvStepReturn,
    )
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "vlmrm_exp.sb3 needs the package stable-baselines3, which is not installed: "
        "run pip install 'vlmrm_exp[sb3]'.",
        name=error.name,
    ) from error

PENDING = 256
"""Frames that wait to be scored, at most: 180 MB of 600 x 400 pixels."""
UNWRAPPED = (
    "A VecEnv resets within step, so each of its environments has to hand over its "
    "last frame before: wrap it in FrameInInfo of vlmrm_exp.wrappers, as "
    "make_vec_env(..., wrapper_class=FrameInInfo, "
    'env_kwargs={"render_mode": "rgb_array"}).'
)


class VecVLMReward(VecEnvWrapper):
    """A `VecEnv` whose rewards say how well its frames fit a sentence.

    envs = make_vec_env("Pendulum-v1", n_envs=8, wrapper_class=FrameInInfo,
                        env_kwargs={"render_mode": "rgb_array"})
    envs = VecVLMReward(envs, prompt="a pendulum standing upright", clip="vitb32")

    One batch of frames for each step. A `VecEnv` resets within `step`, so each of its
    environments hands over its frame before: `FrameInInfo` of `vlmrm_exp.wrappers`,
    without which it is a ConfigError. All other arguments and errors are those of
    `Scorer`. The environment's own reward is in `info["env_reward"]`.
    """

    def __init__(self, venv: VecEnv, **sentence: Unpack[ScorerArgs]) -> None:
        if not all(venv.env_is_wrapped(FrameInInfo)):
            raise ConfigError(UNWRAPPED)
        self._scorer = Scorer(**sentence)
        super().__init__(venv)

    def reset(self) -> VecEnvObs:
        """Reset all environments."""
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        """End a step, and reward the frames that it led to."""
        observations, env_rewards, dones, infos = self.venv.step_wait()
        rewards = self._scorer(info.pop(FRAME) for info in infos)
        for info, env_reward in zip(infos, env_rewards, strict=True):
            info["env_reward"] = float(env_reward)
        return observations, rewards, dones, infos


class VLMReplayBuffer(ReplayBuffer):
    """A replay buffer whose rewards say how well frames fit a sentence.

    envs = make_vec_env("Pendulum-v1", n_envs=8, wrapper_class=FrameInInfo,
                        env_kwargs={"render_mode": "rgb_array"})
    sentence = {"prompt": "a pendulum standing upright", "clip": "vitb32"}
    agent = SAC("MlpPolicy", envs, train_freq=8, gradient_steps=64,
                replay_buffer_class=VLMReplayBuffer, replay_buffer_kwargs=sentence)

    Frames of all steps since the last training are scored together, before anything is
    sampled: the model sees batches of train_freq x n_envs. A reward that is not known
    yet is NaN in `rewards`. The environments' own are not kept.

    Arguments are those of `Scorer`, which loads the model, and of `ReplayBuffer`.
    Observations that are dictionaries are a ConfigError, as what `Scorer` refuses.
    """

    def __init__(
        self, buffer_size: int, observation_space: Space, *args: Any, **kwargs: Any
    ) -> None:
        if isinstance(observation_space, Dict):
            raise ConfigError(
                "VLMReplayBuffer keeps observations that are arrays, not dictionaries: "
                "use VecVLMReward, which leaves the buffer to the algorithm."
            )
        own = ScorerArgs.__annotations__
        self._sentence: Any = {key: kwargs.pop(key) for key in own if key in kwargs}
        super().__init__(buffer_size, observation_space, *args, **kwargs)
        self._scorer = Scorer(**self._sentence)
        self._pending: dict[int, list[np.ndarray]] = {}  # frames of each row

    def add(
        self,
        obs: np.ndarray,
        next_obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """Keep a step, and the frames that it led to until they are scored."""
        if not all(FRAME in info for info in infos):
            raise ConfigError(UNWRAPPED)
        self._pending[self.pos] = [info[FRAME] for info in infos]
        super().add(obs, next_obs, action, np.full(len(infos), np.nan), done, infos)
        if len(self._pending) * self.n_envs >= PENDING:
            self.score_pending()

    def score_pending(self) -> None:
        """Score the frames that wait."""
        if self._pending:
            frames = (frame for row in self._pending.values() for frame in row)
            rewards = self._scorer(frames).reshape(-1, self.n_envs)
            self.rewards[list(self._pending)] = rewards
            self._pending.clear()

    def reset(self) -> None:
        """Forget all steps."""
        super().reset()
        self._pending.clear()

    def _get_samples(
        self, batch_inds: np.ndarray, env: VecNormalize | None = None
    ) -> ReplayBufferSamples:
        if env is not None and env.norm_reward:
            raise ConfigError(
                "VecNormalize has seen the environments' own rewards, and would scale "
                "the sentence's by them: give it norm_reward=False."
            )
        self.score_pending()
        return super()._get_samples(batch_inds, env)

    def __getstate__(self) -> dict[str, Any]:
        self.score_pending()
        return {**vars(self), "_scorer": None}  # a file needs no copy of the model

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _scorer=Scorer(**state["_sentence"]))
