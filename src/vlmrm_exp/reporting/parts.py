"""What a report's page consists of: tables and figures, with what lies behind them."""

import base64
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from vlmrm_exp.reporting.groups import Group, count_statuses
from vlmrm_exp.reporting.run_folders import Run


@dataclass
class Source:
    """What lies behind a table or a figure; numbers are of runs."""

    started: list[tuple[str, int]]
    """Commands as they were typed: a sweep's stands for all its runs."""
    environments: list[tuple[str, int]]
    """Commit, versions and machine."""
    each: list[tuple[str, str]]
    """Name and command of each run alone."""


@dataclass
class Table:
    """A table of texts; the first column names the row."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str
    source: Source
    folded: bool = False
    """Whether it is opened by a click."""


@dataclass
class Figure:
    """A picture with what is to be said about it."""

    title: str
    image: str
    """data: URI."""
    alt: str
    note: str
    file: str
    """Where it lies besides."""
    source: Source
    wide: bool = False


@dataclass
class Section:
    """A part of the page."""

    title: str
    anchor: str
    items: list[Table | Figure] = field(default_factory=list)
    note: str = ""


def source_of(runs: Sequence[Run]) -> Source:
    """Commands, commits and versions of runs."""
    started = Counter(str(run.versions.get("command") or "") for run in runs)
    environments = Counter(environment_text(run.versions) for run in runs)
    return Source(
        started=[(command, n) for command, n in started.items() if command],
        environments=list(environments.items()),
        each=[(run.name, run.command or "not recorded") for run in runs],
    )


def environment_text(versions: Mapping[str, Any]) -> str:
    """Commit, packages, machine and weights, as versions.json tells."""
    if not versions:
        return "not recorded (it ended before it wrote versions.json)"
    commit = str(versions.get("commit") or "not recorded")
    if versions.get("commit_is_dirty"):
        commit += " with changes that are in no commit"
    packages = versions.get("packages")
    packages = packages if isinstance(packages, dict) else {}
    parts = [f"commit {commit}", f"Python {versions.get('python')}"]
    parts += [f"{name} {version}" for name, version in packages.items() if version]
    for key in ("drawn_by", "device", "gpu", "cpu"):
        if versions.get(key):
            parts.append(f"{key.replace('_', ' ')} {versions[key]}")
    encoder = versions.get("encoder")
    if isinstance(encoder, dict) and encoder.get("weights_sha256"):
        sha256 = str(encoder["weights_sha256"])[:12]
        parts.append(f"weights of {encoder.get('name')} {sha256}")
    return ", ".join(parts)


def frame_of(rows: Sequence[Mapping[str, str]]) -> pd.DataFrame:
    """Rows as a table, without the columns that hold nothing."""
    columns = [key for key in rows[0] if any(row[key] for row in rows)]
    return pd.DataFrame(rows, columns=columns)


def make_table(title: str, frame: pd.DataFrame, note: str, source: Source) -> Table:
    """A table of what a frame of texts holds."""
    columns = [str(column) for column in frame.columns]
    rows = [[str(cell) for cell in row] for row in frame.to_numpy().tolist()]
    return Table(title, columns, rows, note, source)


def make_figure(title: str, path: Path, alt: str, note: str, source: Source) -> Figure:
    """A figure that was written to `path`, which has no suffix, as SVG and PNG."""
    image = data_uri(path.with_name(f"{path.name}.svg"), "image/svg+xml")
    return Figure(title, image, alt, note, f"{path.name}.png, .svg", source)


def counted(note: str, runs: Sequence[Run], groups: Sequence[Group]) -> str:
    """A note with the counts of the runs in a figure and of those left out."""
    inside = {run.folder for run in runs}
    left_out = [r for g in groups for r in g.runs if r.folder not in inside]
    note = f"{note} Runs in it: {count_statuses(runs)}".strip()
    if not left_out:
        return f"{note}."
    repeated = sum(bool(run.repeats) for run in left_out)
    why = f" ({repeated} with settings and seed of another)" if repeated else ""
    return f"{note}; not in it: {count_statuses(left_out)}{why}."


def value_text(value: Any) -> str:
    """A value of a JSON file for people."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def file_name(text: str) -> str:
    """A text without what file systems might not take."""
    return re.sub(r"[^\w.-]+", "_", text)


def data_uri(path: Path, kind: str) -> str:
    """A file inside a link, for a page without other files."""
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
