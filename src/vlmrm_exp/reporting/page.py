"""The page of a report: what its sections show, and its files."""

import math
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from vlmrm_exp.files import natural
from vlmrm_exp.reporting import parts, plots, statistics
from vlmrm_exp.reporting.groups import (
    COLUMNS,
    Group,
    count_statuses,
    group_runs,
    labels,
    series_over,
    setting_text,
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
from vlmrm_exp.reporting.statistics import Success, pooled

CURVES = {
    "train/reward_mean": ("reward", "reward per step, training"),
    "eval/success_rate": ("success", "success, greedy episodes"),
    "reward/error": ("error", "error of learned rewards, of their spread"),
    "train/stage_mean": ("stages", "stages passed, training"),
    "eval/goal_mean": ("goals", "goals met in order, greedy episodes"),
}
"""Metrics that are plotted over env steps: file name, and axis."""
BUCKETS = "episodes in %, by % of their steps in the goal: 0 / 25 / 50 / 75 / 100"
"""Heads their column."""
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
    numbers = [_group_numbers(group) for group in groups]
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
        _run_numbers(runs, groups).to_csv(out / "runs.csv", **written)
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
        list_of_runs=_list_of_runs(runs),
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
    section.items.append(_table_of_groups(groups, numbers))
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


def _table_of_groups(
    groups: Sequence[Group], numbers: Sequence[dict[str, Any]]
) -> Item:
    """A row for each group; a column that is empty in all of them is left out."""
    columns, same = _columns(groups)
    rows = []
    for group, row in zip(groups, numbers, strict=True):
        other = [setting_text(key, value) for key, value in group.other.items()]
        once = len(group.runs) - row["repeats"]
        counted = f"{row['finished']}"
        if row["finished"] != once:
            counted += f" of {once} finished"
        if row["repeats"]:
            counted += f", and {row['repeats']} not counted"
        best = row["success_of_highest_reward"]
        reward = value_text(row["reward_mean"])
        if row["reward_deviation"] >= 0:  # NaN of one run
            reward += f" ± {row['reward_deviation']:.2g}"
        rows.append(
            {
                **{COLUMNS[k]: value_text(group.settings.get(k)) for k in columns},
                "task": group.task,
                "other settings": "\n".join(other),
                "runs": counted,
                "success (95 %)": str(group.success or "-"),
                "of each seed": row["success_of_each"],
                "random actions": str(row["success_of_random_actions"] or ""),
                "of the highest reward": "-" if best is None else f"{best:.2f}",
                BUCKETS: row["buckets"],
                "reward a step": reward,
                "seeds": row["seeds"],
                "env steps": row["env_steps_of_each"] or "-",
                "minutes a run": row["minutes_of_each"] or "-",
                "warning": row["warning"],
            }
        )
    table = pd.DataFrame(rows)
    table = table.loc[:, (table != "").any()]
    note = f"The same in all: {', '.join(same)}." if same else ""
    runs = [run for group in groups for run in group.runs]
    return Item("Groups of runs, seeds pooled", note, runs, table)


def _list_of_runs(runs: Sequence[Run]) -> Item:
    """A row for each run. What went wrong comes first, or nobody would see it."""
    rows = []
    for run in sorted(runs, key=lambda run: run.status == FINISHED):
        again = [
            f"{success.rate:.2f} over {success.episodes} ({values.get('checkpoint')})"
            for values in run.evaluations.values()
            if (success := success_of(values))
        ]
        rows.append(
            {
                "run": run.name,
                "status": run.status,
                "reason and notes": "\n".join(filter(None, [run.reason, *run.notes])),
                "task": str(run.config.get("task.name", "?")),
                "seed": run.seed,
                "env steps": value_text(run.env_steps),
                "success": f"{run.success.rate:.2f}" if run.success else "-",
                "reward a step": value_text(run.reward),
                "evaluated again": "\n".join(again),
            }
        )
    table = pd.DataFrame(rows)
    if not any(row["evaluated again"] for row in rows):
        table = table.drop(columns="evaluated again", errors="ignore")
    return Item("Every run", "", runs, table)


def _stages_section(groups: Sequence[Group]) -> Section:
    """How far kept policies get in tasks of several parts: said, and in truth."""
    section, rows, runs = Section("Stages", "stages"), [], []
    names = labels(groups, known=("task.name",))
    for group, label in zip(groups, names, strict=True):
        told = {
            name: [shares for run in group.finished if (shares := _shares(run, name))]
            for name in ("stage", "goal")
        }
        if told["goal"]:
            cells = [
                " / ".join(f"{share:.2f}" for share in np.mean(shares, 0))
                if len({*map(len, shares)}) == 1
                else ""
                for shares in told.values()
            ]
            rows.append([f"{group.task}: {label}", *cells, len(group.finished)])
            runs += group.finished
    if rows:
        heads = ["group", "stages by the reward", "goals by predicates", "runs"]
        note = "Share of episodes that passed the first, the first two, and so on."
        table = pd.DataFrame(rows, columns=heads)
        section.items.append(Item("How far it gets", note, runs, table))
    return section


def _shares(run: Run, name: str) -> list[float]:
    """The share of a run's final episodes that passed each stage, or each goal."""
    told = [key for key in run.summary if re.fullmatch(f"eval/{name}_[0-9]+", key)]
    shares = [number(run.summary[key]) for key in told]
    return [share for share in shares if share is not None]


def _measured_runs(groups: Iterable[Group]) -> list[Run]:
    return [run for group in groups for run in group.measured]


def _group_numbers(group: Group) -> dict[str, Any]:
    """A line of groups.csv."""
    counted = [run.status for run in group.runs if not run.repeats]
    success = group.success
    rates = (success.rate, *success.interval) if success else (None, None, None)
    rewards = pd.Series([run.reward for run in group.finished], dtype=float)
    seconds = [number(run.summary.get("wall_s")) for run in group.finished]
    best = [run for run in group.measured if run.reward == rewards.max()]
    return {
        **{name: group.settings.get(key) for key, name in COLUMNS.items()},
        "other": "; ".join(f"{key}={value}" for key, value in group.other.items()),
        "seeds": ", ".join(sorted({run.seed for run in group.runs}, key=natural)),
        **{status: counted.count(status) for status in STATUSES},
        "repeats": len(group.runs) - len(counted),
        "parameters": group.parameters,
        **dict(zip(("success", "success_low", "success_high"), rates, strict=True)),
        "successes": success.successes if success else None,
        "episodes": success.episodes if success else None,
        "success_of_each": _rates(group),
        "success_of_highest_reward": group.measured[best[0]].rate if best else None,
        "success_of_random_actions": pooled(map(_random_success, group.finished)),
        "buckets": _buckets(group),
        "reward_mean": rewards.mean(),
        "reward_deviation": rewards.std(),
        "env_steps_of_each": _range([r.env_steps for r in group.finished], "{:,}"),
        "minutes_of_each": _range([s / 60 for s in seconds if s is not None], "{:.3g}"),
        "warning": _mixed(group),
    }


def _columns(groups: Sequence[Group]) -> tuple[list[str], list[str]]:
    """Keys of `COLUMNS` for the groups' table, and what is the same in all groups."""
    shown, same = [], []
    for key in COLUMNS:
        # A group without a setting, as a predicate's has no camera, differs in none.
        values = [g.settings[key] for g in groups if key in g.settings]
        if key in ("task.name", "clip.name") or len(set(map(str, values))) > 1:
            shown.append(key)
        elif values and values[0] is not None:
            same.append(setting_text(key, values[0]))
    return shown, same


def _random_success(run: Run) -> Success | None:
    """Success of random actions in the longest evaluation of them, if there is one."""
    played = {k: v for k, v in run.evaluations.items() if "evaluation-random" in k}
    found = [success for v in played.values() if (success := success_of(v))]
    return max(found, key=lambda success: success.episodes, default=None)


def _buckets(group: Group) -> str:
    """Pooled episodes in %, by how long they were in the goal state."""
    total = np.zeros(5)
    for run, success in group.measured.items():
        shares = run.summary.get("eval/buckets")
        shares = [number(share) for share in shares] if isinstance(shares, list) else []
        if len(shares) == len(total) and None not in shares:
            total += success.episodes * np.array(shares, float)
    shares = 100 * total / (total.sum() or 1)
    return " / ".join(f"{share:.0f}" for share in shares) if total.any() else ""


def _rates(group: Group) -> str:
    return ", ".join(f"{rate:.2f}" for rate in group.rates)


def _range(values: Iterable[float], form: str) -> str:
    texts = [form.format(value) for value in sorted(values)]
    return " to ".join(dict.fromkeys(texts[:1] + texts[-1:]))


def _mixed(group: Group) -> str:
    """In what its runs differ although they should not."""
    encoders = [run.encoder for run in group.runs if run.encoder]
    counts = {
        "commits": {
            str(r.versions["commit"]) for r in group.runs if "commit" in r.versions
        },
        "model weights": {str(e.get("weights_sha256")) for e in encoders},
        "precisions": {str(e.get("precision")) for e in encoders},
    }
    return "; ".join(f"{len(v)} different {k}" for k, v in counts.items() if len(v) > 1)


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
        every = [r for group in of_task for r in group.runs if not r.repeats]
        for key, (short, axis) in CURVES.items():
            runs = [run for run, _ in plots.curves_of(every, key)]
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
        plots.judges(found, group.judges, path)
        name = f"{group.task}: {label}"
        about = name, path, "Reward and judges over env steps"
        section.items.append(parts.figure(about, "", found, [group]))
        runs += found
        for judge in group.judges:
            alarms = [(run, run.alarms[judge]) for run in found if judge in run.alarms]
            when = [
                f"{alarm['judge']} at {alarm['env_steps']:,} (seed {run.seed})"
                for run, alarm in alarms
            ]
            curves = [curve for _, curve in plots.curves_of(found, f"judge/{judge}")]
            told = [(curve.iloc[0], curve.max(), curve.iloc[-1]) for curve in curves]
            means = (f"{value:.3g}" for value in np.mean(told, 0))
            raised = f"{len(alarms)} of {len(found)}"
            rows.append([name, judge, *means, raised, "; ".join(when)])
    heads = ["group", "judge", "first", "best", "last", "alarms", "when"]
    table = pd.DataFrame(rows, columns=heads)
    if rows:
        section.items.insert(0, Item("Alarms", "", runs, table))
    return section


def _comparisons_section(groups: Sequence[Group], out: Path) -> Section:
    section = Section("Comparisons", "comparisons")
    for stem, what, keys, x in (
        ("size", "model size", ("clip.",), lambda group: group.parameters),
        ("alpha", "alpha", ("alpha",), lambda group: group.alpha),
        (
            "looks",
            "states looked at",
            ("reward.every", "reward.query_share"),
            lambda group: group.looked_at,
        ),
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
        cells["success"] = [f"{g.success}\nseeds: {_rates(g)}" for g in each]
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

    cards = []
    for place, (group, label) in enumerate(zip(groups, labels(groups), strict=True)):
        for rank, run in enumerate(sorted(group.runs, key=order)):
            card = {"place": place, "label": label, "run": run}
            for path in run.videos:
                turn = rank if path.name == "eval.mp4" else rank + len(group.runs)
                cards.append({**card, "path": path, "turn": turn})
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


def _run_numbers(runs: Sequence[Run], groups: Sequence[Group]) -> pd.DataFrame:
    """A line for each run; `group` is its line of groups.csv, counted from 0."""
    group_of = {id(run): i for i, group in enumerate(groups) for run in group.runs}
    measured = ("eval/", "judge/", "perf/", "reward/", "wall_s")
    return pd.DataFrame(
        {
            "run": run.name,
            "status": run.status,
            "reason": run.reason,
            "notes": "; ".join(run.notes),
            "group": group_of.get(id(run)),
            "repeats": run.repeats,
            **{name: run.config.get(key) for key, name in COLUMNS.items()},
            "seed": run.config.get("seed"),
            "env_steps": run.env_steps,
            **{k: v for k, v in run.summary.items() if k.startswith(measured)},
            "commit": run.versions.get("commit"),
            "command": run.command,
        }
        for run in runs
    )
