"""How well a reward agrees with the truth: Pearson, EPIC, AUROC, and their intervals.

Pure functions of arrays. All three measures stay the same when a reward is multiplied
by a positive number or shifted, as the policy that is best under it does. Letters: B
states.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from vlmrm_exp.config import ConfigError


def pearson(
    first: np.ndarray, second: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Correlation of two (B,), each state weighted by (..., B); NaN of a constant."""
    w = np.ones(len(first)) if weights is None else weights
    x, y = (
        # A constant minus its mean is not always 0: sums are rounded.
        (values - (w * values).sum(-1, keepdims=True) / w.sum(-1, keepdims=True))
        * (np.ptp(values) > 0)
        for values in (np.asarray(first, float), np.asarray(second, float))
    )
    product, xx, yy = ((w * z).sum(-1) for z in (x * y, x * x, y * y))
    with np.errstate(invalid="ignore", divide="ignore"):
        return product / np.sqrt(xx * yy)


def epic(correlation: np.ndarray | float) -> np.ndarray:
    """EPIC distance of rewards of the state, from their correlation (paper Lemma 1).

    0: the same but for scale and shift; 0.71: unrelated; 1: opposite. Canonicalisation
    would only shift such rewards, so it is left out; a test compares with it.
    """
    return np.sqrt(np.clip(1 - np.asarray(correlation), 0, None) / 2)


def auroc(
    reward: np.ndarray, goal: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Share of pairs of a goal and another state that the reward ranks rightly.

    A tie counts half (the Mann-Whitney statistic, scaled). NaN without such a pair.
    Of rewards (B,) and goals (B,) bool, each state weighted by (..., B).
    """
    reward, goal = np.asarray(reward), np.asarray(goal, bool)
    order = np.argsort(reward)
    w = np.ones(len(reward)) if weights is None else np.asarray(weights, float)
    w, of_goals = w[..., order], goal[order]
    # Sums over equal rewards, from the lowest up: (..., U).
    _, starts = np.unique(reward[order], return_index=True)
    goals = np.add.reduceat(w * of_goals, starts, axis=-1)
    others = np.add.reduceat(w * ~of_goals, starts, axis=-1)
    below = others.cumsum(-1) - others / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return (goals * below).sum(-1) / (goals.sum(-1) * others.sum(-1))


def interval(
    statistic: Callable[..., np.ndarray],
    reward: np.ndarray,
    truth: np.ndarray,
    resamples: int,
    seed: int,
    group: np.ndarray | None = None,
) -> tuple[float, float]:
    """95 % bootstrap interval (percentiles) of `pearson` or `auroc` over states (B,).

    States are drawn again with their truth, and all states of a group together (the
    cluster bootstrap): those of one episode resemble each other, so they tell less
    than as many independent ones. Resamples on which the statistic is not defined,
    because they hold no goal state, are left out. Groups are (B,) int; None: each state
    is one.
    """
    group = np.arange(len(reward)) if group is None else group
    names, group = np.unique(group, return_inverse=True)
    count, rng = len(names), np.random.default_rng(seed)
    most = max(1, 2_000_000 // len(reward))  # 16 MB an array
    values: list[float] = []
    while missing := resamples - len(values):
        drawn = rng.integers(count, size=(min(missing, most), count))
        times = np.array([np.bincount(row, minlength=count) for row in drawn])
        values += statistic(reward, truth, times[:, group].astype(float)).tolist()
    low, high = np.nanpercentile(values, (2.5, 97.5))
    return float(low), float(high)


def agreement(
    reward: np.ndarray,
    goal: np.ndarray,
    graded: np.ndarray | None,
    resamples: int = 0,
    seed: int = 0,
    group: np.ndarray | None = None,
) -> dict[str, float]:
    """All measures of one reward (B,), with _low and _high for 1 resample and more.

    pearson, epic and auroc against `goal`, (B,) bool, the binary truth of the paper's
    Lemma 1; pearson_graded and epic_graded against what a good reward orders states by,
    (B,) float, if that is known. Resamples, seed and groups are those of `interval`.
    """
    check_reward(reward)
    check_classes(goal)
    measured: dict[str, float] = {}
    truths = {"": goal} if graded is None else {"": goal, "_graded": graded}
    for suffix, truth in truths.items():
        correlation = float(pearson(reward, truth))
        measured[f"pearson{suffix}"] = correlation
        measured[f"epic{suffix}"] = float(epic(correlation))
        if resamples:
            low, high = interval(pearson, reward, truth, resamples, seed, group)
            measured |= {
                f"pearson{suffix}_low": low,
                f"pearson{suffix}_high": high,
                # A high correlation is a small distance.
                f"epic{suffix}_low": float(epic(high)),
                f"epic{suffix}_high": float(epic(low)),
            }
    measured["auroc"] = float(auroc(reward, goal))
    if resamples:
        low, high = interval(auroc, reward, goal, resamples, seed, group)
        measured |= {"auroc_low": low, "auroc_high": high}
    return measured


def check_reward(reward: np.ndarray) -> None:
    """Refuse rewards that are not finite, or the same but for rounding."""
    check_finite(reward)
    rounding = 4 * np.finfo(np.float32).eps * np.abs(reward).max()
    if np.ptp(reward) <= rounding:
        raise ConfigError(
            f"The reward is {reward.flat[0]:.6g} in all {reward.size} states, so it "
            "correlates with nothing: check the model, the sentence and the pictures."
        )


def check_finite(reward: np.ndarray) -> None:
    """Refuse rewards that are not finite, with a ConfigError."""
    bad = ~np.isfinite(reward)
    if bad.any():
        raise ConfigError(
            f"The reward of {int(bad.sum())} of {bad.size} states is not a finite "
            "number: check the model's weights and clip.precision."
        )


def check_classes(goal: np.ndarray, whose: str = "the state set") -> None:
    """Refuse, with a ConfigError, a set of states of which all or none are goals."""
    if goal.all() or not goal.any():
        raise ConfigError(
            f"{'All' if goal.any() else 'None'} of the {goal.size} states of {whose} "
            "meet the goal, so goals cannot be told from others: give more states, or "
            "states of both kinds."
        )


def wilson_interval(successes: int, episodes: int) -> tuple[float, float]:
    """95 % interval of a success rate (E. B. Wilson 1927, JASA 22).

    Unlike the normal approximation it stays within 0..1 and keeps a width when all or
    none succeed.
    """
    z = NormalDist().inv_cdf(0.975)
    total = episodes + z**2
    centre = (successes + z**2 / 2) / total
    spread = successes * (episodes - successes) / episodes + z**2 / 4
    half = z * math.sqrt(spread) / total
    # Rounding can lead a little out of 0..1.
    return max(centre - half, 0.0), min(centre + half, 1.0)


def mean_over_tasks(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """EPIC over several tasks: a row for each model and alpha, without intervals."""
    if len({row["task"] for row in rows}) < 2:
        return []
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["clip"], row["alpha"]), []).append(row)
    return [
        {
            "task": "mean over tasks",
            "clip": name,
            "alpha": alpha,
            "parameters": group[0]["parameters"],
            "epic": float(np.mean([row["epic"] for row in group])),
        }
        for (name, alpha), group in groups.items()
    ]
