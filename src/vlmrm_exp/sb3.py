"""Stable-Baselines3's vectors of environments, rewarded by a sentence."""

from typing import Unpack

from vlmrm_exp.config import ConfigError
from vlmrm_exp.scorer import Scorer, ScorerArgs
from vlmrm_exp.wrappers import FRAME, FrameInInfo

try:
    from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
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


class VecVLMReward(VecEnvWrapper):
    """A `VecEnv` whose rewards say how well its frames fit a sentence.

    envs = make_vec_env("Pendulum-v1", n_envs=8, wrapper_class=FrameInInfo,
                        env_kwargs={"render_mode": "rgb_array"})
    envs = VecVLMReward(envs, prompt="a pendulum standing upright", clip="vitb32")

    One batch of frames for each step. A `VecEnv` resets within `step`, so each of its
    environments hands over its frame before: `FrameInInfo` of `vlmrm_exp.wrappers`. Its
    own reward is in `info["env_reward"]`.
    """

    def __init__(self, venv: VecEnv, **sentence: Unpack[ScorerArgs]) -> None:
        """Load the model.

        Args:
            venv: of environments in a `FrameInInfo`.
            **sentence: prompt, clip, baseline, alpha, overrides, as of `Scorer`.

        Raises:
            ConfigError: as `Scorer`, or an environment has no `FrameInInfo`.
        """
        if not all(venv.env_is_wrapped(FrameInInfo)):
            raise ConfigError(
                "A VecEnv resets within step, so each of its environments has to hand "
                "over its last frame before: wrap it in FrameInInfo of "
                "vlmrm_exp.wrappers, as make_vec_env(..., wrapper_class=FrameInInfo, "
                'env_kwargs={"render_mode": "rgb_array"}).'
            )
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
