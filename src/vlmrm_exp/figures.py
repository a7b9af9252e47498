"""One style for all figures, how they are written, and what several of them need."""

import contextlib
import logging
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmrm_exp.files import short_count, written_whole

# It tells on first use that it has looked for fonts: nobody's result.
logging.getLogger("matplotlib").setLevel(logging.WARNING)
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
def figure(width: float, height: float) -> Iterator[Any]:
    """An empty figure in inches, laid out by itself; plot on it inside the block."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Not pyplot: it would keep figures open and choose a window.
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # The font has no Chinese, for one; the results' files have.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        made = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(made)
        yield made


def save(made: Any, path: Path) -> None:
    """Write a figure whole, inside its block: path.png and path.svg, path has none."""
    for suffix, metadata in (("png", {}), ("svg", {"Date": None})):
        with written_whole(path.with_name(f"{path.name}.{suffix}")) as part:
            made.savefig(part, format=suffix, dpi=DPI, metadata=metadata)


def cycle(count: int) -> list[Any]:
    """So many different colours, of `COLORS` if these suffice."""
    if count <= len(COLORS):
        return list(COLORS[:count])
    return list(ladder(range(count)).values())


def wrap(text: str, width: int, lines: int = 4) -> str:
    """Text for a figure in at most so many lines; a longer one ends in dots."""
    text = text.encode("utf-8", "replace").decode()  # matplotlib takes no other
    plain = text.replace("$", r"\$")  # a dollar sign would begin a formula
    options: Any = {"max_lines": lines, "placeholder": " ..."}
    return textwrap.fill(plain, width, break_on_hyphens=False, **options)


def size_axis(axes: Any, sizes: Mapping[str, float]) -> None:
    """A logarithmic axis with a tick for each model's parameters."""
    names = {s: ", ".join(n for n in sizes if sizes[n] == s) for s in sizes.values()}
    texts = [f"{wrap(name, 14)}\n{short_count(size)}" for size, name in names.items()]
    axes.set_xscale("log")
    axes.set_xticks(list(names), texts)
    axes.minorticks_off()
    axes.margins(x=0.12)
    axes.set_xlabel("model, and its parameters")


def ladder(values: Sequence[float]) -> dict[float, Any]:
    """A colour for each of some ordered values, from viridis without its pale end."""
    import matplotlib

    ordered = sorted(set(values))
    colors = matplotlib.colormaps["viridis"]
    last = max(len(ordered) - 1, 1)
    return {value: colors(0.88 * i / last) for i, value in enumerate(ordered)}
