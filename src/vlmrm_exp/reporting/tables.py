"""Groups and runs as tables: lines of groups.csv and runs.csv, and rows of the page."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from vlmrm_exp.reporting.groups import COLUMNS, Group, setting_text
from vlmrm_exp.reporting.parts import Item
from vlmrm_exp.reporting.run_folders import (
    FINISHED,
    STATUSES,
    Run,
    number,
    success_of,
    value_text,
)
from vlmrm_exp.reporting.statistics import Success, pooled

BUCKETS = "episodes in %, by % of their steps in the goal: 0 / 25 / 50 / 75 / 100"
"""Heads their column."""


def group_numbers(group: Group) -> dict[str, Any]:
    """A line of groups.csv."""
    counted = [run.status for run in group.counted]
    success = group.success
    rates = (success.rate, *success.interval) if success else (None, None, None)
    rewards = pd.Series([run.reward for run in group.finished], dtype=float)
    returns = pd.Series([_return(run.summary) for run in group.finished], dtype=float)
    seconds = [number(run.summary.get("wall_s")) for run in group.finished]
    best = [run for run in group.measured if run.reward == rewards.max()]
    return {
        **{name: group.settings.get(key) for key, name in COLUMNS.items()},
        "other": "; ".join(f"{key}={value}" for key, value in group.other.items()),
        "seeds": ", ".join(run.seed for run in group.measured or group.finished),
        **{status: counted.count(status) for status in STATUSES},
        "repeats": len(group.runs) - len(counted),
        "parameters": group.parameters,
        **dict(zip(("success", "success_low", "success_high"), rates, strict=True)),
        "successes": success.successes if success else None,
        "episodes": success.episodes if success else None,
        "success_of_each": rates_text(group),
        "success_of_highest_reward": group.measured[best[0]].rate if best else None,
        "success_of_random_actions": pooled(map(_random_success, group.finished)),
        "buckets": _buckets(group),
        "return_mean": number(returns.mean()),
        "reward_mean": rewards.mean(),
        "reward_deviation": rewards.std(),
        "env_steps_of_each": _range([r.env_steps for r in group.finished], "{:,}"),
        "minutes_of_each": _range([s / 60 for s in seconds if s is not None], "{:.3g}"),
        "warning": _mixed(group),
    }


def table_of_groups(groups: Sequence[Group], numbers: Sequence[dict[str, Any]]) -> Item:
    """A row for each group; a column that is empty in all of them is left out."""
    columns, same = _columns(groups)
    rows, any_success = [], any(group.success for group in groups)
    for group, row in zip(groups, numbers, strict=True):
        returned = None if any_success else row["return_mean"]
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
                "return": "" if returned is None else value_text(returned),
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


def run_numbers(runs: Sequence[Run], groups: Sequence[Group]) -> pd.DataFrame:
    """A line for each run; `group` is its line of groups.csv, counted from 0."""
    group_of = {run: i for i, group in enumerate(groups) for run in group.runs}
    measured = ("eval/", "judge/", "perf/", "reward/", "wall_s")
    return pd.DataFrame(
        {
            "run": run.name,
            "status": run.status,
            "reason": run.reason,
            "notes": "; ".join(run.notes),
            "group": group_of.get(run),
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


def list_of_runs(runs: Sequence[Run]) -> Item:
    """A row for each run. What went wrong comes first, or nobody would see it."""
    rows, any_success = [], any(run.success for run in runs)
    for run in sorted(runs, key=lambda run: run.status == FINISHED):
        returned = None if any_success else _return(run.summary)
        again = [
            f"{told} ({values.get('checkpoint')})"
            for values in run.evaluations.values()
            if (told := _evaluated(values))
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
                "return": "" if returned is None else value_text(returned),
                "reward a step": value_text(run.reward),
                "evaluated again": "\n".join(again),
            }
        )
    table = pd.DataFrame(rows)
    for column in ("return", "evaluated again"):
        if not any(row[column] for row in rows):
            table = table.drop(columns=column, errors="ignore")
    return Item("Every run", "", runs, table)


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


def _return(values: Mapping[str, Any]) -> float | None:
    """The environment's own, a mean over episodes."""
    return number(values.get("eval/return_mean"))


def _evaluated(values: Mapping[str, Any]) -> str:
    """What a later evaluation found: success or, where that is not known, the rest."""
    if success := success_of(values):
        return f"{success.rate:.2f} over {success.episodes}"
    found = {
        "reward": number(values.get("eval/reward_mean")),
        "return": _return(values),
    }
    return ", ".join(f"{k} {value_text(v)}" for k, v in found.items() if v is not None)


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


def rates_text(group: Group) -> str:
    """The success rate of each run, for people."""
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
