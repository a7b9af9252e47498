"""How far raters agree with each other and with the predicate, and what they decide.

Cohen's and Fleiss' kappa and Krippendorff's alpha are those of NLTK; a value is None
where it is not defined, as where all labels are the same. Labels are percent of a video
(0, 25, 50, 75, 100) or 0 and 1.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import mean
from typing import Any

from vlmrm_exp.files import table
from vlmrm_exp.labelling.shown import Item
from vlmrm_exp.measures import wilson_interval

Labels = Mapping[str, Mapping[str, int]]
"""By rater and the item's key: percent of buckets, else 0 and 1."""
BUCKETS = (0, 25, 50, 75, 100)
"""Percent: what the paper's rater put each episode into."""


def is_goal(label: float, buckets: bool) -> bool:
    """Whether a label says goal: of buckets half of the steps, as in the paper."""
    return label >= (50 if buckets else 1)


def majority(labels: Labels, item: str, buckets: bool) -> bool | None:
    """Whether more than half of the raters say goal; a tie is none. None: no label."""
    said = [is_goal(one[item], buckets) for one in labels.values() if item in one]
    return sum(said) > len(said) / 2 if said else None


def cohen(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Two raters over the items that both have labelled.

    How many these are, agreement (the share of equal labels) and Cohen's kappa.
    """
    both, task = _shared({"a": first, "b": second}, 2)
    equal = [first[item] == second[item] for item in both]
    return {
        "items": len(both),
        "agreement": mean(equal) if both else None,
        "cohen_kappa": task and float(task.kappa_pairwise("a", "b")),
    }


def fleiss(labels: Labels) -> tuple[int, float | None]:
    """Fleiss' kappa over the items that all raters have labelled, and how many."""
    shared, task = _shared(labels, len(labels))
    # NLTK names it after Scott, whose coefficient for two raters it generalises.
    return len(shared), task and float(task.pi())


def krippendorff(labels: Labels, numbers: bool) -> tuple[int, float | None]:
    """Krippendorff's alpha over items of two raters or more, and how many these are.

    `numbers`: labels are numbers, and nearer ones agree better (interval scale); else
    they are names (nominal scale).
    """
    shared, task = _shared(labels, 2, numbers)
    return len(shared), task and float(task.alpha())


def _shared(labels: Labels, raters: int, numbers: bool = False) -> tuple[list, Any]:
    """Items that so many raters labelled, and NLTK's task; None: no label differs."""
    from nltk.metrics.agreement import AnnotationTask
    from nltk.metrics.distance import binary_distance, interval_distance

    counts = Counter(item for said in labels.values() for item in said)
    items = [item for item, count in counts.items() if count >= raters]
    said = [(r, i, one[i]) for r, one in labels.items() for i in items if i in one]
    if len({label for *_, label in said}) < 2:
        return items, None
    distance = interval_distance if numbers else binary_distance
    return items, AnnotationTask(said, distance)


def tables(
    items: Sequence[Item], labels: Labels, buckets: bool
) -> dict[str, list[dict[str, Any]]]:
    """All that label.json tells of the items that were to be labelled, as tables.

    `raters`, each two of them (`pairs`), the `agreement` of all, each run's `success`
    by the majority, and `differences` among raters, or of them and the predicate.
    """
    goals = {
        r: {item: is_goal(label, buckets) for item, label in one.items()}
        for r, one in labels.items()
    }
    decided = {
        item.key: said
        for item in items
        if (said := majority(labels, item.key, buckets)) is not None
    }
    predicate = {item.key: item.goal for item in items if item.goal is not None}
    ones = goals if len(goals) < 2 else {**goals, "majority": decided}
    raters = []
    for name, said in ones.items():
        found, yes = cohen(said, predicate), sum(said.values())
        raters.append(
            {
                "rater": name,
                "labelled": f"{len(said)} of {len(items)}",
                "goals": yes,
                **_rate("share", yes, len(said)),
                "agreement_with_predicate": found["agreement"],
                "cohen_kappa_with_predicate": found["cohen_kappa"],
            }
        )
    pairs = [
        {"first": a, "second": b, **cohen(goals[a], goals[b])}
        for a, b in combinations(goals, 2)
    ]
    overall = []
    if len(goals) > 1:
        scales = [("at least half of the steps" if buckets else "goal", goals, False)]
        scales += [("percent of the steps", labels, True)] if buckets else []
        for what, said, numbers in scales:
            count, alpha = krippendorff(said, numbers)
            row = {"labels": what, "items_of_two_raters": count}
            overall.append(row | {"krippendorff_alpha": alpha})
        common, kappa = fleiss(goals)
        overall[0] |= {"items_of_all_raters": common, "fleiss_kappa": kappa}
    return {
        "raters": raters,
        "pairs": pairs,
        "agreement": overall,
        "success": _success(items, labels, decided, buckets),
        "differences": differences(items, labels, decided, buckets),
    }


def _rate(name: str, count: int, total: int) -> dict[str, float]:
    """A share with its 95 % interval."""
    low, high = wilson_interval(count, total)
    return {name: count / total, f"{name}_low": low, f"{name}_high": high}


def _success(
    items: Sequence[Item], labels: Labels, decided: Mapping[str, bool], buckets: bool
) -> list[dict[str, Any]]:
    rows = []
    for run in dict.fromkeys(item.run for item in items if item.run):
        judged = [x for x in items if x.run == run and x.key in decided]
        if not judged:
            continue
        wins = sum(decided[item.key] for item in judged)
        row: dict[str, Any] = {"run": run, "episodes": len(judged)}
        row |= _rate("success", wins, len(judged))
        if all(item.goal is not None for item in judged):
            row["success_by_predicate"] = mean(bool(item.goal) for item in judged)
        if buckets:
            row["mean_percent"] = mean(percent(labels, item.key) for item in judged)
            if all(item.share is not None for item in judged):
                by_predicate = mean(item.share or 0.0 for item in judged)
                row["mean_percent_by_predicate"] = 100 * by_predicate
        rows.append(row)
    return rows


def percent(labels: Labels, item: str) -> float:
    """Mean of the raters' buckets, of whom there is at least one."""
    return mean(one[item] for one in labels.values() if item in one)


def differences(
    items: Sequence[Item], labels: Labels, decided: Mapping[str, bool], buckets: bool
) -> list[dict[str, Any]]:
    """Items on which raters differ first, then those where the predicate differs.

    Of buckets, raters differ if one says success and another does not.
    """
    among, against = [], []
    for item in items:
        said = {r: one[item.key] for r, one in labels.items() if item.key in one}
        split = len({is_goal(label, buckets) for label in said.values()}) > 1
        other = item.goal is not None and decided.get(item.key, item.goal) != item.goal
        if not (split or other):
            continue
        unit = " %" if buckets else ""
        told = ", ".join(f"{r}: {label}{unit}" for r, label in said.items())
        row: dict[str, Any] = {"item": item.key, "labels": told}
        if item.goal is not None:
            row["predicate"] = int(item.goal)
            if buckets and item.share is not None:
                row["predicate"] = f"{100 * item.share:.0f} %"
        (among if split else against).append(row)
    return among + against


def report(found: Mapping[str, list[dict[str, Any]]]) -> str:
    """The tables for people; of differences only how many there are."""
    parts = []
    for name, rows in found.items():
        if not rows:
            continue
        if name == "differences":
            parts.append(f"differences: {len(rows)} of the items, in the file")
            continue
        head = list(dict.fromkeys(key for row in rows for key in row))
        lines = [[_cell(row.get(key)) for key in head] for row in rows]
        parts.append(f"{name}\n{table([key.replace('_', ' ') for key in head], lines)}")
    return "\n\n".join(parts)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
