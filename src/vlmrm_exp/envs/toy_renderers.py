"""The pictures of CartPole and MountainCar: pygame without window or display.

`plain` equals Gymnasium's pictures to the pixel; MountainCar's `realistic` textures are
made from formulas and a fixed seed, where the original used stock photographs. All is
drawn at Gymnasium's size and scaled to the asked height by area averaging (pygame's:
its rounding darkens by up to 3 of 255, but it takes half of Pillow's time).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pygame
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
CAR_SIZE = 72  # px, a square that holds the car at any angle
WHEEL_RADIUS = 9.0  # px

Color = tuple[int, int, int]


class Canvas:
    """A background that is drawn over again and again.

    The surface and `pixels` share their memory: clearing and reading are plain array
    copies, many times faster than going through pygame.
    """

    def __init__(self, frame_height: int, upside_down: bool) -> None:
        """Start white; `upside_down`: y grows upwards, as in Gymnasium's drawings."""
        self.pixels = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
        self.surface = pygame.image.frombuffer(self.pixels.data, (WIDTH, HEIGHT), "RGB")
        self.frame_shape = (frame_height, round(frame_height * WIDTH / HEIGHT), 3)
        self._background = self.pixels.copy()
        self._upside_down = upside_down
        self._scaled = np.zeros(self.frame_shape, np.uint8)
        self._scaled_surface = pygame.image.frombuffer(
            self._scaled.data, self.frame_shape[1::-1], "RGB"
        )

    def keep_background(self) -> None:
        """Make what is drawn now the picture that `clear` restores."""
        self._background = self.pixels.copy()

    def clear(self) -> None:
        """Restore the background."""
        np.copyto(self.pixels, self._background)

    def read(self, frame: np.ndarray) -> None:
        """Copy the drawing, scaled, into a frame (H, W, 3) uint8."""
        drawn = self.pixels
        if self.frame_shape != drawn.shape:
            size = self.frame_shape[1::-1]
            pygame.transform.smoothscale(self.surface, size, self._scaled_surface)
            drawn = self._scaled
        np.copyto(frame, drawn[::-1] if self._upside_down else drawn)

    def polygon(
        self,
        corners: Sequence[tuple[float, float]],
        angle: float,
        origin: tuple[float, float],
        color: Color,
    ) -> None:
        """Fill a polygon whose corners are turned by `angle` rad about `origin`."""
        turned = [pygame.Vector2(corner).rotate_rad(angle) for corner in corners]
        placed = [(c[0] + origin[0], c[1] + origin[1]) for c in turned]
        gfxdraw.aapolygon(self.surface, placed, color)
        gfxdraw.filled_polygon(self.surface, placed, color)

    def disc(self, center: tuple[float, float], radius: int, color: Color) -> None:
        """Fill a circle around the pixel that holds `center`."""
        x, y = int(center[0]), int(center[1])
        gfxdraw.aacircle(self.surface, x, y, radius, color)
        gfxdraw.filled_circle(self.surface, x, y, radius, color)


class ToyRenderer:
    """Frames of one toy world, drawn state by state over a background.

    Measurements are Gymnasium's, in px of a 600 x 400 picture whose y grows upwards.
    """

    drawn_by = DRAWN_BY

    def __init__(self, frame_height: int, upside_down: bool) -> None:
        self._canvas = Canvas(frame_height, upside_down)

    def render(self, states: np.ndarray) -> np.ndarray:
        """States (B, S) float64 -> frames (B, H, W, 3) uint8."""
        frames = np.empty((len(states), *self._canvas.frame_shape), np.uint8)
        for frame, state in zip(frames, states, strict=True):
            self._canvas.clear()
            self._draw(state)
            self._canvas.read(frame)
        return frames

    def _draw(self, state: np.ndarray) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Nothing is held."""


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
        self._canvas.polygon(cart, 0, (cart_x, cart_y), (0, 0, 0))
        self._canvas.polygon(pole, -theta, axle, (202, 152, 101))
        self._canvas.disc(axle, 5, (129, 132, 203))
        gfxdraw.hline(self._canvas.surface, 0, WIDTH, cart_y, (0, 0, 0))


class MountainCarRenderer(ToyRenderer):
    """`plain` is Gymnasium's picture, `realistic` our own."""

    def __init__(self, task: TaskConfig, frame_height: int, effects: bool) -> None:
        realistic = task.textures == "realistic"
        super().__init__(frame_height, upside_down=not realistic)
        self._draw = self._draw_realistic if realistic else self._draw_plain
        if realistic:
            x = (np.arange(WIDTH) + 0.5) / SCALE + LEFT
            self._canvas.pixels[:] = paint_scenery(
                surface_y=HEIGHT - height(x) * SCALE,
                slope=-1.35 * np.cos(3 * x),
                flag_x=(FLAG - LEFT) * SCALE,
            )
            car = paint_car(CAR_RESOLUTION)
            self._car = pygame.image.frombuffer(car.data, car.shape[1::-1], "RGBA")
            self._turned: dict[int, pygame.Surface] = {}
        else:
            xs = np.linspace(LEFT, RIGHT, 100)
            track = list(zip((xs - LEFT) * SCALE, height(xs) * SCALE, strict=True))
            pygame.draw.aalines(self._canvas.surface, (0, 0, 0), False, track)
        self._canvas.keep_background()

    def _draw_plain(self, state: np.ndarray) -> None:
        canvas, x = self._canvas, float(state[0])
        angle = _tilt(x)
        origin = ((x - LEFT) * SCALE, 10 + height(x) * SCALE)
        body = [(-20, 0), (-20, 20), (20, 20), (20, 0)]
        canvas.polygon(body, angle, origin, (0, 0, 0))
        for offset in (10, -10):
            hub = pygame.Vector2(offset, 0).rotate_rad(angle) + origin
            canvas.disc((hub[0], hub[1]), 8, (128, 128, 128))

        foot_x, foot_y = int((FLAG - LEFT) * SCALE), int(height(FLAG) * SCALE)
        gfxdraw.vline(canvas.surface, foot_x, foot_y, foot_y + 50, (0, 0, 0))
        flag = [(0, 50), (0, 40), (25, 45)]
        canvas.polygon(flag, 0, (foot_x, foot_y), (204, 204, 0))

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


def height(x: np.ndarray | float) -> Any:
    """The track's height at x, both in Gymnasium's units."""
    return np.sin(3 * x) * 0.45 + 0.55


def paint_scenery(
    surface_y: np.ndarray, slope: np.ndarray, flag_x: float
) -> np.ndarray:
    """Paint MountainCar's sky, mountain and flag: (H, W, 3) uint8.

    Arrays are in picture order: y grows downwards, in px.

    Args:
        surface_y: y of the track in each column, (W,).
        slope: its gradient, positive where the track falls to the right, (W,).
        flag_x: column of the flag pole.
    """
    rng = np.random.default_rng(2310)
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float64) + 0.5
    picture = _sky(y, rng)
    _plant_flag(picture, x, y, flag_x, surface_y[int(flag_x)])
    _raise_mountain(picture, y, surface_y, slope, rng)
    return (picture.clip(0, 1) * 255).round().astype(np.uint8)


def paint_car(resolution: int) -> np.ndarray:
    """Paint the car level, its wheels' axle line in the middle.

    Returns:
        RGBA uint8, premultiplied, a square of CAR_SIZE * resolution pixels.
    """
    samples = 4  # per pixel and axis
    side = CAR_SIZE * resolution * samples
    grid = (np.arange(side) + 0.5) / (resolution * samples) - CAR_SIZE / 2
    x, up = np.meshgrid(grid, -grid)
    picture = np.zeros((side, side, 4))

    def put(mask: np.ndarray, color: tuple[float, float, float]) -> None:
        picture[mask] = (*color, 1.0)

    # Shade grows towards the bottom of the red body.
    body = _rounded(x, up, 0, 7.5, 28, 8, 5) | (
        _rounded(x, up, -2, 17, 17, 9, 4) & (up > 8) & (np.abs(x + 2) < 21 - up * 0.28)
    )
    put(body, (0.86, 0.07, 0.08))
    put(body & (up < 4), (0.62, 0.03, 0.05))
    put(body & (up > 13) & (up < 15.3) & (np.abs(x) < 26), (1.0, 0.32, 0.28))
    put(body & (up > 24.2), (1.0, 0.36, 0.32))
    glass = (up > 15.3) & (up < 23) & (np.abs(x + 2) < 18.2 - up * 0.28)
    put(glass & (np.abs(x + 1) > 1.2), (0.16, 0.26, 0.36))
    shine = glass & (np.abs(x + 1) > 1.2) & ((x - up * 0.6) % 15 < 4)
    put(shine, (0.62, 0.80, 0.92))
    put(_rounded(x, up, 26.5, 9.5, 1.8, 2.2, 1), (1.0, 0.93, 0.60))
    put(_rounded(x, up, -27, 9.5, 1.2, 2.2, 1), (0.45, 0.0, 0.0))
    for hub in (-15.0, 15.0):
        distance = np.hypot(x - hub, up)
        put(distance < WHEEL_RADIUS + 1.4, (0.30, 0.02, 0.03))
        put(distance < WHEEL_RADIUS, (0.07, 0.07, 0.08))
        put(distance < 5.2, (0.74, 0.76, 0.80))
        put(distance < 2.0, (0.30, 0.31, 0.34))
    pixels = picture.reshape(CAR_SIZE * resolution, samples, -1, samples, 4)
    return (pixels.mean(axis=(1, 3)) * 255).round().astype(np.uint8)


def _rounded(
    x: np.ndarray, y: np.ndarray, cx: float, cy: float, a: float, b: float, r: float
) -> np.ndarray:
    """Mask of a rounded rectangle: centre, half sides, corner radius."""
    dx = np.maximum(np.abs(x - cx) - (a - r), 0)
    dy = np.maximum(np.abs(y - cy) - (b - r), 0)
    return np.hypot(dx, dy) <= r


def _sky(y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    depth = (y / y.shape[0])[..., None]
    zenith, horizon = np.array([0.25, 0.52, 0.83]), np.array([0.80, 0.91, 0.98])
    sky = zenith + (horizon - zenith) * depth**0.8
    noise = _noise(y.shape, (90, 200), 5, rng)
    cloud = _smooth((noise - 0.54) / 0.26)[..., None] * 0.9
    # Undersides are greyer: where the cloud is thicker above than below.
    shade = _smooth(0.5 + 6 * (noise - np.pad(noise, ((14, 0), (0, 0)), "edge")[:-14]))[
        ..., None
    ]
    white = np.array([1.0, 1.0, 1.0]) - np.array([0.16, 0.12, 0.07]) * (1 - shade)
    return sky + (white - sky) * cloud


def _raise_mountain(
    picture: np.ndarray,
    y: np.ndarray,
    surface_y: np.ndarray,
    slope: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """Paint grass on rock below the track, lit from the upper left."""
    upright = 1 / np.hypot(1, slope)  # cosine of the slope
    below = (y - surface_y) * upright  # px, about perpendicular to the track
    coarse = _noise(y.shape, (60, 60), 5, rng)
    fine = _noise(y.shape, (5, 5), 2, rng)

    # Layers of rock, bent by noise, with relief from the noise's own gradient.
    layers = 0.5 + 0.5 * np.sin(y / 9 + 22 * coarse)
    bumps = np.pad(coarse, ((2, 0), (2, 0)), "edge")
    relief = 14 * (coarse - bumps[:-2, :-2]) + 0.5 * (fine - 0.5)
    light = 0.78 + 0.16 * layers + relief - 0.25 * _smooth(below / 260)
    rock = np.array([0.50, 0.43, 0.37]) * light[..., None]

    blades = 0.75 + 0.5 * (fine - 0.5) + 0.6 * (coarse - 0.5)
    grass = np.array([0.30, 0.54, 0.17]) * blades[..., None]
    rocky = _smooth((below - 16 - 60 * (coarse - 0.42)) / 12)[..., None]
    ground = grass + (rock - grass) * rocky

    facing = (0.83 - 0.55 * slope) * upright  # 1 where the light falls straight
    ground *= (0.80 + 0.28 * facing)[None, :, None]
    edge = np.exp(-(((below - 2.0) / 2.4) ** 2))[..., None]
    lit = np.array([0.72, 0.88, 0.36])
    ground += (lit - ground) * edge * 0.85

    cover = (below + 0.5 + 1.6 * (fine - 0.5)).clip(0, 1)[..., None]
    picture += (ground - picture) * cover


def _plant_flag(
    picture: np.ndarray, x: np.ndarray, y: np.ndarray, foot_x: float, foot_y: float
) -> None:
    """A yellow flag in a little wind; 12 px higher than Gymnasium's, above the car."""
    right, up = x - foot_x, foot_y - y

    def put(distance: np.ndarray, color: np.ndarray) -> None:
        cover = (0.5 - distance).clip(0, 1)[..., None]
        picture[:] += (color - picture) * cover

    pole = np.maximum(np.abs(right) - 1.4, np.maximum(up - 62, -up))
    put(pole, np.array([0.35, 0.24, 0.14]))
    wave = 1.6 * np.sin(right / 5.5)
    cloth = np.maximum(np.abs(up - 51 + wave) - 10, np.abs(right - 17.5) - 16)
    fold = 0.92 + 0.08 * np.cos(right / 5.5)
    put(cloth, np.array([1.0, 0.85, 0.0]) * fold[..., None])


def _noise(
    shape: tuple[int, ...],
    cell: tuple[int, int],
    octaves: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Smooth noise about 0..1, (H, W): octaves of random grids, each half as coarse."""
    total, weight = np.zeros(shape), 0.0
    for octave in range(octaves):
        rows = np.arange(shape[0]) / cell[0] * 2**octave
        columns = np.arange(shape[1]) / cell[1] * 2**octave
        grid = rng.random((math.ceil(rows[-1]) + 2, math.ceil(columns[-1]) + 2))
        r, c = rows.astype(int), columns.astype(int)
        v, u = _smooth(rows - r)[:, None], _smooth(columns - c)[None, :]
        top = grid[r][:, c] * (1 - u) + grid[r][:, c + 1] * u
        bottom = grid[r + 1][:, c] * (1 - u) + grid[r + 1][:, c + 1] * u
        total += (top * (1 - v) + bottom * v) * 0.5**octave
        weight += 0.5**octave
    return total / weight


def _smooth(value: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, a smooth step between."""
    value = value.clip(0, 1)
    return value * value * (3 - 2 * value)
