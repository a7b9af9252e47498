"""Paint MountainCar's realistic pictures: src/vlmrm_exp/envs/mountain.png and car.png.

    python scripts/paint_mountain.py

Everything is made from formulas and a fixed seed. The track and the goal are
Gymnasium's; the car is 1.4 times as wide as Gymnasium's block, and its wheels touch the
ground. Arrays are in picture order: y grows downwards, in px.
"""

import math
from pathlib import Path

import numpy as np
from PIL import Image

from vlmrm_exp.envs import toy_renderers
from vlmrm_exp.envs.toy_renderers import (
    CAR_RESOLUTION,
    FLAG,
    HEIGHT,
    LEFT,
    SCALE,
    WHEEL_RADIUS,
    WIDTH,
    height,
)

CAR_SIZE = 72  # px, a square that holds the car at any angle


def paint_scenery(
    surface_y: np.ndarray, slope: np.ndarray, flag_x: float
) -> np.ndarray:
    """Paint MountainCar's sky, mountain and flag: (H, W, 3) uint8.

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


def pictures() -> dict[str, np.ndarray]:
    """Both pictures, by the names of their files."""
    x = (np.arange(WIDTH) + 0.5) / SCALE + LEFT
    scenery = paint_scenery(
        surface_y=HEIGHT - height(x) * SCALE,
        slope=-1.35 * np.cos(3 * x),
        flag_x=(FLAG - LEFT) * SCALE,
    )
    return {"mountain.png": scenery, "car.png": paint_car(CAR_RESOLUTION)}


if __name__ == "__main__":
    for name, pixels in pictures().items():
        path = Path(toy_renderers.__file__).with_name(name)
        Image.fromarray(pixels).save(path, optimize=True)
