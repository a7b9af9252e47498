"""Tasks whose goals are to be met one after another, and what counts how far it got."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np

from vlmrm_exp.config import TaskConfig
from vlmrm_exp.envs import Predicate, Step, VectorEnv, world_of
from vlmrm_exp.foreign import blaming, close


class InOrder:
    """Counts, in N episodes, how many of K conditions were met, in their order.

    One is passed when it has held for some steps in a row; only then does the next one
    begin to count. None is taken back.
    """

    def __init__(self, num_envs: int, hold: Sequence[int]) -> None:
        """Begin N episodes; `hold` has the steps of each condition, from 1 up."""
        self._hold = np.array([*hold, 1])  # the last one is never met: all are passed
        self.count = np.zeros(num_envs, np.int64)
        self.held = np.zeros(num_envs, np.int64)

    @property
    def passed(self) -> np.ndarray:
        """Which conditions each episode has passed: (N, K) bool."""
        return np.arange(len(self._hold) - 1) < self.count[:, None]

    def begin(self) -> None:
        """Begin new episodes."""
        self.count[:] = self.held[:] = 0

    def step(self, met: np.ndarray) -> None:
        """Go on by a step, after which conditions are met or not: (N, K) bool."""
        padded = np.pad(met, ((0, 0), (0, 1)))
        now = np.take_along_axis(padded, self.count[:, None], 1)[:, 0]
        self.held = np.where(now, self.held + 1, 0)
        done = self.held >= self._hold[self.count]
        self.count += done
        self.held[done] = 0

    def state_dict(self) -> dict[str, Any]:
        """Where the episodes are."""
        return {"count": self.count.tolist(), "held": self.held.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.count[:], self.held[:] = state["count"], state["held"]


class Around:
    """Environments around others, which do as those do; a `VectorEnv`.

    Where those fail, they are named (`foreign.blaming`).
    """

    observation_space: gym.spaces.Box

    def __init__(self, envs: VectorEnv, hold: Sequence[int]) -> None:
        """Around `envs`; `hold` is as `InOrder` has it, or empty: nothing is added."""
        self._envs = envs
        self.blamed: object = getattr(envs, "blamed", envs)
        self._order, self._alike = InOrder(envs.num_envs, hold), not hold
        self.num_envs, self.episode_length = envs.num_envs, envs.episode_length
        self.observation_space = envs.observation_space
        self.action_space = envs.action_space

    def reset(self, seed: int | None = None) -> np.ndarray:
        """Start new episodes; (N, O) float32."""
        self._order.begin()
        with blaming(self, "in reset"):
            return self._envs.reset(seed)

    def step(self, action: np.ndarray) -> Step:
        """Advance all environments."""
        return self._envs.step(action)

    def states(self) -> np.ndarray:
        """The present states."""
        return self._envs.states()

    def episode_success(self, goal: np.ndarray) -> np.ndarray:
        """Judge whole episodes: (T, N) bool -> (N,) bool."""
        return self._envs.episode_success(goal)

    def state_dict(self) -> dict[str, Any]:
        """Of the environments, and how far episodes are."""
        with blaming(self, "in state_dict"):
            envs = self._envs.state_dict()
        if self._alike:
            return envs
        return {"envs": envs, "order": self._order.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        with blaming(self, "in load_state_dict"):
            self._envs.load_state_dict(state if self._alike else state["envs"])
        if not self._alike:
            self._order.load_state_dict(state["order"])

    def close(self) -> None:
        """Release simulators."""
        close(self._envs)


class GoalsInOrder(Around):
    """The goal is met where the last one is, once all before it were, in order."""

    def __init__(self, envs: VectorEnv, before: Sequence[Predicate], hold: int) -> None:
        """Around those of the last goal; each must be met for `hold` steps in a row."""
        super().__init__(envs, [hold] * (len(before) + 1))
        self._before, self._hold = before, hold

    def step(self, action: np.ndarray) -> Step:
        """Advance all environments."""
        step = self._envs.step(action)
        states = self._envs.states()
        assert step.goal is not None
        met = np.stack([each(states) for each in self._before] + [step.goal], 1)
        goal = met[:, -1] & (self._order.count >= len(self._before))
        self._order.step(met)
        return step._replace(goal=goal, passed={"goal": self._order.passed})

    def episode_success(self, goal: np.ndarray) -> np.ndarray:
        """Whether the last one held for so many steps, after those before it."""
        last = InOrder(goal.shape[1], [self._hold])
        for row in goal:
            last.step(row[:, None])
        return last.count > 0


def make_envs(task: TaskConfig, num_envs: int, threads: int) -> VectorEnv:
    """Simulators of a task, as `World.make_envs` says, with all of its goals."""
    world = world_of(task)
    envs = world.make_envs(task, num_envs, threads)
    before = [
        world.predicate(replace(task, goal=goal, before=[])) for goal in task.before
    ]
    known = [predicate for predicate in before if predicate is not None]
    assert len(known) == len(before)  # `check_world`
    if known:
        return GoalsInOrder(envs, known, task.hold)
    return Around(envs, []) if ":" in task.env else envs
