"""MountainCarContinuous: Gymnasium's physics without termination, and its pictures.

The goal is absorbing (paper C.1; the original code let the car roll back): a car that
reaches x >= 0.45 stands there until the common reset. The `realistic` look has textures
of our own where the original used stock photographs.
"""

import math
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control.continuous_mountain_car import (
    Continuous_MountainCarEnv,
)

from vlmrm_exp.config import TaskConfig
from vlmrm_exp.envs import Step
from vlmrm_exp.envs.canvas import DRAWN_BY, HEIGHT, WIDTH, Canvas, gfxdraw, pygame
from vlmrm_exp.envs.mountain_scene import WHEEL_RADIUS, paint_car, paint_scenery

LEFT, RIGHT = -1.2, 0.6  # the ends of the track
GOAL = 0.45
SCALE = WIDTH / (RIGHT - LEFT)  # px per unit of x and of height
CAR_RESOLUTION = 2  # pixels of the painted car per pixel of the picture
TURNS_PER_DEGREE = 4  # 0.25 degrees move the car's corners by 0.15 px


def height(x: np.ndarray | float) -> Any:
    """The track's height at x, both in Gymnasium's units."""
    return np.sin(3 * x) * 0.45 + 0.55


class MountainCarEnvs:
    """N cars. State row: position (-1.2..0.6), velocity (-0.07..0.07 per step)."""

    def __init__(self, task: TaskConfig, num_envs: int) -> None:
        assert task.episode_length is not None
        self.num_envs = num_envs
        self.episode_length = task.episode_length
        self._envs = [Continuous_MountainCarEnv() for _ in range(num_envs)]
        self._reached = np.zeros(num_envs, bool)
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
        return self.state_rows().astype(np.float32)

    def step(self, action: np.ndarray) -> Step:
        """Drive every car: action (N, 1) float32 in -1..1.

        The reward is Gymnasium's, 0 from the step after the goal on, so that an
        episode's return equals Gymnasium's with termination.
        """
        reward = np.zeros(self.num_envs, np.float32)
        for i, env in enumerate(self._envs):
            if self._reached[i]:
                continue
            _, reward[i], self._reached[i], _, _ = env.step(action[i])
            if self._reached[i]:
                env.state[1] = 0.0
        observation = self.state_rows().astype(np.float32)
        return Step(observation, reward, self._reached.copy())

    def state_rows(self) -> np.ndarray:
        """The present states (N, 2) float64."""
        return np.array([env.state for env in self._envs], np.float64)

    def episode_success(self, goal: np.ndarray) -> np.ndarray:
        """Reached at any time: (T, N) bool -> (N,) bool."""
        return np.asarray(goal.any(axis=0))

    def state_dict(self) -> dict[str, Any]:
        """States, flags and random generators, as numbers, lists and strings."""
        return {
            "states": self.state_rows().tolist(),
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
        streams = np.random.SeedSequence(seed).spawn(self.num_envs)
        for env, stream in zip(self._envs, streams, strict=True):
            env.np_random = np.random.default_rng(stream)
            env.reset()


class MountainCarRenderer:
    """Pictures from state rows: `plain` is Gymnasium's, `realistic` our own.

    Measurements are in px of a 600 x 400 picture whose y grows upwards.
    """

    drawn_by = DRAWN_BY

    def __init__(self, task: TaskConfig, frame_height: int) -> None:
        realistic = task.textures == "realistic"
        self._canvas = Canvas(frame_height, upside_down=not realistic)
        self._draw = self._draw_realistic if realistic else self._draw_plain
        if realistic:
            x = (np.arange(WIDTH) + 0.5) / SCALE + LEFT
            self._canvas.pixels[:] = paint_scenery(
                surface_y=HEIGHT - height(x) * SCALE,
                slope=-1.35 * np.cos(3 * x),
                flag_x=(GOAL - LEFT) * SCALE,
            )
            car = paint_car(CAR_RESOLUTION)
            self._car = pygame.image.frombuffer(car.data, car.shape[1::-1], "RGBA")
            self._turned: dict[int, pygame.Surface] = {}
        else:
            xs = np.linspace(LEFT, RIGHT, 100)
            track = list(zip((xs - LEFT) * SCALE, height(xs) * SCALE, strict=True))
            pygame.draw.aalines(self._canvas.surface, (0, 0, 0), False, track)
        self._canvas.keep_background()

    def render(self, rows: np.ndarray) -> np.ndarray:
        """State rows (B, 2) float64 -> frames (B, H, W, 3) uint8."""
        frames = np.empty((len(rows), *self._canvas.frame_shape), np.uint8)
        for frame, row in zip(frames, rows, strict=True):
            self._canvas.clear()
            self._draw(float(row[0]))
            self._canvas.read(frame)
        return frames

    def close(self) -> None:
        """Nothing is held."""

    def _draw_plain(self, x: float) -> None:
        canvas = self._canvas
        angle = _tilt(x)
        origin = ((x - LEFT) * SCALE, 10 + height(x) * SCALE)
        body = [(-20, 0), (-20, 20), (20, 20), (20, 0)]
        canvas.polygon(body, angle, origin, (0, 0, 0))
        for offset in (10, -10):
            hub = pygame.Vector2(offset, 0).rotate_rad(angle) + origin
            canvas.disc((hub[0], hub[1]), 8, (128, 128, 128))

        foot_x, foot_y = int((GOAL - LEFT) * SCALE), int(height(GOAL) * SCALE)
        gfxdraw.vline(canvas.surface, foot_x, foot_y, foot_y + 50, (0, 0, 0))
        flag = [(0, 50), (0, 40), (25, 45)]
        canvas.polygon(flag, 0, (foot_x, foot_y), (204, 204, 0))

    def _draw_realistic(self, x: float) -> None:
        angle = _tilt(x)
        car = self._turned_car(round(math.degrees(angle) * TURNS_PER_DEGREE))
        # So high that the wheels touch the slope below the car's middle.
        axle = height(x) * SCALE + WHEEL_RADIUS / math.cos(angle)
        center = ((x - LEFT) * SCALE, HEIGHT - axle)
        corner = (
            round(center[0] - car.get_width() / 2),
            round(center[1] - car.get_height() / 2),
        )
        self._canvas.surface.blit(car, corner, special_flags=pygame.BLEND_PREMULTIPLIED)

    def _turned_car(self, turn: int) -> pygame.Surface:
        """The car turned by so many quarter degrees, painted on first use."""
        if turn not in self._turned:
            self._turned[turn] = pygame.transform.rotozoom(
                self._car, turn / TURNS_PER_DEGREE, 1 / CAR_RESOLUTION
            )
        return self._turned[turn]


def _tilt(x: float) -> float:
    """The car's angle in rad, anticlockwise: Gymnasium's, about the track's slope."""
    return math.cos(3 * x)
