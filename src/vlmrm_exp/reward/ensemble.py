"""Several opinions as one reward: what one of them alone is wrong about pays less.

    states -> each member's rewards -> [standardise] -> [combine] -> rewards

After Coste et al. 2023 (arXiv 2310.02743), whose members differ in the seed of their
training. Here they differ in model, camera, sentence or kind (`told.py`). Letters: B
states, E members.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from vlmrm_exp.checks import number_from_0, one_of, reward_options, whole_number
from vlmrm_exp.config import Config, ConfigError
from vlmrm_exp.reward import Episodes, RewardModel, facts_of, make_model, rewards_of
from vlmrm_exp.reward.clip import ClipReward
from vlmrm_exp.reward.pool import close
from vlmrm_exp.reward.random_states import random_states

checked = partial(
    reward_options,
    {
        "combine": ("min", partial(one_of, options=("min", "mean", "uncertainty"))),
        "weight": (0.5, number_from_0),
        "episodes": (16, whole_number),
    },
)
"""What `reward.options` asks for, or a ConfigError."""
LEAST_SPREAD = 1e-6
"""Standard deviation of a member's rewards over their size, below which it is noise of
float32."""


class EnsembleReward(RewardModel):
    """The worst, the mean, or the mean minus the variance of standardised rewards.

    A member's reward is standardised by its mean and its standard deviation over the
    states of `reward.options.episodes` episodes of random actions: cosines of different
    models have different offsets and spreads.
    """

    sees_pictures = True
    has_options = True

    @classmethod
    def check_config(cls, config: Config) -> None:
        """Refuse impossible options."""
        checked(config.reward.options)

    def __init__(self, config: Config) -> None:
        """Load the members, and look at what random actions lead to.

        Raises:
            ConfigError: as of a member, which is named; impossible options; a member
                whose rewards of these states are all alike.
        """
        self._options = checked(config.reward.options)
        looks: dict[str, dict[str, Config]] = {}
        for name, member in member_configs(config).items():
            look = name
            if member.reward.model == "clip":
                look = repr((member.task, member.clip, member.compute))
            looks.setdefault(look, {})[name] = member
        self._names = [name for members in looks.values() for name in members]
        self._models = {" and ".join(m): _load(m) for m in looks.values()}
        sizes = (model.batch_size for model in self._models.values())
        self.batch_size = math.lcm(*sizes)  # so that workers get whole batches of each
        usual = random_states(config, self._options["episodes"], self.batch_size)
        given = np.concatenate([self.members(states) for states in usual])
        self._mean, self._std = given.mean(0), given.std(0)
        alike = self._std <= LEAST_SPREAD * np.abs(given).max(0)
        for e in np.flatnonzero(alike):
            raise ConfigError(
                f"member.{self._names[e]} gives all {len(given)} states that random "
                f"actions lead to a reward of {given[0, e]:.4g}, so there is no spread "
                "to standardise it by: leave it out, or give more "
                "reward.options.episodes."
            )

    def members(self, states: np.ndarray) -> np.ndarray:
        """States (B, S), or frames -> each member's own rewards (B, E) float64."""
        parts = [
            model.scores(states)
            if type(model) is ClipReward
            else rewards_of(model, Episodes(states=states[:, None]))
            for model in self._models.values()
        ]
        return np.concatenate(parts, 1, dtype=np.float64)

    def rewards(self, episodes: Episodes) -> np.ndarray:
        """(T, N) float32, in standard deviations of random actions' states."""
        standardised = (self.members(episodes.flat) - self._mean) / self._std
        combine, weight = self._options["combine"], self._options["weight"]
        reward = combined(standardised, combine, weight)
        return reward.reshape(episodes.shape).astype(np.float32)

    def about(self) -> dict[str, Any]:
        """What each member is made of, and what it is standardised by."""
        scales = zip(self._names, self._mean.tolist(), self._std.tolist(), strict=True)
        return {
            "members": {name: {"mean": mean, "std": std} for name, mean, std in scales},
            "member_models": {
                of: facts_of(model) for of, model in self._models.items()
            },
        }

    def close(self) -> None:
        """Release what the members hold."""
        for model in self._models.values():
            close(model)


def _load(members: Mapping[str, Config]) -> RewardModel:
    """The reward model of a member, or of several whose states it embeds once."""
    first, *_ = configs = list(members.values())
    try:
        if first.reward.model == "clip":
            return ClipReward(first, configs)
        return make_model(first)
    except ConfigError as error:
        raise type(error)(f"member.{' and '.join(members)}: {error}") from error


def member_configs(config: Config) -> dict[str, Config]:
    """The configuration of each member: the run's, with what the member changes."""
    found = {}
    for name, changes in config.member.items():
        changed = {}
        for key, value in changes.items():
            group = isinstance(value, dict)
            changed[key] = replace(getattr(config, key), **value) if group else value
        found[name] = replace(config, **changed, member={})
    return found


def combined(rewards: np.ndarray, how: str, weight: float) -> np.ndarray:
    """Combine standardised rewards (B, E) into (B,), as section 3 of the paper does.

    By min, worst-case optimisation; mean; or uncertainty: the mean minus `weight` times
    the variance over members.
    """
    if how == "min":
        return rewards.min(1)
    mean = rewards.mean(1)
    return mean if how == "mean" else mean - weight * rewards.var(1)
