"""What the page consists of: tables and figures, and the runs behind them."""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from vlmrm_exp.reporting.groups import Group, count_statuses
from vlmrm_exp.reporting.run_folders import Run


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


def figure(title: str, path: Path, alt: str, note: str, sources: Sequence[Any]) -> Item:
    """A figure that was written to `path`, which has no suffix, as SVG and PNG."""
    image = data_uri(path.with_name(f"{path.name}.svg"), "image/svg+xml")
    file = f"{path.name}.png, .svg"
    return Item(title, note, sources, image=image, alt=alt, file=file)


def count_runs(runs: Sequence[Run], groups: Sequence[Group]) -> str:
    """How many runs of the groups are in a figure, and how many are not."""
    inside = {run.folder for run in runs}
    left_out = [r for g in groups for r in g.runs if r.folder not in inside]
    text = f"Runs in it: {count_statuses(runs)}"
    if left_out:
        text += f"; not in it: {count_statuses(left_out)}"
    if repeated := sum(bool(run.repeats) for run in left_out):
        text += f" ({repeated} with settings and seed of another)"
    return f"{text}."


def file_name(text: str) -> str:
    """A text without what file systems might not take."""
    return re.sub(r"[^\w.-]+", "_", text)


def data_uri(path: Path, kind: str) -> str:
    """A file inside a link, so that the page needs no other files."""
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
