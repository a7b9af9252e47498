"""Replay: rollouts with rewards, and transitions drawn from them."""

import math
import os
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from vlmrm_exp.config import ConfigError
from vlmrm_exp.envs import VectorEnv
from vlmrm_exp.rl import Batch


class Replay:
    """A ring of whole rollouts with rewards; the oldest makes room for the newest.

    Every rollout has N episodes of T steps, so each observation is kept once (T + 1 per
    episode) and serves as the next observation of the step before it.
    """

    def __init__(
        self,
        capacity: int,
        envs: VectorEnv,
        seed: int,
        device: torch.device,
        normalise_rewards: bool = False,
    ) -> None:
        """Set memory aside; on the CPU the system hands it out as it is filled.

        `capacity` is in transitions: rounded down to whole rollouts, at least one; the
        seed is of the draws. `normalise_rewards` gives rewards out with mean 0 and
        standard deviation 1 over all that is stored.

        Raises:
            ConfigError: it does not fit into memory.
        """
        steps, count = envs.episode_length, envs.num_envs
        self.generator = torch.Generator(device).manual_seed(seed)
        self._transitions, self._num_envs = steps * count, count
        self.capacity = max(capacity // self._transitions, 1)  # in rollouts
        self._normalise = normalise_rewards
        self._reward_mean = torch.zeros((), device=device)
        self._reward_std = torch.ones((), device=device)
        self._filled = 0  # rollouts
        self._next = 0  # the slot that is written next
        discrete = isinstance(envs.action_space, gym.spaces.Discrete)
        action = envs.action_space.shape or ()  # () of discrete ones
        shape = (self.capacity, steps, count)
        _check_memory(envs.observation_space, math.prod(shape), device)
        observations = (self.capacity, steps + 1, count, *envs.observation_space.shape)
        kind = torch.int64 if discrete else torch.float32
        self._reward = torch.empty(shape, device=device)
        self._stored = {
            "observation": torch.empty(observations, device=device),
            "action": torch.empty((*shape, *action), dtype=kind, device=device),
            "reward": self._reward,
        }
        # The same memory with one row per step, to gather from.
        self._rows = {name: each.flatten(0, 2) for name, each in self._stored.items()}

    @property
    def size(self) -> int:
        """Transitions that can be drawn."""
        return self._filled * self._transitions

    def add(
        self,
        observation: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        states: np.ndarray | None = None,
    ) -> None:
        """Add a rollout: a `Rollout`'s arrays, and its rewards (T, N) float32.

        Only a `RememberingReplay` stores the states.
        """
        rollout: dict[str, Any] = {
            "observation": observation,
            "action": action,
            "reward": reward,
            "states": states,
            "given": reward,
        }
        for name, memory in self._stored.items():
            memory[self._next].copy_(torch.from_numpy(rollout[name]))
        self._next = (self._next + 1) % self.capacity
        self._filled = min(self._filled + 1, self.capacity)
        self._measure_rewards()

    def draw(self, *shape: int) -> torch.Tensor:
        """Places of transitions, uniform with replacement: int64 of that shape."""
        return torch.randint(
            self.size, shape, generator=self.generator, device=self.generator.device
        )

    def gather(self, place: torch.Tensor) -> Batch:
        """Transitions by their places (B,); nothing is copied to or from the CPU."""
        # A rollout has one more observation than steps: N rows more per rollout.
        slot = place.div(self._transitions, rounding_mode="floor")
        before = place + slot * self._num_envs
        after = before + self._num_envs
        reward = self._rows["reward"].index_select(0, place)
        return Batch(
            observation=self._rows["observation"].index_select(0, before),
            action=self._rows["action"].index_select(0, place),
            reward=(reward - self._reward_mean) / self._reward_std,
            next_observation=self._rows["observation"].index_select(0, after),
            last=place - slot * self._transitions >= self._transitions - self._num_envs,
        )

    def newest_reward(self) -> np.ndarray:
        """The rewards (T, N) of the newest rollout, as they are learned from."""
        return self._reward[self._newest].cpu().numpy()

    @property
    def _newest(self) -> int:
        return (self._next - 1) % self.capacity

    def state_dict(self) -> dict[str, Any]:
        """What is stored (views, not copies), where the ring stands, the draws."""
        stored = {name: each[: self._filled] for name, each in self._stored.items()}
        return stored | {"next": self._next, "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a `state_dict` of a buffer of the same shape."""
        self._filled = len(state["reward"])
        # More room than before: after what is there.
        self._next = state["next"] if self._filled == self.capacity else self._filled
        for name, memory in self._stored.items():
            memory[: self._filled].copy_(state[name])
        self.generator.set_state(state["generator"])
        self._measure_rewards()

    def _measure_rewards(self) -> None:
        if self._normalise:
            stored = self._reward[: self._filled]
            # In place, where a captured CUDA graph reads them.
            self._reward_mean.copy_(stored.mean())
            # All rewards alike, as of a predicate that is not met yet: leave the scale.
            std = stored.std(correction=0)
            self._reward_std.copy_(torch.where(std > 1e-6, std, torch.ones_like(std)))


def _check_memory(space: gym.Space, transitions: int, device: torch.device) -> None:
    """Refuse a buffer that this machine cannot hold, before it is filled for hours."""
    needed = math.prod(space.shape or ()) * 4 * transitions / 1e9
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    if device.type == "cuda":
        there = torch.cuda.get_device_properties(device).total_memory / 1e9
    if needed > there:
        raise ConfigError(
            f"Replay of {transitions:,} transitions takes {needed:,.0f} GB for their "
            f"observations of shape {space.shape}, but there are {there:,.0f} GB of "
            "memory: lower algo.buffer_size."
        )
