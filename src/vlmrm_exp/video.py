"""Videos of episodes, with the reward drawn under the picture as it comes in.

H.264 in 4:2:0 with even sizes, tagged BT.709, its index at the front: what browsers and
every player show, and begin to show before they have the whole file.
"""

import contextlib
import functools
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageDraw, ImageFont

Episode = tuple[np.ndarray, np.ndarray | None]
"""Frames (T, H, W, 3) uint8, and the reward of each (T,) or None."""

MIN_PICTURE_HEIGHT = 240
"""Pixels; smaller frames are enlarged by a whole factor, or they smear."""
MIN_WIDTH = 360
"""Pixels that the texts need; a narrower picture stands in the middle."""
BACKGROUND = (20, 23, 28)
GRID = (52, 58, 68)
QUIET_TEXT = (160, 168, 180)
TEXT = (236, 239, 244)
CURVE = (255, 184, 84)
OVERSAMPLING = 4
"""The curve is drawn this many times larger and averaged: an antialiased line."""


def write_episodes(
    path: Path, episodes: Sequence[Episode], fps: int, title: str
) -> None:
    """Write episodes one after another as an mp4, whole or not at all.

    Args:
        path: of the mp4; an older file is replaced.
        episodes: at least one frame in all, every frame of the same size. The reward
            axis is the same for all of them. Without rewards no curve is drawn.
        fps: frames per second.
        title: written above the picture, in as many lines as it takes.

    Raises:
        ValueError: frames differ in size.
        OSError: the file cannot be written.
    """
    sizes = {frames.shape[1:] for frames, _ in episodes}
    if len(sizes) > 1:
        raise ValueError(f"the episodes' frames differ in size: {sorted(sizes)}")
    layout = _lay_out(episodes, title)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.part.mp4")
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        *("-loglevel", "error", "-nostdin", "-y"),
        *("-f", "rawvideo", "-pix_fmt", "rgb24"),
        *("-video_size", f"{layout.width}x{layout.height}"),
        *("-framerate", str(fps), "-i", "pipe:"),
        *("-vf", "scale=out_color_matrix=bt709:out_range=tv", "-pix_fmt", "yuv420p"),
        *("-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"),
        *("-c:v", "libx264", "-crf", "20", "-preset", "veryfast"),
        *("-movflags", "+faststart", str(part)),
    ]
    try:
        with tempfile.TemporaryFile() as complaints:
            with subprocess.Popen(
                command, stdin=subprocess.PIPE, stderr=complaints
            ) as ffmpeg:
                assert ffmpeg.stdin is not None
                # What goes wrong at its end shows in its exit code and complaints.
                with contextlib.suppress(BrokenPipeError):
                    for canvas in _canvases(episodes, layout):
                        ffmpeg.stdin.write(canvas)
            if ffmpeg.returncode != 0:
                complaints.seek(0)
                text = complaints.read().decode(errors="replace").strip()
                raise OSError(f"ffmpeg could not write {path}: {text}")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@dataclass
class _Layout:
    """Where things stand on the canvas, in pixels from the top left."""

    width: int
    height: int
    unit: float
    """Size of everything drawn, 1 on a canvas 480 wide."""
    title: np.ndarray
    """(h, width, 3) uint8, at the top."""
    picture: tuple[int, int, int, int]
    """Left, top, width and height."""
    panel_top: int
    low: float
    high: float
    """The reward axis."""
    has_curve: bool


def _lay_out(episodes: Sequence[Episode], title: str) -> _Layout:
    height, width = episodes[0][0].shape[1:3]
    factor = -(-MIN_PICTURE_HEIGHT // height)  # rounded up
    height, width = height * factor, width * factor
    canvas_width = _even(max(width, MIN_WIDTH))
    unit = min(max(canvas_width / 480, 0.85), 3.0)
    strip = _draw_title(title, canvas_width, unit)
    known = [rewards for _, rewards in episodes if rewards is not None]
    values = np.concatenate(known) if known else np.empty(0)
    values = values[np.isfinite(values)]
    low, high = (values.min(), values.max()) if values.size else (0.0, 0.0)
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):
        middle, low = low, low - (abs(low) / 2 or 0.5)
        high = 2 * middle - low
    panel_top = len(strip) + height
    return _Layout(
        width=canvas_width,
        height=_even(panel_top + round((124 if known else 32) * unit)),
        unit=unit,
        title=strip,
        picture=((canvas_width - width) // 2, len(strip), width, height),
        panel_top=panel_top,
        low=float(low),
        high=float(high),
        has_curve=bool(known),
    )


def _canvases(episodes: Sequence[Episode], layout: _Layout) -> Iterator[np.ndarray]:
    """Draw each frame of the video: (height, width, 3) uint8, one buffer for all."""
    canvas = np.empty((layout.height, layout.width, 3), np.uint8)
    canvas[:] = BACKGROUND
    canvas[: len(layout.title)] = layout.title
    left, top, width, height = layout.picture
    picture = canvas[top : top + height, left : left + width]
    panel = canvas[layout.panel_top :]
    for number, (frames, rewards) in enumerate(episodes, 1):
        empty = _draw_axes(layout, panel.shape[0])
        place = f"episode {number} of {len(episodes)}"
        if rewards is None:
            xy, full = None, empty
        else:
            xy = _curve_points(rewards, layout, panel.shape[0])
            full = _draw_curve(xy, empty, layout)
        for t, frame in enumerate(frames):
            picture[:] = _enlarge(frame, width, height)
            panel[:] = empty
            if xy is not None and rewards is not None:
                now = round(xy[t, 0]) + 1
                panel[:, :now] = full[:, :now]
                if np.isfinite(rewards[t]):
                    _stamp_dot(panel, xy[t], 3.6 * layout.unit)
            step = f"{place},  step {t + 1} of {len(frames)}"
            value = None if rewards is None else float(rewards[t])
            _write_caption(panel, value, step, layout)
            yield canvas


def _plot_box(layout: _Layout, panel_height: int) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the curve's area within the panel."""
    font = _font(12 * layout.unit)
    labels = (_number(value, layout) for value in (layout.low, layout.high))
    left = max(font.getlength(label) for label in labels) + 22 * layout.unit
    right = layout.width - 18 * layout.unit
    return left, 42 * layout.unit, right, panel_height - 16 * layout.unit


def _curve_points(
    rewards: np.ndarray, layout: _Layout, panel_height: int
) -> np.ndarray:
    """Where each reward (T,) lies within the panel: x, y (T, 2), in pixels."""
    left, top, right, bottom = _plot_box(layout, panel_height)
    x = np.linspace(left, right, len(rewards)) if len(rewards) > 1 else [left]
    share = (np.asarray(rewards, np.float64) - layout.low) / (layout.high - layout.low)
    return np.stack([x, bottom - share * (bottom - top)], axis=1)


def _draw_axes(layout: _Layout, panel_height: int) -> np.ndarray:
    """The panel before the first step: (panel_height, width, 3) uint8."""
    image = Image.new("RGB", (layout.width, panel_height), BACKGROUND)
    if layout.has_curve:
        draw = ImageDraw.Draw(image)
        font = _font(12 * layout.unit)
        left, top, right, bottom = _plot_box(layout, panel_height)
        for share in (0.0, 0.5, 1.0):
            y = bottom - share * (bottom - top)
            draw.line([(left, y), (right, y)], GRID, max(1, round(layout.unit)))
            if share != 0.5:
                value = layout.low + share * (layout.high - layout.low)
                at = (left - 8 * layout.unit, y)
                draw.text(at, _number(value, layout), QUIET_TEXT, font, anchor="rm")
    return np.asarray(image)


def _draw_curve(xy: np.ndarray, empty: np.ndarray, layout: _Layout) -> np.ndarray:
    """The panel after the last step; what is not finite leaves a gap."""
    height, width = empty.shape[:2]
    size = (width * OVERSAMPLING, height * OVERSAMPLING)
    line, area = Image.new("L", size), Image.new("L", size)
    bottom = _plot_box(layout, height)[3] * OVERSAMPLING
    thickness = round(2 * layout.unit * OVERSAMPLING)
    gaps = np.flatnonzero(~np.isfinite(xy[:, 1]))
    for piece in np.split(xy, np.unique([*gaps, *(gaps + 1)]).astype(int)):
        if not len(piece) or not np.isfinite(piece).all():
            continue
        points = [(x, y) for x, y in ((piece + 0.5) * OVERSAMPLING).tolist()]
        ImageDraw.Draw(line).line(points, 255, thickness, joint="curve")
        under = [*points, (points[-1][0], bottom), (points[0][0], bottom)]
        ImageDraw.Draw(area).polygon(under, 46)
    shown = np.maximum(
        np.asarray(line.reduce(OVERSAMPLING)), np.asarray(area.reduce(OVERSAMPLING))
    )
    return _blend(empty, shown)


def _stamp_dot(panel: np.ndarray, at: np.ndarray, radius: float) -> None:
    """Mark the present value, in place."""
    dot = _dot(radius)
    half = len(dot) // 2
    x, y = (round(value) for value in at)
    # Within the panel by its margins, which are larger than the dot.
    spot = panel[y - half : y + half + 1, x - half : x + half + 1]
    spot[:] = _blend(spot, dot)


def _write_caption(
    panel: np.ndarray, value: float | None, step: str, layout: _Layout
) -> None:
    """Write the present reward on the left and the step on the right, in place."""
    unit = layout.unit
    rows = round(32 * unit)
    image = Image.fromarray(panel[:rows])
    draw = ImageDraw.Draw(image)
    middle, margin = 18 * unit, 14 * unit
    if value is not None:
        font = _font(13 * unit)
        draw.text((margin, middle), "reward", QUIET_TEXT, font, anchor="lm")
        at = (margin + font.getlength("reward") + 8 * unit, middle)
        draw.text(at, _number(value, layout), CURVE, _font(18 * unit), anchor="lm")
    at = (layout.width - margin, middle)
    draw.text(at, step, QUIET_TEXT, _font(13 * unit), anchor="rm")
    panel[:rows] = np.asarray(image)


def _draw_title(title: str, width: int, unit: float) -> np.ndarray:
    """Write the title: smaller rather than in many lines, cut only after four."""
    room = width - 28 * unit
    size, font, lines = 0, _font(1.0), []
    for size, most in ((18, 1), (16, 1), (16, 2), (14, 3), (13, 4)):
        font = _font(size * unit)
        lines = _wrap(title, font, room)
        if len(lines) <= most:
            break
    else:
        last = lines[3]
        while last and font.getlength(last + "…") > room:
            last = last[:-1]
        lines = [*lines[:3], last + "…"]
    # As narrow as these lines allow, so that none of them is a lonely word.
    for share in np.arange(0.98, 0.5, -0.02):
        narrower = _wrap(" ".join(lines), font, share * room)
        if len(narrower) > len(lines):
            break
        lines = narrower
    pitch = round(1.3 * size * unit)
    margin = round(9 * unit)
    height = 2 * margin + pitch * len(lines) if lines else 0
    image = Image.new("RGB", (width, height), BACKGROUND)
    for row, line in enumerate(lines):
        at = (width / 2, margin + (row + 0.5) * pitch)
        ImageDraw.Draw(image).text(at, line, TEXT, font, anchor="mm")
    return np.asarray(image).reshape(height, width, 3)


def _wrap(text: str, font: ImageFont.FreeTypeFont, room: float) -> list[str]:
    """Break text between words, and inside one that is longer than a line."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= room:
            lines[-1] += f" {word}"
            continue
        lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > room:
                lines.append("")
            lines[-1] += letter
    return lines


def _number(value: float, layout: _Layout) -> str:
    """A reward with three figures of the axis, so that its changes are seen."""
    if not np.isfinite(value):
        return "not finite"
    span = layout.high - layout.low
    if span < 1e-5 or max(abs(layout.low), abs(layout.high)) >= 1e5:
        return f"{value:.4g}"
    return f"{value:.{max(0, 2 - int(np.floor(np.log10(span))))}f}"


def _blend(below: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Lay the curve's colour over (h, w, 3) uint8, as opaque as alpha (h, w) uint8."""
    share = alpha[..., None] / np.float32(255)
    return (below * (1 - share) + np.asarray(CURVE) * share).round().astype(np.uint8)


def _enlarge(frame: np.ndarray, width: int, height: int) -> np.ndarray:
    if frame.shape[:2] == (height, width):
        return frame
    image = Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


@functools.cache
def _font(size: float) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


@functools.cache
def _dot(radius: float) -> np.ndarray:
    """How opaque a round dot is: (s, s) uint8, s odd."""
    half = int(np.ceil(radius))
    size = 2 * half + 1
    image = Image.new("L", (size * OVERSAMPLING, size * OVERSAMPLING))
    middle = (half + 0.5) * OVERSAMPLING
    ImageDraw.Draw(image).circle((middle, middle), radius * OVERSAMPLING, 255)
    return np.asarray(image.reduce(OVERSAMPLING))


def _even(size: int) -> int:
    return size + size % 2
