"""The page of a report: what its sections show, and its files.

Everything is escaped by the template; texts here are plain.
"""

import math
import os
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from vlmrm_exp.reporting.curves import Success, interquartile_mean, stratified_bootstrap
from vlmrm_exp.reporting.groups import (
    COLUMNS,
    Group,
    count_statuses,
    differing,
    group_runs,
    labels,
    mean_and_spread,
    series_over,
    told,
)
from vlmrm_exp.reporting.parts import (
    Section,
    Table,
    counted,
    data_uri,
    file_name,
    frame_of,
    make_figure,
    make_table,
    source_of,
    value_text,
)
from vlmrm_exp.reporting.plots import (
    RUNS_FOR_BOOTSTRAP,
    draw_curves,
    draw_success,
    draw_success_over_alpha,
    draw_success_over_size,
    has_curve,
)
from vlmrm_exp.reporting.results import embedded_models, result_sections
from vlmrm_exp.reporting.run_folders import FINISHED, STATUSES, Run, natural, number

CURVES = {
    "train/reward_mean": ("reward", "reward per step, training"),
    "eval/success_rate": ("success", "success, greedy episodes"),
}
"""Metrics that are drawn over env steps: file name, and axis."""
BUCKETS = "episodes in %, by % of their steps in the goal: 0 / 25 / 50 / 75 / 100"
INTERVALS = (
    "95 % Wilson intervals over the episodes of all seeds; they are of these policies' "
    "episodes and say nothing about other seeds. Each seed's rate stands beside them."
)
ERROR_CHARACTERS = 6000
BASE64 = 4 / 3
"""How much longer a file is inside the page."""


def write_page(
    out: Path,
    title: str,
    runs: Sequence[Run],
    results: Sequence[Path],
    max_mb: float | None,
) -> Path:
    """Write report.html, its figures and its tables.

    Args:
        out: an existing folder.
        title: heads the page.
        runs: of training.
        results: files that other verbs wrote.
        max_mb: of videos inside the page, in MB; None: no videos.

    Returns:
        Where the page is.
    """
    groups = group_runs(runs)
    sections = [
        _results_section(groups, out),
        _curves_section(groups, out),
        _comparisons_section(groups, out),
        *result_sections(results, out),
    ]
    shown, left_out = ([], []) if max_mb is None else _videos(groups, max_mb)
    embedded = {str(g.settings.get("clip.name", "?")) for g in groups if g.embedded}
    embedded |= embedded_models(results)
    if runs:
        _run_table(runs, groups).to_csv(out / "runs.csv", index=False)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html").render(
        title=title,
        made=datetime.now().isoformat(" ", "minutes"),
        command=shlex.join(["python", *sys.orig_argv[1:]]),
        counts=count_statuses(runs),
        runs=runs,
        results=len(results),
        sections=[section for section in sections if section.items or section.note],
        videos=shown,
        left_out=left_out,
        max_mb=max_mb,
        embedded=sorted(embedded),
        run_list=_run_list(runs) if runs else None,
        errors=[(r.name, r.error[-ERROR_CHARACTERS:]) for r in runs if r.error],
    )
    target = out / "report.html"
    part = out / ".report.html.part"
    try:
        part.write_text(page, encoding="utf-8")
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return target


# Results


def _results_section(groups: Sequence[Group], out: Path) -> Section:
    section = Section("Results", "results")
    if not groups:
        return section
    section.items.append(_group_table(groups, out))
    judged = [group for group in groups if group.success()]
    if judged:
        draw_success(judged, labels(judged), out / "success")
        section.items.append(
            make_figure(
                "Success",
                out / "success",
                "Share of successful episodes of each group with its interval",
                counted(
                    f"Dot: all seeds pooled. Strokes: each seed. {INTERVALS}",
                    _judged(judged),
                    groups,
                ),
                source_of(_judged(judged)),
            )
        )
    else:
        section.note = "No finished run has measured success."
    over_tasks, left_out = _over_tasks(groups)
    if over_tasks:
        section.items.append(over_tasks)
    section.note = " ".join(text for text in (section.note, left_out) if text)
    return section


def _group_table(groups: Sequence[Group], out: Path) -> Table:
    always = ("task.name", "clip.name")
    varying = [k for k in COLUMNS if k in always or k in differing(groups)]
    rows, plain = [], []
    for group in groups:
        success, best = group.success(), group.best_by_reward()
        rewards = group.values("eval/reward_mean")
        row = {COLUMNS[key]: _setting(key, group.settings.get(key)) for key in varying}
        row["other settings"] = "\n".join(told(k, v) for k, v in group.other.items())
        row["runs"] = _finished_of(group)
        row["success (95 %)"] = _success(success)
        row["of each seed"] = _rates(group)
        row["random actions"] = _success(group.random_success(), "")
        row["of the highest reward"] = f"{best[1]:.2f}" if best else "-"
        buckets = group.buckets()
        row[BUCKETS] = (
            " / ".join(f"{share:.0%}".rstrip("%") for share in buckets)
            if buckets
            else ""
        )
        row["reward a step"] = "-"
        if rewards:
            mean, spread = mean_and_spread(rewards)
            row["reward a step"] = f"{mean:.4g}" + (
                "" if spread is None else f" ± {spread:.2g}"
            )
        row["seeds"] = group.seeds
        row["env steps"] = _range([run.env_steps for run in group.finished], "{:,}")
        minutes = [s / 60 for s in group.values("wall_s")]
        row["minutes a run"] = _range(minutes, "{:.3g}")
        row["mind"] = "; ".join(group.mixed())
        rows.append(row)
        plain.append(_group_numbers(group))
    pd.DataFrame(plain).to_csv(out / "groups.csv", index=False)
    same = [
        told(key, groups[0].settings[key])
        for key in COLUMNS
        if key not in varying and groups[0].settings.get(key) is not None
    ]
    note = f"The same in all: {', '.join(same)}. " if same else ""
    note += (
        "Numbers are of finished runs, each judged on its kept policy; of runs with "
        "the same settings and seed the newest counts. Success: "
        f"{INTERVALS} Of the highest reward: the one seed that the paper's Table 1 "
        "would show. Episodes are put to the nearest share of steps, so that 38 to 49 "
        "% counts as 50 and is no success. Reward: mean over seeds ± standard "
        "deviation; it cannot be compared between models, sentences or alphas."
    )
    return make_table(
        "Groups of runs, seeds pooled",
        frame_of(rows),
        note,
        source_of([run for group in groups for run in group.runs]),
    )


def _group_numbers(group: Group) -> dict[str, Any]:
    success = group.success()
    rewards = group.values("eval/reward_mean")
    return {
        **{name: group.settings.get(key) for key, name in COLUMNS.items()},
        "other": "; ".join(f"{k}={v}" for k, v in group.other.items()),
        "seeds": group.seeds,
        **{
            status: sum(r.status == status and not r.repeats for r in group.runs)
            for status in STATUSES
        },
        "repeats": sum(bool(run.repeats) for run in group.runs),
        "parameters": group.parameters,
        "success": success.rate if success else None,
        "success_low": success.low if success else None,
        "success_high": success.high if success else None,
        "successes": success.successes if success else None,
        "episodes": success.episodes if success else None,
        "reward_mean": sum(rewards) / len(rewards) if rewards else None,
    }


def _over_tasks(groups: Sequence[Group]) -> tuple[Table | None, str]:
    """Success over tasks, for each model, reward and alpha with a group per task.

    Returns:
        The table, None without a row; and what was left out of it, in words.
    """
    columns = ("clip.name", "reward", "alpha", "task.textures", "task.camera")
    pooled: dict[tuple[str, ...], list[Group]] = {}
    for group in groups:
        if group.trials():
            key = tuple(_setting(c, group.settings.get(c)) for c in columns)
            pooled.setdefault(key, []).append(group)
    rows, used, left_out = [], [], []
    few = False
    for key, members in pooled.items():
        tasks = {group.task for group in members}
        if len(tasks) < 2:
            continue
        if len(members) != len(tasks):
            several = {
                g.task for g in members if sum(m.task == g.task for m in members) > 1
            }
            named = ", ".join(
                f"{COLUMNS[c]} {v}" for c, v in zip(columns, key, strict=True)
            )
            left_out.append(
                f"Not in success over tasks: {named}; there are several groups of "
                f"{', '.join(sorted(several))}."
            )
            continue
        strata = [np.array([rate for _, rate, _ in g.trials()]) for g in members]
        middle = interquartile_mean(np.concatenate(strata))
        interval = "needs three runs of each task"
        if min(len(values) for values in strata) >= 3:
            few |= min(len(values) for values in strata) < RUNS_FOR_BOOTSTRAP
            low, high = stratified_bootstrap(strata)
            interval = f"{low:.2f} to {high:.2f}"
        rows.append(
            {
                **{COLUMNS[c]: value for c, value in zip(columns, key, strict=True)},
                "tasks": str(len(tasks)),
                "runs": str(sum(len(values) for values in strata)),
                "interquartile mean": f"{middle:.2f}",
                "95 % interval": interval,
                "mean of tasks": f"{np.mean([v.mean() for v in strata]):.2f}",
            }
        )
        used += _judged(members)
    told_of = " ".join(left_out)
    if not rows:
        return None, told_of
    note = (
        "Success of each run's kept policy; the interval is a bootstrap over seeds, "
        "stratified by task."
    )
    if few:
        note += " It is too narrow where a task has fewer than five runs."
    table = make_table("Success over tasks", pd.DataFrame(rows), note, source_of(used))
    return table, told_of


# Curves and comparisons


def _curves_section(groups: Sequence[Group], out: Path) -> Section:
    section = Section("Learning curves", "curves")
    for task in sorted({group.task for group in groups}):
        of_task = [group for group in groups if group.task == task]
        runs = [run for group in of_task for run in group.runs]
        for key, (short, axis) in CURVES.items():
            if not has_curve(runs, key):
                continue
            path = out / f"curves-{file_name(task)}-{short}"
            note = draw_curves(of_task, key, axis, path)
            used = [r for r in runs if not r.repeats and has_curve([r], key)]
            alt = f"{axis} over env steps"
            section.items.append(
                make_figure(
                    f"{task}: {axis}",
                    path,
                    alt,
                    counted(note, used, of_task),
                    source_of(used),
                )
            )
    if groups and not section.items:
        section.note = "No run has reported anything yet."
    return section


def _comparisons_section(groups: Sequence[Group], out: Path) -> Section:
    section = Section("Comparisons", "comparisons")
    if series := series_over(groups, ("clip.",), lambda group: group.parameters):
        compared = [group for each in series for group in each.groups]
        used = _judged(compared)
        draw_success_over_size(series, out / "success-size")
        section.items.append(
            make_figure(
                "Success against model size",
                out / "success-size",
                "Share of successful episodes against the model's parameters",
                counted(INTERVALS, used, compared),
                source_of(used),
            )
        )
    if series := series_over(groups, ("alpha",), lambda g: g.settings.get("alpha")):
        compared = [group for each in series for group in each.groups]
        used = _judged(compared)
        draw_success_over_alpha(series, out / "success-alpha")
        section.items.append(
            make_figure(
                "Success against alpha",
                out / "success-alpha",
                "Share of successful episodes against alpha",
                counted(INTERVALS, used, compared),
                source_of(used),
            )
        )
    looks = ("task.textures", "task.camera")
    series = series_over(
        groups, looks, lambda g: tuple(str(g.settings.get(key)) for key in looks)
    )
    names = labels([each.groups[0] for each in series], known=looks)
    for each, name in zip(series, names, strict=True):
        cells = {
            x: f"{_success(group.success())}\nseeds: {_rates(group)}"
            for x, group in zip(each.x, each.groups, strict=True)
        }
        cameras = sorted({camera for _, camera in each.x})
        rows = [
            {
                "textures": textures,
                **{f"{c} camera": cells.get((textures, c), "no run") for c in cameras},
            }
            for textures in sorted({textures for textures, _ in each.x})
        ]
        section.items.append(
            make_table(
                f"Textures and camera: {name}",
                pd.DataFrame(rows),
                f"Success. {INTERVALS}",
                source_of(_judged(each.groups)),
            )
        )
    return section


# Videos


def _videos(
    groups: Sequence[Group], max_mb: float
) -> tuple[list[dict[str, Any]], list[str]]:
    """Videos side by side, and what did not fit.

    The run with the highest reward of each group comes first, so that no group takes
    all the room.
    """
    wanted = []
    for place, (group, label) in enumerate(zip(groups, labels(groups), strict=True)):
        runs = sorted(
            group.runs,
            key=lambda run: (
                run.status != FINISHED or run.repeats != "",
                -_reward(run),
            ),
        )
        for rank, run in enumerate(runs):
            for path in run.videos:
                late = 0 if path.name == "eval.mp4" else len(runs)
                wanted.append((rank + late, place, run, path, label))
    wanted.sort(key=lambda item: item[:2])
    room = max_mb * 1e6
    shown, left_out = [], []
    for rank, place, run, path, label in wanted:
        name = f"{run.name}/videos/{path.name}"
        try:
            size = path.stat().st_size * BASE64
            if size > room:
                left_out.append(f"{name} ({size / 1e6:.1f} MB)")
                continue
            src = data_uri(path, "video/mp4")
        except OSError as error:  # it vanished, or is a link to nothing
            left_out.append(f"{name} (cannot be read: {error.strerror})")
            continue
        room -= size
        card = {
            "first": rank == 0,
            "src": src,
            "label": label,
            "run": run.name,
            "file": path.name,
            "seed": run.config.get("seed", "?"),
            "status": run.status,
            "prompt": _sentence(run.config.get("prompt")),
            "numbers": _numbers(run, path.name),
        }
        shown.append((place, card))
    shown.sort(key=lambda item: (item[0], natural(item[1]["run"])))
    return [card for _, card in shown], left_out


def _reward(run: Run) -> float:
    value = number(run.summary.get("eval/reward_mean"))
    return -math.inf if value is None else value


def _numbers(run: Run, file: str) -> str:
    """What was measured in a video's own trial; empty when that is not known."""
    stem = Path(file).stem
    values = run.summary if stem == "eval" else run.evaluations.get(stem, {})
    reward = number(values.get("eval/reward_mean"))
    rate = number(values.get("eval/success_rate"))
    parts = [] if reward is None else [f"reward {reward:.4g} a step"]
    if rate is not None:
        parts.append(f"success {rate:.2f} over {values.get('eval/episodes')} episodes")
    return ", ".join(parts)


# All runs


def _run_list(runs: Sequence[Run]) -> Table:
    rows = []
    # What went wrong comes first, or nobody would see it among a hundred runs.
    for run in sorted(runs, key=lambda run: run.status == FINISHED):
        rate = number(run.summary.get("eval/success_rate"))
        reward = number(run.summary.get("eval/reward_mean"))
        again = [
            f"{share:.2f} over {values.get('eval/episodes')} "
            f"({values.get('checkpoint')})"
            for values in run.evaluations.values()
            if (share := number(values.get("eval/success_rate"))) is not None
        ]
        rows.append(
            {
                "run": run.name,
                "status": run.status,
                "reason, and what was odd": "\n".join(
                    text for text in (run.reason, *run.notes) if text
                ),
                "task": str(run.config.get("task.name", "?")),
                "seed": str(run.config.get("seed", "?")),
                "env steps": f"{run.env_steps:,}",
                "success": "-" if rate is None else f"{rate:.2f}",
                "reward a step": "-" if reward is None else f"{reward:.4g}",
                "evaluated again": "\n".join(again),
            }
        )
    return make_table("Every run", frame_of(rows), "", source_of(runs))


def _run_table(runs: Sequence[Run], groups: Sequence[Group]) -> pd.DataFrame:
    """A line for each run; `group` is its line of groups.csv, counted from 0."""
    settings = (*COLUMNS, "seed")
    of = {id(run): number for number, g in enumerate(groups) for run in g.runs}
    measured = ("eval/", "perf/", "wall_s")
    return pd.DataFrame(
        {
            "run": run.name,
            "status": run.status,
            "reason": run.reason,
            "notes": "; ".join(run.notes),
            "group": of.get(id(run)),
            "repeats": run.repeats,
            **{COLUMNS.get(key, key): run.config.get(key) for key in settings},
            "env_steps": run.env_steps,
            **{k: v for k, v in run.summary.items() if k.startswith(measured)},
            "commit": run.versions.get("commit"),
            "command": run.command,
        }
        for run in runs
    )


# Texts


def _judged(groups: Sequence[Group]) -> list[Run]:
    """The runs that their success is of."""
    return [run for group in groups for run, _, _ in group.trials()]


def _finished_of(group: Group) -> str:
    counted, every = len(group.finished), len(group.runs)
    repeated = sum(bool(run.repeats) for run in group.runs)
    once = every - repeated
    text = str(once) if counted == once else f"{counted} of {once} finished"
    return f"{text}, and {repeated} not counted" if repeated else text


def _success(success: Success | None, none: str = "-") -> str:
    if success is None:
        return none
    interval = f"({success.low:.2f} to {success.high:.2f})"
    return f"{success.rate:.2f} {interval}, {success.successes}/{success.episodes}"


def _rates(group: Group) -> str:
    return ", ".join(f"{rate:.2f}" for _, rate, _ in group.trials())


def _range(values: Sequence[float], form: str) -> str:
    if not values:
        return "-"
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"


def _setting(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key == "reward":
        return {"clip": "CLIP", "ground_truth": "true"}.get(value, str(value))
    return value_text(value)


def _sentence(prompt: Any) -> str:
    parts = prompt if isinstance(prompt, list) else [prompt]
    return " / ".join(str(part) for part in parts if part is not None)
