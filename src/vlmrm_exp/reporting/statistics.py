"""Statistics over runs: pooled success, interquartile means, bootstrap, fits.

Interquartile mean and stratified bootstrap are those of R. Agarwal and others, Deep
reinforcement learning at the edge of the statistical precipice (NeurIPS 2021).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from vlmrm_exp.measures import wilson_interval


@dataclass(frozen=True)
class Success:
    """How many episodes succeeded."""

    successes: int
    episodes: int

    @property
    def rate(self) -> float:
        """The share of all episodes."""
        return self.successes / self.episodes

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the rate."""
        return wilson_interval(self.successes, self.episodes)

    def __str__(self) -> str:
        low, high = self.interval
        counts = f"{self.successes}/{self.episodes}"
        return f"{self.rate:.2f} ({low:.2f} to {high:.2f}), {counts}"


def pooled(found: Iterable[Success | None]) -> Success | None:
    """All their episodes together; None if there are none."""
    known = [success for success in found if success]
    episodes = sum(success.episodes for success in known)
    return Success(sum(s.successes for s in known), episodes) if episodes else None


def interquartile_mean(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """Mean of the middle half along `axis`; of fewer than four values, of all."""
    from scipy import stats  # here, as --help is immediate

    return np.asarray(stats.trim_mean(values, 0.25, axis=axis))


def stratified_bootstrap(
    strata: Sequence[np.ndarray], resamples: int = 2000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """95 % percentile interval, low and high, of the interquartile mean over runs.

    They are resampled within their stratum: a task's values, (runs, ...).
    """
    rng = np.random.default_rng(seed)
    drawn = [v[rng.integers(len(v), size=(resamples, len(v)))] for v in strata]
    means = interquartile_mean(np.concatenate(drawn, axis=1), axis=1)
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    return low, high


def align(curves: Sequence[pd.Series], points: int = 200) -> pd.DataFrame:
    """Curves, values over steps, at common steps that all reach: a column a curve.

    In between they are linear; of more than `points` steps, neighbours are averaged.
    """
    table: Any = pd.concat(curves, axis=1, ignore_index=True).sort_index()
    table = table.interpolate("index", limit_area="inside").dropna()
    bins = np.arange(len(table)) * points // max(len(table), points)
    steps = table.index.to_series().groupby(bins).mean()
    return table.groupby(bins).mean().set_axis(steps)


def best_of_n(rewards: np.ndarray, values: np.ndarray) -> np.ndarray:
    """What choosing the highest reward among n policies gets: (P,) for n = 1 to P.

    The mean of its value over all sets of n among P policies, rewards (P,) and values
    (P,); so pressure is measured without training (Gao et al. 2022, arXiv 2210.10760).
    Of equal rewards any is chosen.
    """
    _, rank, alike = np.unique(rewards, return_inverse=True, return_counts=True)
    ranked = np.repeat(np.bincount(rank, values) / alike, alike)  # means of equals
    below = np.arange(len(ranked))  # policies with a lower reward than each
    found = []
    share = np.full(len(ranked), 1 / max(len(ranked), 1))  # of sets it is chosen of
    for n in range(1, len(ranked) + 1):
        found.append(share @ ranked)
        # One more must lie below: C(k, n) / C(P, n + 1) out of C(k, n - 1) / C(P, n).
        share = share * (below - n + 1).clip(0) / n * (n + 1) / max(len(ranked) - n, 1)
    return np.array(found)


def log_linear_fit(sizes: ArrayLike, values: ArrayLike) -> Any:
    """SciPy's linear regression over log10(size); None: fewer than three sizes."""
    from scipy import stats

    if len(np.unique(sizes)) < 3:
        return None
    return stats.linregress(np.log10(sizes), values)
