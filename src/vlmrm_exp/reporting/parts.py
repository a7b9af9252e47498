"""What the page consists of: tables and figures, and the runs behind them."""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from vlmrm_exp.reporting.groups import Group, count_statuses


@dataclass
class Item:
    """A table of texts, whose first column names the row, or a figure."""

    title: str
    note: str
    sources: Sequence[Any]  # with name, command, typed and environment, as runs have
    table: pd.DataFrame | None = None
    folded: bool = False  # the table is opened by a click
    image: str = ""  # the figure as a data: URI
    alt: str = ""
    file: str = ""  # where the figure is also written
    wide: bool = False


@dataclass
class Section:
    """A part of the page."""

    title: str
    anchor: str
    items: list[Item] = field(default_factory=list)
    note: str = ""


def figure(
    about: tuple[str, Path, str],
    note: str,
    sources: Sequence[Any],
    groups: Sequence[Group] = (),
) -> Item:
    """A figure that was written as SVG and PNG; it says how many runs of groups it has.

    `about` is its title, path without suffix, and alternative text.
    """
    title, path, alt = about
    if groups:
        left_out = [run for group in groups for run in group.runs if run not in sources]
        note += f"Runs in it: {count_statuses(sources)}"
        if left_out:
            note += f"; not in it: {count_statuses(left_out)}"
        if repeated := sum(bool(run.repeats) for run in left_out):
            note += f" ({repeated} with settings and seed of another)"
        note += "."
    image = data_uri(path.with_name(f"{path.name}.svg"), "image/svg+xml")
    file = f"{path.name}.png, .svg"
    return Item(title, note, sources, image=image, alt=alt, file=file)


def file_name(text: str) -> str:
    """A text without what file systems might not take."""
    return re.sub(r"[^\w.-]+", "_", text)


def data_uri(path: Path, kind: str) -> str:
    """A file inside a link, so that the page needs no other files."""
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
