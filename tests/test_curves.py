"""Statistics over runs, against sums done by hand and slower ways."""

import math

import numpy as np
import pytest
from vlmrm_exp.reporting.curves import (
    align,
    interquartile_mean,
    log_linear_fit,
    pooled_success,
    stratified_bootstrap,
)


def slow_interquartile_mean(values: list[float]) -> float:
    kept = sorted(values)[len(values) // 4 : len(values) - len(values) // 4]
    return sum(kept) / len(kept)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 11])
def test_interquartile_mean_drops_a_quarter_at_each_end(count):
    values = np.random.default_rng(count).normal(size=(count, 3))
    values[0] = 1e6  # an outlier counts from four runs on no more
    by_hand = [slow_interquartile_mean(column.tolist()) for column in values.T]
    assert interquartile_mean(values) == pytest.approx(by_hand)


def test_band_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = []
    for seed in range(150):
        low, high = stratified_bootstrap(
            [rng.normal(3.0, 1.0, size=(20, 2))], resamples=400, seed=seed
        )
        assert low.shape == high.shape == (2,)
        held += ((low < 3.0) & (high > 3.0)).tolist()
    assert 0.87 < np.mean(held) < 0.99


def test_runs_are_drawn_again_within_their_task():
    # Without strata a resample could miss one of these tasks.
    easy, hard = np.full((3, 1), 1.0), np.full((3, 1), 0.0)
    low, high = stratified_bootstrap([easy, hard])
    assert low == high == pytest.approx(0.5)
    low, high = stratified_bootstrap([np.concatenate([easy, hard])])
    assert low < 0.3
    assert high > 0.7


def test_bootstrap_repeats_by_its_seed():
    values = [np.random.default_rng(0).normal(size=(5, 2))]
    first, again = (np.array(stratified_bootstrap(values, seed=1)) for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, np.array(stratified_bootstrap(values, seed=2)))


def test_curves_are_compared_only_where_all_have_values():
    short = np.array([10.0, 30.0]), np.array([1.0, 3.0])
    long = np.array([0.0, 20.0, 40.0]), np.array([0.0, 20.0, 40.0])
    steps, values = align([short, long])
    assert steps.tolist() == [10, 20, 30]
    assert values.tolist() == [[1, 2, 3], [10, 20, 30]]
    apart = np.array([50.0]), np.array([5.0])
    assert align([short, apart])[1].shape == (2, 0)
    assert align([])[0].shape == (0,)


def test_long_curves_are_thinned_by_averaging_neighbours():
    steps, values = align([(np.arange(6.0), np.array([0, 2, 4, 6, 8, 10.0]))], points=3)
    assert steps.tolist() == [0.5, 2.5, 4.5]
    assert values.tolist() == [[1, 5, 9]]


def test_success_pools_episodes_with_wilsons_interval():
    success = pooled_success([(0.9, 10), (0.5, 50)])
    assert success is not None
    n, p, z = 60, (9 + 25) / 60, 1.959964
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert (success.rate, success.episodes) == (pytest.approx(p), n)
    assert success.low == pytest.approx(centre - half, abs=1e-6)
    assert success.high == pytest.approx(centre + half, abs=1e-6)
    assert pooled_success([]) is None


def test_fit_over_the_logarithm_of_the_size():
    sizes = [1e5, 1e6, 1e7, 1e7]
    values = [0.7, 0.62, 0.5, 0.52]
    fit = log_linear_fit(sizes, values)
    assert fit is not None
    x = np.log10(sizes)
    correlation = np.corrcoef(x, values)[0, 1]
    slope = correlation * np.std(values) / np.std(x)
    assert fit.slope == pytest.approx(slope)
    assert fit.r_squared == pytest.approx(correlation**2)
    assert fit.at(1e6) == pytest.approx(np.mean(values) + slope * (6 - x.mean()))


def test_no_line_through_two_sizes():
    assert log_linear_fit([1e5, 1e6, 1e6], [0.7, 0.6, 0.5]) is None
    flat = log_linear_fit([1e5, 1e6, 1e7], [0.5, 0.5, 0.5])
    assert flat is not None
    assert (flat.slope, flat.r_squared) == (pytest.approx(0), 1.0)
