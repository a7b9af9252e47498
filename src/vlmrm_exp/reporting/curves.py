"""Statistics over runs: interquartile means, bootstrap bands, success, log-linear fits.

Interquartile mean and stratified bootstrap are those of R. Agarwal and others, Deep
reinforcement learning at the edge of the statistical precipice (NeurIPS 2021).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

Curve = tuple[np.ndarray, np.ndarray]
"""Steps (P,), rising, and a value at each (P,)."""

CONFIDENCE = 0.95


def interquartile_mean(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """Mean of the middle half along `axis`; of fewer than four values, of all."""
    return np.asarray(stats.trim_mean(values, 0.25, axis=axis))


def stratified_bootstrap(
    strata: Sequence[np.ndarray],
    statistic: Callable[..., np.ndarray] = interquartile_mean,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """95 % percentile interval of a statistic over runs.

    Args:
        strata: of each task, its runs' values (R_k, ...). Runs are drawn again with
            replacement within their task, as often as it has runs.
        statistic: takes (R, ...) and `axis`; it is given the runs of all tasks.
        resamples: how often.
        seed: of the draws.

    Returns:
        Low and high, each of the shape behind the runs' axis.
    """
    rng = np.random.default_rng(seed)
    drawn = [values[rng.integers(len(values), size=(resamples, len(values)))]
             for values in strata]  # fmt: skip
    found = statistic(np.concatenate(drawn, axis=1), axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(found, [tail, 1 - tail], axis=0)
    return low, high


def align(curves: Sequence[Curve], points: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Bring curves onto common steps, and thin them.

    Values between two reports are interpolated linearly; where a curve has none, no
    curve is continued. If there are more steps than `points`, neighbours are averaged.

    Args:
        curves: none of them empty.
        points: the most that come back.

    Returns:
        Steps (P,) and values (R, P); P is 0 when the curves have no steps in common.
    """
    if not curves:
        return np.empty(0), np.empty((0, 0))
    first = max(steps[0] for steps, _ in curves)
    last = min(steps[-1] for steps, _ in curves)
    grid = np.unique(np.concatenate([steps for steps, _ in curves]))
    grid = grid[(grid >= first) & (grid <= last)]
    if not len(grid):
        return np.empty(0), np.empty((len(curves), 0))
    values = np.stack([np.interp(grid, steps, values) for steps, values in curves])
    bins = np.array_split(np.arange(len(grid)), min(points, len(grid)))
    return (
        np.array([grid[chosen].mean() for chosen in bins]),
        np.stack([values[:, chosen].mean(axis=1) for chosen in bins], axis=1),
    )


@dataclass(frozen=True)
class Success:
    """A share of episodes, with its 95 % Wilson interval."""

    rate: float
    low: float
    high: float
    successes: int
    episodes: int


def pooled_success(trials: Sequence[tuple[float, int]]) -> Success | None:
    """Pool the episodes of several runs.

    The interval is of these policies' episodes; how much policies of other seeds would
    differ, it does not say.

    Args:
        trials: success rate and number of episodes of each run.

    Returns:
        None when there is no episode.
    """
    episodes = sum(count for _, count in trials)
    if not episodes:
        return None
    successes = sum(round(rate * count) for rate, count in trials)
    # scipy's, and not rl.trial's: a report imports nothing that plays or renders.
    interval = stats.binomtest(successes, episodes).proportion_ci(
        CONFIDENCE, method="wilson"
    )
    return Success(
        successes / episodes, interval.low, interval.high, successes, episodes
    )


@dataclass(frozen=True)
class Fit:
    """value = intercept + slope x log10(size)."""

    slope: float
    intercept: float
    r_squared: float

    def at(self, size: float) -> float:
        """The fitted value."""
        return self.intercept + self.slope * math.log10(size)


def log_linear_fit(sizes: Sequence[float], values: Sequence[float]) -> Fit | None:
    """Least squares over log10(size); None with fewer than three different sizes.

    Two points lie on a line whatever they are.
    """
    if len(set(sizes)) < 3:
        return None
    x, y = np.log10(sizes), np.asarray(values, dtype=float)
    slope, intercept = np.polyfit(x, y, 1)
    unexplained = np.sum((y - slope * x - intercept) ** 2)
    total = np.sum((y - y.mean()) ** 2)
    # Equal values are fitted without error and leave nothing to explain.
    r_squared = 1 - unexplained / total if total else 1.0
    return Fit(float(slope), float(intercept), float(r_squared))
