"""Replay: labelled transitions, stored as whole rollouts.

Every rollout has N episodes of T steps, so each observation is kept once (T + 1 per
episode) and serves as the next observation of the step before it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch


class Batch(NamedTuple):
    """B transitions."""

    observation: torch.Tensor
    """(B, O) float32."""
    action: torch.Tensor
    """(B, A) float32, or (B,) int64."""
    reward: torch.Tensor
    """(B,) float32."""
    next_observation: torch.Tensor
    """(B, O) float32: of the same episode, also after its last step."""
    last: torch.Tensor
    """(B,) bool: the episode's last step, at the time limit."""


class ReplayBuffer:
    """A ring of whole rollouts; the oldest makes room for the newest."""

    def __init__(
        self,
        capacity: int,
        episode_length: int,
        num_envs: int,
        observation_space: gym.spaces.Box,
        action_space: gym.spaces.Box | gym.spaces.Discrete,
        seed: int,
        device: torch.device,
        normalise_rewards: bool = False,
    ) -> None:
        """Set memory aside; on the CPU the system hands it out as it is filled.

        Args:
            capacity: in rollouts.
            episode_length: T, env steps.
            num_envs: N.
            observation_space: of one environment, (O,).
            action_space: of one environment, (A,) or discrete.
            seed: of the draws.
            device: where the transitions lie and are drawn.
            normalise_rewards: give rewards out with mean 0 and standard deviation 1
                over all that is stored.
        """
        self.capacity = capacity
        self.generator = torch.Generator(device).manual_seed(seed)
        self._transitions = episode_length * num_envs
        self._num_envs = num_envs
        self._normalise = normalise_rewards
        self._reward_mean = torch.zeros((), device=device)
        self._reward_std = torch.ones((), device=device)
        self._filled = 0  # rollouts
        self._next = 0  # the slot that is written next
        if isinstance(action_space, gym.spaces.Discrete):
            action_shape, action_dtype = (), torch.int64
        else:
            action_shape, action_dtype = action_space.shape, torch.float32
        steps = (capacity, episode_length, num_envs)
        self._observation = torch.empty(
            (capacity, episode_length + 1, num_envs, *observation_space.shape),
            device=device,
        )
        self._action = torch.empty(
            (*steps, *action_shape), dtype=action_dtype, device=device
        )
        self._reward = torch.empty(steps, device=device)
        # The same memory with one row per step, to gather from.
        self._observation_rows = self._observation.flatten(0, 2)
        self._action_rows = self._action.flatten(0, 2)
        self._reward_rows = self._reward.flatten(0, 2)

    @property
    def size(self) -> int:
        """Transitions that can be drawn."""
        return self._filled * self._transitions

    def add(
        self, observation: np.ndarray, action: np.ndarray, reward: np.ndarray
    ) -> None:
        """Add a labelled rollout.

        Args:
            observation: (T + 1, N, O) float32.
            action: (T, N, A) float32, or (T, N) int64.
            reward: (T, N) float32.
        """
        self._observation[self._next].copy_(torch.from_numpy(observation))
        self._action[self._next].copy_(torch.from_numpy(action))
        self._reward[self._next].copy_(torch.from_numpy(reward))
        self._next = (self._next + 1) % self.capacity
        self._filled = min(self._filled + 1, self.capacity)
        self._measure_rewards()

    def draw(self, *shape: int) -> torch.Tensor:
        """Places of transitions, uniform with replacement: int64 of that shape."""
        return torch.randint(
            self.size, shape, generator=self.generator, device=self.generator.device
        )

    def gather(self, row: torch.Tensor) -> Batch:
        """Transitions by their places (B,); nothing is copied to or from the CPU."""
        # A rollout has one more observation than steps: N rows more per rollout.
        slot = row.div(self._transitions, rounding_mode="floor")
        observation_row = row + slot * self._num_envs
        return Batch(
            observation=self._observation_rows.index_select(0, observation_row),
            action=self._action_rows.index_select(0, row),
            reward=(self._reward_rows.index_select(0, row) - self._reward_mean)
            / self._reward_std,
            next_observation=self._observation_rows.index_select(
                0, observation_row + self._num_envs
            ),
            last=row - slot * self._transitions >= self._transitions - self._num_envs,
        )

    def state_dict(self) -> dict[str, Any]:
        """What is stored (views, not copies), where the ring stands, the draws."""
        return {
            "observation": self._observation[: self._filled],
            "action": self._action[: self._filled],
            "reward": self._reward[: self._filled],
            "next": self._next,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a `state_dict` of a buffer of the same shape."""
        self._filled = len(state["reward"])
        self._next = state["next"]
        self._observation[: self._filled].copy_(state["observation"])
        self._action[: self._filled].copy_(state["action"])
        self._reward[: self._filled].copy_(state["reward"])
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
