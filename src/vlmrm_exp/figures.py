"""How figures look and are written: one style for all verbs that draw."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 150
# Okabe and Ito's palette, without yellow, which is faint on white: told apart by people
# who see few colours.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "svg.hashsalt": "vlmrm_exp",  # the same figure is the same file
}


@contextlib.contextmanager
def figure(width: float, height: float) -> Iterator["Figure"]:
    """An empty figure in inches, laid out by itself; draw on it inside the block."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Not pyplot: it would keep figures open and choose a window.
    with matplotlib.rc_context(_STYLE):
        made = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(made)
        yield made


def save(made: "Figure", path: Path) -> None:
    """Write a figure whole as path.png and path.svg; path has no suffix."""
    import matplotlib

    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix in ("png", "svg"):
        target = path.with_name(f"{path.name}.{suffix}")
        part = target.with_name(f".{target.name}.part")
        metadata = {"Date": None} if suffix == "svg" else {}
        try:
            with matplotlib.rc_context(_STYLE):
                made.savefig(part, format=suffix, dpi=DPI, metadata=metadata)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)


def ladder(values: Sequence[float]) -> dict[float, Any]:
    """A colour for each of some ordered values, from viridis without its pale end."""
    import matplotlib

    ordered = sorted(set(values))
    colors = matplotlib.colormaps["viridis"]
    last = max(len(ordered) - 1, 1)
    return {value: colors(0.88 * i / last) for i, value in enumerate(ordered)}
