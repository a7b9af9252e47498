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
from vlmrm_exp.envs import Step
from vlmrm_exp.envs.canvas import DRAWN_BY, WIDTH, Canvas, gfxdraw

WALL = 2.4  # m, Gymnasium's x_threshold
MAX_ANGLE = 12 * 2 * math.pi / 360  # rad, Gymnasium's theta_threshold_radians


def in_bounds(rows: np.ndarray) -> np.ndarray:
    """Whether Gymnasium's episode would go on: rows (..., 4) -> (...) bool.

    A cart at the wall is out of bounds, or it could lean there for ever. A pole that
    has turned all the way round is up again.
    """
    angle = wrap_angle(rows[..., 2])
    return (np.abs(rows[..., 0]) < WALL) & (np.abs(angle) <= MAX_ANGLE)


def wrap_angle(angle: np.ndarray) -> np.ndarray:
    """Bring angles in rad to (-pi, pi]; those already there keep every bit."""
    inside = (angle > -math.pi) & (angle <= math.pi)
    return np.where(inside, angle, math.pi - (math.pi - angle) % math.tau)


class CartPoleEnvs:
    """N CartPoles. State row: x (m), x_dot, theta (rad, 0 is up), theta_dot."""

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
        return self._observation(self.state_rows())

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
        rows = self.state_rows()
        goal = in_bounds(rows)
        return Step(self._observation(rows), goal.astype(np.float32), goal)

    def state_rows(self) -> np.ndarray:
        """The present states (N, 4) float64."""
        return np.array([env.state for env in self._envs], np.float64)

    def episode_success(self, goal: np.ndarray) -> np.ndarray:
        """In bounds at every step: (T, N) bool -> (N,) bool."""
        return np.asarray(goal.all(axis=0))

    def state_dict(self) -> dict[str, Any]:
        """States and random generators, as numbers, lists and strings."""
        return {
            "states": self.state_rows().tolist(),
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
        streams = np.random.SeedSequence(seed).spawn(self.num_envs)
        for env, stream in zip(self._envs, streams, strict=True):
            env.np_random = np.random.default_rng(stream)
            env.state = np.zeros(4)

    def _observation(self, rows: np.ndarray) -> np.ndarray:
        observation = rows.astype(np.float32)
        observation[:, 2] = wrap_angle(rows[:, 2])
        return observation


class CartPoleRenderer:
    """Gymnasium's picture, drawn from state rows.

    Measurements are Gymnasium's, in px of a 600 x 400 picture whose y grows upwards.
    """

    drawn_by = DRAWN_BY

    def __init__(self, task: TaskConfig, frame_height: int) -> None:
        assert task.textures == "plain"
        self._canvas = Canvas(frame_height, upside_down=True)

    def render(self, rows: np.ndarray) -> np.ndarray:
        """State rows (B, 4) float64 -> frames (B, H, W, 3) uint8."""
        frames = np.empty((len(rows), *self._canvas.frame_shape), np.uint8)
        for frame, row in zip(frames, rows, strict=True):
            self._canvas.clear()
            self._draw(row[0], row[2])
            self._canvas.read(frame)
        return frames

    def close(self) -> None:
        """Nothing is held."""

    def _draw(self, x: float, theta: float) -> None:
        scale = WIDTH / (2 * WALL)  # px per m
        cart_x, cart_y = x * scale + WIDTH / 2, 100
        axle = (cart_x, cart_y + 7.5)
        cart = [(-25, -15), (-25, 15), (25, 15), (25, -15)]
        pole = [(-5, -5), (-5, scale - 5), (5, scale - 5), (5, -5)]  # 1 m long
        self._canvas.polygon(cart, 0, (cart_x, cart_y), (0, 0, 0))
        self._canvas.polygon(pole, -theta, axle, (202, 152, 101))
        self._canvas.disc(axle, 5, (129, 132, 203))
        gfxdraw.hline(self._canvas.surface, 0, WIDTH, cart_y, (0, 0, 0))
