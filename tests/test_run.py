import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from point_mass import DistanceScorer, PointMassEnvs, point_mass_run, read_metrics
from vlmrm_exp.config import AlgoConfig
from vlmrm_exp.rl import Run, train
from vlmrm_exp.rl.policy import load_policy
from vlmrm_exp.rl.summary import peak_memory_gb
from vlmrm_exp.rl.trial import judge, try_policy

ROLLOUT = 160  # env steps: 8 envs x 20 steps


def small_algo(name: str = "sac", **changes: Any) -> AlgoConfig:
    settings = {"gradient_steps": 5, "batch_size": 32, "hidden": [16]}
    return AlgoConfig(name=name, **{**settings, **changes})


def trained(
    folder: Path,
    name: str = "sac",
    prepare: Callable[[Run], None] | None = None,
    **changes: Any,
) -> Run:
    folder.mkdir(exist_ok=True)
    with point_mass_run(folder, small_algo(name), **changes) as run:
        if prepare is not None:
            prepare(run)
        train(run)
    return run


def hold(observation: np.ndarray) -> np.ndarray:
    return np.zeros((len(observation), 1), np.float32)


def test_overlap_labels_the_rollout_before(tmp_path):
    with point_mass_run(tmp_path, small_algo(), env_steps=2 * ROLLOUT) as run:
        run.start(agent=None)
        first = run.collect(hold)
        assert run.label(first) is None
        second = run.collect(hold)
        assert not np.array_equal(first.observation[0], second.observation[0])
        labelled = run.label(second)
        assert labelled.rollout is first
        np.testing.assert_allclose(labelled.reward, -np.abs(first.rows[..., 0]))
        assert not run.finished()
        assert run.collect(hold) is None
        assert run.label(None).rollout is second
        assert run.finished()


def test_without_overlap_a_rollout_is_labelled_at_once(tmp_path):
    with point_mass_run(tmp_path, small_algo(), overlap=False) as run:
        run.start(agent=None)
        rollout = run.collect(hold)
        assert run.label(rollout).rollout is rollout


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("name", ["sac", "dqn"])
def test_every_env_step_is_labelled_and_learned_from(tmp_path, name, overlap):
    run = trained(tmp_path, name, overlap=overlap)
    metrics = read_metrics(tmp_path)
    assert [line["env_steps"] for line in metrics] == [160, 320, 480, 640, 800]
    steps = [line["train/gradient_steps"] for line in metrics]
    assert steps == [5, 10, 15, 20, 25]
    assert run.state.replay.size == run.state.env_steps == 800


def test_learning_waits_for_learning_starts(tmp_path):
    algo = small_algo(learning_starts=2 * ROLLOUT + 1)
    with point_mass_run(tmp_path, algo) as run:
        train(run)
    metrics = read_metrics(tmp_path)
    assert [x["train/gradient_steps"] for x in metrics] == [0, 0, 5, 10, 15]
    assert "loss/critic" not in metrics[1]


@pytest.mark.parametrize("name", ["sac", "dqn"])
def test_random_steps_do_not_depend_on_what_is_learned(tmp_path, name):
    rewards = []
    for folder, rate, random_steps in (
        ("a", 1e-2, 800),
        ("b", 1e-4, 800),
        ("c", 1e-2, 0),
    ):
        algo = small_algo(name, learning_rate=rate, random_steps=random_steps)
        (tmp_path / folder).mkdir()
        with point_mass_run(tmp_path / folder, algo) as run:
            train(run)
        metrics = read_metrics(tmp_path / folder)
        rewards.append([line["train/reward_mean"] for line in metrics])
    assert rewards[0] == rewards[1]
    assert rewards[0] != rewards[2]


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("name", ["sac", "dqn"])
def test_the_same_seed_gives_the_same_metrics(tmp_path, name, overlap):
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        trained(tmp_path / folder, name, overlap=overlap, seed=seed)
    a, b, c = (read_metrics(tmp_path / folder) for folder in "abc")
    assert a == b
    assert a != c


def test_evaluation_leaves_training_undisturbed(tmp_path):
    def often(run: Run) -> None:
        run.config.evaluation.every = 1
        run.config.evaluation.episodes = 3

    trained(tmp_path / "seldom")
    trained(tmp_path / "often", prepare=often)
    seldom, every = (
        [{k: v for k, v in x.items() if not k.startswith("eval/")} for x in metrics]
        for metrics in map(read_metrics, (tmp_path / "seldom", tmp_path / "often"))
    )
    assert seldom == every


def test_the_agent_never_sees_the_environments_reward(tmp_path):
    def exaggerate(run: Run) -> None:
        run.envs.env_reward_scale = -1000.0

    runs = [trained(tmp_path / "a"), trained(tmp_path / "b", prepare=exaggerate)]
    a, b = (run.state.agent.actor.state_dict() for run in runs)
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_ground_truth_learns_from_the_environments_reward(tmp_path):
    def exaggerate(run: Run) -> None:
        run.envs.env_reward_scale = -1000.0

    trained(tmp_path, prepare=exaggerate, reward="ground_truth")
    metrics = read_metrics(tmp_path)
    assert metrics[0]["train/reward_mean"] > 100
    assert metrics[0]["train/reward_mean"] * 20 == pytest.approx(
        metrics[0]["train/return_mean"], rel=1e-5
    )


@pytest.mark.parametrize(
    ("reward", "rows"), [("clip", 8 * 5), ("ground_truth", 8 * 20)]
)
def test_only_pictures_are_saved_by_scoring_less_often(tmp_path, reward, rows):
    """A predicate's rewards, 1 or 0, are told of every state, not interpolated."""
    scorer, sent = DistanceScorer(), []

    def count(run: Run) -> None:
        run.scorer = scorer
        submit = scorer.submit
        scorer.submit = lambda states: sent.append(len(states)) or submit(states)

    trained(tmp_path, prepare=count, reward=reward, reward_every=4, overlap=False)
    # The other ones are evaluations', of 4 episodes of 20 steps: all states.
    assert {n for n in sent if n != 4 * 20} == {rows}


def test_the_policy_with_the_highest_reward_is_kept(tmp_path):
    with point_mass_run(tmp_path, small_algo(), env_steps=15 * ROLLOUT) as run:
        run.config.evaluation.every = 1
        run.eval_envs.env_reward_scale = -1.0  # the environment's own prefers others
        train(run)
        summary = run.finish(interrupted=False)
    rewards = {x["env_steps"]: x["eval/reward_mean"] for x in read_metrics(tmp_path)}
    best = max(rewards, key=rewards.__getitem__)
    assert len(rewards) == 15
    assert best != max(rewards)  # else the last would do
    assert summary["best_env_steps"] == best
    assert load_policy(tmp_path / "checkpoints" / "best.pt").env_steps == best
    assert load_policy(tmp_path / "checkpoints" / "last.pt").env_steps == 15 * ROLLOUT

    # The summary's numbers are that policy's, in episodes that chose nothing.
    def tried(checkpoint: str, seed: int) -> float:
        policy = load_policy(tmp_path / "checkpoints" / f"{checkpoint}.pt")
        envs, scorer = PointMassEnvs(4, 20), DistanceScorer()
        return judge(try_policy(envs, policy.act, scorer, 10, seed))["eval/reward_mean"]

    assert summary["eval/reward_mean"] == tried("best", run.seeds.final)
    assert summary["eval/reward_mean"] != tried("last", run.seeds.final)
    assert summary["eval/reward_mean"] != tried("best", run.seeds.evaluation)


def test_of_equal_rewards_the_latest_policy_is_kept(tmp_path):
    class Equal(DistanceScorer):
        def result(self, ticket: int) -> np.ndarray:
            return 0 * super().result(ticket)

    with point_mass_run(tmp_path, small_algo(), env_steps=3 * ROLLOUT) as run:
        run.config.evaluation.every, run.scorer = 1, Equal()
        train(run)
        assert run.finish(interrupted=False)["best_env_steps"] == 3 * ROLLOUT


@pytest.mark.parametrize("name", ["sac", "dqn"])
def test_learning_is_from_the_numbers_that_acting_is_from(tmp_path, name):
    algo = small_algo(name, squash_observations=True)
    with point_mass_run(tmp_path, algo) as run:
        train(run)
    replay = run.state.replay
    stored = replay.gather(replay.draw(2000)).observation.abs().max().item()
    assert stored == pytest.approx(np.log(2))  # of 1, the end of the line


@pytest.mark.parametrize("normalise", [True, False])
def test_rewards_are_normalised_if_the_run_says_so(tmp_path, normalise):
    with point_mass_run(tmp_path, small_algo(normalise_rewards=normalise)) as run:
        train(run)
    replay = run.state.replay
    reward = replay.gather(replay.draw(5000)).reward
    assert (abs(reward.mean()) < 0.1) == (abs(reward.std() - 1) < 0.1) == normalise


def test_a_saved_state_goes_on_as_if_never_cut(tmp_path):
    trained(tmp_path / "whole", env_steps=6 * ROLLOUT)
    cut_folder, resumed_folder = tmp_path / "cut", tmp_path / "resumed"
    with point_mass_run(cut_folder, small_algo(), env_steps=6 * ROLLOUT) as cut:
        report = cut.report

        def stop_after_the_third(labelled, metrics):
            report(labelled, metrics)
            cut.stop_requested = cut.state.labelled_steps == 3 * ROLLOUT

        cut.report = stop_after_the_third
        with pytest.raises(KeyboardInterrupt):
            train(cut)
    assert cut.state.in_flight is not None
    torch.save(cut.state.state_dict(), tmp_path / "state.pt")

    class Resumed(Run):
        def start(self, agent):
            state = super().start(agent)
            saved = torch.load(tmp_path / "state.pt", weights_only=False)
            state.load_state_dict(saved)
            return state

    with point_mass_run(
        resumed_folder, small_algo(), Resumed, env_steps=6 * ROLLOUT
    ) as run:
        train(run)
    whole = read_metrics(tmp_path / "whole")
    assert read_metrics(cut_folder) == whole[:3]
    assert read_metrics(resumed_folder) == whole[3:]


def test_finish_writes_the_summary(tmp_path, capsys):
    with point_mass_run(tmp_path, small_algo(), prompt=["left", "right"]) as run:
        train(run)
        run.finish(interrupted=False)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["prompt"] == ["left", "right"]
    assert summary["env_steps"] == 800
    assert summary["gradient_steps"] == 25
    assert summary["eval/episodes"] == 10
    low, high = summary["eval/success_low"], summary["eval/success_high"]
    assert 0 <= low <= summary["eval/success_rate"] <= high <= 1
    assert summary["best_env_steps"] in {320, 640, 800}
    assert summary["perf/env_steps_per_s"] > 0
    assert 0 < summary["train_wall_s"] < summary["wall_s"]
    assert summary["interrupted"] is False
    assert str(tmp_path) in capsys.readouterr().out


def test_finish_tells_when_there_was_nothing_to_judge(tmp_path):
    with point_mass_run(tmp_path, small_algo()) as run:
        run.finish(interrupted=True)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["interrupted"] is True
    assert summary["eval/success_rate"] is None
    assert summary["env_steps"] == 0


def test_ctrl_c_ends_after_the_rollout_with_a_summary(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with point_mass_run(tmp_path, small_algo()) as run:
        submit = run.scorer.submit

        def interrupted_submit(rows: np.ndarray) -> int:
            if run.state.env_steps == 2 * ROLLOUT:
                run.scorer.submit = submit
                os.kill(os.getpid(), signal.SIGINT)
            return submit(rows)

        run.scorer.submit = interrupted_submit
        with pytest.raises(KeyboardInterrupt):
            train(run)
        assert signal.getsignal(signal.SIGINT) is before
        run.finish(interrupted=True)
    summary = json.loads((tmp_path / "summary.json").read_text())
    # The second rollout was being submitted: it was learned from the first, whole.
    assert summary["env_steps"] == summary["best_env_steps"] == ROLLOUT
    assert summary["gradient_steps"] == 5
    assert summary["eval/episodes"] == 4


def test_a_second_ctrl_c_takes_effect_at_once(tmp_path):
    with point_mass_run(tmp_path, small_algo()) as run:

        def press_twice(rows: np.ndarray) -> int:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("went on")

        run.scorer.submit = press_twice
        with pytest.raises(KeyboardInterrupt):
            train(run)


def test_a_loss_that_is_not_finite_is_refused(tmp_path):
    algo = small_algo(learning_rate=1e30, gradient_steps=20)
    with (
        point_mass_run(tmp_path, algo) as run,
        pytest.raises(FloatingPointError, match="try a lower"),
    ):
        train(run)


def test_progress_tells_its_state_off_a_terminal(tmp_path, capsys):
    trained(tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("800/800 env steps, ")
    for word in ("00:00 left", "return -", "success 0", "reward -"):
        assert word in lines[0]


def test_peak_memory_counts_children_that_still_run():
    alone = peak_memory_gb()
    program = "block = b'x' * 500_000_000; print(len(block), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout.readline() == "500000000\n"
        with_child = peak_memory_gb()
        child.communicate("\n")
    assert with_child > alone + 0.5
