"""How well a reward agrees with the truth: Pearson, EPIC, AUROC, and their intervals.

Pure functions of arrays. All three measures stay the same when a reward is multiplied
by a positive number or shifted, as the policy that is best under it does. Letters: B
states.
"""

import warnings
from collections.abc import Callable

import numpy as np

from vlmrm_exp.config import ConfigError


def pearson(
    first: np.ndarray,
    second: np.ndarray,
    weights: np.ndarray | None = None,
    axis: int = -1,
) -> np.ndarray:
    """Correlation of two arrays along an axis; NaN where one of them is constant.

    Args:
        first: (..., B).
        second: as first.
        weights: (..., B), not negative; None: all alike.
        axis: of the states.
    """
    x, y = (
        values - np.average(values, axis, weights=weights, keepdims=True)
        for values in (np.asarray(first, float), np.asarray(second, float))
    )
    w = np.ones(1) if weights is None else weights
    product, xx, yy = ((w * z).sum(axis) for z in (x * y, x * x, y * y))
    with np.errstate(invalid="ignore", divide="ignore"):
        return product / np.sqrt(xx * yy)


def epic(correlation: np.ndarray | float) -> np.ndarray:
    """EPIC distance of rewards of the state, from their correlation (paper Lemma 1).

    0: the same but for scale and shift; 0.71: unrelated; 1: opposite. Canonicalisation
    would only shift such rewards, so it is left out; `epic_canonical` does it.
    """
    return np.sqrt(np.clip(1 - np.asarray(correlation), 0, None) / 2)


def epic_canonical(
    first: np.ndarray,
    second: np.ndarray,
    transitions: np.ndarray,
    states: np.ndarray,
    actions: np.ndarray,
    gamma: float,
) -> float:
    """EPIC distance by its definition (paper Definition 2), of any rewards.

    Args:
        first: rewards R(s, a, s'), (S, A, S).
        second: as first.
        transitions: how often (s, a, s') is seen, (S, A, S); sums to 1.
        states: distribution (S,) of the state S and of the next one S'.
        actions: distribution (A,).
        gamma: discount.
    """
    x, y = (canonical(r, states, actions, gamma).ravel() for r in (first, second))
    return float(epic(pearson(x, y, weights=transitions.ravel())))


def canonical(
    reward: np.ndarray, states: np.ndarray, actions: np.ndarray, gamma: float
) -> np.ndarray:
    """C(R)(s, a, s') of paper equation 4, which forgets potential shaping.

    R(s, a, s') + E[gamma R(s', A, S') - R(s, a, S') - gamma R(S, A, S')]. Gleave et
    al. (2021) average the middle term over actions too; both agree on rewards of the
    next state.

    Args:
        reward: (S, A, S), and so the result.
        states: as for `epic_canonical`, and so the others.
        actions: see there.
        gamma: see there.
    """
    to_next = reward @ states  # E R(s, a, S'), (S, A)
    onward = to_next @ actions  # E R(s, A, S'), (S,)
    return reward + gamma * onward - to_next[..., None] - gamma * (states @ onward)


def auroc(reward: np.ndarray, goal: np.ndarray, axis: int = -1) -> np.ndarray:
    """Share of pairs of a goal and another state that the reward ranks rightly.

    A tie counts half (the Mann-Whitney statistic, scaled). NaN without such a pair.

    Args:
        reward: (..., B).
        goal: (..., B) bool.
        axis: of the states.
    """
    from scipy.stats import rankdata

    ranks = rankdata(reward, axis=axis)
    goals = np.sum(goal, axis, dtype=float)
    others = np.shape(goal)[axis] - goals
    below = (ranks * goal).sum(axis) - goals * (goals + 1) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return below / (goals * others)


def interval(
    statistic: Callable[..., np.ndarray],
    reward: np.ndarray,
    truth: np.ndarray,
    resamples: int,
    seed: int,
) -> tuple[float, float]:
    """95 % bootstrap interval of a statistic over states (percentiles).

    States are drawn again with their truth. Resamples on which the statistic is not
    defined, because they hold no goal state, are left out.

    Args:
        statistic: `pearson` or `auroc`.
        reward: (B,).
        truth: (B,).
        resamples: how many.
        seed: of the draws.
    """
    from scipy.stats import DegenerateDataWarning, bootstrap

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)  # of NaN
        drawn = bootstrap(
            (reward, truth),
            statistic,
            n_resamples=resamples,
            batch=max(1, 2_000_000 // len(reward)),  # 16 MB an array
            vectorized=True,
            paired=True,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution
    low, high = np.nanpercentile(drawn, (2.5, 97.5))
    return float(low), float(high)


def agreement(
    reward: np.ndarray,
    goal: np.ndarray,
    graded: np.ndarray | None,
    resamples: int = 0,
    seed: int = 0,
) -> dict[str, float]:
    """All measures of one reward.

    Args:
        reward: (B,).
        goal: (B,) bool, which are goal states: the binary truth of the paper's Lemma 1.
        graded: (B,) float, what the reward should order states by, if that is known.
        resamples: of the bootstrap; 0: no intervals.
        seed: of the bootstrap.

    Returns:
        pearson, epic and auroc against the goal, and pearson_graded and epic_graded,
        each with _low and _high if asked.

    Raises:
        ConfigError: a reward is not finite or always the same, or all states are of
            one class.
    """
    check_reward(reward)
    check_classes(goal)
    measured: dict[str, float] = {}
    for suffix, truth in (("", goal), ("_graded", graded)):
        if truth is None:
            continue
        correlation = float(pearson(reward, truth))
        measured[f"pearson{suffix}"] = correlation
        measured[f"epic{suffix}"] = float(epic(correlation))
        if resamples:
            low, high = interval(pearson, reward, truth, resamples, seed)
            measured |= {
                f"pearson{suffix}_low": low,
                f"pearson{suffix}_high": high,
                # A high correlation is a small distance.
                f"epic{suffix}_low": float(epic(high)),
                f"epic{suffix}_high": float(epic(low)),
            }
    measured["auroc"] = float(auroc(reward, goal))
    if resamples:
        low, high = interval(auroc, reward, goal, resamples, seed)
        measured |= {"auroc_low": low, "auroc_high": high}
    return measured


def check_reward(reward: np.ndarray) -> None:
    """Refuse rewards that nothing can be compared with.

    Raises:
        ConfigError: one is not finite, or all are the same but for rounding.
    """
    bad = ~np.isfinite(reward)
    if bad.any():
        raise ConfigError(
            f"The reward of {int(bad.sum())} of {bad.size} states is not a finite "
            "number: check the model's weights and clip.precision."
        )
    rounding = 4 * np.finfo(np.float32).eps * np.abs(reward).max()
    if np.ptp(reward) <= rounding:
        raise ConfigError(
            f"The reward is {reward.flat[0]:.6g} in all {reward.size} states, so it "
            "correlates with nothing: check the model, the sentence and the pictures."
        )


def check_classes(goal: np.ndarray, whose: str = "the state set") -> None:
    """Refuse a set of states of one class.

    Args:
        goal: (B,) bool.
        whose: for the message.

    Raises:
        ConfigError: all or none are goal states.
    """
    if goal.all() or not goal.any():
        raise ConfigError(
            f"{'All' if goal.any() else 'None'} of the {goal.size} states of {whose} "
            "meet the goal, so goals cannot be told from others: give more states, or "
            "states of both kinds."
        )
