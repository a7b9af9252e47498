"""Pearson, EPIC and AUROC against slow definitions, and their intervals."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from vlmrm_exp.config import ConfigError
from vlmrm_exp.measures import (
    agreement,
    auroc,
    check_reward,
    epic,
    interval,
    pearson,
)

RNG = np.random.default_rng(0)


def sample(count: int = 200, share: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """Rewards that know a little about the goal."""
    rng = np.random.default_rng(count)
    goal = rng.random(count) < share
    return goal + rng.normal(0, 1, count), goal


def test_pearson_is_scipys_and_weights_count_like_copies():
    x, y = RNG.normal(size=50), RNG.normal(size=50)
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic)
    copies = RNG.integers(1, 5, 50)
    repeated = pearson(np.repeat(x, copies), np.repeat(y, copies))
    assert pearson(x, y, weights=copies / copies.sum()) == pytest.approx(repeated)


@pytest.mark.parametrize("count", [7, 10, 199])
def test_a_constant_has_no_correlation(count):
    assert np.isnan(pearson(np.full(count, 0.3), np.arange(count)))
    assert np.isnan(pearson(np.arange(count), np.full(count, 0.1)))


def test_epic_of_equal_unrelated_and_opposite_rewards():
    np.testing.assert_allclose(epic([1, 0, -1]), [0, math.sqrt(0.5), 1])
    assert epic(1 + 1e-16) == 0


def test_correlation_with_a_binary_goal_is_that_of_the_papers_lemma():
    """rho = sd(R) / sd(reward) x (mean reward of goals - mean reward of others)."""
    reward, goal = sample()
    between = reward[goal].mean() - reward[~goal].mean()
    rho = goal.std() / reward.std() * between
    assert pearson(reward, goal) == pytest.approx(rho)


@pytest.mark.parametrize(
    "statistic", [pearson, auroc, lambda r, g: epic(pearson(r, g))]
)
def test_scale_and_shift_change_nothing_and_sign_does(statistic):
    reward, goal = sample()
    value = statistic(reward, goal)
    assert statistic(3e-3 * reward - 7, goal) == pytest.approx(value)
    assert statistic(-reward, goal) != pytest.approx(value, abs=0.05)


def slow_canonical(reward, states, actions, gamma):
    """C(R)(s, a, s'), one expectation after another, term by term (paper equation 4).

    R(s, a, s') + E[gamma R(s', A, S') - R(s, a, S') - gamma R(S, A, S')]: it forgets
    potential shaping. Of distributions of S and S' (S,), and of A (A,).
    """
    count, choices = len(states), len(actions)
    canonical = np.zeros(reward.shape)
    for s, a, t in itertools.product(range(count), range(choices), range(count)):
        total = reward[s, a, t]
        for t2 in range(count):
            total -= states[t2] * reward[s, a, t2]
            for a2 in range(choices):
                total += gamma * actions[a2] * states[t2] * reward[t, a2, t2]
                for s2 in range(count):
                    weight = states[s2] * actions[a2] * states[t2]
                    total -= gamma * weight * reward[s2, a2, t2]
        canonical[s, a, t] = total
    return canonical


def epic_canonical(first, second, transitions, states, actions, gamma) -> float:
    """EPIC distance by its definition (paper Definition 2), of any rewards."""
    pairs = [slow_canonical(r, states, actions, gamma).ravel() for r in (first, second)]
    covariance = np.cov(pairs, aweights=transitions.ravel())
    rho = covariance[0, 1] / math.sqrt(covariance[0, 0] * covariance[1, 1])
    return math.sqrt(max(1 - rho, 0) / 2)


@pytest.fixture
def small_mdp():
    """5 states, 3 actions: distributions of transitions, states and actions."""
    rng = np.random.default_rng(1)
    transitions = rng.random((5, 3, 5))
    states, actions = rng.random(5), rng.random(3)
    distributions = (transitions, states, actions)
    return tuple(d / d.sum() for d in distributions)


def test_for_rewards_of_the_next_state_canonicalisation_drops_out(small_mdp):
    """Lemma 1's short form, over the distribution of the next state."""
    reward = np.random.default_rng(3).normal(size=5)
    goal = np.array([0, 1, 0, 0, 1])
    of_transitions = [np.broadcast_to(r, (5, 3, 5)) for r in (reward, goal)]
    next_states = small_mdp[0].sum(axis=(0, 1))
    short = epic(pearson(reward, goal, weights=next_states))
    for gamma in (0.0, 0.95):
        full = epic_canonical(*of_transitions, *small_mdp, gamma)
        assert full == pytest.approx(float(short))


def test_canonical_epic_forgets_potential_shaping(small_mdp):
    rng = np.random.default_rng(4)
    reward, potential = rng.normal(size=(5, 3, 5)), rng.normal(0, 10, 5)
    shaped = 2 * reward + 0.9 * potential - potential[:, None, None]
    assert epic_canonical(reward, shaped, *small_mdp, 0.9) == pytest.approx(0, abs=1e-6)
    assert float(epic(pearson(reward.ravel(), shaped.ravel()))) > 0.3


def test_auroc_counts_pairs_and_ties_half():
    reward, goal = sample()
    reward = np.round(reward)  # many ties
    pairs = list(itertools.product(reward[goal], reward[~goal]))
    share = np.mean([(a > b) + (a == b) / 2 for a, b in pairs])
    assert auroc(reward, goal) == pytest.approx(share)
    assert auroc(np.zeros(200), goal) == 0.5
    assert np.isnan(auroc(reward, np.zeros(200, bool)))


def test_auroc_weights_count_like_copies():
    reward, goal = sample()
    reward = np.round(reward)
    copies = RNG.integers(0, 4, (3, 200))
    expected = [auroc(np.repeat(reward, c), np.repeat(goal, c)) for c in copies]
    np.testing.assert_allclose(auroc(reward, goal, weights=copies), expected)


def test_interval_of_states_is_scipys():
    """Scipy resamples the states themselves, with the same draws."""
    reward, goal = sample(80)
    drawn = stats.bootstrap(
        (reward, goal), auroc, n_resamples=200, vectorized=False, paired=True,
        method="percentile", rng=np.random.default_rng(0),
    )  # fmt: skip
    ends = interval(auroc, reward, goal, 200, seed=0)
    np.testing.assert_allclose(ends, drawn.confidence_interval)


def test_states_of_one_episode_count_once():
    """Forty copies of each of 50 states tell no more than the 50 do."""
    reward, goal = sample(50)
    once = interval(pearson, reward, goal, 500, seed=0)
    copies = np.tile(reward, 40), np.tile(goal, 40)
    together = interval(pearson, *copies, 500, seed=0, group=np.tile(range(50), 40))
    np.testing.assert_allclose(together, once)
    alone = interval(pearson, *copies, 500, seed=0)
    assert np.ptp(alone) < np.ptp(once) / 4


def test_interval_of_a_correlation_is_about_fishers():
    rng = np.random.default_rng(5)
    x = rng.normal(size=1000)
    y = 0.6 * x + 0.8 * rng.normal(size=1000)
    low, high = interval(pearson, x, y, 500, seed=0)
    centre, width = math.atanh(pearson(x, y)), 1.96 / math.sqrt(997)
    assert low == pytest.approx(math.tanh(centre - width), abs=0.015)
    assert high == pytest.approx(math.tanh(centre + width), abs=0.015)


def test_agreement_holds_every_measure_within_its_interval_and_repeats():
    reward, goal = sample()
    measured = agreement(reward, goal, reward**3, resamples=200, seed=1)
    assert measured == agreement(reward, goal, reward**3, resamples=200, seed=1)
    assert measured != agreement(reward, goal, reward**3, resamples=200, seed=2)
    for key in ("pearson", "epic", "auroc", "pearson_graded", "epic_graded"):
        low, high = measured[f"{key}_low"], measured[f"{key}_high"]
        assert low < measured[key] < high
    assert measured["epic_graded"] == pytest.approx(epic(pearson(reward, reward**3)))


def test_few_goals_still_give_an_interval():
    reward, goal = sample(60, 0)
    goal[:2] = True  # every eighth resample has none
    measured = agreement(reward, goal, None, resamples=100)
    assert np.isfinite(list(measured.values())).all()
    assert "epic_graded" not in measured


@pytest.mark.parametrize(
    ("reward", "goal", "words"),
    [
        ([0.1, np.nan, 0.3], [1, 0, 0], "1 of 3 states is not a finite number"),
        ([0.1, np.inf, 0.3], [1, 0, 0], "not a finite number"),
        ([0.3, 0.3, 0.3], [1, 0, 0], "is 0.3 in all 3 states"),
        ([0.1, 0.2, 0.3], [0, 0, 0], "None of the 3 states"),
        ([0.1, 0.2, 0.3], [1, 1, 1], "All of the 3 states"),
    ],
)
def test_what_cannot_be_compared_is_refused(reward, goal, words):
    with pytest.raises(ConfigError, match=words):
        agreement(np.float32(reward), np.array(goal, bool), None)


def test_rewards_that_differ_by_rounding_alone_are_constant():
    with pytest.raises(ConfigError, match="in all 4 states"):
        check_reward(np.float32(0.7) + np.arange(4, dtype=np.float32) * 6e-8)
    check_reward(np.float32(0.7) + np.arange(4, dtype=np.float32) * 1e-5)
