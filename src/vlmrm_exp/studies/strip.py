"""The figures that `score` plots: a strip of what it scored, and curves over time.

Letters: B pictures, C columns, which are ways of rewarding.
"""

import contextlib
import itertools
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vlmrm_exp.figures import COLORS, figure, save
from vlmrm_exp.files import shorten
from vlmrm_exp.studies.pictures import PictureFile, read_pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Column:
    """One way of rewarding: a column of the table."""

    name: str
    prompt: str
    baseline: str | None
    alpha: float


@dataclass(frozen=True)
class Scores:
    """Rewards of B pictures in C columns."""

    files: Sequence[PictureFile]
    columns: Sequence[Column]
    file: np.ndarray
    """(B,) int: which of the files."""
    frame: np.ndarray
    """(B,) int: place in the file."""
    time_s: np.ndarray
    """(B,) float: NaN in still images."""
    reward: np.ndarray
    """(B, C) float32."""

    def when(self, row: int) -> str:
        """Which frame of its file a picture is; empty for a still image."""
        if self.files[self.file[row]].kind == "image":
            return ""
        time_s = self.time_s[row]
        seconds = "" if np.isnan(time_s) else f", {time_s:.2f} s"
        return f"frame {self.frame[row]:,}{seconds}"


def choose_shown(counts: Sequence[int] | np.ndarray, most: int) -> np.ndarray:
    """Choose evenly which of the pictures to show: their numbers, rising.

    With fewer files than `most`, each has one place, and the places left go one by one
    to the file with the most pictures to a place. With more files, one of each in so
    many, evenly chosen. `counts` are the pictures of each file, which stand one file
    after another.
    """
    counts = np.asarray(counts)
    places = np.zeros(len(counts), int)
    places[_spread(len(counts), most)] = 1
    while len(counts) < most and places.sum() < min(most, counts.sum()):
        places[np.argmax(np.where(places < counts, counts / places, 0))] += 1
    starts = np.cumsum(counts) - counts
    parts = zip(starts, counts, places, strict=True)
    return np.concatenate([start + _spread(n, k) for start, n, k in parts])


def _spread(total: int, most: int) -> np.ndarray:
    """At most `most` of 0..total-1, both ends among them; the middle for one."""
    if most == 1:
        return np.array([total // 2])
    return np.linspace(0, total - 1, min(total, most)).round().astype(int)


def read_again(scores: Scores, shown: np.ndarray, every: int) -> list[np.ndarray]:
    """The pictures of some rows, at most 480 pixels a side; only they are held."""
    pictures = []
    for number in np.unique(scores.file[shown]):
        wanted = set(scores.frame[shown][scores.file[shown] == number].tolist())
        reading = read_pictures(scores.files[number], every)
        with contextlib.closing(reading):
            for picture in reading:
                if picture.frame in wanted:
                    image = Image.fromarray(picture.pixels)
                    image.thumbnail((480, 480))
                    pictures.append(np.asarray(image))
                if picture.frame == max(wanted):
                    break
    return pictures


def plot_strip(
    path: Path,
    scores: Scores,
    shown: Sequence[int] | np.ndarray,
    pictures: Sequence[np.ndarray],
) -> None:
    """Plot K pictures (H, W, 3) uint8 with their rewards beneath, as bars.

    `shown` (K,) int are their rows of the scores. The path has no suffix; columns are
    numbered from 1.
    """
    columns = scores.columns
    lines = -(-len(shown) // 6)
    across = max(-(-len(shown) // lines), 3)  # three to six in a line
    side, bars = 1.9, 0.17 * len(columns)  # inches
    aspects = [min(p.shape[0] / p.shape[1], 1.5) for p in pictures]
    heights = []
    for first in range(0, len(shown), across):
        heights += [side * max(aspects[first : first + across]), bars]
    # Rewards of two alphas differ too much in scale for one axis.
    alphas = np.array([column.alpha for column in columns])
    alike = [scores.reward[:, alphas == alpha] for alpha in alphas]
    low, high = np.array([(r.min(), r.max()) for r in alike]).T
    axis = "for each alpha on its own axis"
    if len(set(alphas)) == 1:
        axis = f"from {low[0]:.3f} to {high[0]:.3f}"
    heading = (
        f"{len(shown)} of {len(scores.file):,} pictures. A longer bar is a higher "
        f"reward, {axis}; ★ is the highest shown for its prompt."
    )
    zero = np.where(high > low, low, high - 1)  # all bars are long if all are equal
    lengths = (scores.reward - zero) / (high - zero)
    best = scores.reward[shown].argmax(axis=0)
    colours = [_style(c)["color"] for c in range(len(columns))]
    size = (across * (side + 0.25), sum(heights) + 0.5 * lines)
    with _page(path, size, heading, columns) as made:
        grid = made.subplots(2 * lines, across, squeeze=False, height_ratios=heights)
        for axes in grid.flat:
            axes.axis("off")
        for number, (row, pixels) in enumerate(zip(shown, pictures, strict=True)):
            line, place = divmod(number, across)
            above, below = grid[2 * line : 2 * line + 2, place]
            above.imshow(pixels, interpolation="antialiased")
            above.set_anchor("SW")
            title = below.set_title("", loc="left", size=7.5)
            name = scores.files[scores.file[row]].path.name
            for limit in range(30, 4, -1):  # letters differ in width
                short = f"{shorten(name, limit)}\n{scores.when(row)}"
                title.set_text(short.strip())
                if title.get_window_extent().width < 0.95 * side * made.dpi:
                    break
            below.barh(range(len(columns)), lengths[row] + 0.01, 0.6, color=colours)
            below.set(xlim=(-0.17, 1.5), ylim=(len(columns) - 0.5, -0.5))
            for c, length in enumerate(lengths[row]):
                star, weight = (" ★", "bold") if best[c] == number else ("", "normal")
                style = {"size": 7.5, "va": "center_baseline", "weight": weight}
                value = f"{scores.reward[row, c]:.3f}{star}"
                below.text(-0.17, c, str(c + 1), **style)
                below.text(length + 0.04, c, value, **style)


def plot_curves(path: Path, scores: Scores, chosen: Sequence[int], most: int) -> None:
    """Plot rewards over time, a panel for each chosen file and alpha, `most` at most.

    Panels of one alpha have one axis; rewards of two alphas differ too much in scale.
    The path has no suffix; columns are numbered from 1.
    """
    columns = scores.columns
    heading = "Reward over time, for each frame that was scored."
    alphas = list(dict.fromkeys(column.alpha for column in columns))
    panels = list(itertools.product(chosen, alphas))[:most]
    inside = np.isin(scores.file, chosen)
    with _page(path, (8.0, 2.1 * len(panels)), heading, columns) as made:
        grid = made.subplots(len(panels), squeeze=False)[:, 0]
        for axes, (which, alpha) in zip(grid, panels, strict=True):
            alike = [c for c, column in enumerate(columns) if column.alpha == alpha]
            drawn = scores.reward[inside][:, alike]
            margin = 0.05 * (drawn.max() - drawn.min()) or 0.01
            rows = scores.file == which
            times = scores.time_s[rows]
            # Some animations say nothing of time, or that none passes.
            timed = np.isfinite(times).all() and times[-1] > 0
            x = times if timed else scores.frame[rows]
            marker = "o" if len(x) < 50 else ""
            for c in alike:
                rewards = scores.reward[rows, c]
                axes.plot(x, rewards, **_style(c), marker=marker, markersize=3)
            axes.set_ylim(drawn.min() - margin, drawn.max() + margin)
            axes.set(xlabel="seconds" if timed else "frame", ylabel="reward")
            name = shorten(str(scores.files[which].path), 85)
            if len(alphas) > 1:
                name += f", alpha {alpha:g}"
            axes.set_title(name, size=9, loc="left")
        made.align_ylabels()


@contextlib.contextmanager
def _page(
    path: Path, size: tuple[float, float], heading: str, columns: Sequence[Column]
) -> "Iterator[Figure]":
    """A figure that says what its colours mean, and is written at the end.

    `size` is what the caller plots on, in inches; columns are numbered beneath the
    heading.
    """
    import matplotlib
    from matplotlib.lines import Line2D

    letters = int(13 * (size[0] - 0.5))
    heading = textwrap.fill(heading, letters)
    handles, height = [], heading.count("\n") + 1
    for c, column in enumerate(columns):
        baseline = f", baseline: {column.baseline}" if column.baseline else ""
        text = f"{c + 1}  {column.prompt} (alpha {column.alpha:g}{baseline})"
        label = textwrap.fill(text, letters, subsequent_indent="    ")
        handles.append(Line2D([], [], **_style(c), linewidth=3, label=label))
        height += label.count("\n") + 1
    with (
        matplotlib.rc_context({"text.parse_math": False}),  # $ is a dollar
        figure(size[0], size[1] + 0.18 * height + 0.2) as made,
    ):
        made.set_layout_engine("constrained", w_pad=0.1, h_pad=0.06)
        place = "outside upper left"
        made.legend(handles=handles, title=heading, alignment="left", loc=place)
        yield made
        save(made, path)


def _style(column: int) -> dict[str, Any]:
    """The colour of a column's bars and line, dashed where colours come again."""
    turn, place = divmod(column, len(COLORS))
    return {"color": COLORS[place], "linestyle": ("-", "--", ":")[turn % 3]}
