"""Replay of a run, and that for rewards that are learned: old states get new ones."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from vlmrm_exp.checks import check_buffer
from vlmrm_exp.config import Config, ConfigError
from vlmrm_exp.envs import VectorEnv
from vlmrm_exp.reward import Episodes
from vlmrm_exp.rl import make_seeds
from vlmrm_exp.rl.replay import Replay


def make_replay(
    config: Config, envs: VectorEnv, remembers: bool, device: torch.device
) -> Replay:
    """Room for `algo.buffer_size` transitions, or for all of a shorter run.

    Raises:
        ConfigError: it does not fit into memory, or nothing would be learned from it.
    """
    algo, of_rollout = config.algo, envs.num_envs * envs.episode_length
    check_buffer(algo, of_rollout, config.env_steps)  # now an episode's length is known
    all_of_run = math.ceil(config.env_steps / of_rollout) * of_rollout
    capacity, seed = min(algo.buffer_size, all_of_run), make_seeds(config.seed).replay
    kind = RememberingReplay if remembers else Replay
    return kind(capacity, envs, seed, device, algo.normalise_rewards)


class RememberingReplay(Replay):
    """A replay buffer that keeps states, and rewards as they came, besides.

    Those are NaN where nobody looked; such rewards are set before the next draw.
    """

    def __init__(self, capacity: int, envs: VectorEnv, *args: Any) -> None:
        """As `Replay`.

        Raises:
            ConfigError: states are frames; or it does not fit into memory.
        """
        super().__init__(capacity, envs, *args)
        shape, state = self._reward.shape, envs.states()[0]
        if state.ndim > 1:
            count = math.prod(shape)
            raise ConfigError(
                "The reward model wants its old states again, but here they are "
                f"frames of {' x '.join(map(str, state.shape))}: {count:,} of them are "
                f"{count * state.nbytes / 1e9:.3g} GB; choose another reward, or a "
                "task whose states are numbers."
            )
        self._states = torch.empty((*shape, *state.shape), dtype=torch.float64)
        self._given = torch.empty(shape)  # as they came, NaN where none did
        self._stored |= {"states": self._states, "given": self._given}

    def episodes(self) -> Episodes:
        """All stored states, as (T, rollouts x N, S)."""
        stored = self._states[: self._filled].transpose(0, 1)  # (T, rollouts, N, S)
        return Episodes(states=stored.flatten(1, 2).numpy())

    def set_rewards(self, reward: np.ndarray) -> None:
        """Replace the rewards of all that is stored: (T, rollouts x N)."""
        of_rollouts = reward.reshape(len(reward), self._filled, self._num_envs)
        self._reward[: self._filled].copy_(
            torch.from_numpy(of_rollouts.swapaxes(0, 1).copy())
        )
        self._measure_rewards()

    def newest(self) -> tuple[np.ndarray, np.ndarray]:
        """The newest rollout: states (T, N, S), and rewards (T, N) as they came."""
        return self._states[self._newest].numpy(), self._given[self._newest].numpy()

    def draw_rewarded(
        self, count: int, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stored states (count, S) float32 whose reward came, with replacement."""
        given = self._given[: self._filled].flatten()
        came = given.isfinite().nonzero().squeeze(1)
        place = came[torch.from_numpy(rng.integers(len(came), size=count))]
        states = self._states.flatten(0, 2)
        return states.index_select(0, place).float(), given[place]

    def relabel(
        self, reward: Callable[[np.ndarray, np.ndarray], np.ndarray], newest: bool
    ) -> float:
        """Replace rewards of all rollouts, or of the newest; see `reward.Memory`."""
        for slot in [self._newest] if newest else range(self._filled):
            given = self._given[slot].numpy()
            told = reward(self._states[slot].numpy(), given)
            self._reward[slot].copy_(torch.from_numpy(told))
        self._measure_rewards()
        return self._reward[: self._filled].std(correction=0).item()
