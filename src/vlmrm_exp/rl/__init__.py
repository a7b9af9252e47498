"""Learn: the last stage of the flow. `sac.py` and `dqn.py` are the algorithms.

    rollouts with rewards -> [replay] -> batch -> [SAC or DQN] -> policy

Letters: N environments, T steps of an episode, O observation and A action dimensions,
B transitions of a batch.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

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


class Agent(Protocol):
    """What SAC and DQN have in common."""

    generator: torch.Generator
    """Of all that `update` draws."""

    def act_greedily(self, observation: np.ndarray) -> np.ndarray:
        """Act without exploration: observations (N, O) -> actions (N, A) or (N,)."""
        ...

    def update(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Take one gradient step; its metrics stay on the device.

        It can be recorded as a CUDA graph: it changes its state in place, computes the
        same in each step, and never waits for the device.
        """
        ...

    def checkpoint(self) -> dict[str, Any]:
        """What acting without exploration needs, copied to the CPU: see `Policy`."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that learning changes, random generator included."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""


def network_input(observation: np.ndarray, squash: bool) -> np.ndarray:
    """What networks are shown of observations (..., O): squashed, or as they are."""
    if squash:
        return np.sign(observation) * np.log1p(np.abs(observation))
    return observation


def means(metrics: Sequence[dict[str, torch.Tensor]]) -> dict[str, float]:
    """Average each key over the gradient steps.

    Raises:
        FloatingPointError: a mean is not a finite number.
    """
    if not metrics:
        return {}
    keys = list(metrics[0])
    # (gradient steps x keys,) -> (keys,): one copy to the CPU for all of them
    flat = torch.stack([values[key] for values in metrics for key in keys])
    averages = flat.view(len(metrics), len(keys)).mean(0).tolist()
    for key, mean in zip(keys, averages, strict=True):
        if not math.isfinite(mean):
            raise FloatingPointError(
                f"{key} became {mean}: learning diverged; try a lower "
                "algo.learning_rate."
            )
    return dict(zip(keys, averages, strict=True))


class Seeds(NamedTuple):
    """Independent seeds of everything random, all drawn from the run's one."""

    envs: int
    agent: int
    replay: int
    evaluation: int
    """Of the start states while training: always the same, to compare policies."""
    final: int
    """Of the start states at the end: others, on which nothing was chosen."""


def make_seeds(seed: int) -> Seeds:
    """Draw a run's seeds."""
    return Seeds(*np.random.SeedSequence(seed).generate_state(5).tolist())
