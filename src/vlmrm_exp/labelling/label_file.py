"""label.csv: what raters said, a line for each picture or episode."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from vlmrm_exp.config import ConfigError
from vlmrm_exp.files import reason, written_whole
from vlmrm_exp.labelling import agreement
from vlmrm_exp.labelling.shown import Item

RATER = "rater:"
"""Begins the column of each rater's own labels."""


def write(
    path: Path,
    items: Sequence[Item],
    labels: agreement.Labels,
    column: str,
    buckets: bool,
) -> None:
    """Write one line for each item that somebody has labelled; a tie is no goal.

    `column` is what a picture's name stands under: file, or index.
    """
    rows = []
    for item in items:
        said = agreement.majority(labels, item.key, buckets)
        if said is None:
            continue
        mine = {r: one[item.key] for r, one in labels.items() if item.key in one}
        row: dict[str, Any] = {column: item.name}
        if item.run:
            row = {"run": item.run, "episode": item.name, "policy": item.policy}
        row["label"] = int(said)
        goals = sum(agreement.is_goal(label, buckets) for label in mine.values())
        row |= {"raters": len(mine), "goals": goals}
        if buckets:
            row["percent"] = agreement.percent(labels, item.key)
        if item.run:
            # What an evaluation compares, and of the very episodes that were shown.
            row["predicate"] = None if item.goal is None else int(item.goal)
            row["predicate_share"] = item.share
            row |= {f"{RATER}{r}": mine.get(r) for r in labels}
        rows.append(row)
    with written_whole(path) as part:
        pd.DataFrame(rows, dtype=object).to_csv(part, index=False)


def read_episodes(
    path: Path, run: str, policy: str
) -> tuple[list[Item], dict[str, dict[str, int]], bool]:
    """Read a label.csv's labels of the episodes of one policy, as `tables` takes them.

    `run` is the folder of its run, and `policy` the SHA-256 of its file. A ConfigError
    if there is no such file, or none of its labels is of this policy.
    """
    try:
        table = pd.read_csv(
            path,
            dtype=str,
            keep_default_na=False,
            encoding="utf-8-sig",
            compression=None,  # whatever its name ends in
            index_col=False,  # also where lines are longer than the first
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read ({reason(error)}): give the label.csv of "
            "vlmrm_exp.label."
        ) from error
    needed = ("run", "episode", "policy", "predicate", "predicate_share")
    raters = [name for name in table if str(name).startswith(RATER)]
    if missing := [name for name in needed if name not in table]:
        raise ConfigError(
            f"{path} has no column {missing[0]}: give the label.csv that python -m "
            "vlmrm_exp.label wrote of videos=[FOLDER]."
        )
    lines = table.to_dict("records")
    if not lines:
        raise ConfigError(f"{path} has no labels: give one that has.")
    mine = [line for line in lines if line["policy"] == policy]
    # Of several runs with the same policy, as one that was copied: this or the first.
    here = Path(run).expanduser().resolve()
    ours = [x for x in mine if Path(x["run"]).expanduser().resolve() == here]
    mine = ours or [line for line in mine if line["run"] == mine[0]["run"]]
    if not mine:
        raise ConfigError(
            f"{path} has no labels of episodes of this policy in {run}, but of "
            f"{', '.join(sorted(set(table['run'])))}: give the run and the checkpoint "
            "that were labelled; one that was trained on since has other episodes."
        )
    buckets = "percent" in table
    items, labels = [], {name.removeprefix(RATER): {} for name in raters}
    try:
        for line in mine:
            goal, share = line["predicate"], line["predicate_share"]
            item = Item(
                str(int(line["episode"])),
                "",
                run,
                goal == "1" if goal else None,
                float(share) if share else None,
                policy,
            )
            if int(item.name) < 0 or item.name in {one.name for one in items}:
                raise ValueError(f"episode {item.name} is no new one")
            if goal not in ("", "0", "1") or not 0 <= (item.share or 0) <= 1:
                raise ValueError(f"predicate {goal}, share {share} cannot be")
            items.append(item)
            for name in raters:
                if not line[name]:
                    continue
                label = int(line[name])
                if label not in (agreement.BUCKETS if buckets else (0, 1)):
                    raise ValueError(f"{label} is no label")
                labels[name.removeprefix(RATER)][item.key] = label
    except ValueError as error:
        raise ConfigError(
            f"{path} was changed by hand ({reason(error)}): write it again with "
            "python -m vlmrm_exp.label ... serve=false."
        ) from error
    labels = {name: said for name, said in labels.items() if said}
    if not labels:
        raise ConfigError(f"{path} has no rater who labelled episodes of {run}.")
    return items, labels, buckets
