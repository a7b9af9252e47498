"""Several opinions that are one reward."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from omegaconf import OmegaConf

from point_mass import Distance, point_mass_config, read_metrics, trained
from vlmrm_exp import __main__ as training
from vlmrm_exp import app, composition, epic, evaluate
from vlmrm_exp.checks import to_config
from vlmrm_exp.config import ConfigError
from vlmrm_exp.envs.in_order import make_envs
from vlmrm_exp.notes import notes
from vlmrm_exp.reward import Episodes, RewardModel, make_model
from vlmrm_exp.reward.ensemble import checked, combined, member_configs
from vlmrm_exp.reward.random_states import random_states
from vlmrm_exp.reward.workers import make_pool
from vlmrm_exp.rl.rollout import collect
from vlmrm_exp.run_folder import load_run_config
from vlmrm_exp.settings import resolved
from vlmrm_exp.studies.rewards import Plain
from vlmrm_exp.studies.state_sets import StateSet
from vlmrm_exp.told import judge_configs, with_members
from vlmrm_exp.words import to_keys

TASK = ("task=mountaincar", "clip=nano", "compute=cpu", "compute.workers=0")
ENSEMBLE = (*TASK, "reward=ensemble", "reward.options.episodes=2")
DIFFERENT = (
    "member.model=clip=tiny",
    "member.hill=[prompt=a car on a hill, alpha=0.3]",
)
SHORT = ("task.episode_length=30",)


def checked_config(*words: str, program: str = "config"):
    keys = to_keys(list(words), {}, program=program)
    return training.check(composition.compose(program, *keys, "name=test"))


def test_members_are_combined_as_in_the_paper():
    rewards = np.array([[1.0, 3.0, 2.0], [-4.0, 2.0, 2.0]])
    assert combined(rewards, "min", 0.5).tolist() == [1, -4]
    assert combined(rewards, "mean", 0.5).tolist() == [2, 0]
    # Variances (1 + 1 + 0) / 3 and (16 + 4 + 4) / 3.
    np.testing.assert_allclose(combined(rewards, "uncertainty", 0.5), [5 / 3, -4])
    np.testing.assert_array_equal(combined(rewards, "uncertainty", 0), [2, 0])


def test_random_states_are_those_of_episodes_of_uniform_actions(compose):
    config = compose(*TASK, "task.episode_length=12", "algo.random_action_repeat=1")
    rng = np.random.default_rng(config.seed)
    low, high = np.float32([-1]), np.float32([1])

    def act(observation: np.ndarray) -> np.ndarray:
        return rng.uniform(low, high, (3, 1)).astype(np.float32)

    played = collect(make_envs(config.task, 3, 1), act, config.seed)
    np.testing.assert_array_equal([*random_states(config, 3)], played.states)


@pytest.mark.slow
def test_the_reward_is_of_each_members_own_standardised_by_random_states():
    """Against rewards of runs of their own, one by one."""
    config = checked_config(*ENSEMBLE, *DIFFERENT, *SHORT)
    own = [
        checked_config(*TASK, *SHORT, *told)
        for told in (
            (),
            ("clip=tiny",),
            ("wording=paraphrases",),
            ("prompt=a car on a hill", "alpha=0.3"),
        )
    ]
    usual = np.concatenate([*random_states(config, 2)])[:, None]
    rng = np.random.default_rng(0)
    asked = Episodes(states=usual[rng.permutation(60)].reshape(10, 6, -1))
    columns = []
    for one in own:
        model = make_model(one)
        chance = model.rewards(Episodes(states=usual)).astype(np.float64)
        given = model.rewards(asked).astype(np.float64)
        columns.append((given - chance.mean()) / chance.std())
        model.close()
    model = make_model(config)
    found = model.rewards(asked)
    told = model.about()
    model.close()
    np.testing.assert_allclose(found, np.min(columns, axis=0), atol=1e-3)
    assert np.ptp(np.argmin(columns, axis=0)) > 0  # not always the same member's
    assert set(told["members"]) == {"own", "model", "words", "hill"}
    # Those that see the same are one model.
    models = {of: m["encoder"]["name"] for of, m in told["member_models"].items()}
    assert models == {"own and words and hill": "nano", "model": "tiny"}
    json.dumps(told)


class Near(RewardModel):
    """-x, in other units: at one side of 0 the opposite of the point's own reward."""

    def __init__(self, config) -> None:
        pass

    batch_size = 6

    def rewards(self, episodes: Episodes) -> np.ndarray:
        return 300 - 100 * episodes.states[..., 0].astype(np.float32)


class Alike(Distance):
    def rewards(self, episodes: Episodes) -> np.ndarray:
        return np.full(episodes.shape, 0.3, np.float32)


def of_points(**changes):
    """Two members of one's own: Distance, and Near."""
    options = {"combine": "uncertainty", "weight": 0.3} | changes.pop("options", {})
    reward = {"name": "ensemble", "model": "ensemble", "options": options}
    distance = {"reward": {"model": "point_mass:Distance", "options": {}}}
    other = {"reward": {"model": "test_ensemble:Near", "options": {}}}
    return {
        "reward": reward | changes.pop("reward", {}),
        "member": {"distance": distance, "other": other},
        **changes,
    }


def test_single_states_are_rewarded_alike_however_they_are_shared_out():
    config = point_mass_config(**of_points())
    model = make_model(config)
    assert model.batch_size == 192  # of whole batches of 64 and of 6
    usual = np.concatenate([*random_states(config, 16)])
    x = usual[:, 0]
    scales = [
        ((f := of(x)).mean(), f.std()) for of in (lambda x: -abs(x), lambda x: -x)
    ]
    rng = np.random.default_rng(1)
    states = rng.uniform(-1, 1, (20, 30, 2))
    first = states[..., 0]
    standard = [
        (value - mean) / std
        for value, (mean, std) in zip((-abs(first), -first), scales, strict=True)
    ]
    expected = np.mean(standard, 0) - 0.3 * np.var(standard, 0)
    found = model.rewards(Episodes(states=states))
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_workers_change_nothing(tmp_path, share):
    for workers in (0, 2):
        settings = of_points(
            reward={"query_share": share}, compute={"workers": workers}
        )
        trained(tmp_path / str(workers), **settings)
    lines = read_metrics(tmp_path / "0")
    assert lines == read_metrics(tmp_path / "2")
    assert ("reward/queries" in lines[-1]) == (share < 1)


@pytest.mark.slow
def test_workers_see_the_same_pictures():
    asked = Episodes(states=np.random.default_rng(0).uniform(-1, 0.5, (7, 5, 2)))
    found = []
    for workers in (0, 2):
        words = f"compute.workers={workers}", "clip.batch_size=4", "render=fast"
        config = checked_config(*ENSEMBLE, *DIFFERENT, *SHORT, words[0], words[1])
        pool = make_pool(config, asked.thinned(np.array([0])))
        try:
            found.append((pool.rewards(asked), pool.about()))
        finally:
            pool.close()
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def test_a_member_whose_rewards_do_not_vary_is_refused():
    settings = of_points()
    settings["member"]["x"] = {"reward": {"model": "test_ensemble:Alike"}}
    told = r"member.x gives all 320 states that .* a reward of 0.3, so there is no"
    with pytest.raises(ConfigError, match=told):
        make_model(point_mass_config(**settings))


@pytest.mark.long
def test_a_run_as_typed_goes_on_and_is_judged_again(program, start, tmp_path):
    run = tmp_path / "run"
    words = (
        *("experiment=smoke", *ENSEMBLE, *SHORT, "log=none"),
        'member.other=["prompt=a ${5} car, on a hill", alpha=0.3]',
        *("member.model=clip=tiny", "judge.x=clip=tiny", f"hydra.run.dir={run}"),
    )  # fmt: skip
    ended = program(*words)
    assert ended.code == 0, ended.err
    assert (ended.out + ended.err).count("counts twice") == 0
    summary = json.loads((run / "summary.json").read_text())
    assert np.isfinite([summary["eval/reward_mean"], summary["judge/x"]]).all()
    written = load_run_config(run)
    assert written.member["other"]["prompt"] == "a ${5} car, on a hill"
    assert written.member["model"]["clip"]["name"] == "tiny"
    assert "options" in written.member["own"]["reward"]
    again = program(*words)
    assert (again.code, again.out.count("nothing is left to do")) == (0, 1)
    other = program(*words, "member.other=alpha=0.2")
    assert (
        "holds a run of other settings, member.other.alpha=0.2 (was 0.3)" in other.err
    )
    recorded = json.loads((run / "versions.json").read_text())
    recorded["member_models"]["model"]["encoder"]["weights_sha256"] = "abcdefgh"
    (run / "versions.json").write_text(json.dumps(recorded))
    asked = f"run={run}", "episodes=2", "reward_episodes=2", "video=false", *TASK[2:3]
    judged = start(
        list(asked),
        lambda composed: evaluate.evaluate(*evaluate.check(composed)),
        "evaluate",
        evaluate.check,
    )
    assert judged.code == 0, judged.err
    assert re.findall("The (.*)'s weights are not those", judged.out) == [
        "member model"
    ]
    now = json.loads((run / "evaluation.json").read_text())["versions"]
    assert recorded["members"] == now["members"]


@pytest.mark.slow
def test_what_is_written_is_what_was_checked(tmp_path):
    config = checked_config(*ENSEMBLE, *DIFFERENT)
    (tmp_path / "config.yaml").write_text(resolved(config))
    assert load_run_config(tmp_path) == config


@pytest.mark.slow
def test_members_follow_what_others_change_in_the_run(compose):
    """As a study does with another model; but they keep what they were told."""
    config = checked_config(*ENSEMBLE, *DIFFERENT, "member.same=[clip=nano, alpha=0]")
    tiny = compose(*TASK, "clip=tiny")
    config = replace(config, clip=tiny.clip, alpha=0.7)
    members = member_configs(config)
    seen = [(one.clip.name, one.alpha) for one in members.values()]
    assert list(members) == ["own", "model", "words", "hill", "same"]
    assert seen == [("tiny", 0.7), ("tiny", 0.7), ("tiny", 0.7), ("tiny", 0.3),
                    ("nano", 0.0)]  # fmt: skip
    assert {one.reward.model for one in members.values()} == {"clip"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("member.x=tiny", "member.x is 'tiny', but must say what this member is told"),
        ("member.a/b=clip=tiny", "A member is named 'a/b', which is no word"),
        ("member.x=alpha=2", "member.x: alpha is 2.0, but must lie between 0 and 1."),
        ("member.x=task=cartpole", "member.x: it has another task.env, so other st"),
        ("member.x=member.y=alpha=0", "member.x: There is no setting member.y"),
        ("judge.x=judge.y=alpha=0", "judge.x: There is no setting judge.y"),
        ("judge.x=member=alpha=0", "judge.x: Members have names: give each as"),
        ("member.x=reward=environment", "member.x: reward=environment is not of singl"),
        ("member.x=reward=video", "member.x: reward=video is not of single states"),
        ("member.x=reward=ensemble", "member.x: reward=ensemble is no member of anot"),
        ("member.x=reward=by_hand", "member.x: task=mountaincar has no reward that w"),
        (
            "member.x=[task=hill_then_flag, reward=stages]",
            "asked while episodes are pl",
        ),
        ("member.x=reward.model=point_mass:Learned", "which members are not shown"),
        ("member.own=null member.model=null member.words=null", "has no members: give"),
        (
            "reward.options.combine=max",
            "combine is 'max', but must be one of min, mean",
        ),
    ],
)
def test_what_cannot_be_a_member_is_refused(word, told):
    with pytest.raises(ConfigError, match=re.escape(told)):
        make_model(checked_config(*ENSEMBLE, *to_words(word)))


def to_words(text: str) -> list[str]:
    return text.split(" ") if "null" in text else [text]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"combined": "min"}, "Did you mean combine?"),
        ({"combine": "null"}, "combine is None, but must be one of min, mean"),
        ({"weight": -1}, "reward.options.weight is -1: give a number from 0 up"),
        ({"weight": "inf"}, "reward.options.weight is inf: give a number from 0 up"),
        ({"episodes": 0}, "reward.options.episodes is 0: give a whole number"),
    ],
)
def test_options_that_cannot_be_are_refused(options, told):
    words = [f"++reward.options.{key}={value}" for key, value in options.items()]
    with pytest.raises(ConfigError, match=re.escape(told)):
        checked_config(*TASK, "reward=ensemble", *words)  # before anything is loaded


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("reward=ensemble",), []),
        (
            ("reward=ensemble", "prompt=mine"),
            [
                "member.words says the same as member.own, which so counts twice: "
                "nothing tells them apart, or the run's own settings win."
            ],
        ),
        (
            ("reward=ensemble", "member.x=seed=7", "member.y=[alpha=0.3, seed=7]"),
            [
                "member.x says the same as member.own, which so counts twice: nothing "
                "tells them apart, or the run's own settings win."
            ],
        ),
        (
            ("member.x=clip=tiny",),
            ["member.x changes nothing here: reward=clip has no members."],
        ),
        (("member.x=clip=tiny", "judge.y=reward=ensemble"), []),
        # Read by one of the members.
        (("reward=ensemble", "alpha=0", "member.x=alpha=0.5", "baseline=a"), []),
        (("reward=ensemble", "renormalise=false"), []),
    ],
)
def test_members_that_change_nothing_are_told_of(words, told):
    keys = to_keys([*TASK, *words], {}, program="config")
    composed = composition.compose("config", *keys, "name=test")
    config = with_members(composed, to_config(composed.cfg))
    typed = [key.partition("=")[0] for key in keys]
    assert notes(judge_configs(composed, config), config, typed) == told


@pytest.mark.slow
def test_a_judge_of_an_ensemble_is_one_told_differently():
    words = [*ENSEMBLE, "judge.x=alpha=0.4", "judge.y=reward=clip"]
    keys = to_keys(words, {}, program="config")
    composed = composition.compose("config", *keys, "name=test")
    judges = judge_configs(composed, to_config(composed.cfg))
    assert [one.alpha for one in member_configs(judges["x"]).values()] == [0.4] * 3
    assert judges["y"].reward.model == "clip"
    assert judges["y"].reward.options == judges["y"].member == {}


@pytest.mark.slow
def test_a_judge_may_have_members_that_the_run_has_not():
    words = [
        *TASK,
        "judge.x=[reward=ensemble, member.own=null, member.far=[clip=tiny, alpha=0.4]]",
        "judge.y=member.far=clip=tiny",
    ]
    keys = to_keys(words, {}, program="config")
    composed = composition.compose("config", *keys, "name=test")
    config = to_config(composed.cfg)
    judges = judge_configs(composed, config)
    members = member_configs(judges["x"])
    assert list(members) == ["model", "words", "far"]
    assert (members["far"].clip.name, members["far"].alpha) == ("tiny", 0.4)
    unread = "judge.y: member.far changes nothing here: reward=clip has no members."
    assert unread in notes(judges, config, [])


@pytest.mark.slow
def test_studies_of_states_ask_an_ensemble_as_a_run_does():
    words = [*ENSEMBLE[:2], *ENSEMBLE[4:], *DIFFERENT, *SHORT, "alpha=0", "out=x"]
    keys = to_keys(words, epic.PLURAL, program="epic")
    (task,) = epic.check(composition.compose("epic", *keys)).tasks
    states = np.concatenate([*random_states(task, 1)])
    model = make_model(checked_config(*ENSEMBLE, *DIFFERENT, *SHORT))
    expected = model.rewards(Episodes(states=states[:, None]))[:, 0]
    made_of = model.about()
    model.close()
    asked = StateSet("mountain_car", np.full(len(states), "random"), states)
    study = Plain(task)
    (found,) = study.rewards(asked, [task])
    np.testing.assert_array_equal(found, expected)
    assert study.facts == {"mountaincar": [made_of]}
    # Those of other tasks, and of the same one asked otherwise, stand beside these.
    study.rewards(asked, [task, replace(task, alpha=0.5)])
    other = replace(task, task=replace(task.task, name="other"))
    study.rewards(asked, [other])
    assert list(map(len, study.facts.values())) == [2, 1]
    assert study.facts["mountaincar"][0] == made_of
    assert set(made_of["members"]) > {"own"}


@pytest.mark.slow
def test_a_study_of_an_ensemble_is_of_the_model_that_is_named(tmp_path):
    def tasks(model: str):
        keys = to_keys(["reward=ensemble", model, "out=x"], epic.PLURAL, program="epic")
        return epic.check(composition.compose("epic", *keys)).tasks

    with pytest.raises(ConfigError, match="clip names 2 models, but reward=ensemble"):
        tasks("clip=nano,tiny")
    (tmp_path / "open_clip_config.json").touch()
    for task in tasks(f"clip=local-dir:{tmp_path}"):
        assert member_configs(task)["own"].clip.name == tmp_path.name


@pytest.mark.parametrize("word", ["member=clip=tiny", "member=[a,b]", "member=null"])
def test_members_have_names(word):
    with pytest.raises(ConfigError, match="Members have names"):
        to_keys([word], {}, program="config")


def test_members_cannot_be_told_to_who_has_none(start):
    ended = start(
        ["run=x", "member.x=clip=tiny"],
        lambda composed: None,
        "evaluate",
        lambda c: None,
    )
    assert ended.code == 2
    assert "There is no setting member" in ended.err


def test_the_default_is_documented_by_its_file():
    told = OmegaConf.load(app.conf_dir() / "reward" / "ensemble.yaml")
    assert OmegaConf.to_container(told.member) == {
        "own": [], "model": "clip=small", "words": "wording=paraphrases",
    }  # fmt: skip
    assert checked(dict(told.reward.options)) == checked({})
