"""CartPole: Gymnasium's physics without termination, and its picture.

Differences from Gymnasium, so that nothing tells the agent of the task (paper C.1):
the episode goes on when the pole falls, and the pole swings freely; the cart stops at
the walls |x| = 2.4 (the original code clipped x but kept the speed). The observed angle
is wrapped to (-pi, pi]; the state's is not.
"""

import math
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

from vlmrm_exp.config import TaskConfig
from vlmrm_exp.envs import Samples, Step, World, toy_renderers
from vlmrm_exp.envs.toy_renderers import DRAWN_BY, WALL, CartPoleRenderer

POSITIONS = 9  # of the cart in the grid of states
MAX_ANGLE = 12 * 2 * math.pi / 360  # rad, Gymnasium's theta_threshold_radians


def in_bounds(states: np.ndarray) -> np.ndarray:
    """Whether Gymnasium's episode would go on: states (..., 4) -> (...) bool.

    A cart at the wall is out of bounds, or it could lean there for ever. A pole that
    has turned all the way round is up again.
    """
    angle = wrap_angle(states[..., 2])
    return (np.abs(states[..., 0]) < WALL) & (np.abs(angle) <= MAX_ANGLE)


def wrap_angle(angle: np.ndarray) -> np.ndarray:
    """Bring angles in rad to (-pi, pi]; those already there keep every bit."""
    inside = (angle > -math.pi) & (angle <= math.pi)
    return np.where(inside, angle, math.pi - (math.pi - angle) % math.tau)


class CartPoleEnvs:
    """N CartPoles. State: x (m), x_dot, theta (rad, 0 is up), theta_dot."""

    def __init__(self, task: TaskConfig, num_envs: int) -> None:
        assert task.episode_length is not None
        self.num_envs = num_envs
        self.episode_length = task.episode_length
        high = np.array([WALL, np.inf, math.pi, np.inf], np.float32)
        self.observation_space = gym.spaces.Box(-high, high, dtype=np.float32)
        self.action_space = gym.spaces.Discrete(2)
        self._envs = [CartPoleEnv() for _ in range(num_envs)]
        self._seed(0)

    def reset(self, seed: int | None = None) -> np.ndarray:
        """Start new episodes; (N, 4) float32. A seed restarts the random stream."""
        if seed is not None:
            self._seed(seed)
        for env in self._envs:
            env.reset()
        return self._observation(self.states())

    def step(self, action: np.ndarray) -> Step:
        """Push every cart: action (N,) int64, 0 left, 1 right."""
        for env, push in zip(self._envs, action, strict=True):
            env.steps_beyond_terminated = None  # it would warn of the missing reset
            env.step(int(push))
            state = env.state
            assert state is not None
            if abs(state[0]) >= WALL:
                state[0] = math.copysign(WALL, state[0])
                if state[0] * state[1] > 0:  # towards the wall
                    state[1] = 0.0
        states = self.states()
        goal = in_bounds(states)
        return Step(self._observation(states), goal.astype(np.float32), goal)

    def states(self) -> np.ndarray:
        """The present states (N, 4) float64."""
        return np.array([env.state for env in self._envs], np.float64)

    def episode_success(self, goal: np.ndarray) -> np.ndarray:
        """In bounds at every step: (T, N) bool -> (N,) bool."""
        return np.asarray(goal.all(axis=0))

    def state_dict(self) -> dict[str, Any]:
        """States and random generators, as numbers, lists and strings."""
        return {
            "states": self.states().tolist(),
            "generators": [env.np_random.bit_generator.state for env in self._envs],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict` of as many environments."""
        for env, row, generator in zip(
            self._envs, state["states"], state["generators"], strict=True
        ):
            env.state = np.array(row, np.float64)
            env.np_random.bit_generator.state = generator

    def close(self) -> None:
        """Nothing is held."""

    def _seed(self, seed: int) -> None:
        rngs = np.random.default_rng(seed).spawn(self.num_envs)
        for env, rng in zip(self._envs, rngs, strict=True):
            env.np_random = rng
            env.state = np.zeros(4)

    def _observation(self, states: np.ndarray) -> np.ndarray:
        observation = states.astype(np.float32)
        observation[:, 2] = wrap_angle(states[:, 2])
        return observation


def sample_states(task: TaskConfig, count: int, seed: int) -> Samples:
    """All pairs of angles, all the way round, and positions: cell centres, at rest."""
    angles = (np.arange(count // POSITIONS) + 0.5) / (count // POSITIONS) * 2 - 1
    positions = (np.arange(POSITIONS) + 0.5) / POSITIONS * 2 - 1
    states = np.zeros((len(angles) * POSITIONS, 4))
    states[:, 0] = np.tile(positions * WALL, len(angles))
    states[:, 2] = np.repeat(angles * np.pi, POSITIONS)
    return Samples(states, np.full(len(states), "grid"), None)


WORLD = World(
    make_envs=lambda task, num_envs, threads: CartPoleEnvs(task, num_envs),
    make_renderer=CartPoleRenderer,
    algorithms=("dqn",),
    state_size=4,
    predicate=lambda task: in_bounds,
    graded=lambda states: -np.abs(wrap_angle(states[:, 2])),
    graded_by="minus the pole's angle",
    sample_states=sample_states,
    grid=True,
    renders_with=lambda: DRAWN_BY,
    sources=(__file__, *toy_renderers.SOURCES),
)
