"""The pictures of CartPole and MountainCar: pygame without window or display.

`plain` equals Gymnasium's pictures to the pixel; MountainCar's `realistic` ones
(mountain.png, car.png) were painted by scripts/paint_mountain.py from formulas, where
the original used stock photographs. All is drawn at Gymnasium's size and scaled to the
asked height by area averaging (pygame's: its rounding darkens by up to 3 of 255, but it
takes half of Pillow's time).
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pygame
from PIL import Image
from pygame import gfxdraw

from vlmrm_exp.config import TaskConfig

# What physics and pictures share, in Gymnasium's units.
WALL = 2.4  # m from CartPole's middle, Gymnasium's x_threshold
LEFT, RIGHT = -1.2, 0.6  # the ends of MountainCar's track
FLAG = 0.45  # where its goal begins

WIDTH, HEIGHT = 600, 400  # px, Gymnasium's
DRAWN_BY = f"pygame-ce {pygame.version.ver}, SDL {pygame.version.SDL}"

SCALE = WIDTH / (RIGHT - LEFT)  # px per unit of MountainCar's x and of height
CAR_RESOLUTION = 2  # pixels of the painted car per pixel of the picture
TURNS_PER_DEGREE = 4  # 0.25 degrees move the car's corners by 0.15 px
WHEEL_RADIUS = 9.0  # px

Color = tuple[int, int, int]
_HERE = Path(__file__).parent
SOURCES = (__file__, str(_HERE / "mountain.png"), str(_HERE / "car.png"))
"""What decides the pictures."""


class ToyRenderer:
    """Frames of one toy world, drawn state by state over a background.

    Measurements are Gymnasium's, in px of a 600 x 400 picture. The surface and its
    pixels share their memory: clearing and reading are plain array copies, many times
    faster than going through pygame.
    """

    drawn_by = DRAWN_BY

    def __init__(self, frame_height: int, upside_down: bool) -> None:
        """Start white; `upside_down`: y grows upwards, as in Gymnasium's drawings."""
        self._pixels = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
        self._surface = _surface(self._pixels)
        self._background = self._pixels.copy()
        self._upside_down = upside_down
        shape = (frame_height, round(frame_height * WIDTH / HEIGHT), 3)
        self._scaled = np.zeros(shape, np.uint8)
        self._scaled_surface = _surface(self._scaled)

    def render(self, states: np.ndarray) -> np.ndarray:
        """States (B, S) float64 -> frames (B, H, W, 3) uint8."""
        shape = self._scaled.shape
        frames = np.empty((len(states), *shape), np.uint8)
        for frame, state in zip(frames, states, strict=True):
            np.copyto(self._pixels, self._background)
            self._draw(state)
            drawn = self._pixels
            if shape != drawn.shape:
                size = shape[1::-1]
                pygame.transform.smoothscale(self._surface, size, self._scaled_surface)
                drawn = self._scaled
            np.copyto(frame, drawn[::-1] if self._upside_down else drawn)
        return frames

    def _draw(self, state: np.ndarray) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Nothing is held."""

    def _polygon(
        self,
        corners: Sequence[tuple[float, float]],
        angle: float,
        origin: tuple[float, float],
        color: Color,
    ) -> None:
        """Fill a polygon whose corners are turned by `angle` rad about `origin`."""
        turned = [pygame.Vector2(corner).rotate_rad(angle) for corner in corners]
        placed = [(c[0] + origin[0], c[1] + origin[1]) for c in turned]
        gfxdraw.aapolygon(self._surface, placed, color)
        gfxdraw.filled_polygon(self._surface, placed, color)

    def _disc(self, center: tuple[float, float], radius: int, color: Color) -> None:
        """Fill a circle around the pixel that holds `center`."""
        x, y = int(center[0]), int(center[1])
        gfxdraw.aacircle(self._surface, x, y, radius, color)
        gfxdraw.filled_circle(self._surface, x, y, radius, color)


class CartPoleRenderer(ToyRenderer):
    """Gymnasium's picture."""

    def __init__(self, task: TaskConfig, frame_height: int, effects: bool) -> None:
        super().__init__(frame_height, upside_down=True)

    def _draw(self, state: np.ndarray) -> None:
        x, theta = state[0], state[2]
        scale = WIDTH / (2 * WALL)  # px per m
        cart_x, cart_y = x * scale + WIDTH / 2, 100
        axle = (cart_x, cart_y + 7.5)
        cart = [(-25, -15), (-25, 15), (25, 15), (25, -15)]
        pole = [(-5, -5), (-5, scale - 5), (5, scale - 5), (5, -5)]  # 1 m long
        self._polygon(cart, 0, (cart_x, cart_y), (0, 0, 0))
        self._polygon(pole, -theta, axle, (202, 152, 101))
        self._disc(axle, 5, (129, 132, 203))
        gfxdraw.hline(self._surface, 0, WIDTH, cart_y, (0, 0, 0))


class MountainCarRenderer(ToyRenderer):
    """`plain` is Gymnasium's picture, `realistic` our own."""

    def __init__(self, task: TaskConfig, frame_height: int, effects: bool) -> None:
        realistic = task.textures == "realistic"
        super().__init__(frame_height, upside_down=not realistic)
        self._draw = self._draw_realistic if realistic else self._draw_plain
        if realistic:
            self._pixels[:] = np.asarray(Image.open(_HERE / "mountain.png"))
            car = np.asarray(Image.open(_HERE / "car.png"))
            self._car = _surface(car)
            self._turned: dict[int, pygame.Surface] = {}
        else:
            xs = np.linspace(LEFT, RIGHT, 100)
            track = list(zip((xs - LEFT) * SCALE, height(xs) * SCALE, strict=True))
            pygame.draw.aalines(self._surface, (0, 0, 0), False, track)
        self._background = self._pixels.copy()

    def _draw_plain(self, state: np.ndarray) -> None:
        x = float(state[0])
        angle = _tilt(x)
        origin = ((x - LEFT) * SCALE, 10 + height(x) * SCALE)
        body = [(-20, 0), (-20, 20), (20, 20), (20, 0)]
        self._polygon(body, angle, origin, (0, 0, 0))
        for offset in (10, -10):
            hub = pygame.Vector2(offset, 0).rotate_rad(angle) + origin
            self._disc((hub[0], hub[1]), 8, (128, 128, 128))

        foot_x, foot_y = int((FLAG - LEFT) * SCALE), int(height(FLAG) * SCALE)
        gfxdraw.vline(self._surface, foot_x, foot_y, foot_y + 50, (0, 0, 0))
        flag = [(0, 50), (0, 40), (25, 45)]
        self._polygon(flag, 0, (foot_x, foot_y), (204, 204, 0))

    def _draw_realistic(self, state: np.ndarray) -> None:
        x = float(state[0])
        angle = _tilt(x)
        car = self._turned_car(round(math.degrees(angle) * TURNS_PER_DEGREE))
        # So high that the wheels touch the slope below the car's middle.
        axle = height(x) * SCALE + WHEEL_RADIUS / math.cos(angle)
        center = ((x - LEFT) * SCALE, HEIGHT - axle)
        corner = (
            round(center[0] - car.get_width() / 2),
            round(center[1] - car.get_height() / 2),
        )
        self._surface.blit(car, corner, special_flags=pygame.BLEND_PREMULTIPLIED)

    def _turned_car(self, turn: int) -> pygame.Surface:
        """The car turned by so many quarter degrees, painted on first use."""
        if turn not in self._turned:
            self._turned[turn] = pygame.transform.rotozoom(
                self._car, turn / TURNS_PER_DEGREE, 1 / CAR_RESOLUTION
            )
        return self._turned[turn]


def _surface(pixels: np.ndarray) -> pygame.Surface:
    """What pygame draws on, in the memory of pixels (H, W, 3), or (H, W, 4), uint8."""
    kind = "RGB" if pixels.shape[2] == 3 else "RGBA"
    return pygame.image.frombuffer(pixels.data, pixels.shape[1::-1], kind)


def _tilt(x: float) -> float:
    """The car's angle in rad, anticlockwise: Gymnasium's, about the track's slope."""
    return math.cos(3 * x)


def height(x: np.ndarray | float) -> Any:
    """The track's height at x, both in Gymnasium's units."""
    return np.sin(3 * x) * 0.45 + 0.55
