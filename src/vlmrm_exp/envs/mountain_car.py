"""MountainCarContinuous: Gymnasium's physics without termination, and its pictures.

The goal is absorbing (paper C.1; the original code let the car roll back): a car that
reaches x >= 0.45 stands there until the common reset.
"""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control.continuous_mountain_car import (
    Continuous_MountainCarEnv,
)

from vlmrm_exp.config import TaskConfig
from vlmrm_exp.envs import Predicate, Samples, Step, World, toy_renderers
from vlmrm_exp.envs.toy_renderers import (
    DRAWN_BY,
    FLAG,
    LEFT,
    RIGHT,
    MountainCarRenderer,
)

LEFT_HILLTOP = -1.1
"""The car's middle is less than its length (0.12, as drawn) from the left end."""
PREDICATES: dict[str, Predicate] = {
    "flag": lambda states: states[..., 0] >= FLAG,
    "left_hilltop": lambda states: states[..., 0] <= LEFT_HILLTOP,
}


class MountainCarEnvs:
    """N cars. State: position (-1.2..0.6), velocity (-0.07..0.07 per step)."""

    def __init__(self, task: TaskConfig, num_envs: int) -> None:
        assert task.episode_length is not None
        self.num_envs = num_envs
        self.episode_length = task.episode_length
        self._envs = [Continuous_MountainCarEnv() for _ in range(num_envs)]
        self._reached = np.zeros(num_envs, bool)
        self._goal = task.goal or "flag"
        # At the flag, unless it has something to do after that.
        self._stays = self._goal == "flag" and "flag" not in task.before
        space = self._envs[0].observation_space
        assert isinstance(space, gym.spaces.Box)
        self.observation_space = space
        self.action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
        self._seed(0)

    def reset(self, seed: int | None = None) -> np.ndarray:
        """Start new episodes; (N, 2) float32. A seed restarts the random stream."""
        if seed is not None:
            self._seed(seed)
        self._reached[:] = False
        for env in self._envs:
            env.reset()
        return self.states().astype(np.float32)

    def step(self, action: np.ndarray) -> Step:
        """Drive every car: action (N, 1) float32 in -1..1.

        The reward is Gymnasium's, 0 from the step after the flag on, so that an
        episode's return equals Gymnasium's with termination. There a car stays, unless
        its goal is another.
        """
        reward = np.zeros(self.num_envs, np.float32)
        for i, env in enumerate(self._envs):
            if self._reached[i] and self._stays:
                continue
            _, paid, at_flag, _, _ = env.step(action[i])
            reward[i] = 0 if self._reached[i] else paid
            self._reached[i] |= at_flag
            if self._reached[i] and self._stays:
                env.state[1] = 0.0
        states, goal = self.states(), self._reached.copy()
        if not self._stays:
            goal = PREDICATES[self._goal](states)
        return Step(states.astype(np.float32), reward, goal)

    def states(self) -> np.ndarray:
        """The present states (N, 2) float64."""
        return np.array([env.state for env in self._envs], np.float64)

    def episode_success(self, goal: np.ndarray) -> np.ndarray:
        """Reached at any time: (T, N) bool -> (N,) bool."""
        return np.asarray(goal.any(axis=0))

    def state_dict(self) -> dict[str, Any]:
        """States, flags and random generators, as numbers, lists and strings."""
        return {
            "states": self.states().tolist(),
            # Gymnasium computes in float64 on a reset's state, then in float32.
            "dtype": self._envs[0].state.dtype.name,
            "reached": self._reached.tolist(),
            "generators": [env.np_random.bit_generator.state for env in self._envs],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict` of as many environments."""
        self._reached[:] = state["reached"]
        for env, row, generator in zip(
            self._envs, state["states"], state["generators"], strict=True
        ):
            env.state = np.array(row, state["dtype"])
            env.np_random.bit_generator.state = generator

    def close(self) -> None:
        """Nothing is held."""

    def _seed(self, seed: int) -> None:
        rngs = np.random.default_rng(seed).spawn(self.num_envs)
        for env, rng in zip(self._envs, rngs, strict=True):
            env.np_random = rng
            env.reset()


def sample_states(task: TaskConfig, count: int, seed: int) -> Samples:
    """A uniform grid of positions, at rest."""
    states = np.zeros((count, 2))
    states[:, 0] = np.linspace(LEFT, RIGHT, count)
    return Samples(states, np.full(count, "grid"), None)


WORLD = World(
    make_envs=lambda task, num_envs, threads: MountainCarEnvs(task, num_envs),
    make_renderer=MountainCarRenderer,
    algorithms=("sac",),
    state_size=2,
    textures=("plain", "realistic"),
    goals=tuple(PREDICATES),
    predicate=lambda task: PREDICATES[task.goal or "flag"],
    graded=lambda states: states[:, 0],
    graded_by="the car's position",
    sample_states=sample_states,
    grid=True,
    renders_with=lambda: DRAWN_BY,
    sources=(__file__, *toy_renderers.SOURCES),
)
