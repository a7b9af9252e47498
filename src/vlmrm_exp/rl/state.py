"""What a run needs to go on, in one plain object that its loop owns."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from vlmrm_exp.envs import VectorEnv
from vlmrm_exp.rl.dqn import DQN
from vlmrm_exp.rl.replay import ReplayBuffer
from vlmrm_exp.rl.rollout import Rollout
from vlmrm_exp.rl.sac import SAC


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


class Labelled(NamedTuple):
    """A rollout with its rewards."""

    rollout: Rollout
    reward: np.ndarray
    """(T, N) float32."""


@dataclass
class State:
    """Everything that a run needs to go on; whole between two rollouts."""

    envs: VectorEnv
    agent: SAC | DQN
    replay: ReplayBuffer
    env_steps: int = 0
    """Simulated."""
    labelled_steps: int = 0
    """Labelled and learned from; the x-axis of the metrics."""
    gradient_steps: int = 0
    in_flight: Rollout | None = None
    """Simulated, but its rewards are still being computed."""
    next_evaluation: int = 0
    """Labelled env steps at which the policy is tried next."""
    best: dict[str, Any] | None = None
    """Checkpoint of the policy with the highest reward so far."""
    best_reward: float = -math.inf

    def state_dict(self) -> dict[str, Any]:
        """Tensors, arrays and primitives; what is large is not copied."""
        return {
            "envs": self.envs.state_dict(),
            "agent": self.agent.state_dict(),
            "replay": self.replay.state_dict(),
            "env_steps": self.env_steps,
            "labelled_steps": self.labelled_steps,
            "gradient_steps": self.gradient_steps,
            "in_flight": None if self.in_flight is None else vars(self.in_flight),
            "next_evaluation": self.next_evaluation,
            "best": self.best,
            "best_reward": self.best_reward,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.envs.load_state_dict(state["envs"])
        self.agent.load_state_dict(state["agent"])
        self.replay.load_state_dict(state["replay"])
        self.env_steps = state["env_steps"]
        self.labelled_steps = state["labelled_steps"]
        self.gradient_steps = state["gradient_steps"]
        in_flight = state["in_flight"]
        self.in_flight = None if in_flight is None else Rollout(**in_flight)
        self.next_evaluation = state["next_evaluation"]
        self.best = state["best"]
        self.best_reward = state["best_reward"]
