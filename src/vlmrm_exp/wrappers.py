"""Any environment that draws itself, its reward replaced by a sentence's.

    action -> [environment] -> frame -> [Scorer] -> reward

For Gymnasium's `Env` and `VectorEnv`, and what builds on them. The environment's own
reward is in `info["env_reward"]`. A reward is of the frame after its step: at the end
of an episode the last one, never the first of the next. Stable-Baselines3's vectors of
environments have a wrapper of their own, in `vlmrm_exp.sb3`.
"""

import itertools
from typing import Any, Unpack

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper

from vlmrm_exp.config import ConfigError
from vlmrm_exp.scorer import Scorer, ScorerArgs

FRAME = "frame"
"""The key in `info` under which `FrameInInfo` puts a frame."""


class VLMReward(gym.Wrapper, RecordConstructorArgs):
    """A Gymnasium environment whose reward says how well its frame fits a sentence.

    env = gym.make("Pendulum-v1", render_mode="rgb_array")
    env = VLMReward(env, prompt="a pendulum standing upright", clip="vitb32")

    Arguments and errors are those of `Scorer`; an environment that does not draw itself
    is a ConfigError too.
    """

    def __init__(self, env: gym.Env, **sentence: Unpack[ScorerArgs]) -> None:
        check_draws(env)
        RecordConstructorArgs.__init__(self, **sentence)
        gym.Wrapper.__init__(self, env)
        self._scorer = Scorer(**sentence)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step, and reward the frame that is drawn afterwards."""
        observation, env_reward, terminated, truncated, info = self.env.step(action)
        frame: Any = self.env.render()
        [reward] = self._scorer([frame])
        info = {**info, "env_reward": float(env_reward)}
        return observation, float(reward), terminated, truncated, info


class VectorVLMReward(VectorWrapper):
    """A Gymnasium `VectorEnv` that is rewarded so: one batch of frames for each step.

    envs = gym.make_vec("Pendulum-v1", num_envs=8, render_mode="rgb_array")
    envs = VectorVLMReward(envs, prompt="a pendulum standing upright", clip="vitb32")

    With autoreset NEXT_STEP, the step that only resets has reward 0, as without this
    wrapper. With SAME_STEP the last frame of an episode is gone when `step` returns:
    each environment has to hand it over, `gym.make_vec(..., wrappers=[FrameInInfo])`.

    Arguments and errors are those of `Scorer`; environments that do not draw
    themselves, or do not say when they are reset, are a ConfigError too.
    """

    def __init__(self, env: VectorEnv, **sentence: Unpack[ScorerArgs]) -> None:
        check_draws(env)
        super().__init__(env)
        if "autoreset_mode" not in env.metadata:
            raise ConfigError(
                f'{env} does not say when it is reset: set metadata["autoreset_mode"] '
                "to one of gymnasium.vector.AutoresetMode."
            )
        self.autoreset_mode = AutoresetMode(env.metadata["autoreset_mode"])
        self._resets = np.zeros(env.num_envs, bool)  # in the next step
        self._scorer = Scorer(**sentence)

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset all environments, or those of `options["reset_mask"]`."""
        self._resets[(options or {}).get("reset_mask", slice(None))] = False
        return self.env.reset(seed=seed, options=options)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step, and reward the frames that these steps led to.

        Raises:
            ConfigError: with SAME_STEP, no last frame is handed over.
        """
        observations, env_rewards, terminated, truncated, infos = self.env.step(actions)
        ended = np.asarray(terminated) | np.asarray(truncated)
        stepped = ~self._resets
        rewards = np.zeros(self.num_envs, np.result_type(env_rewards, np.float32))
        if stepped.any():
            frames = self._frames(infos, ended)
            rewards[stepped] = self._scorer(itertools.compress(frames, stepped))
        if self.autoreset_mode == AutoresetMode.NEXT_STEP:
            self._resets = ended
        infos = {key: infos[key] for key in infos if key not in (FRAME, f"_{FRAME}")}
        infos["env_reward"] = env_rewards
        infos["_env_reward"] = np.ones(self.num_envs, bool)
        return observations, rewards, terminated, truncated, infos

    def _frames(self, infos: dict[str, Any], ended: np.ndarray) -> Any:
        """The frame of each environment after its step."""
        if self.autoreset_mode != AutoresetMode.SAME_STEP:
            return infos[FRAME] if FRAME in infos else self.env.render()
        last = infos.get("final_info", {})
        if FRAME not in infos and FRAME not in last:
            raise ConfigError(
                "With autoreset SAME_STEP the last frame of an episode is gone when "
                "step returns: let each environment hand it over, as gym.make_vec(..., "
                "wrappers=[FrameInInfo]), or use NEXT_STEP."
            )
        return [(last if end else infos)[FRAME][i] for i, end in enumerate(ended)]


class FrameInInfo(gym.Wrapper, RecordConstructorArgs):
    """Hands over the frame of each step in `info`, before anyone resets."""

    def __init__(self, env: gym.Env) -> None:
        """Wrap one environment that draws itself as rgb_array; else a ConfigError."""
        check_draws(env)
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step, and draw."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        info = {**info, FRAME: self.env.render()}
        return observation, reward, terminated, truncated, info


def check_draws(env: Any) -> None:
    """Refuse, with a ConfigError, an environment that does not draw itself."""
    if env.render_mode != "rgb_array":
        raise ConfigError(
            f"{env} has render_mode={env.render_mode!r}, but its pictures are needed: "
            'make it with render_mode="rgb_array".'
        )
