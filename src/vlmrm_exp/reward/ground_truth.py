"""Rewards that ask no model: a task's predicate, and the environment's own reward."""

from typing import Any

import numpy as np

from vlmrm_exp.config import Config, ConfigError
from vlmrm_exp.envs import world_of
from vlmrm_exp.reward import Episodes, RewardModel


class PredicateReward(RewardModel):
    """1 for states that meet the task's goal, 0 for others."""

    cheap = True

    @classmethod
    def check_config(cls, config: Config) -> None:
        """Refuse a task whose goal has no predicate."""
        if world_of(config.task).predicate(config.task) is None:
            raise ConfigError(
                f"task={config.task.name} has no predicate for its goal: use "
                "reward=environment or reward=clip."
            )

    def __init__(self, config: Config) -> None:
        predicate = world_of(config.task).predicate(config.task)
        assert predicate is not None  # as checked
        self._predicate = predicate
        self._name = config.task.goal or config.task.name

    def rewards(self, episodes: Episodes) -> np.ndarray:
        """(T, N) float32."""
        met = self._predicate(episodes.flat)
        return met.reshape(episodes.shape).astype(np.float32)

    def about(self) -> dict[str, Any]:
        """Which predicate."""
        return {"predicate": self._name}


class EnvironmentReward(RewardModel):
    """The environment's own reward, as it came with each step."""

    cheap = True
    needs_states = False

    def __init__(self, config: Config) -> None:
        pass

    def rewards(self, episodes: Episodes) -> np.ndarray:
        """(T, N) float32."""
        if episodes.env_reward is None:
            raise ConfigError(
                "reward=environment needs an environment's steps, and these are states "
                "alone: choose another reward."
            )
        return episodes.env_reward
