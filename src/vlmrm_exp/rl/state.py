"""Everything that a run needs to go on, in one object that the loop owns."""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from vlmrm_exp.envs import VectorEnv
from vlmrm_exp.reward.pool import Pool, Wait
from vlmrm_exp.rl import Agent
from vlmrm_exp.rl.alarms import Alarms
from vlmrm_exp.rl.replay import Replay
from vlmrm_exp.rl.rollout import Rollout

PARTS = ("envs", "agent", "replay", "pool", "alarms")
"""Of a state: what has a `state_dict` of its own."""


@dataclass
class State:
    """Everything that a run needs to go on; whole between two rollouts."""

    envs: VectorEnv
    agent: Agent
    replay: Replay
    pool: Pool
    """For what a reward model has learned."""
    env_steps: int = 0
    """Simulated."""
    learned_steps: int = 0
    """Rewarded and learned from; the x-axis of the metrics."""
    gradient_steps: int = 0
    in_flight: deque[Rollout] = field(default_factory=deque)
    """Simulated, but not yet learned from."""
    rewards: deque[Wait] = field(default_factory=deque)
    """Theirs, which are being computed."""
    next_evaluation: int = 0
    """Learned env steps at which the policy is evaluated next."""
    best: dict[str, Any] | None = None
    """Checkpoint of the policy with the highest reward so far."""
    best_reward: float = -math.inf
    best_version: int = 0
    """Of the reward model, if it learns, that this reward is of."""
    alarms: Alarms = field(default_factory=Alarms)
    """Where judges disagree with the reward."""
    interrupted: int = 0
    """The signal that ended it early."""
    whole: bool = True
    """Whether it ended between two rollouts, so that it can be saved."""

    def checkpoint(self) -> dict[str, Any]:
        """The present policy."""
        return {**self.agent.checkpoint(), "env_steps": self.learned_steps}

    def state_dict(self) -> dict[str, Any]:
        """Tensors, arrays and primitives; what is large is not copied."""
        parts = {name: getattr(self, name).state_dict() for name in PARTS}
        return {
            **vars(self),
            **parts,
            "in_flight": [vars(rollout) for rollout in self.in_flight],
            "rewards": [wait() for wait in self.rewards],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        for name, value in state.items():
            if name in PARTS:
                getattr(self, name).load_state_dict(value)
            else:
                setattr(self, name, value)
        self.interrupted = 0
        self.in_flight = deque(Rollout(**rollout) for rollout in state["in_flight"])
        self.rewards = deque(partial(np.asarray, each) for each in state["rewards"])
