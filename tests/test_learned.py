"""Rewards of states that nobody looked at."""

import json

import numpy as np
import pytest
import torch

from point_mass import (
    Distance,
    PointMassEnvs,
    point_mass,
    point_mass_config,
    read_metrics,
    trained,
)
from vlmrm_exp.config import ConfigError
from vlmrm_exp.notes import unread
from vlmrm_exp.reward import Episodes, learned
from vlmrm_exp.reward.learned import Ensemble, Estimator
from vlmrm_exp.reward.workers import make_pool
from vlmrm_exp.rl.remembering import RememberingReplay

ROLLOUT = 8 * 20
T, N = 20, 8
CPU = torch.device("cpu")


def estimator(share: float = 0.2, seed: int = 0, **changes) -> Estimator:
    reward = {"query_share": share, **changes}
    return Estimator(point_mass_config(reward=reward, seed=seed), state_size=2)


def test_a_seed_may_be_as_large_as_that_of_any_other_part():
    first, second = (estimator(seed=2**70 + k) for k in (0, 1))
    states = torch.ones(1, 2)
    assert not torch.equal(first._ensemble(states), second._ensemble(states))


def some_states(seed: int = 0, steps: int = T) -> Episodes:
    rng = np.random.default_rng(seed)
    return Episodes(states=rng.uniform(-1, 1, (steps, N, 2)))


def a_replay() -> RememberingReplay:
    """Of rollouts of 8 episodes of 20 steps, whose states are two numbers."""
    return RememberingReplay(1000 * ROLLOUT, PointMassEnvs(N, T), 0, CPU)


def look(
    replay: RememberingReplay, learner: Estimator, states: np.ndarray, truth: np.ndarray
):
    """Choose, and store what came of it, as the loop does."""
    at = learner.choose(Episodes(states=states))
    given = np.full((T, N), np.nan, np.float32)
    given.flat[at] = truth.flat[at]
    none = np.zeros((T + 1, N, 1), np.float32)
    replay.add(none, none[1:], given, states)
    return at, given


def learn_from(truth, rollouts: int, learner: Estimator) -> list[dict]:
    """Look, learn and report; the truth is of states (..., 2)."""
    replay, metrics = a_replay(), []
    for seed in range(rollouts):
        states = some_states(seed).states
        look(replay, learner, states, truth(states))
        metrics.append(learner.learn(replay))
    return metrics


def test_members_are_plain_networks_of_their_own():
    """Against torch's layers, one member at a time."""
    ensemble = Ensemble(3)
    states = torch.randn(50, 3) * 4 + 1
    ensemble.set_scales(states, torch.randn(50) * 2 + 5)
    scaled = (states - states.mean(0)) / states.std(0, correction=0)
    for member, found in enumerate(ensemble(states)):
        x = scaled
        for layer, weight in enumerate(ensemble.weights):
            x = x.relu() if layer else x
            x = torch.nn.functional.linear(
                x, weight[member].T, ensemble.biases[layer][member, 0]
            )
        expected = ensemble.reward_mean + ensemble.reward_std * x[:, 0]
        torch.testing.assert_close(found, expected)
    assert ensemble(states).std(0).min() > 0


@pytest.mark.slow
def test_a_tenth_of_the_looks_is_enough_for_a_smooth_reward():
    metrics = learn_from(lambda x: np.sin(3 * x[..., 0]), 30, estimator(0.1))
    assert "reward/error" not in metrics[4]  # too little is known
    assert metrics[-1]["reward/error"] < 0.15
    assert {x["reward/query_share"] for x in metrics} == {0.1}
    assert metrics[-1]["reward/queries"] == 30 * 16


@pytest.mark.slow
def test_where_rewards_cannot_be_learned_all_states_are_looked_at(capsys):
    rng = np.random.default_rng(5)
    calls = []

    def sine_then_noise(states: np.ndarray) -> np.ndarray:
        calls.append(0)
        if len(calls) > 20:
            return rng.normal(size=states.shape[:-1])
        return np.sin(3 * states[..., 0])

    metrics = learn_from(sine_then_noise, 40, estimator(0.2, max_error=0.4))
    assert metrics[19]["reward/query_share"] == pytest.approx(0.2)
    assert max(x["reward/error"] for x in metrics[25:]) > 0.9
    assert max(x["reward/query_share"] for x in metrics[25:]) > 0.85
    told = capsys.readouterr().err.splitlines()
    assert 1 <= len(told) <= 3
    assert all("above reward.max_error=0.4" in line for line in told)


@pytest.mark.slow
def test_a_budget_may_be_kept_whatever_the_error(capsys):
    rng = np.random.default_rng(5)
    noise = lambda states: rng.normal(size=states.shape[:-1])  # noqa: E731
    metrics = learn_from(noise, 12, estimator(0.1, max_error=1.0))
    assert metrics[-1]["reward/error"] > 0.8
    assert metrics[-1]["reward/queries"] == 12 * 16
    assert not capsys.readouterr().err


@pytest.mark.slow
def test_rewards_that_are_all_alike_are_learned_exactly():
    learner, replay = estimator(0.1), a_replay()
    for seed in range(8):
        states = some_states(seed).states
        look(replay, learner, states, np.full((T, N), 0.25))
        metrics = learner.learn(replay)
        assert (replay.newest_reward() == 0.25).all()
    assert "reward/error" not in metrics


@pytest.mark.slow
def test_the_error_is_that_of_states_drawn_by_chance_before_they_are_learned_from():
    """Against a slow version, from the members' answers."""
    learner, replay = estimator(0.2), a_replay()
    measured = []
    for seed in range(8):
        states = some_states(seed).states
        truth = np.sin(3 * states[..., 0]).astype(np.float32)
        at, _ = look(replay, learner, states, truth)
        # A quarter of 0.2 * 160.
        drawn = np.random.default_rng([0, seed, 0]).choice(ROLLOUT, 8, replace=False)
        assert set(drawn) <= set(at)
        members = learner._predict(states)
        missed = members.mean(0).numpy().ravel()[drawn] - truth.ravel()[drawn]
        if seed >= 5:
            measured.append(np.square(missed).mean())
            spread = replay._reward[:seed].std(correction=0).item()  # before this one
        error = learner.learn(replay).get("reward/error")
        assert (error is None) == (seed < 5)
    first, second, third = measured
    expected = 0.8 * (0.8 * first + 0.2 * second) + 0.2 * third
    assert error == pytest.approx(np.sqrt(expected) / spread, rel=1e-3)


def test_states_are_looked_at_where_members_disagree():
    """They agree on all states but those of every other episode."""
    learner = estimator(0.1)
    unsure = np.zeros((T, N), bool)
    unsure[:, ::2] = True
    learner._predict = lambda states: torch.from_numpy(
        np.where(unsure, 1.0, 0.0) * np.arange(5)[:, None, None]
    )
    counts = np.zeros((T, N))
    for _ in range(300):
        at = learner.choose(some_states())
        assert len(at) == 16
        counts.flat[at] += 1
    # 4 of 160 by chance, half of them among the sure ones; 12 by doubt.
    assert counts[~unsure].sum() == pytest.approx(300 * 2, rel=0.1)
    assert counts[unsure].min() > 300 * 14 / 80 / 2


@pytest.mark.slow
def test_old_rewards_follow_what_is_learned():
    learner, replay = estimator(0.1), a_replay()
    truth, relabelled = [], []
    for seed in range(40):
        states = some_states(seed).states
        truth.append(states[..., 0].astype(np.float32))
        _, given = look(replay, learner, states, truth[-1])
        before = replay._reward[: max(seed, 1)].clone()
        learner.learn(replay)
        came = np.isfinite(given)
        np.testing.assert_array_equal(replay.newest_reward()[came], given[came])
        if not torch.equal(replay._reward[: max(seed, 1)], before):
            relabelled.append(seed)
    assert relabelled[:10] == list(range(10))  # while there is little
    assert 5 <= len(relabelled) - 10 <= 20  # of the other 30
    missed = replay._reward[:40].numpy() - np.stack(truth)
    assert np.sqrt(np.square(missed).mean()) < 0.1  # those of the first rollouts too


def test_estimates_are_lower_where_members_disagree():
    """Against each member by itself; what was looked at stays as it came."""
    plain, wary = estimator(0.2), estimator(0.2, pessimism=1.5)
    stored = []
    for learner in (plain, wary):
        replay = a_replay()
        for seed in range(3):
            states = some_states(seed).states
            _, given = look(replay, learner, states, np.sin(3 * states[..., 0]))
            learner.learn(replay)
        stored.append(replay.newest_reward())
        members = learner._predict(states).numpy()
        weight = 1.5 if learner is wary else 0
        for t, n in np.ndindex(T, N):
            of_each = members[:, t, n].astype(np.float64)
            expected = np.mean(of_each) - weight * np.sqrt(
                np.mean((of_each - np.mean(of_each)) ** 2)
            )
            if np.isfinite(given[t, n]):
                expected = given[t, n]
            assert replay.newest_reward()[t, n] == pytest.approx(expected, abs=1e-5)
    unseen = ~np.isfinite(given)
    assert (stored[1] < stored[0])[unseen].all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sac", "dqn"])
def test_a_run_asks_for_a_share_of_its_states(tmp_path, name):
    reward = {"model": "point_mass:Distance", "query_share": 0.2}
    compute = {"overlap": False}
    changes = {"reward": reward, "compute": compute, "env_steps": 20 * ROLLOUT}
    with point_mass(tmp_path, name, **changes) as parts:
        state = parts.train()
    metrics = read_metrics(tmp_path)
    assert 20 * 32 <= metrics[-1]["reward/queries"] < 0.5 * 20 * ROLLOUT
    # Evaluations look at all of theirs, of 4 episodes.
    asked = [x for x in parts.pool._model.asked[1:] if x != 4 * 20]
    assert sum(asked) == metrics[-1]["reward/queries"]
    batch = state.replay.gather(state.replay.draw(2000))
    missed = batch.reward + batch.next_observation[:, 0].abs()
    assert missed.square().mean().sqrt() < 0.1
    assert metrics[-1]["train/reward_mean"] == pytest.approx(
        state.replay.newest_reward().mean()
    )


@pytest.mark.slow
@pytest.mark.parametrize(("overlap", "number"), [(True, 2), (False, 1)])
def test_workers_change_nothing(tmp_path, overlap, number, monkeypatch):
    monkeypatch.setattr(learned, "WARM_UP", 1)
    model = "point_mass:Distance"
    reward = {"model": model, "query_share": 0.2, "max_error": 0.05}
    for workers in (0, number):
        compute = {"workers": workers, "overlap": overlap}
        trained(tmp_path / str(workers), reward=reward, compute=compute)
    assert read_metrics(tmp_path / "0") == read_metrics(tmp_path / str(number))


class LaterNone(Distance):
    """Not a number from the second time on."""

    def rewards(self, episodes: Episodes) -> np.ndarray:
        given = super().rewards(episodes)
        return given if len(self.asked) == 1 else np.full_like(given, np.nan)


def test_a_reward_that_is_not_finite_still_ends_the_run(tmp_path):
    reward = {"model": "test_learned:LaterNone", "query_share": 0.2}
    with pytest.raises(FloatingPointError, match="and 32 of 32 are not finite"):
        trained(tmp_path, reward=reward)


class Blind(Distance):
    needs_states = False


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("point_mass:Progress", "looks at several states in a row"),
        ("point_mass:Learned", "learns itself"),
        ("test_learned:Blind", "looks at no states"),
    ],
)
def test_rewards_that_cannot_be_estimated_are_refused(model, why):
    config = point_mass_config(reward={"model": model, "query_share": 0.2})
    with pytest.raises(ConfigError, match=why):
        make_pool(config, some_states(steps=1))


def test_rewards_of_frames_cannot_be_estimated(program, tmp_path):
    words = "task=gym", "task.env_id=Pendulum-v1", "prompt=a", "baseline=b"
    ended = program(*words, "reward=learned", f"hydra.run.dir={tmp_path}/run")
    assert ended.code == 2
    assert "renders itself, and gives frames for states" in ended.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("share", [0, -0.1, 1.5])
def test_an_impossible_share_is_refused(compose, share):
    with pytest.raises(ConfigError, match=r"reward\.query_share is"):
        compose("task=kneeling", "reward=learned", f"reward.query_share={share}")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["reward=learned", "reward.pessimism=-1"], "pessimism is -1.0: give a number"),
        (["reward=learned", "reward.pessimism=inf"], "pessimism is inf: give a number"),
        (["reward.pessimism=1"], "is 1.0, but no reward is estimated: give reward=le"),
    ],
)
def test_an_impossible_pessimism_is_refused(compose, words, told):
    with pytest.raises(ConfigError, match=told):
        compose("task=kneeling", *words)


def test_pessimism_is_not_of_judges(compose):
    compose("reward=learned", "reward.pessimism=1", "judge=[predicate,words]")


@pytest.mark.slow
def test_a_run_tells_how_much_was_looked_at(program, tmp_path):
    words = "experiment=smoke", "task=cartpole", "clip=nano", "log=none"
    folder = f"hydra.run.dir={tmp_path}/run"
    ended = program(*words, "compute.workers=0", "reward.query_share=0.3", folder)
    assert ended.code == 0, ended.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["reward/queries"] == 0.3 * summary["env_steps"] == 12
    assert "looked at 12 of these states" in ended.out


def test_what_a_share_leaves_unread_is_told(compose):
    config = compose("task=kneeling", "reward=learned", "reward.every=3")
    told = unread(config, ["reward.every"])
    assert told == [
        "reward.every changes nothing here: reward.query_share=0.1 decides."
    ]
    config = compose("task=kneeling", "reward.max_error=0.3")
    (told,) = unread(config, ["reward.max_error"])
    assert "no reward is estimated" in told
    config = compose("reward=predicate", "reward.query_share=0.3")
    (told,) = unread(config, ["reward.query_share"])
    assert "reward=predicate has none of it" in told
