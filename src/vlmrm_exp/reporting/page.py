"""The page of a report: what its sections show, and its files."""

import math
import shlex
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from operator import attrgetter
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from vlmrm_exp.files import natural
from vlmrm_exp.reporting import parts, plots, statistics, tables
from vlmrm_exp.reporting.groups import (
    COLUMNS,
    Group,
    count_statuses,
    group_runs,
    labels,
    series_over,
)
from vlmrm_exp.reporting.parts import Item, Section
from vlmrm_exp.reporting.results import result_section
from vlmrm_exp.reporting.run_folders import (
    FINISHED,
    STATUSES,
    Run,
    number,
    success_of,
    value_text,
)
from vlmrm_exp.settings import OF_ONE_MODEL

CURVES = {
    "train/reward_mean": ("reward", "reward per step, training"),
    "eval/success_rate": ("success", "success, greedy episodes"),
    "reward/error": ("error", "error of learned rewards, of their spread"),
    "train/stage_mean": ("stages", "stages passed, training"),
    "eval/goal_mean": ("goals", "goals met in order, greedy episodes"),
}
"""Metrics that are plotted over env steps: file name, and axis."""
BASE64 = 4 / 3  # how much longer a file is inside the page


def write_page(
    out: Path,
    title: str,
    runs: Sequence[Run],
    results: Sequence[Path],
    unread: Sequence[str],
    max_mb: float | None,
) -> None:
    """Write report.html, its figures and its tables into the existing folder `out`.

    `results` are files that studies wrote; `unread` tells of folders that cannot be
    read; `max_mb` are for videos, None: no videos.
    """
    groups = group_runs(runs)
    numbers = [tables.group_numbers(group) for group in groups]
    sections = [
        _results_section(groups, numbers, out),
        _stages_section(groups),
        _curves_section(groups, out),
        _judges_section(groups, out),
        _comparisons_section(groups, out),
    ]
    embedded = {
        str(group.settings.get("clip.name", "?"))
        for group in groups
        if group.settings.get("clip.model") == "embedded"
    }
    for index, path in enumerate(results, 1):
        section, models = result_section(path, f"{path.stem}-{index}", out)
        sections.append(section)
        embedded |= models
    # Names may be no valid text.
    written: Any = {"index": False, "errors": "backslashreplace"}
    if groups:
        pd.DataFrame(numbers).to_csv(out / "groups.csv", **written)
    videos, left_out = ([], []) if max_mb is None else _videos(groups, max_mb)
    if runs:
        tables.run_numbers(runs, groups).to_csv(out / "runs.csv", **written)
    options: Any = {"trim_blocks": True, "lstrip_blocks": True, "autoescape": True}
    text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    template = jinja2.Template(text, undefined=jinja2.StrictUndefined, **options)
    page = template.render(
        title=title,
        made=datetime.now().isoformat(" ", "minutes"),
        command=shlex.join(["python", *sys.orig_argv[1:]]),
        counts=count_statuses(runs),
        runs=runs,
        results=len(results),
        unread=unread,
        sections=[section for section in sections if section.items or section.note],
        videos=videos,
        left_out=left_out,
        max_mb=max_mb,
        embedded=sorted(embedded),
        list_of_runs=tables.list_of_runs(runs),
        statuses=STATUSES,
        success_of=success_of,
        text=value_text,
    )
    (out / "report.html").write_text(page, encoding="utf-8", errors="replace")


def _results_section(
    groups: Sequence[Group], numbers: Sequence[dict[str, Any]], out: Path
) -> Section:
    section = Section("Results", "results")
    if not groups:
        return section
    section.items.append(tables.table_of_groups(groups, numbers))
    measured = [group for group in groups if group.success]
    if not measured:
        section.note = "No finished run has measured success."
        return section
    path, runs = out / "success", _measured_runs(groups)
    plots.success(measured, path)
    alt = "Share of successful episodes of each group with its interval"
    note = "Dot: all seeds pooled. Strokes: each seed. "
    section.items.append(parts.figure(("Success", path, alt), note, runs, groups))
    table, left_out = _over_tasks(measured)
    section.items += table
    section.note = " ".join(left_out)
    return section


def _stages_section(groups: Sequence[Group]) -> Section:
    """How far kept policies get in tasks of several parts: said, and in truth."""
    section, rows, runs = Section("Stages", "stages"), [], []
    names = labels(groups, known=("task.name",))
    for group, label in zip(groups, names, strict=True):
        stages, goals = (_passed(group.finished, of) for of in ("stage", "goal"))
        if len(goals):
            cells = _means(stages), _means(goals), len(group.finished)
            rows.append([f"{group.task}: {label}", *cells])
            runs += group.finished
    if rows:
        heads = ["group", "stages by the reward", "goals by predicates", "runs"]
        note = "Share of episodes that passed the first, the first two, and so on."
        table = pd.DataFrame(rows, columns=heads)
        section.items.append(Item("How far it gets", note, runs, table))
    return section


def _passed(runs: Sequence[Run], name: str) -> pd.DataFrame:
    """The share of final episodes that passed each stage, or goal; a row a run."""
    told = pd.DataFrame([run.summary for run in runs])
    shares = told.filter(regex=f"^eval/{name}_[0-9]+$").map(number).astype(float)
    return shares.dropna(how="all")


def _means(shares: pd.DataFrame) -> str:
    """Of each stage over runs; nothing where some tell of fewer stages than others."""
    known = len(shares) and not shares.isna().any(axis=None)
    return " / ".join(f"{share:.2f}" for share in shares.mean()) if known else ""


def _measured_runs(groups: Iterable[Group]) -> list[Run]:
    return [run for group in groups for run in group.measured]


def _over_tasks(groups: Sequence[Group]) -> tuple[list[Item], list[str]]:
    """A table of success over tasks, if it has a row, and what was left out of it."""
    keys = ("clip.name", "reward.name", "alpha", "task.textures", "task.camera")
    names = [COLUMNS[key] for key in keys]
    frame: Any = pd.DataFrame(
        [[*(value_text(g.settings.get(k)) for k in keys), g.task, g] for g in groups],
        columns=[*names, "task", "group"],
    )
    rows, runs, left_out = [], [], []
    for key, members in frame.groupby(names, sort=False):
        if members["task"].nunique() < 2:
            continue
        if several := set(members["task"][members["task"].duplicated()]):
            told = ", ".join(map(" ".join, zip(names, key, strict=True)))
            left_out.append(
                f"Not in success over tasks: {told}; there are several groups of "
                f"{', '.join(sorted(several))}."
            )
            continue
        strata = [np.array(group.rates) for group in members["group"]]
        rates = np.concatenate(strata)
        interval = "needs three runs of each task"
        if min(map(len, strata)) >= plots.RUNS_FOR_BAND:
            low, high = statistics.stratified_bootstrap(strata)
            interval = f"{low:.2f} to {high:.2f}"
        middle = f"{statistics.interquartile_mean(rates):.2f}"
        mean = f"{np.mean([values.mean() for values in strata]):.2f}"
        rows.append([*key, len(strata), len(rates), middle, interval, mean])
        runs += _measured_runs(members["group"])
    note = (
        "Success of each run's kept policy; the interval is a bootstrap over seeds, "
        "stratified by task. It is too narrow where a task has fewer than five runs."
    )
    heads = ["tasks", "runs", "interquartile mean", "95 % interval", "mean of tasks"]
    table = pd.DataFrame(rows, columns=[*names, *heads])
    return [Item("Success over tasks", note, runs, table)] if rows else [], left_out


def _curves_section(groups: Sequence[Group], out: Path) -> Section:
    section = Section("Learning curves", "curves")
    for task in sorted({group.task for group in groups}):
        of_task = [group for group in groups if group.task == task]
        every = [run for group in of_task for run in group.counted]
        for key, (short, axis) in CURVES.items():
            runs = [*plots.curves_of(every, key)]
            if not runs:
                continue
            path = out / f"curves-{parts.file_name(task)}-{short}"
            note = plots.curves(of_task, key, axis, path)
            about = f"{task}: {axis}", path, f"{axis} over env steps"
            section.items.append(parts.figure(about, note, runs, of_task))
    if groups and not section.items:
        section.note = "No run has reported anything yet."
    return section


def _judges_section(groups: Sequence[Group], out: Path) -> Section:
    section = Section("Judges", "judges")
    judged = [group for group in groups if group.judges]
    rows, runs = [], []
    for number_, (group, label) in enumerate(zip(judged, labels(judged), strict=True)):
        found = [run for run in group.finished if run.judges]
        path = out / f"judges-{number_}"
        plots.judges(group, path)
        name = f"{group.task}: {label}"
        about = name, path, "Reward and judges over env steps"
        section.items.append(parts.figure(about, "", found, [group]))
        runs += found
        for called, (judge, told) in group.judges.items():
            when = [
                f"{alarm['judge']} at {alarm['env_steps']:,} (seed {run.seed})"
                for run in told
                if (alarm := run.alarms.get(judge))
            ]
            curves = plots.curves_of(told, f"judge/{judge}").values()
            ends = [(curve.iloc[0], curve.max(), curve.iloc[-1]) for curve in curves]
            means = (f"{value:.3g}" for value in np.mean(ends, 0))
            raised = f"{len(when)} of {len(told)}"
            rows.append([name, called, *means, raised, "; ".join(when)])
    heads = ["group", "judge", "first", "best", "last", "alarms", "when"]
    table = pd.DataFrame(rows, columns=heads)
    if rows:
        section.items.insert(0, Item("Alarms", "", runs, table))
    return section


def _comparisons_section(groups: Sequence[Group], out: Path) -> Section:
    section = Section("Comparisons", "comparisons")
    looks = "reward.every", "reward.query_share"
    for stem, what, keys, x in (
        ("size", "model size", OF_ONE_MODEL, attrgetter("parameters")),
        ("alpha", "alpha", ("alpha",), attrgetter("alpha")),
        ("looks", "states looked at", looks, attrgetter("looked_at")),
    ):
        if series := series_over(groups, keys, x):
            path = out / f"success-{stem}"
            plots.success_over(series, keys, x, path)
            compared = [group for each in series for group in each]
            runs = _measured_runs(compared)
            alt = f"Share of successful episodes against {what}"
            about = f"Success against {what}", path, alt
            section.items.append(parts.figure(about, "", runs, compared))
    keys = ("task.textures", "task.camera")
    look = lambda group: tuple(str(group.settings.get(key)) for key in keys)  # noqa: E731
    series = series_over(groups, keys, look)
    names = labels([each[0] for each in series], known=keys)
    for each, name in zip(series, names, strict=True):
        cells = pd.DataFrame(map(look, each), columns=["textures", "camera"])
        cells["success"] = [f"{g.success}\nseeds: {tables.rates_text(g)}" for g in each]
        table = cells.pivot(index="textures", columns="camera", values="success")
        table = table.add_suffix(" camera").fillna("no run").reset_index()
        runs = _measured_runs(each)
        section.items.append(Item(f"Textures and camera: {name}", "", runs, table))
    return section


def _videos(
    groups: Sequence[Group], max_mb: float
) -> tuple[list[dict[str, Any]], list[str]]:
    """Videos in the order of groups, and what did not fit.

    The run with the highest reward of each group is the first that gets room, then the
    others, then videos of later evaluations.
    """

    def order(run: Run) -> tuple[bool, float]:
        reward = -math.inf if run.reward is None else run.reward
        return run.status != FINISHED or bool(run.repeats), -reward

    cards: list[dict[str, Any]] = [
        {"place": place, "label": label, "run": run, "path": path}
        | {"turn": rank if path.name == "eval.mp4" else rank + len(group.runs)}
        for place, (group, label) in enumerate(zip(groups, labels(groups), strict=True))
        for rank, run in enumerate(sorted(group.runs, key=order))
        for path in run.videos
    ]
    room = max_mb * 1e6
    shown, left_out = [], []
    for card in sorted(cards, key=lambda card: (card["turn"], card["place"])):
        path, name = card["path"], f"{card['run'].name}/videos/{card['path'].name}"
        try:
            size = path.stat().st_size * BASE64
            if size > room:
                left_out.append(f"{name} ({size / 1e6:.1f} MB)")
                continue
            shown.append({**card, "src": parts.data_uri(path, "video/mp4")})
            room -= size
        except OSError as error:  # it vanished, or is a link to nothing
            left_out.append(f"{name} (cannot be read: {error.strerror})")
    shown.sort(key=lambda card: (card["place"], natural(card["run"].name)))
    return shown, left_out
