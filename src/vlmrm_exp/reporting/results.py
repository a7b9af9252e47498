"""What other verbs wrote, for a report: epic.json, landscape.json, peak.json, ..."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from vlmrm_exp.reporting.means import mean_over_tasks
from vlmrm_exp.reporting.parts import (
    Figure,
    Section,
    Source,
    Table,
    data_uri,
    environment_text,
    file_name,
    make_figure,
    make_table,
    value_text,
)
from vlmrm_exp.reporting.plots import draw_epic_over_size
from vlmrm_exp.reporting.run_folders import number, read_json

SHOWN_ROWS = 200
"""Rows of a table that the page shows at most."""
FOLDED_ROWS = 20
"""A longer table is folded."""


def result_sections(paths: Sequence[Path], out: Path) -> list[Section]:
    """A section for each file: the picture beside it, and what it holds as tables.

    Args:
        paths: of such files.
        out: where figures are written.
    """
    sections = []
    for index, path in enumerate(paths, 1):
        kind = path.stem.upper() if path.stem == "epic" else path.stem.capitalize()
        section = Section(f"{kind}: {path.parent.name}", f"{path.stem}-{index}")
        notes: list[str] = []
        data = read_json(path, notes)
        tables = tables_in(data)
        source = _source(path, data)
        picture = path.with_suffix(".png")
        if image := _png(picture, notes):
            section.items.append(
                Figure(
                    title=f"As drawn by {path.stem}",
                    image=image,
                    alt=f"The figure that lies beside {path.name}",
                    note="",
                    file=os.path.relpath(picture, out),
                    source=source,
                    wide=True,
                )
            )
        if path.stem == "epic":
            rows = tables.get("rows", [])
            section.items += _epic_over_size(rows, section.anchor, out, source)
        section.items += [
            _result_table(path, name, rows, source) for name, rows in tables.items()
        ]
        if not tables:
            notes.append(f"{path} holds no rows that could be shown")
        section.note = "; ".join(notes)
        sections.append(section)
    return sections


def _png(path: Path, notes: list[str]) -> str:
    """A picture as a link; empty where there is none, with a note if it is damaged."""
    from PIL import Image

    if not path.is_file():
        return ""
    try:
        with Image.open(path) as image:
            image.verify()
        return data_uri(path, "image/png")
    except (OSError, SyntaxError, ValueError) as error:
        notes.append(f"{path.name} cannot be shown ({error})")
        return ""


def embedded_models(paths: Sequence[Path]) -> set[str]:
    """Names of this project's own small models in the results."""
    found = set()
    for path in paths:
        data = read_json(path, [])
        models = data.get("models") if isinstance(data, dict) else None
        for name, facts in models.items() if isinstance(models, dict) else ():
            if isinstance(facts, dict) and facts.get("model") == "embedded":
                found.add(str(name))
    return found


def tables_in(data: Any) -> dict[str, list[dict[str, Any]]]:
    """What a result holds as rows, by name: lists of mappings, and of tasks."""
    if isinstance(data, list):
        data = {"rows": data}
    found = dict(data) if isinstance(data, dict) else {}
    if isinstance(tasks := found.get("tasks"), dict):
        found["tasks"] = [
            {"task": name, **about}
            for name, about in tasks.items()
            if isinstance(about, dict)
        ]
    return {
        name: rows
        for name, rows in found.items()
        if isinstance(rows, list) and rows and all(isinstance(r, dict) for r in rows)
    }


def _result_table(
    path: Path, name: str, rows: Sequence[Mapping[str, Any]], source: Source
) -> Table:
    shown = [
        {key: _cell(value) for key, value in row.items() if _fits(value)}
        for row in rows[:SHOWN_ROWS]
    ]
    cut = len(rows) - SHOWN_ROWS
    note = f"{cut} more rows in {path}." if cut > 0 else ""
    frame = pd.DataFrame(shown).fillna("-")
    table = make_table(f"{path.name}: {name}", frame, note, source)
    table.folded = len(table.rows) > FOLDED_ROWS
    return table


def _fits(value: Any) -> bool:
    """Whether a value has room in a cell: curves and nested mappings have none."""
    if isinstance(value, list):
        return all(isinstance(each, str) for each in value)
    return not isinstance(value, dict)


def _cell(value: Any) -> str:
    return " / ".join(value) if isinstance(value, list) else value_text(value)


def _epic_over_size(
    rows: Sequence[Mapping[str, Any]], stem: str, out: Path, source: Source
) -> list[Table | Figure]:
    """EPIC against parameters for each task with at least two models, and the mean."""
    needed = ("alpha", "parameters", "epic")
    usable = [
        row
        for row in rows
        if None not in [number(row.get(key)) for key in needed]
        and row["parameters"] > 0
        and row.get("clip")
    ]
    tasks = sorted({str(row.get("task", "")) for row in usable})
    if len(usable) == len(tasks) * len({(r["clip"], r["alpha"]) for r in usable}):
        means = mean_over_tasks(usable)  # of the same tasks for every model
        usable += means
        tasks += sorted({str(row["task"]) for row in means})
    items: list[Table | Figure] = []
    fitted = []
    for task in tasks:
        of_task = [row for row in usable if str(row.get("task", "")) == task]
        if len({row["parameters"] for row in of_task}) < 2:
            continue
        path = out / f"{stem}-size{'-' + file_name(task) if task else ''}"
        fits = draw_epic_over_size(of_task, path)
        note = (
            "Bars: 95 % intervals. Dashed: least squares over log10 of the parameters."
            if fits
            else "Bars: 95 % intervals. A line is fitted to three sizes and more."
        )
        figure = make_figure(
            f"EPIC against model size{': ' + task if task else ''}",
            path,
            "EPIC distance against the model's parameters, for each alpha",
            note,
            source,
        )
        items.append(figure)
        for alpha, fit in fits.items():
            sizes = {row["parameters"] for row in of_task if row["alpha"] == alpha}
            fitted.append(
                {
                    "task": task,
                    "alpha": f"{alpha:g}",
                    "sizes": str(len(sizes)),
                    "slope": f"{fit.slope:+.3f}",
                    "R²": f"{fit.r_squared:.2f}",
                }
            )
    if fitted:
        note = "Slope: change of the EPIC distance with ten times the parameters."
        items.append(make_table("Log-linear fits", pd.DataFrame(fitted), note, source))
    return items


def _source(path: Path, data: Any) -> Source:
    data = data if isinstance(data, dict) else {}
    versions = data.get("versions")
    versions = versions if isinstance(versions, dict) else {}
    models = data.get("models")
    made = environment_text(versions) if versions else "not recorded"
    for name, facts in models.items() if isinstance(models, dict) else ():
        if isinstance(facts, dict) and facts.get("weights_sha256"):
            made += f", weights of {name} {str(facts['weights_sha256'])[:12]}"
    command = str(versions.get("command") or "not recorded")
    return Source(started=[], environments=[(made, 1)], each=[(str(path), command)])
