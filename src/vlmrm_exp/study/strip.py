"""The pictures that `score` draws: a strip of what it scored, and curves over time.

Letters: B pictures, C columns, which are ways of rewarding.
"""

import contextlib
import itertools
import os
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vlmrm_exp.figures import COLORS
from vlmrm_exp.study.pictures import PictureFile

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Column:
    """One way of rewarding: a column of the table."""

    name: str
    prompt: str
    baseline: str | None
    alpha: float


@dataclass
class Scores:
    """Rewards of B pictures in C columns."""

    file: np.ndarray
    """(B,) int: which of the files."""
    frame: np.ndarray
    """(B,) int: place in the file."""
    time_s: np.ndarray
    """(B,) float: NaN in still images."""
    reward: np.ndarray
    """(B, C) float32."""


def draw_strip(
    path: Path,
    files: Sequence[PictureFile],
    scores: Scores,
    columns: Sequence[Column],
    shown: Sequence[int] | np.ndarray,
    pictures: Sequence[np.ndarray],
) -> None:
    """Draw pictures with their rewards beneath, as bars.

    Args:
        path: of the png.
        files: that the scores speak of.
        scores: of all pictures.
        columns: what the rewards are for; numbered from 1.
        shown: (K,) int, rows of the scores.
        pictures: of these rows, K of (H, W, 3) uint8.
    """
    across = -(-len(shown) // -(-len(shown) // 6))  # rows of at most six, alike
    side, gap, bar = 1.9, 0.3, 0.19  # inches, as all lengths here
    named = 0.36 if any(when(files, scores, row) for row in shown) else 0.2
    bars = bar * len(columns)
    aspects = [min(p.shape[0] / p.shape[1], 1.5) for p in pictures]
    talls = [
        side * max(aspects[first : first + across])
        for first in range(0, len(shown), across)
    ]
    body = sum(talls) + len(talls) * (named + bars + 0.35)
    axis = [
        (float(alike.min()), float(alike.max()))
        for c in columns
        for alike in [scores.reward[:, [other.alpha == c.alpha for other in columns]]]
    ]
    heading = f"{len(shown)} of {len(scores.file):,} pictures. "
    if len(set(axis)) == 1:
        low, high = axis[0]
        heading += f"A longer bar is a higher reward, from {low:.3f} to {high:.3f}; "
    else:
        heading += "A longer bar is a higher reward, for each alpha on its own axis; "
    heading += "★ is the highest shown for its prompt."
    width = max(across * (side + gap) + gap, 6.5)
    with _page(path, width, body, heading, columns) as (figure, bottom):
        best = scores.reward[shown].argmax(axis=0)
        for number, (row, pixels) in enumerate(zip(shown, pictures, strict=True)):
            left = gap + (number % across) * (side + gap)
            if number % across == 0:
                bottom -= talls[number // across]
            axes = _axes(figure, left, bottom, side, talls[number // across])
            axes.imshow(pixels, interpolation="antialiased")
            axes.set_anchor("S")
            axes.axis("off")
            axes = _axes(figure, left, bottom - named, side, named)
            axes.set(xlim=(0, 1), ylim=(-named, 0))
            name = _shorten(files[scores.file[row]].path.name, 30)
            axes.text(0, -0.12, name, size=7.5, va="center", parse_math=False)
            frame = when(files, scores, row)
            axes.text(0, -0.27, frame, size=7.5, va="center", color="0.45")
            axes.axis("off")
            axes = _axes(figure, left, bottom - named - bars, side, bars)
            axes.set(xlim=(0, side), ylim=(len(columns) - 0.5, -0.5))
            axes.axis("off")
            for c, value in enumerate(scores.reward[row]):
                low, high = axis[c]
                share = (float(value) - low) / (high - low) if high > low else 1.0
                length = 0.02 + share * (side - 0.9)
                wins = best[c] == number
                text = {"size": 7.5, "va": "center_baseline"}
                text["weight"] = "bold" if wins else "normal"
                axes.text(0, c, str(c + 1), **text)
                axes.barh(c, length, 0.6, 0.2, color=_colour(c))
                axes.text(
                    0.25 + length, c, f"{value:.3f}{' ★' if wins else ''}", **text
                )
            if (number + 1) % across == 0:
                bottom -= named + bars + 0.35


def draw_curves(
    path: Path,
    files: Sequence[PictureFile],
    scores: Scores,
    columns: Sequence[Column],
    chosen: Sequence[int],
) -> None:
    """Draw rewards over time, a panel for each chosen file and alpha.

    Panels of one alpha have one axis; rewards of two alphas differ too much in scale.

    Args:
        path: of the png.
        files: that the scores speak of.
        scores: of all pictures.
        columns: what the rewards are for; numbered from 1.
        chosen: numbers of the files.
    """
    panel, width = 2.3, 8.0  # inches
    heading = "Reward over time, for each frame that was scored."
    alphas = list(dict.fromkeys(column.alpha for column in columns))
    panels = list(itertools.product(chosen, alphas))
    with _page(path, width, len(panels) * panel, heading, columns) as (figure, top):
        inside = np.isin(scores.file, chosen)
        for number, (which, alpha) in enumerate(panels):
            alike = [c for c, column in enumerate(columns) if column.alpha == alpha]
            drawn = scores.reward[inside][:, alike]
            low, high = drawn.min(), drawn.max()
            margin = 0.05 * (high - low) or 0.01
            rows = scores.file == which
            times = scores.time_s[rows]
            # Some animations say nothing of time, or that none passes.
            timed = np.isfinite(times).all() and times[-1] > 0
            x = times if timed else scores.frame[rows]
            bottom = top - (number + 1) * panel + 0.5
            axes = _axes(figure, 0.75, bottom, width - 1.1, panel - 0.85)
            ends = _apart(scores.reward[rows][-1, alike], 0.09 * (high - low))
            for c, end in zip(alike, ends, strict=True):
                rewards = scores.reward[rows, c]
                marker = "o" if len(x) < 50 else ""
                axes.plot(
                    x, rewards, lw=1.4, marker=marker, ms=3, color=_colour(c), zorder=3
                )
                axes.annotate(
                    str(c + 1),
                    (x[-1], end),
                    (6, 0),
                    textcoords="offset points",
                    size=8,
                    va="center",
                    color=_colour(c),
                )
            axes.set_ylim(low - margin, high + margin)
            axes.set_ylabel("reward", size=8)
            axes.set_xlabel("seconds" if timed else "frame", size=8)
            axes.tick_params(labelsize=8)
            axes.grid(alpha=0.3, lw=0.6)
            axes.spines[["top", "right"]].set_visible(False)
            name = _shorten(str(files[which].path), 95)
            if len(alphas) > 1:
                name += f", alpha {alpha:g}"
            axes.set_title(name, size=9, loc="left", parse_math=False)


def when(files: Sequence[PictureFile], scores: Scores, row: int) -> str:
    """Which frame of its file a row of the scores is; empty for a still image."""
    if files[scores.file[row]].kind == "image":
        return ""
    time_s = scores.time_s[row]
    seconds = "" if np.isnan(time_s) else f", {time_s:.2f} s"
    return f"frame {scores.frame[row]:,}{seconds}"


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary name that becomes `path` once the file is whole."""
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _page(
    path: Path, width: float, body: float, heading: str, columns: Sequence[Column]
) -> "Iterator[tuple[Figure, float]]":
    """A figure that says what its colours mean, written whole at the end.

    Args:
        path: of the png.
        width: in inches.
        body: height of what the caller draws, in inches.
        heading: the first sentence.
        columns: numbered beneath it.

    Yields:
        The figure, and the height in inches from which the body goes down.
    """
    from matplotlib.figure import Figure

    letters = int((width - 0.8) * 14)  # of 9 points
    lines = [("0.3", line) for line in textwrap.wrap(heading, letters)]
    for c, column in enumerate(columns):
        baseline = f", baseline: {column.baseline}" if column.baseline else ""
        text = f"{c + 1}  {column.prompt} (alpha {column.alpha:g}{baseline})"
        wrapped = textwrap.wrap(text, letters)
        lines += [(_colour(c), line) for line in wrapped]
    pitch = 0.19
    height = body + pitch * len(lines) + 0.45
    figure = Figure(figsize=(width, height), dpi=120, facecolor="white")
    for row, (colour, line) in enumerate(lines):
        y = 1 - (0.2 + pitch * (row + 0.5)) / height
        figure.text(
            0.3 / width, y, line, size=9, color=colour, va="center", parse_math=False
        )
    yield figure, body + 0.1
    with written_whole(path) as temporary, warnings.catch_warnings():
        # The font has no Chinese, for one; scores.csv has.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(temporary)


def _axes(figure: "Figure", left: float, bottom: float, wide: float, tall: float):
    """Axes at a place given in inches."""
    width, height = figure.get_size_inches()
    return figure.add_axes((left / width, bottom / height, wide / width, tall / height))


def _apart(values: np.ndarray, distance: float) -> np.ndarray:
    """Places for labels beside the values, moved up where they would overlap."""
    moved = values.astype(float)
    order = np.argsort(moved, kind="stable")
    for below, above in itertools.pairwise(order):
        moved[above] = max(moved[above], moved[below] + distance)
    return moved


def _colour(column: int) -> str:
    return COLORS[column % len(COLORS)]


def _shorten(text: str, limit: int) -> str:
    """Leave out the middle of what is too long: both ends tell files apart."""
    half = (limit - 1) // 2
    return text if len(text) <= limit else f"{text[:half]}…{text[-half:]}"
