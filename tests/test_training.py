"""The loops of SAC and DQN, on a world small enough to predict, and how a run ends."""

import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from point_mass import Distance, PointMassEnvs, point_mass, read_metrics, trained
from vlmrm_exp.rl import make_seeds
from vlmrm_exp.rl.evaluation import judge, play
from vlmrm_exp.rl.policy import load_policy
from vlmrm_exp.rl.summary import finish, peak_memory_gb

ROLLOUT = 160  # env steps: 8 envs x 20 steps
BOTH = pytest.mark.parametrize("name", ["sac", "dqn"])
SOMEWHERE = pytest.mark.parametrize(("name", "workers"), [("sac", 0), ("dqn", 1)])
EITHER_WAY = pytest.mark.parametrize("overlap", [True, False])


def finished(parts, state) -> dict:
    config, _, eval_envs, _, log = parts
    return finish(config, state, eval_envs, log, torch.device("cpu"))


@EITHER_WAY
@BOTH
def test_every_env_step_is_rewarded_and_learned_from(tmp_path, name, overlap):
    state = trained(tmp_path, name, compute={"overlap": overlap})
    metrics = read_metrics(tmp_path)
    assert [line["env_steps"] for line in metrics] == [160, 320, 480, 640, 800]
    steps = [line["train/gradient_steps"] for line in metrics]
    assert steps == [5, 10, 15, 20, 25]
    assert state.replay.size == state.env_steps == state.learned_steps == 800
    evaluated = [x["env_steps"] for x in metrics if "eval/reward_mean" in x]
    assert evaluated == [320, 640, 800]  # each 320, and at the end


@BOTH
def test_with_overlap_a_rollout_is_learned_from_while_the_next_is_rewarded(
    tmp_path, name
):
    order = []
    with point_mass(tmp_path, name, env_steps=3 * ROLLOUT) as parts:
        submit = parts.pool.submit

        def noted(episodes, thin=False):
            if not thin:  # of an evaluation
                return submit(episodes)
            number = sum(kind == "submit" for kind, _ in order)
            order.append(("submit", number))
            wait = submit(episodes, thin)
            return lambda: order.append(("learn", number)) or wait()

        parts.pool.submit = noted
        parts.train()
    assert order == [
        ("submit", 0), ("submit", 1), ("learn", 0), ("submit", 2), ("learn", 1),
        ("learn", 2),
    ]  # fmt: skip


@BOTH
def test_learning_waits_for_learning_starts(tmp_path, name):
    trained(tmp_path, name, algo={"learning_starts": 2 * ROLLOUT + 1})
    metrics = read_metrics(tmp_path)
    assert [x["train/gradient_steps"] for x in metrics] == [0, 0, 5, 10, 15]
    assert not any(key.startswith("loss/") for key in metrics[1])


@BOTH
def test_random_steps_do_not_depend_on_what_is_learned(tmp_path, name):
    rewards = []
    for folder, rate, steps in (("a", 1e-2, 800), ("b", 1e-4, 800), ("c", 1e-2, 0)):
        algo = {"learning_rate": rate, "random_steps": steps}
        trained(tmp_path / folder, name, algo=algo)
        metrics = read_metrics(tmp_path / folder)
        rewards.append([line["train/reward_mean"] for line in metrics])
    assert rewards[0] == rewards[1]
    assert rewards[0] != rewards[2]


@EITHER_WAY
@BOTH
def test_the_same_seed_gives_the_same_metrics(tmp_path, name, overlap):
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        trained(tmp_path / folder, name, compute={"overlap": overlap}, seed=seed)
    a, b, c = (read_metrics(tmp_path / folder) for folder in "abc")
    assert a == b
    assert a != c


@BOTH
def test_evaluation_leaves_training_undisturbed(tmp_path, name):
    trained(tmp_path / "seldom", name)
    trained(tmp_path / "often", name, evaluation={"every": 1, "episodes": 3})
    seldom, often = (
        [
            {k: v for k, v in x.items() if not k.startswith("eval/")}
            for x in read_metrics(tmp_path / folder)
        ]
        for folder in ("seldom", "often")
    )
    assert seldom == often


def test_the_agent_never_sees_the_environments_reward(tmp_path):
    weights = []
    for scale in (1.0, -1000.0):
        with point_mass(tmp_path / str(scale)) as parts:
            parts.envs.env_reward_scale = scale
            weights.append(parts.train().agent.actor.state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@BOTH
def test_the_environments_own_reward_can_be_learned_from(tmp_path, name):
    reward = {"model": "environment"}
    with point_mass(tmp_path, name, reward=reward) as parts:
        parts.envs.env_reward_scale = -1000.0
        parts.train()
    first = read_metrics(tmp_path)[0]
    assert first["train/reward_mean"] > 100
    assert first["train/reward_mean"] * 20 == pytest.approx(
        first["train/return_mean"], rel=1e-5
    )


@pytest.mark.slow
@SOMEWHERE
def test_a_reward_that_sees_time_needs_no_line_of_the_loop(tmp_path, name, workers):
    reward = {"model": "point_mass:Progress"}
    trained(tmp_path, name, reward=reward, compute={"workers": workers})
    for line in read_metrics(tmp_path):
        assert abs(line["train/reward_mean"]) <= 0.1  # at most .3 a step, both ways


@pytest.mark.slow
@SOMEWHERE
def test_a_reward_that_learns_sees_its_old_states_and_rewards_them_anew(
    tmp_path, name, workers
):
    """Its weight is the number of states in replay, which holds three rollouts."""
    state = trained(
        tmp_path,
        name,
        reward={"model": "point_mass:Learned"},
        compute={"workers": workers, "overlap": False},
        algo={"buffer_size": 3 * ROLLOUT},
    )
    metrics = read_metrics(tmp_path)
    weights = [line["reward/weight"] for line in metrics]
    assert weights == [ROLLOUT * n for n in (1, 2, 3, 3, 3)]
    batch = state.replay.gather(state.replay.draw(500))
    expected = -3 * ROLLOUT * batch.next_observation[:, 0].abs()
    torch.testing.assert_close(batch.reward, expected)


@BOTH
def test_all_that_is_stored_is_of_the_reward_models_newest_version(tmp_path, name):
    """Also what was asked for before it changed, and came after (overlap)."""
    versions, stored = [], []

    def save(state) -> None:
        versions.append(float(state.pool.version))
        stored.append(state.replay.gather(torch.arange(state.replay.size)).reward)

    with point_mass(
        tmp_path, name, reward={"model": "point_mass:Rare"}, env_steps=8 * ROLLOUT
    ) as parts:
        parts.train(save=save)
    assert versions == [0, 0, 1, 1, 1, 2, 2, 2]
    for version, rewards in zip(versions, stored, strict=True):
        assert rewards.unique().tolist() == [version]


def test_rewards_of_different_versions_choose_no_policy(tmp_path):
    """Of a reward that fell as it learned, the first policy would be kept."""
    reward = {"model": "point_mass:Rare", "options": {"sign": -1}}
    with point_mass(tmp_path, reward=reward, evaluation={"every": 1}) as parts:
        assert finished(parts, parts.train())["best_env_steps"] == 800


def test_a_policy_is_never_beside_an_older_reward(tmp_path, monkeypatch):
    """A run may be killed between two files."""
    reward, versions = {"model": "point_mass:Rare"}, []
    with point_mass(tmp_path, reward=reward, evaluation={"every": 1}) as parts:

        def kept(path, checkpoint) -> None:
            file = tmp_path / "checkpoints" / "reward.pt"
            versions.append(torch.load(file, weights_only=True)["version"])
            assert versions[-1] == parts.pool.version

        monkeypatch.setattr("vlmrm_exp.rl.evaluation.save_policy", kept)
        monkeypatch.setattr("vlmrm_exp.rl.summary.save_policy", kept)
        finished(parts, parts.train())
    assert set(versions) == {0, 1}


@pytest.mark.parametrize(("model", "asked"), [("Distance", 8 * 5), ("Cheap", 8 * 20)])
def test_only_what_costs_something_is_asked_less_often(tmp_path, model, asked):
    """A predicate's rewards, 1 or 0, are told of every state, not interpolated."""
    reward = {"every": 4, "model": f"test_training:{model}"}
    with point_mass(tmp_path, reward=reward) as parts:
        parts.train()
        # The other ones are evaluations', of 4 episodes of 20 steps: all states.
        assert set(parts.pool._model.asked[1:]) == {asked, 4 * 20}


class Cheap(Distance):
    cheap = True


def test_the_policy_with_the_highest_reward_is_kept(tmp_path):
    evaluation = {"every": 1}
    with point_mass(tmp_path, env_steps=15 * ROLLOUT, evaluation=evaluation) as parts:
        parts.eval_envs.env_reward_scale = -1.0  # its own reward prefers others
        summary = finished(parts, parts.train())
    rewards = {x["env_steps"]: x["eval/reward_mean"] for x in read_metrics(tmp_path)}
    best = max(rewards, key=rewards.__getitem__)
    assert len(rewards) == 15
    assert best != max(rewards)  # else the last would do
    assert summary["best_env_steps"] == best
    assert load_policy(tmp_path / "checkpoints" / "best.pt").env_steps == best
    assert load_policy(tmp_path / "checkpoints" / "last.pt").env_steps == 15 * ROLLOUT

    # The summary's numbers are that policy's, in episodes that chose nothing.
    def played(checkpoint: str, seed: int) -> float:
        policy = load_policy(tmp_path / "checkpoints" / f"{checkpoint}.pt")
        result = play(PointMassEnvs(4, 20), policy.act, 10, seed, parts.pool, 8)
        return judge(result)["eval/reward_mean"]

    seeds = make_seeds(0)
    assert summary["eval/reward_mean"] == played("best", seeds.final)
    assert summary["eval/reward_mean"] != played("last", seeds.final)
    assert summary["eval/reward_mean"] != played("best", seeds.evaluation)


def test_of_equal_rewards_the_latest_policy_is_kept(tmp_path):
    reward = {"model": "test_training:Nothing"}
    with point_mass(tmp_path, reward=reward, evaluation={"every": 1}) as parts:
        assert finished(parts, parts.train())["best_env_steps"] == 800


class Nothing(Distance):
    def rewards(self, episodes):
        return np.zeros(episodes.shape, np.float32)


@BOTH
def test_learning_is_from_the_numbers_that_acting_is_from(tmp_path, name):
    replay = trained(tmp_path, name, algo={"squash_observations": True}).replay
    stored = replay.gather(replay.draw(2000)).observation.abs().max().item()
    assert stored == pytest.approx(np.log(2))  # of 1, the end of the line


@pytest.mark.parametrize("normalise", [True, False])
def test_rewards_are_normalised_if_the_run_says_so(tmp_path, normalise):
    replay = trained(tmp_path, algo={"normalise_rewards": normalise}).replay
    reward = replay.gather(replay.draw(5000)).reward
    assert (abs(reward.mean()) < 0.1) == (abs(reward.std() - 1) < 0.1) == normalise


@EITHER_WAY
@BOTH
def test_a_state_saved_after_ctrl_c_goes_on_as_if_never_cut(tmp_path, name, overlap):
    """Rewards that learn, and kills, are test_resume's."""
    steps = {"env_steps": 6 * ROLLOUT, "compute": {"overlap": overlap}}
    trained(tmp_path / "whole", name, **steps)
    with point_mass(tmp_path / "cut", name, **steps) as parts:
        log = parts.log.metrics

        def stop_after_the_third(env_steps, values, spreads):
            log(env_steps, values, spreads)
            if env_steps == 3 * ROLLOUT:
                os.kill(os.getpid(), signal.SIGINT)

        parts.log.metrics = stop_after_the_third
        state = parts.train()
    assert len(state.in_flight) == overlap
    torch.save(state.state_dict(), tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=False)
    with point_mass(tmp_path / "resumed", name, **steps) as parts:
        parts.train(saved)
    whole = read_metrics(tmp_path / "whole")
    assert read_metrics(tmp_path / "cut") == whole[:3]
    assert read_metrics(tmp_path / "resumed") == whole[3:]


def test_finish_writes_the_summary(tmp_path, capsys):
    with point_mass(tmp_path, prompt=["left", "right"]) as parts:
        state = parts.train()
        (tmp_path / "checkpoints" / "state.pt").write_bytes(bytes(5_000_000))
        finished(parts, state)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["prompt"] == ["left", "right"]
    assert summary["reward"] == "distance"
    assert summary["env_steps"] == 800
    assert summary["gradient_steps"] == 25
    assert (summary["eval/episodes"], summary["eval/reward_episodes"]) == (10, 8)
    low, high = summary["eval/success_low"], summary["eval/success_high"]
    assert 0 <= low <= summary["eval/success_rate"] <= high <= 1
    assert summary["best_env_steps"] in {320, 640, 800}
    assert summary["perf/env_steps_per_s"] > 0
    assert 0 < summary["train_wall_s"] < summary["wall_s"]
    assert summary["interrupted"] is False
    assert summary["perf/disk_gb"] == pytest.approx(0.005, rel=0.1)
    out = capsys.readouterr().out
    assert re.search(r"B of memory at its peak, 5\.\d+ MB of disk\n", out)
    assert str(tmp_path) in out


def test_ctrl_c_ends_after_the_rollout_with_a_summary(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with point_mass(tmp_path) as parts:
        lap, laps = parts.log.lap, []

        def press_after_the_second_rollout(key):
            laps.append(key)
            if laps.count("perf/collect_s") == 2 and key == "perf/collect_s":
                os.kill(os.getpid(), signal.SIGINT)
            lap(key)

        parts.log.lap = press_after_the_second_rollout
        state = parts.train()
        assert signal.getsignal(signal.SIGINT) is before
        summary = finished(parts, state)
    # The second rollout was being rewarded: it was learned from the first, whole.
    assert summary["interrupted"] is True
    assert summary["env_steps"] == summary["best_env_steps"] == ROLLOUT
    assert summary["gradient_steps"] == 5
    assert summary["eval/episodes"] == 4


def test_a_second_ctrl_c_takes_effect_at_once(tmp_path):
    with point_mass(tmp_path) as parts:
        submit = parts.pool.submit

        def press_twice(episodes, thin=False):
            parts.pool.submit = submit
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("went on")

        parts.pool.submit = press_twice
        state = parts.train()
        assert state.interrupted
        assert finished(parts, state)["env_steps"] == 0


@BOTH
def test_a_loss_that_is_not_finite_is_refused(tmp_path, name):
    algo = {"learning_rate": 1e30, "gradient_steps": 20}
    with pytest.raises(FloatingPointError, match="try a lower"):
        trained(tmp_path, name, algo=algo)


def test_progress_off_a_terminal_is_in_lines(tmp_path, capsys, monkeypatch):
    for name in ("LOG_EVERY_S", "SHOWN_AFTER_S"):
        monkeypatch.setattr(f"vlmrm_exp.log.progress.{name}", 0.0)
    trained(tmp_path)
    err = capsys.readouterr().err
    assert "\r" not in err
    last = err.splitlines()[-1]
    assert last.startswith("training: 100%")
    for word in ("800/800", "reward=-", "return=-", "success="):
        assert word in last


@pytest.mark.slow
def test_peak_memory_is_of_all_processes_and_counts_shared_pages_once():
    alone = peak_memory_gb()
    code = """
import os, signal
freed = b"x" * 800_000_000
del freed
block = b"x" * 500_000_000
child = os.fork() or signal.pause()
print(len(block), flush=True)
input()
os.kill(child, signal.SIGKILL)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout.readline() == "500000000\n"
        with_child = peak_memory_gb()
        child.communicate("\n")
    assert alone + 0.7 < with_child < alone + 1.0  # other programs share libraries
