"""Policies are played without exploration, and their episodes judged."""

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

import faulty
from faulty import Envs
from point_mass import PointMassEnvs, point_mass, point_mass_config
from vlmrm_exp.config import ForeignError, TaskConfig
from vlmrm_exp.envs import world_of
from vlmrm_exp.envs.in_order import make_envs
from vlmrm_exp.measures import wilson_interval
from vlmrm_exp.reward import Episodes
from vlmrm_exp.reward.ground_truth import EnvironmentReward, PredicateReward
from vlmrm_exp.reward.pool import Pool
from vlmrm_exp.reward.workers import example_of
from vlmrm_exp.rl.evaluation import Played, judge, play, rollout_metrics, write_video
from vlmrm_exp.rl.rollout import collect


def towards_zero(observation: np.ndarray) -> np.ndarray:
    return np.clip(-5 * observation, -0.5, 1.5)


@pytest.fixture
def pool(tmp_path):
    with point_mass(tmp_path) as parts:
        yield parts.pool


@pytest.fixture
def own():
    """The environment's own reward, which needs no states."""
    config = point_mass_config()
    return Pool(config, EnvironmentReward(config))


def test_every_episode_is_rewarded_and_some_states_are_kept(pool):
    envs = PointMassEnvs(3, 5)
    played = play(envs, towards_zero, 7, 3, pool, keep_states=4)
    assert played.reward.shape == played.env_reward.shape == (5, 7)
    np.testing.assert_allclose(played.reward, played.env_reward)
    assert [states.shape for states in played.states] == [(5, 2)] * 4
    for n, states in enumerate(played.states):
        distance = -np.abs(states[:, 0])
        np.testing.assert_allclose(distance, played.reward[:, n], rtol=1e-6)


def test_success_of_all_but_rewards_of_the_first_episodes(pool):
    """Renderers are asked for what is rewarded alone."""
    envs, whole = PointMassEnvs(3, 5), PointMassEnvs(3, 5)
    asked = []
    states = envs.states
    envs.states = lambda: asked.append(envs.steps) or states()
    pool._model.asked.clear()
    played = play(envs, towards_zero, 8, 3, pool, rewarded=4)
    assert played.reward.shape == (5, 4)
    assert played.success.shape == played.goal_share.shape == (8,)
    assert sum(pool._model.asked) == 4 * 5
    assert len(asked) == 2 * 5  # of three rollouts, the last one is not looked at
    every = play(whole, towards_zero, 8, 3, pool)
    np.testing.assert_array_equal(every.success, played.success)
    np.testing.assert_array_equal(every.reward[:, :4], played.reward)


def test_a_reward_that_is_no_number_ends_it_soon(pool, monkeypatch):
    envs, acted = PointMassEnvs(2, 5), []
    wrong = lambda episodes: np.full(episodes.shape, np.nan, np.float32)  # noqa: E731
    monkeypatch.setattr(pool._model, "rewards", wrong)

    def act(observation: np.ndarray) -> np.ndarray:
        acted.append(len(observation))
        return towards_zero(observation)

    with pytest.raises(FloatingPointError, match="10 of 10 are not finite"):
        play(envs, act, 40, 3, pool)
    assert sum(acted) <= 2 * 10  # of 200 steps


def test_the_environments_own_reward_needs_no_states(own):
    envs = PointMassEnvs(3, 5)
    envs.states = None
    played = play(envs, towards_zero, 2, 3, own, rewarded=1)
    assert played.reward.shape == (5, 2)  # all of them: it costs nothing
    assert played.states == []


def test_states_for_judges_are_of_the_episodes_they_look_at(own, pool):
    """Rewards that cost nothing are of all episodes, pictures for judges of some."""
    envs = PointMassEnvs(3, 5)
    asked = []
    states = envs.states
    envs.states = lambda: asked.append(envs.steps) or states()
    own.judges = {"near": pool}
    played = play(envs, towards_zero, 8, 3, own, rewarded=2)
    assert played.reward.shape == (5, 8)
    np.testing.assert_allclose(played.judged["near"], played.env_reward[:, :2])
    assert len(asked) == 5  # one rollout of three


def test_equal_seeds_have_equal_starts(own):
    envs = PointMassEnvs(2, 5)
    one, other, third = (
        play(envs, towards_zero, 5, seed, own).reward for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, other)
    assert not np.array_equal(one, third)


def test_judge_averages_steps_and_sums_returns():
    played = Played(
        reward=np.float32([[1, 2], [3, 6]]),
        env_reward=np.float32([[1, 10, 1], [2, 20, 2]]),
        success=np.array([True, False, False]),
        goal_share=np.array([1.0, 0.0, 0.0]),
        states=[],
    )
    values = judge(played)
    assert values["eval/reward_mean"] == 3.0
    assert values["eval/return_mean"] == 12.0
    assert values["eval/success_rate"] == pytest.approx(1 / 3)
    assert (values["eval/episodes"], values["eval/reward_episodes"]) == (3, 2)


def test_judge_has_no_success_without_a_predicate():
    ones = np.ones((2, 3), np.float32)
    values = judge(Played(ones, ones, success=None, goal_share=None, states=[]))
    keys = ("eval/success_rate", "eval/success_low", "eval/success_high")
    assert [values[key] for key in (*keys, "eval/buckets")] == [None] * 4


def test_judge_puts_episodes_into_the_nearest_of_five_buckets():
    share = np.array([0, 0.12, 0.13, 0.37, 0.38, 0.49, 0.62, 0.63, 0.9, 1])
    ones = np.ones((2, len(share)), np.float32)
    values = judge(Played(ones, ones, share >= 0.5, share, states=[]))
    # 0: .00 .12; 25: .13 .37; 50: .38 .49 .62; 75: .63; 100: .90 1.00
    assert values["eval/buckets"] == [0.2, 0.2, 0.3, 0.1, 0.2]


def faulty_task(fault: str, **changes) -> TaskConfig:
    options = {"fault": fault}
    return TaskConfig("p", "faulty:WORLD", episode_length=5, options=options, **changes)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("share", "TypeError: it gave float64, not an array of bool"),
        ("column", r"ValueError: it gave \({n}, 1\), not \({n},\)"),
        ("one", "TypeError: it gave bool, not an array of bool"),
        ("success", "KeyError: 'goal'"),
    ],
)
def test_success_that_is_no_flag_of_each_episode_is_refused(own, fault, sentence):
    envs = Envs(faulty_task(fault), 3)
    told = r"^faulty:Envs failed in episode_success \(" + sentence
    with pytest.raises(ForeignError, match=told.replace("{n}", "7")):
        play(envs, towards_zero, 7, 3, own)
    rollout = collect(envs, towards_zero, 3)
    with pytest.raises(ForeignError, match=told.replace("{n}", "3")):
        rollout_metrics(rollout, rollout.env_reward, envs)


def use(task: TaskConfig) -> None:
    """What a run does with environments."""
    with closing(make_envs(task, 3, 1)) as envs:
        envs.reset(0)
        example_of(point_mass_config(), envs)
        envs.load_state_dict(envs.state_dict())
        collect(envs, towards_zero)


@pytest.mark.parametrize("before", [(), ("left",)])
@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (
            "make_envs",
            r"WORLD failed in make_envs \(OSError: no simulator\)",
        ),
        ("reset", r"Envs failed in reset \(RuntimeError: no start\)"),
        ("list", r"Envs failed in states \(TypeError: list indices"),
        ("state_dict", r"Envs failed in state_dict \(NotImplementedError"),
        ("load_state_dict", r"Envs failed in load_state_dict \(KeyError: 'x'\)"),
        ("raise", r"Envs failed at step 3 of an episode \(RuntimeError: out of range"),
        ("kind", "Envs failed at step 3 of an episode .*goal is of int64, not bool"),
    ],
)
def test_what_a_world_of_ones_own_does_wrong_is_one_sentence(before, fault, sentence):
    """Also in environments around it."""
    task = faulty_task(fault, before=before, goal="right" if before else "")
    with pytest.raises(ForeignError, match=f"^faulty:{sentence}"):
        use(task)


def test_a_world_whose_close_fails_spoils_no_result(capsys):
    use(faulty_task("close"))
    told = "faulty:Envs failed in close (OSError: already closed).\n"
    assert capsys.readouterr().err == told


def test_a_predicate_or_renderer_that_fails_is_one_sentence(tmp_path, monkeypatch):
    def config(fault: str):
        return replace(point_mass_config(), task=faulty_task(fault))

    states = np.zeros((2, 3, 2))
    with pytest.raises(ForeignError, match=r"^faulty:WORLD failed in predicate .*near"):
        PredicateReward.check_config(config("predicate"))
    reward = PredicateReward(config("its predicate"))
    with pytest.raises(
        ForeignError, match=r"failed in its predicate \(TypeError: it gave list"
    ):
        reward.rewards(Episodes(states=states))
    played = Played(states[..., 0], states[..., 0], None, None, [states[:, 0]])
    with pytest.raises(ForeignError, match=r"failed in make_renderer .*no display"):
        write_video(tmp_path / "eval.mp4", config("nothing"), played)
    monkeypatch.setattr(faulty, "WORLD", replace(faulty.WORLD, graded={}.__getitem__))
    with pytest.raises(ForeignError, match=r"^faulty:WORLD failed in graded "):
        world_of(faulty_task("nothing")).graded(states)


def test_each_episodes_share_of_goal_steps(pool):
    played = play(PointMassEnvs(3, 5), towards_zero, 4, 3, pool, keep_states=4)
    by_hand = [float(np.mean(np.abs(s[:, 0]) < 0.1)) for s in played.states]
    np.testing.assert_allclose(played.goal_share, by_hand)


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I; the last by hand.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilson_interval_equals_published_values(successes, episodes, low, high):
    interval = wilson_interval(successes, episodes)
    assert interval == pytest.approx((low, high), abs=5e-5)


def test_video_shows_the_states_that_were_kept(tmp_path, compose):
    config = compose("task=cartpole", "task.frame_height=64", "task.episode_length=6")
    own = Pool(config, EnvironmentReward(config))
    envs = world_of(config.task).make_envs(config.task, 2, 1)

    def left(observation: np.ndarray) -> np.ndarray:
        return np.zeros(len(observation), np.int64)

    played = play(envs, left, 2, 0, own, keep_states=1)
    path = tmp_path / "videos" / "eval.mp4"
    write_video(path, config, played)
    assert path.read_bytes()[4:8] == b"ftyp"
