"""Videos of episodes, with the reward drawn under the picture as it comes in.

H.264 in 4:2:0 with even sizes, tagged BT.709, its index at the front: what browsers and
every player show, and begin to show before they have the whole file.
"""

import contextlib
import errno
import itertools
import os
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vlmrm_exp.figures import figure
from vlmrm_exp.files import written_whole

Episode = tuple[np.ndarray, np.ndarray | None]
"""Frames (T, H, W, 3) uint8, and the reward of each (T,) or None."""

MIN_PICTURE_HEIGHT = 240
"""Pixels; smaller frames are enlarged by a whole factor, or they smear."""
MIN_WIDTH = 360
"""Pixels that the texts need; a narrower picture stands in the middle."""
BACKGROUND = "#14171c"
GRID = "#343a44"
QUIET_TEXT = "#a0a8b4"
TEXT = "#eceff4"
CURVE = "#ffb854"
ATTEMPTS = 2
FULL = 1 << 16  # bytes left, of a disk that an mp4 does not fit on
OUTPUT = (
    "-vf scale=out_color_matrix=bt709:out_range=tv -colorspace bt709 "
    "-color_primaries bt709 -color_trc bt709 -preset veryfast -movflags +faststart"
)


def write_episodes(
    path: Path, episodes: Sequence[Episode], fps: int, title: str
) -> None:
    """Write episodes one after another as an mp4, whole or not at all.

    If ffmpeg fails it is tried once more: somebody may have killed it.

    Args:
        path: of the mp4; an older file is replaced.
        episodes: at least one frame in all, each of the same size, else a ValueError.
            The reward axis is the same for all. Without rewards no curve is drawn.
        fps: frames per second.
        title: written above the picture, in at most three lines.

    Raises:
        OSError: the file cannot be written.
    """
    sizes = {frames.shape[1:] for frames, _ in episodes}
    if len(sizes) > 1:
        raise ValueError(f"the episodes' frames differ in size: {sorted(sizes)}")
    with written_whole(path) as part:
        target = part.resolve()  # or ffmpeg would take "a:b.mp4" for a protocol
        for attempt in range(ATTEMPTS):
            try:
                written = _encode(target, _draw(episodes, title), fps)
                break
            except (OSError, RuntimeError) as error:
                if shutil.disk_usage(target.parent).free < FULL:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
                if attempt == ATTEMPTS - 1:
                    raise OSError(f"ffmpeg could not write {path}") from error
        if written != sum(len(frames) for frames, _ in episodes):
            raise OSError(f"ffmpeg wrote only {written} frames of {path}")


def _encode(target: Path, images: Iterator[Image.Image], fps: int) -> int | None:
    """Write images with ffmpeg; how many there are in the file."""
    first = next(images)
    writer = imageio_ffmpeg.write_frames(
        target,
        first.size,
        fps=fps,
        codec="libx264",
        quality=6,  # a crf of 20
        macro_block_size=2,
        ffmpeg_log_level="error",
        output_params=OUTPUT.split(),
    )
    with contextlib.closing(writer):
        writer.send(None)
        for image in itertools.chain([first], images):
            writer.send(image.tobytes())
    # The writer does not tell whether ffmpeg succeeded, the file does.
    return imageio_ffmpeg.count_frames_and_secs(target)[0]


def _draw(episodes: Sequence[Episode], title: str) -> Iterator[Image.Image]:
    """Draw each frame of the video."""
    import matplotlib

    height, width = episodes[0][0].shape[1:3]
    factor = -(-MIN_PICTURE_HEIGHT // height)  # rounded up
    height, width = height * factor, width * factor
    full_width = max(width, MIN_WIDTH)
    full_width += full_width % 2
    unit = min(max(full_width / 480, 0.85), 3.0)  # of all lengths but the picture's
    left, right = 14 * unit, full_width - 14 * unit
    font = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    small, large = (ImageFont.truetype(font, size * unit) for size in (13, 17))

    lines = _wrap(title, large, right - left)
    top = round((23 * len(lines) + 16) * unit) if lines else 0
    bottom = top + height + round(34 * unit)  # of the picture and its caption
    known = [rewards for _, rewards in episodes if rewards is not None]
    panel_size = (full_width, round(90 * unit) if known else 0)
    full_height = bottom + panel_size[1]
    page = Image.new("RGB", (full_width, full_height + full_height % 2), BACKGROUND)
    for row, line in enumerate(lines):
        at = (left, (19.5 + 23 * row) * unit)
        ImageDraw.Draw(page).text(at, line, TEXT, large, anchor="lm")

    for number, (frames, rewards) in enumerate(episodes, 1):
        if rewards is not None:
            empty, full, points = _draw_panel(rewards, known, panel_size, unit)
        for t, frame in enumerate(frames):
            image = page.copy()
            draw = ImageDraw.Draw(image)
            picture = Image.fromarray(frame)
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
            image.paste(picture, ((full_width - width) // 2, top))
            step = f"episode {number}/{len(episodes)}   step {t + 1}/{len(frames)}"
            middle = top + height + 18 * unit
            draw.text((right, middle), step, QUIET_TEXT, small, anchor="rm")
            if rewards is not None:
                value = f"reward {rewards[t]:.4g}"
                draw.text((left, middle), value, CURVE, large, anchor="lm")
                x, y = (round(place) for place in points[t])
                image.paste(empty, (0, bottom))
                image.paste(full.crop((0, 0, x + 1, full.height)), (0, bottom))
                if np.isfinite(rewards[t]):
                    draw.circle((x, bottom + y), 4 * unit, CURVE)
            yield image


def _draw_panel(
    rewards: np.ndarray, known: Sequence[np.ndarray], size: tuple[int, int], unit: float
) -> tuple[Image.Image, Image.Image, np.ndarray]:
    """Plot one episode's rewards (T,); what is not finite leaves a gap.

    The axis is for the rewards of all episodes, `known`; `size` is in pixels, `unit`
    those for each point of a font or line. Returns the panel before and after the curve
    is drawn, and where the rewards lie in it: x, y (T, 2), in pixels from the top left.
    """
    values = np.concatenate(known)
    values = values[np.isfinite(values)]
    low, high = (values.min(), values.max()) if values.size else (0.0, 0.0)
    if high - low <= 1e-9 * abs(high):
        margin = abs(high) / 2 or 0.5
        low, high = low - margin, high + margin
    rewards = np.where(np.isfinite(rewards), rewards, np.nan)
    steps = np.arange(len(rewards))
    # Half a pixel more than wanted, for matplotlib rounds down.
    with figure(*((length + 0.5) / (72 * unit) for length in size)) as made:
        made.set(dpi=72 * unit, facecolor=BACKGROUND)
        made.set_layout_engine("constrained", w_pad=14 / 72, h_pad=8 / 72)
        axes = made.add_subplot(facecolor=BACKGROUND)
        axes.set(xlim=(0, max(len(rewards) - 1, 1)), ylim=(low, high), xticks=[])
        labels = [f"{low:.4g}", "", f"{high:.4g}"]
        axes.set_yticks([low, (low + high) / 2, high], labels, color=QUIET_TEXT)
        axes.tick_params(length=0, labelsize=11)
        axes.grid(color=GRID, linewidth=1)
        axes.spines[:].set_visible(False)
        made.canvas.draw()
        empty = np.array(made.canvas.buffer_rgba())[..., :3]
        made.set_layout_engine("none")  # everything stays where it is
        style = {"color": CURVE, "clip_on": False}
        axes.plot(steps, rewards, linewidth=2, **style)
        axes.fill_between(steps, rewards, low, alpha=0.18, linewidth=0, **style)
        made.canvas.draw()
        full = np.array(made.canvas.buffer_rgba())[..., :3]
        points = axes.transData.transform(np.stack([steps, rewards], axis=1))
    points[:, 1] = size[1] - points[:, 1]
    points = np.nan_to_num(points)  # the caller draws no dot where there was none
    return Image.fromarray(empty), Image.fromarray(full), points


def _wrap(text: str, font: ImageFont.FreeTypeFont, room: float) -> list[str]:
    """Break text into at most three lines; what is left over becomes an ellipsis."""
    for letters in range(len(text), 2, -1):
        lines = textwrap.wrap(text, letters, max_lines=3, placeholder=" …")
        if all(font.getlength(line) <= room for line in lines):
            return lines
    return [text] if text.strip() else []
