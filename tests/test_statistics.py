"""Statistics over runs, against sums done by hand and slower ways."""

import itertools

import numpy as np
import pandas as pd
import pytest

from vlmrm_exp.reporting.statistics import (
    Success,
    align,
    best_of_n,
    interquartile_mean,
    log_linear_fit,
    pooled,
    stratified_bootstrap,
)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 11])
def test_interquartile_mean_drops_a_quarter_at_each_end(count):
    values = np.random.default_rng(count).normal(size=(count, 3))
    values[0] = 1e6  # an outlier counts from four runs on no more
    kept = np.sort(values, axis=0)[count // 4 : count - count // 4]
    assert interquartile_mean(values) == pytest.approx(kept.mean(axis=0))


def test_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = []
    for seed in range(150):
        low, high = stratified_bootstrap(
            [rng.normal(3.0, 1.0, size=(20, 2))], resamples=400, seed=seed
        )
        assert low.shape == high.shape == (2,)
        held += ((low < 3.0) & (high > 3.0)).tolist()
    assert 0.87 < np.mean(held) < 0.99


def test_best_of_n_is_the_mean_over_all_sets():
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(2, 7))
    for n, found in enumerate(best_of_n(rewards, values), 1):
        sets = [list(chosen) for chosen in itertools.combinations(range(7), n)]
        best = [chosen[np.argmax(rewards[chosen])] for chosen in sets]
        assert found == pytest.approx(values[best].mean())
    assert np.isfinite(best_of_n(*rng.normal(size=(2, 2000)))).all()
    assert best_of_n(np.array([]), np.array([])).shape == (0,)


def test_of_equal_rewards_best_of_n_chooses_any():
    values = np.arange(4.0)
    assert best_of_n(np.zeros(4), values) == pytest.approx([1.5] * 4)
    # Of the sets of two, (0, 1) has equals, and all others the one that is chosen.
    found = best_of_n(np.array([0, 0, 1, 2]), values)
    assert found == pytest.approx([1.5, (0.5 + 2 + 2 + 3 + 3 + 3) / 6, 2.75, 3])


def test_runs_are_resampled_within_their_task():
    # Without strata a resample could miss one of these tasks.
    easy, hard = np.full((3, 1), 1.0), np.full((3, 1), 0.0)
    low, high = stratified_bootstrap([easy, hard])
    assert low == high == pytest.approx(0.5)
    low, high = stratified_bootstrap([np.concatenate([easy, hard])])
    assert low < 0.3
    assert high > 0.7


def test_curves_are_compared_only_where_all_have_values():
    short = pd.Series([1.0, 3.0], [10.0, 30.0])
    long = pd.Series([0.0, 20.0, 40.0], [0.0, 20.0, 40.0])
    aligned = align([short, long])
    assert aligned.index.tolist() == [10, 20, 30]
    assert aligned.to_numpy().T.tolist() == [[1, 2, 3], [10, 20, 30]]
    assert align([short, pd.Series([5.0], [50.0])]).empty


def test_long_curves_are_thinned_by_averaging_neighbours():
    aligned = align([pd.Series(np.arange(0.0, 12, 2), np.arange(6.0))], points=3)
    assert aligned.index.tolist() == [0.5, 2.5, 4.5]
    assert aligned[0].tolist() == [1, 5, 9]


def test_success_is_pooled_over_episodes():
    success = pooled([Success(9, 10), None, Success(25, 50)])
    assert success == Success(34, 60)
    assert str(success) == "0.57 (0.44 to 0.68), 34/60"  # Wilson's interval, by hand
    assert pooled([None]) is None


def test_fit_is_over_the_logarithm_of_the_size():
    sizes, values = [1e5, 1e6, 1e7, 1e7], [0.7, 0.62, 0.5, 0.52]
    fit = log_linear_fit(sizes, values)
    slope, intercept = np.polyfit(np.log10(sizes), values, 1)
    assert (fit.slope, fit.intercept) == pytest.approx((slope, intercept))
    assert log_linear_fit([1e5, 1e6, 1e6], [0.7, 0.6, 0.5]) is None  # two sizes
