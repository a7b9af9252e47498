"""Tasks of several sentences: goals in order, stages, and what they are paid."""

import json
from contextlib import ExitStack

import numpy as np
import pytest
import torch

from point_mass import read_metrics
from vlmrm_exp import __main__ as training
from vlmrm_exp import composition, evaluate, label
from vlmrm_exp.config import ConfigError, TaskConfig
from vlmrm_exp.envs import check_world
from vlmrm_exp.envs.in_order import InOrder, make_envs
from vlmrm_exp.log import RunLog
from vlmrm_exp.notes import unread
from vlmrm_exp.reward import Episodes, make_model
from vlmrm_exp.reward.pool import Pool
from vlmrm_exp.reward.random_states import random_states
from vlmrm_exp.reward.stages import checked
from vlmrm_exp.rl import checkpoint, sac
from vlmrm_exp.rl.policy import load_policy
from vlmrm_exp.rl.rollout import collect
from vlmrm_exp.studies import state_sets
from vlmrm_exp.words import to_keys
from worlds import composed

HILL, FLAG = "a car on the left hilltop", "a car next to the flag"
TASK = ("task=hill_then_flag", "clip=nano", "compute=cpu", "task.episode_length=120")
SMOKE = ("experiment=smoke", "reward=stages", "reward.options.episodes=1", *TASK[:3])
STAGED = (*TASK, "reward=stages", "reward.options.episodes=2")
MARGIN = (
    f"stages=[{{prompt: {HILL}, quantile: 0.6, hold: 3}},"
    f"{{prompt: {FLAG}, margin: 0.1, hold: 2}}, {{prompt: {HILL}, margin: 0.1}}]"
)


def passed_slowly(met: np.ndarray, hold: list[int]) -> list[int]:
    """How many of K conditions one episode (T, K) has passed after each step."""
    passed, run, counts = 0, 0, []
    for row in met:
        if passed < len(hold):
            run = run + 1 if row[passed] else 0
            if run == hold[passed]:
                passed, run = passed + 1, 0
        counts.append(passed)
    return counts


def test_conditions_are_passed_in_order_and_each_must_hold():
    met = np.array([[0, 1], [1, 0], [0, 1], [1, 1], [1, 1], [0, 1], [0, 0], [0, 1]])
    order, counts = InOrder(1, [2, 1]), []
    for row in met.astype(bool):
        order.step(row[None])
        counts.append(int(order.count[0]))
    # The first holds for two steps in a row at the fifth; what was before is not kept.
    assert counts == [0, 0, 0, 0, 1, 2, 2, 2]
    assert order.passed.tolist() == [[True, True]]
    order.begin()
    assert order.passed.tolist() == [[False, False]]


def test_any_episodes_are_counted_as_a_plain_loop_does():
    rng = np.random.default_rng(0)
    met, hold = rng.random((40, 50, 3)) < 0.6, [3, 1, 2]
    order, counts = InOrder(50, hold), []
    for step in met:
        order.step(step)
        counts.append(order.count.copy())
    found = np.array(counts)
    for n in range(50):
        assert found[:, n].tolist() == passed_slowly(met[:, n], hold)
    assert set(found[-1]) == {2, 3}


def left_first(observation: np.ndarray) -> np.ndarray:
    """Drives with the car's speed: most cars come to the flag without the hill."""
    return np.where(observation[:, 1:2] > 1e-4, 1, -1).astype(np.float32)


def right_first(observation: np.ndarray) -> np.ndarray:
    """The same, which brings every car to the left hilltop, and then to the flag."""
    return np.where(observation[:, 1:2] >= 0, 1, -1).astype(np.float32)


def cars(before: str, goal: str, hold: int):
    return make_envs(
        TaskConfig("x", "mountain_car", episode_length=150, before=[before], goal=goal,
                   hold=hold), 8, 1
    )  # fmt: skip


@pytest.mark.parametrize("act", [left_first, right_first])
@pytest.mark.parametrize("hold", [1, 9])
def test_goals_count_in_their_order_alone(act, hold):
    places = {"left_hilltop": lambda x: x <= -1.1, "flag": lambda x: x >= 0.45}
    for before, goal in (("left_hilltop", "flag"), ("flag", "left_hilltop")):
        envs = cars(before, goal, hold)
        played = collect(envs, act, 0)
        x = played.states[..., 0]  # (T, N)
        met = np.stack([places[before](x), places[goal](x)], -1)
        counts = np.array([passed_slowly(met[:, n], [hold, hold]) for n in range(8)]).T
        earlier = np.vstack([np.zeros(8), counts[:-1]])
        np.testing.assert_array_equal(played.goal, met[..., 1] & (earlier >= 1))
        np.testing.assert_array_equal(played.passed["goal"].sum(1), counts[-1])
        success = envs.episode_success(played.goal)
        np.testing.assert_array_equal(success, counts[-1] == 2)
        assert (x >= 0.45).any(0).all()
        if goal == "left_hilltop":
            assert not success.any()  # who is at the flag stays there
        elif act is left_first:
            assert success.sum() == (x <= -1.1).any(0).sum() == 1
        elif hold == 1:
            assert success.all()


def test_the_last_goal_must_hold_too():
    goal = np.array([[1, 0], [1, 1], [0, 1], [1, 1], [1, 0]], bool)
    success = cars("left_hilltop", "flag", 3).episode_success(goal)
    assert success.tolist() == [False, True]


@pytest.fixture(scope="module")
def staged():
    """Three stages: a quantile, and margins over two sentences, the first and last."""
    words = (*STAGED, MARGIN, "reward.options.episodes=5")
    config = training.check(_composed(*words))
    model = make_model(config)
    yield config, model
    model.close()


def _composed(*words: str):
    return composition.compose("config", *to_keys(list(words), {}), "name=test")


def sentence_rewards(states: np.ndarray) -> np.ndarray:
    """What reward=clip says of states (T, N, S) for hill and flag: (T, N, 2)."""
    found = []
    for prompt in (HILL, FLAG):
        model = make_model(composed(*TASK, f"prompt={prompt}"))
        found.append(model.rewards(Episodes(states=states)))
        model.close()
    return np.stack(found, -1).astype(np.float64)


@pytest.mark.slow
def test_agent_sees_its_stage_and_is_paid_for_it(staged):
    """Against a plain loop over the rewards of single sentences."""
    config, model = staged
    envs = make_envs(config.task, 4, 1)
    around = model.around(envs)
    played = collect(around, right_first, 0)
    envs.reset(0)
    first = envs.states()[None]
    random = sentence_rewards(np.concatenate([*random_states(config, 5)])[:, None])[
        :, 0
    ]
    hill, flag = random.T
    low = np.array([hill.min(), (flag - hill).min(), (hill - flag).min()])
    high = np.array([np.quantile(hill, 0.6), 0.1, 0.1])
    told = model.about()["stages"]
    np.testing.assert_allclose(told["lowest"], low, atol=1e-5)
    np.testing.assert_allclose(told["reached"], high, atol=1e-5)
    said = sentence_rewards(np.concatenate([first, played.states]))
    hill, flag = np.moveaxis(said, -1, 0)  # (T + 1, N)
    scores = np.stack([hill, flag - hill, hill - flag], -1)
    found = model.scores(played.states.reshape(-1, 2)).reshape(-1, 4, 3)
    np.testing.assert_allclose(found, scores[1:], atol=1e-5)
    hold, seen = [3, 2, 1], set()
    for n in range(4):
        met = scores[1:, n] >= high
        counts = [0, *passed_slowly(met, hold)]
        levels = []
        for t, count in enumerate(counts):
            stage = min(count, 2)
            way = (scores[t, n, stage] - low[stage]) / (high[stage] - low[stage])
            most = 1 if stage < 2 else np.inf
            levels.append((stage + min(max(way, 0), most)) / 3)
            shown = played.observation[t, n, 2:]
            assert shown.tolist() == [float(k == stage) for k in range(3)]
        levels = np.array(levels)
        expected = levels[1:] + 0.99 * levels[1:] - levels[:-1]
        np.testing.assert_allclose(played.online[:, n], expected, atol=1e-3)
        assert played.passed["stage"][n].sum() == counts[-1]
        seen |= set(counts)
    assert seen >= {0, 1, 2}
    # The world's own numbers, and all that it says, are as they were.
    plain = collect(make_envs(config.task, 4, 1), right_first, 0)
    np.testing.assert_array_equal(played.observation[..., :2], plain.observation)
    np.testing.assert_array_equal(played.env_reward, plain.env_reward)
    np.testing.assert_array_equal(played.goal, plain.goal)


@pytest.mark.slow
def test_progress_telescopes_so_that_no_circle_is_paid_for(staged):
    config, model = staged
    gamma, before = config.algo.gamma, model._options["shaping"]
    paid = {}
    try:
        for weight in (0.0, 2.0):
            model._options["shaping"] = weight
            envs = model.around(make_envs(config.task, 4, 1))
            # There and back: to the left hilltop and away from it, again and again.
            paid[weight] = collect(envs, left_first, 0).online.astype(np.float64)
    finally:
        model._options["shaping"] = before
    levels, shaping = paid[0.0], paid[2.0] - paid[0.0]
    envs.reset(0)
    start = envs._level
    discount = gamma ** np.arange(len(levels))
    total = (discount[:, None] * shaping).sum(0)
    whole = gamma ** len(levels) * levels[-1] - start
    np.testing.assert_allclose(total, 2.0 * whole, atol=1e-4)
    assert np.abs(np.diff(levels, axis=0)).sum() > 4 * np.abs(whole).sum()


def test_a_later_stage_never_pays_less(staged):
    _, model = staged
    rng = np.random.default_rng(0)
    progress = rng.random((1000, 3))
    for passed in range(2):
        now, later = (
            model.level(np.full(1000, passed + k), progress) for k in range(2)
        )
        assert (now <= (passed + 1) / 3).all()
        assert (later >= (passed + 1) / 3).all()
    # All are passed: the last one goes on.
    ended = model.level(np.full(1000, 3), progress)
    np.testing.assert_array_equal(ended, model.level(np.full(1000, 2), progress))


@pytest.mark.slow
def test_a_run_that_was_cut_goes_on_as_if_nothing_had_been(tmp_path):
    config = training.check(_composed(*SMOKE, "log=none", "env_steps=80"))

    class Cut(Exception):
        pass

    def run(folder, reports: int):
        with ExitStack() as opened:
            envs, eval_envs, pool = training.open_parts(config, opened, {})
            saved = checkpoint.load_if_any(folder, config.env_steps)
            log = RunLog(folder, config, saved["log"])
            opened.callback(log.close)
            states, left = checkpoint.Checkpoint(log, 0), [reports]

            def save(state) -> None:
                states.save_when_due(state)
                left[0] -= 1
                if left[0] == 0:
                    raise Cut

            parts = (config, envs, eval_envs, pool, log, torch.device("cpu"))
            state = sac.train(*parts, saved["state"], save)
            return state

    whole = run(tmp_path / "whole", 99)
    with pytest.raises(Cut):
        run(tmp_path / "cut", 2)
    cut = run(tmp_path / "cut", 99)
    assert read_metrics(tmp_path / "cut") == read_metrics(tmp_path / "whole")
    assert len(read_metrics(tmp_path / "whole")) == 4
    for key, tensor in whole.best["policy"].items():
        assert torch.equal(cut.best["policy"][key], tensor)
    assert whole.envs.state_dict() == cut.envs.state_dict()


@pytest.mark.slow
def test_a_run_tells_its_stages_and_is_judged_again(program, start, tmp_path):
    run = tmp_path / "run"
    smoke = (*SMOKE, "log=none", f"hydra.run.dir={run}")
    ended = program(*smoke, "judge=predicate")
    assert ended.code == 0, ended.err
    assert "goals    passed in 0.00, 0.00 of episodes, by predicates" in ended.out
    summary = json.loads((run / "summary.json").read_text())
    versions = json.loads((run / "versions.json").read_text())
    line = read_metrics(run)[-1]
    for kind, found in (("train", line), ("eval", line), ("eval", summary)):
        for name in ("stage", "goal"):
            shares = [found[f"{kind}/{name}_{k}"] for k in (1, 2)]
            assert found[f"{kind}/{name}_mean"] == pytest.approx(sum(shares))
    policy = load_policy(run)
    assert policy.observation_dim == 2 + 2
    # Others do not tell it its stage.
    with pytest.raises(ConfigError, match="acts on 4 numbers, but its world shows 2"):
        state_sets._policy_states([(composed(*SMOKE).task, policy)], 4, 0)
    with pytest.raises(ConfigError, match="acts by the stage that its reward tells"):
        label._run(str(run), "best")
    again = start(
        [f"run={run}", "episodes=2", "reward_episodes=2", "video=false"],
        lambda asked: evaluate.evaluate(*evaluate.check(asked)),
        "evaluate",
        evaluate.check,
    )
    assert again.code == 0, again.err
    told = json.loads((run / "evaluation.json").read_text())
    assert told["versions"]["stages"] == versions["stages"]
    assert 0 <= told["eval/stage_mean"] <= 2


def test_one_prompt_has_the_same_truth_and_no_stages():
    config = composed(*TASK, "reward=clip")
    assert config.prompts == [
        "a car on the left hilltop, then a car at the peak of the mountain, next to "
        "the yellow flag"
    ]
    envs = make_envs(config.task, 4, 1)
    model = make_model(composed(*TASK, "reward=environment"))
    around = Pool(config, model).around(envs)
    assert around is envs
    played = collect(around, right_first, 0)
    assert list(played.passed) == ["goal"]
    assert played.observation.shape[-1] == 2


ONE = "stages=[{prompt: a car, quantile: 0.9}]"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["reward=stages"], "reward=stages needs sentences in order: choose a task"),
        (
            ["stages=[{prompt: a car}]"],
            "stages[0] must have either a quantile or a margin",
        ),
        (
            ["stages=[{prompt: a car, quantile: 0.9, margin: 1}]"],
            "must have either a quantile or a margin",
        ),
        (["stages=[{prompt: a car, quantile: 1.5}]"], "stages[0].quantile is 1.5"),
        (["stages=[{prompt: a car, quantile: 0}]"], "stages[0].quantile is 0.0"),
        (["stages=[{prompt: a car, margin: inf}]"], "stages[0].margin is inf"),
        (["stages=[{prompt: a car, margin: 0}]"], "no other stage says anything else"),
        (["stages=[{prompt: '', quantile: 0.9}]"], "stages[0].prompt is empty"),
        (["stages=[{prompt: a car, quantile: 0.9, hold: 0}]"], "stages[0].hold is 0"),
        (["task.before=[hill]"], "task.before is 'hill', but must be one of flag,"),
        (["task=cartpole", "task.before=[up]"], "has no predicates to tell them by"),
        (
            ["task=kneeling", "task.goal=''", "task.before=[splits]"],
            "or no task.goal",
        ),
        (["task.hold=0"], "task.hold is 0"),
        ([ONE, "reward=stages", "judge.x=clip=tiny"], "judge.x: reward=stages is aske"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(compose, words, told):
    with pytest.raises(ConfigError) as caught:
        compose(*words)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"episode": 3}, "Did you mean episodes?"),
        ({"episodes": 0}, "reward.options.episodes is 0: give a whole number"),
        ({"shaping": -1}, "reward.options.shaping is -1: give a number from 0 up"),
    ],
)
def test_options_that_cannot_be_are_refused(options, told):
    with pytest.raises(ConfigError) as caught:
        checked(options)
    assert told in str(caught.value)


def test_a_margin_below_all_that_chance_leads_to_is_refused():
    low = f"stages=[{{prompt: {HILL}, margin: -2}}, {{prompt: {FLAG}, quantile: 0.9}}]"
    with pytest.raises(ConfigError, match=r"Stage 1 \('a car on .* nothing below"):
        make_model(composed(*STAGED, low))


def test_stages_are_told_where_nothing_reads_them():
    config = composed(*TASK, "reward=clip")
    assert unread(config, ["stages"]) == [
        "stages changes nothing here: reward=clip reads the prompt."
    ]
    staged = composed(*STAGED)
    assert len(unread(staged, ["prompt", "reward.every"])) == 2
    assert unread(staged, ["stages", "baseline", "reward.options.shaping"]) == [
        "baseline changes nothing here: alpha is 0."
    ]
    assert len(unread(staged, ["renormalise"])) == 1
    several = "stages=[{prompt: [a hill, a mountain], quantile: 0.9}]"
    assert unread(composed(*STAGED, several), ["renormalise"]) == []


@pytest.mark.parametrize(
    "task",
    ["hill_then_flag", "kneel_then_stand", "arms_then_lotus", "stand_splits_stand"],
)
def test_tasks_have_a_sentence_for_each_goal_and_all_of_them_in_one_prompt(task):
    config = composed(f"task={task}", "reward=stages")
    check_world(config)
    said = [stage.prompt for stage in config.stages]
    assert len(said) == len(config.task.before) + 1
    assert config.prompt == ", then ".join(said)
