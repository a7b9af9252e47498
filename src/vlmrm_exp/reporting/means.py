"""EPIC of several tasks as one number, for `epic` and for reports."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MEAN = "mean over tasks"


def mean_over_tasks(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each model and alpha if there are several tasks; no intervals."""
    if len({row["task"] for row in rows}) < 2:
        return []
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["clip"], row["alpha"]), []).append(row)
    return [
        {
            "task": MEAN,
            "clip": clip,
            "alpha": alpha,
            "parameters": group[0]["parameters"],
            "epic": float(np.mean([row["epic"] for row in group])),
        }
        for (clip, alpha), group in groups.items()
    ]
