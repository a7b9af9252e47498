"""Sections for the results of studies: epic.json, landscape.json, peak.json, ..."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from vlmrm_exp.measures import mean_over_tasks
from vlmrm_exp.reporting import parts, plots
from vlmrm_exp.reporting.parts import Item, Section
from vlmrm_exp.reporting.run_folders import (
    environment_text,
    mapping,
    number,
    read,
    value_text,
)

SHOWN_ROWS = 200  # of a table; the page shows no more
FOLDED_ROWS = 20  # a longer table is folded


def result_section(path: Path, anchor: str, out: Path) -> tuple[Section, set[str]]:
    """The picture beside one file and its tables, and the embedded models it names.

    Figures are written into `out`; their names begin with `anchor`.
    """
    notes: list[str] = []
    data = read(path, json.loads, {}, notes)
    versions = mapping(data.get("versions"))
    models = {k: v for k, v in mapping(data.get("models")).items() if mapping(v)}
    command = str(versions.get("command") or "not recorded")
    made = environment_text(versions, models)
    sources = [{"name": path, "command": command, "environment": made, "typed": ""}]
    kind = path.stem.upper() if path.stem == "epic" else path.stem.capitalize()
    section = Section(f"{kind}: {path.parent.name}", anchor)
    picture = path.with_suffix(".png")
    try:
        with Image.open(picture) as image:
            image.verify()
        item = Item(f"As plotted by {path.stem}", "", sources, wide=True)
        item.image = parts.data_uri(picture, "image/png")
        item.alt = f"The figure beside {path.name}"
        item.file = os.path.relpath(picture, out.parent)  # `out` is moved there
        section.items.append(item)
    except FileNotFoundError:
        pass
    except (OSError, SyntaxError, ValueError) as error:
        notes.append(f"{picture.name} cannot be shown ({error})")
    tables = _tables(data)
    if path.stem == "epic" and "rows" in tables:
        section.items += _epic_over_size(tables["rows"], out / anchor, sources)
    for name, rows in tables.items():
        cells = [{key: _cell(value) for key, value in row.items()} for row in rows]
        table = pd.DataFrame(cells[:SHOWN_ROWS]).dropna(axis="columns", how="all")
        cut = len(rows) - SHOWN_ROWS
        note = f"{cut} more rows in {path}." if cut > 0 else ""
        item = Item(f"{path.name}: {name}", note, sources, table.fillna("-"))
        item.folded = len(table) > FOLDED_ROWS
        section.items.append(item)
    if not tables:
        notes.append(f"{path} holds no rows that could be shown")
    section.note = "; ".join(notes)
    return section, {k for k, v in models.items() if v.get("model") == "embedded"}


def _tables(data: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Lists of mappings that show something, by name; tasks are made one of them."""
    found = dict(data)
    if tasks := mapping(found.get("tasks")):
        found["tasks"] = [{"task": k, **v} for k, v in tasks.items() if mapping(v)]
    return {
        name: rows
        for name, rows in found.items()
        if isinstance(rows, list)
        and all(isinstance(r, dict) for r in rows)
        and any(_cell(value) is not None for row in rows for value in row.values())
    }


def _cell(value: Any) -> str | None:
    """A value's text; None for curves and nested mappings, which have no room."""
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return " / ".join(value)
    return None if isinstance(value, list | dict) else value_text(value)


def _epic_over_size(
    rows: Sequence[Mapping[str, Any]], stem: Path, sources: Sequence[Any]
) -> list[Item]:
    """EPIC against parameters for each task with at least two models, and the mean."""
    numbers = ["alpha", "parameters", *plots.EPIC]
    frame: Any = pd.DataFrame(rows).reindex(columns=["task", "clip", *numbers])
    frame[numbers] = frame[numbers].map(number).astype(float)
    names = ["task", "clip"]
    frame[names] = frame[names].map(
        lambda x: str(x) if isinstance(x, str | int) else None
    )
    frame = frame[frame["parameters"] > 0].dropna(subset=["clip", "alpha", "epic"])
    frame = frame.fillna({"task": ""}).sort_values("task", kind="stable")
    models = frame.drop_duplicates(["clip", "alpha"])
    if len(frame) == frame["task"].nunique() * len(models):  # of all the same tasks
        means = mean_over_tasks(frame.to_dict("records"))
        frame = pd.concat([frame, pd.DataFrame(means)])
    items: list[Item] = []
    fitted = []
    for task, chosen in frame.groupby("task", sort=False):
        if chosen["parameters"].nunique() < 2:
            continue
        of_task = f"-{parts.file_name(str(task))}" if task else ""
        path = stem.with_name(f"{stem.name}-size{of_task}")
        fits = plots.epic_over_size(chosen, path)
        line = "Dashed: least squares over log10 of the parameters."
        if not fits:
            line = "A line is fitted to three sizes and more."
        title = f"EPIC against model size{f': {task}' if task else ''}"
        alt = "EPIC distance against the model's parameters, for each alpha"
        note = f"Bars: 95 % intervals. {line}"
        items.append(parts.figure((title, path, alt), note, sources))
        sizes = chosen.groupby("alpha")["parameters"].nunique()
        for alpha, fit in fits.items():
            numbers = f"{fit.slope:+.3f}", f"{fit.rvalue**2:.2f}"
            fitted.append([task, f"{alpha:g}", sizes[alpha], *numbers])
    if fitted:
        note = "Slope: change of the EPIC distance with ten times the parameters."
        table = pd.DataFrame(fitted, columns=["task", "alpha", "sizes", "slope", "R²"])
        items.append(Item("Log-linear fits", note, sources, table))
    return items
