"""What SAC and DQN share: a run's state, labelling, evaluation, checkpoints, summary.

The loop itself is in `sac.py` and `dqn.py`: collect, label, learn, report.
"""

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch

from vlmrm_exp.config import Config, ConfigError
from vlmrm_exp.envs import VectorEnv
from vlmrm_exp.log import RunLog
from vlmrm_exp.rl import dqn, sac
from vlmrm_exp.rl.policy import Policy, save_policy
from vlmrm_exp.rl.progress import Progress
from vlmrm_exp.rl.replay import ReplayBuffer
from vlmrm_exp.rl.rollout import Act, Rollout, collect, receive, submit
from vlmrm_exp.rl.trial import judge, try_policy, write_video

if TYPE_CHECKING:
    from vlmrm_exp.vlm.scorer import Scorer


class Seeds(NamedTuple):
    """Independent seeds of everything random, all drawn from the run's one."""

    envs: int
    agent: int
    replay: int
    evaluation: int
    """Of the start states while training: always the same, to compare policies."""
    final: int
    """Of the start states at the end: others, on which nothing was chosen."""


class Labelled(NamedTuple):
    """A rollout with its rewards."""

    rollout: Rollout
    reward: np.ndarray
    """(T, N) float32."""


@dataclass
class State:
    """Everything that a run needs to go on; whole between two rollouts."""

    envs: VectorEnv
    agent: "sac.SAC | dqn.DQN"
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


class Run:
    """One training run: what it was given, its state, and the steps of its loop."""

    state: State | None
    """None until `start`."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        envs: VectorEnv,
        eval_envs: VectorEnv,
        scorer: "Scorer | None",
        log: RunLog,
        device: torch.device,
    ) -> None:
        """Take the parts, which the caller closes afterwards.

        Args:
            config: checked.
            folder: where checkpoints and videos go.
            envs: `algo.num_envs` of them.
            eval_envs: as many as episodes are to be evaluated at once.
            scorer: None: the reward is the environment's own.
            log: takes metrics and the summary.
            device: of networks and replay.

        Raises:
            ConfigError: the algorithm cannot choose this environment's actions.
        """
        check_action_space(config, envs.action_space)
        self.config = config
        self.folder = folder
        self.envs = envs
        self.eval_envs = eval_envs
        self.scorer = scorer
        self.log = log
        self.device = device
        self.seeds = Seeds(*np.random.SeedSequence(config.seed).generate_state(5).tolist())
        self.state = None
        self.stop_requested = False
        """Set by Ctrl-C: the loop ends before the next rollout."""
        self._overlap = config.compute.overlap and scorer is not None
        self._ticket: int | None = None  # of state.in_flight
        self._clock = Clock()
        self._progress: Progress | None = None

    def start(self, agent: "sac.SAC | dqn.DQN") -> State:
        """Make the replay buffer and the state that the loop works on."""
        config, envs = self.config, self.envs
        rollout_steps = envs.num_envs * envs.episode_length
        capacity = min(
            config.algo.buffer_size // rollout_steps,
            math.ceil(config.env_steps / rollout_steps),  # there will be no more
        )
        replay = ReplayBuffer(
            max(capacity, 1),
            envs.episode_length,
            envs.num_envs,
            envs.observation_space,
            envs.action_space,
            self.seeds.replay,
            self.device,
        )
        self.state = State(
            envs, agent, replay, next_evaluation=config.evaluation.every
        )
        self._progress = Progress(config.env_steps)
        self._clock.start()
        return self.state
