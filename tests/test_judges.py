"""Second opinions, and alarms where they disagree with the reward."""

import json
import re

import imageio_ffmpeg
import numpy as np
import pytest
import yaml

from goal_states import AGAINST, FOR
from point_mass import point_mass, point_mass_config, read_metrics
from vlmrm_exp import __main__ as training
from vlmrm_exp import composition, evaluate
from vlmrm_exp.checks import to_config
from vlmrm_exp.config import ConfigError
from vlmrm_exp.envs.goals import HumanoidGoal
from vlmrm_exp.envs.humanoid_model import humanoid_spec
from vlmrm_exp.envs.poses import PoseLibrary
from vlmrm_exp.notes import notes
from vlmrm_exp.prompts import SENTENCES
from vlmrm_exp.reward import Episodes, RewardModel, make_model
from vlmrm_exp.reward.by_hand import FORMULAS
from vlmrm_exp.reward.workers import make_judge
from vlmrm_exp.rl import alarms
from vlmrm_exp.rl.alarms import PATIENCE, WINDOW, Alarms, disagreement
from vlmrm_exp.rl.policy import load_policy
from vlmrm_exp.told import judge_configs
from vlmrm_exp.words import to_keys

UP = np.linspace(0, 1, 30)


class Far(RewardModel):
    """|x|: what brings the point away from 0, where its goal is."""

    def __init__(self, config) -> None:
        pass

    def rewards(self, episodes: Episodes) -> np.ndarray:
        return np.abs(episodes.states[..., 0]).astype(np.float32)


@pytest.mark.parametrize(
    ("judge", "told", "at"),
    [
        (-UP, "falls", WINDOW),  # from the start
        (1 - (UP - 0.45) ** 2, "falls", 21),  # after the peak six of 45 pairs rise
        (0 * UP, "stands still", PATIENCE),
        (UP, None, None),
        (np.minimum(5 * UP, 1), None, None),  # as high as can be from the sixth on
    ],
)
def test_alarms_are_raised_at_once_and_not_for_honest_runs(judge, told, at):
    found = [disagreement(UP[:k], judge[:k]) for k in range(1, len(UP) + 1)]
    first = next((k for k, each in enumerate(found, 1) if each), None)
    assert (first, found[first - 1] if first else None) == (at, told)


def test_the_chance_of_an_order_is_that_of_all_permutations():
    """Counted by how many pairs are in order (Mahonian numbers)."""
    counts = [1]
    for n in range(2, WINDOW + 1):  # the n-th value is above 0 to n - 1 of the others
        counts = np.convolve(counts, np.ones(n))
    above = np.cumsum(counts[::-1])[::-1] / counts.sum()  # or as many pairs
    rng = np.random.default_rng(0)
    for values in (rng.permutation(WINDOW) for _ in range(20)):
        pairs = sum(values[j] > values[i] for j in range(WINDOW) for i in range(j))
        assert alarms._trend(values)[1] == pytest.approx(above[pairs])


@pytest.mark.parametrize("reward", [0 * UP, -UP])
def test_no_alarm_where_the_reward_does_not_rise(reward):
    assert not any(disagreement(reward[:k], -UP[:k]) for k in range(1, 31))


@pytest.mark.slow
def test_how_often_noise_raises_an_alarm():
    """Runs of 25 evaluations: nothing rises; or the judge has risen, and stays."""
    rng = np.random.default_rng(0)
    early = np.minimum(5 * UP[:25], 1)
    raised = {"nothing": 0, "early": 0}
    for _ in range(100):
        for name, reward, judge in (
            ("nothing", rng.normal(size=25), rng.normal(size=25)),
            ("early", UP[:25] + 0.01 * rng.normal(size=25),
             early + 0.1 * rng.normal(size=25)),
        ):  # fmt: skip
            raised[name] += any(
                disagreement(reward[:k], judge[:k]) for k in range(WINDOW, 26)
            )
    assert raised["nothing"] <= 7  # 2 % of 500 runs had one
    assert 0 < raised["early"] <= 12  # 5 %


def judged(folder, **changes):
    """A point that is trained to go away from 0, judged by how near it is."""
    changes = {"reward": {"model": "test_judges:Far"}, "env_steps": 4800} | changes
    changes["evaluation"] = {"every": 160, "episodes": 16}
    with point_mass(folder, **changes) as parts:
        example = Episodes(states=parts.envs.states()[None])
        near = make_judge("near", point_mass_config(), example)
        parts.pool.judges = {"near": near}
        return parts.train()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sac", "dqn"])
def test_a_reward_that_leads_away_from_the_goal_raises_an_alarm(tmp_path, capsys, name):
    algo = {"gradient_steps": 20, "exploration_steps": 1600}
    algo |= {"learning_rate": 1e-3 if name == "sac" else 3e-4}
    state = judged(tmp_path / name, name=name, algo=algo)
    metrics = read_metrics(tmp_path / name)
    for line in metrics:  # of the very states that were rewarded
        assert line["judge/near"] == pytest.approx(-line["eval/reward_mean"])
    raised = state.alarms.raised["near"]
    assert raised["judge"] == "falls"
    step = raised["env_steps"]
    assert capsys.readouterr().err.count(f"Alarm at env step {step:,}: the") == 1
    policies = state.alarms.policies("near")
    best = max(metrics, key=lambda line: line["judge/near"])
    assert policies["judged"]["env_steps"] == best["env_steps"]
    assert policies["alarm"]["env_steps"] == step


def test_the_agent_learns_nothing_from_judges(tmp_path):
    reward = {"model": "test_judges:Far"}
    evaluation = {"every": 160, "episodes": 16}
    judged(tmp_path / "judged", env_steps=800)
    with point_mass(tmp_path / "alone", reward=reward, evaluation=evaluation) as parts:
        parts.train()
    lines = read_metrics(tmp_path / "judged")
    assert all("judge/near" in line for line in lines)
    without = [{k: v for k, v in x.items() if k != "judge/near"} for x in lines]
    assert without == read_metrics(tmp_path / "alone")


def test_what_was_judged_goes_on():
    """Evaluations before a cut count: the alarm comes when it would have come."""
    whole, cut = Alarms(), Alarms()
    for k in range(WINDOW):
        values = float(UP[k]), {"judge/x": float(-UP[k])}, {"env_steps": k}
        told = whole.add(*values)
        if k == 5:
            state, cut = cut.state_dict(), Alarms()
            cut.load_state_dict(state)
        assert cut.add(*values) == told
    assert told == ["x"]
    assert cut.state_dict() == whole.state_dict()


SMALL = ("experiment=smoke", "task=mountaincar", "clip=nano", "log=none")
SMALL += ("compute.workers=0", "evaluation.every=1")


@pytest.mark.slow
def test_judges_are_the_runs_settings_told_differently(program, tmp_path, monkeypatch):
    monkeypatch.setattr(
        alarms,
        "disagreement",
        lambda reward, judge: "falls" if judge[0] == -1 else None,
    )
    folder = tmp_path / "run"
    words = (
        'judge.same=prompt=a car at the peak of the mountain, next to the yellow flag',
        'judge.other=["prompt=a car, in the valley", clip=tiny, alpha=0.5]',
        "judge.below=[reward=test_judges]",
        "judge.text=prompt=a car for ${5}",
    )  # fmt: skip
    (tmp_path / "conf" / "reward").mkdir(parents=True)
    text = "name: below\nmodel: test_judges:Below\n"
    (tmp_path / "conf" / "reward" / "test_judges.yaml").write_text(text)
    ended = program(
        "--config-dir", f"{tmp_path}/conf", *SMALL, "judge=predicate", *words,
        f"hydra.run.dir={folder}",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    summary = json.loads((folder / "summary.json").read_text())
    for line in [*read_metrics(folder), summary]:
        assert line["judge/same"] == line["eval/reward_mean"]
        assert line["judge/other"] != pytest.approx(line["eval/reward_mean"], abs=1e-3)
        assert 0 <= line["judge/predicate"] <= 1
    assert list(summary["alarms"]) == ["below"]
    step = summary["alarms"]["below"]["env_steps"]
    assert f"judge   below -1 per step; alarm at {step:,}" in ended.out
    for kind in ("alarm", "judged"):
        file = folder / "checkpoints" / f"{kind}-below.pt"
        assert load_policy(file).env_steps == step
        asked = composition.compose(
            "evaluate", f"run={folder}", f"checkpoint={file.stem}"
        )
        evaluate.check(asked)
    models = json.loads((folder / "versions.json").read_text())["judges"]
    names = [models[name]["encoder"]["name"] for name in ("same", "other")]
    assert names == ["nano", "tiny"]
    sizes = [
        next(imageio_ffmpeg.read_frames(folder / "videos" / name))["size"]
        for name in ("eval.mp4", "alarm-below.mp4")
    ]
    assert sizes[1][0] == 2 * sizes[0][0]


class Below(RewardModel):
    """-1 for all."""

    cheap = True

    def __init__(self, config) -> None:
        pass

    def rewards(self, episodes: Episodes) -> np.ndarray:
        return np.full(episodes.shape, -1, np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("judge.x=tiny", "judge.x is 'tiny', but must say what this judge is told"),
        ("judge.x=alpha=0.5,clip=tiny", "as judge.x='[alpha=0.5,clip=tiny]'"),
        ("judge.a/b=clip=tiny", "A judge is named 'a/b', which is no word: give one"),
        ("judge.x=clip=bigg", "judge.x: clip=bigg does not exist: choose one of base"),
        ("judge.x=alpha=2", "judge.x: alpha is 2.0, but must lie between 0 and 1."),
        ("judge.x=task=cartpole", "judge.x: it has another task.env, so other states"),
        ("judge.x=judge.y=clip=tiny", "judge.x: There is no setting judge.y: see"),
        ("judge=predicat", "judge=predicat does not exist: choose one of model"),
    ],
)
def test_a_judge_that_cannot_be_told_so_is_refused(program, tmp_path, word, told):
    ended = program("task=mountaincar", word, f"hydra.run.dir={tmp_path}/run")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert told in ended.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("judge=predicate", "judge.predicate: task=gym-Pendulum-v1 has no predicate"),
        ("judge.x=reward=by_hand", "judge.x: task=gym-Pendulum-v1 has no reward that"),
        ("judge.x=reward.model=point_mass:Learned", "judge.x: reward=clip learns from"),
    ],
)
def test_a_judge_that_cannot_be_made_is_refused_before_the_run_opens(word, told):
    asked = "task=gym", "task.env_id=Pendulum-v1", "name=x", "prompt=a", "baseline=b"
    keys = to_keys([*asked, word], {}, program="config")
    with pytest.raises(ConfigError, match=re.escape(told)):
        training.check(composition.compose("config", *keys))


class Holes(RewardModel):
    """Not finite the second time that it is asked for whole episodes."""

    asked = 0

    def __init__(self, config) -> None:
        pass

    def rewards(self, episodes: Episodes) -> np.ndarray:
        reward = np.ones(episodes.shape, np.float32)
        self.asked += len(reward) > 1
        if self.asked == 2:
            reward[2, 0] = np.inf
        return reward


def test_a_judge_that_is_not_finite_is_told_and_null(tmp_path, capsys):
    with point_mass(tmp_path, env_steps=480, evaluation={"every": 160}) as parts:
        config = point_mass_config(reward={"model": "test_judges:Holes"})
        example = Episodes(states=parts.envs.states()[None])
        parts.pool.judges = {"x": make_judge("x", config, example)}
        state = parts.train()
    lines = read_metrics(tmp_path)
    assert [line["judge/x"] for line in lines] == [1, None, 1]
    told = [x for x in capsys.readouterr().err.splitlines() if x.startswith("judge.x")]
    (one,) = told
    assert re.search(r"1 of its \d+ rewards are not finite", one)
    assert state.alarms.state_dict()["_policies"]["judged-x"]["env_steps"] == 160


def test_evaluations_without_a_judges_verdict_do_not_count():
    judge = -UP[:WINDOW]
    reward = UP[:WINDOW]
    with_holes = np.insert(judge, 3, np.nan), np.insert(reward, 3, 0.5)
    assert disagreement(with_holes[1], with_holes[0]) == "falls"
    assert disagreement(reward, np.where(judge == judge[3], np.nan, judge)) is None


def test_rewards_by_hand_are_higher_in_the_goal_and_no_proof_of_it():
    """Bodies for and against each goal; some of these get as much."""
    library = PoseLibrary()
    for goal, formula in FORMULAS.items():
        met, missed = (
            formula(HumanoidGoal(goal).bodies(np.stack([e.state(library) for e in of])))
            for of in (FOR[goal], AGAINST[goal])
        )
        assert met.mean() > missed.mean()
        assert missed.max() > met.min()


def test_a_reward_by_hand_is_a_distance_in_metres(compose):
    """The head's centre of the straight body is 0.19 above the torso's at 1.4."""
    model = humanoid_spec().compile()
    states = np.concatenate([model.qpos0, np.zeros(model.nv)])[None, None]
    for task, expected in (("standing_up", 1.59), ("splits", 0.18)):
        reward = make_model(compose(f"task={task}", "reward=by_hand"))
        assert reward.rewards(Episodes(states=states)) == pytest.approx(expected, 1e-3)
    with pytest.raises(ConfigError, match="no reward that was written by"):
        make_model(compose("task=cartpole", "reward=by_hand"))


@pytest.mark.slow
@pytest.mark.parametrize("task", sorted(path.stem for path in SENTENCES.glob("*.yaml")))
def test_wordings_are_of_the_task(compose, task):
    held = yaml.safe_load((SENTENCES / f"{task}.yaml").read_text())
    for kind, prompt in (
        ("vague", held["vague"]),
        ("misleading", held["misleading"][0]),
        ("paraphrases", held["paraphrases"]),
        ("side_effect", held["side_effect"]),
    ):
        assert compose(f"task={task}", f"wording={kind}").prompt == prompt
    own = compose(f"task={task}").prompt
    assert own not in [held["vague"], held["side_effect"]]
    assert compose(f"task={task}", "wording=vague", "prompt=mine").prompt == "mine"


def test_a_task_without_other_wordings_says_so(program):
    words = "task=gym", "task.env_id=Pendulum-v1", "baseline=x", "wording=vague"
    ended = program(*words)
    assert ended.code == 2
    told = (
        "There are no other wordings of task=gym-Pendulum-v1: give prompt=... instead."
    )
    assert ended.err.partition(": ")[2] == f"{told}\n"


@pytest.mark.parametrize("name", ["model", "view", "words"])
def test_a_judge_by_pictures_is_one_whatever_is_learned_from(name):
    composed = composition.compose(
        "config", "name=test", "task=kneeling", "reward=by_hand", f"judge={name}"
    )
    judge = judge_configs(composed, to_config(composed.cfg))[name]
    assert judge.reward.model == "clip"
    changed = {"model": "clip", "view": "task", "words": "prompt"}[name]
    for part in ("clip", "task", "prompt"):
        same = getattr(judge, part) == getattr(to_config(composed.cfg), part)
        assert same == (part != changed)


SAME = (
    "judge.x says the same as the reward: nothing that it is told changes it, or the "
    "run's own settings win."
)


def test_another_model_has_its_own_weights_whatever_was_typed_for_the_runs():
    """And what is typed of the picture holds for both."""
    typed = (
        *("clip=vitb32", "clip.pretrained=random", "clip.name=mine"),
        *("clip.quick_gelu=true", "clip.batch_size=8", "clip.preprocess=crop"),
    )
    judges = "judge.x=clip=rn50", "judge.y=[clip=rn50, clip.pretrained=random]"
    keys = to_keys(["task=kneeling", *typed, *judges], {}, program="config")
    composed = composition.compose("config", "name=test", *keys)
    found = judge_configs(composed, to_config(composed.cfg))
    own = composition.compose(
        "config", "task=kneeling", "name=test", "clip=rn50"
    ).cfg.clip
    x = found["x"].clip
    assert (x.name, x.model, x.pretrained, x.quick_gelu) == (
        *(own.name, own.model, own.pretrained, own.quick_gelu),
    )
    assert (x.batch_size, x.preprocess) == (8, "crop")
    assert found["y"].clip.pretrained == "random"


def test_null_takes_a_judge_out():
    words = "judge=[predicate,model]", "judge.model=null"
    composed = composition.compose("config", "task=mountaincar", "name=test", *words)
    assert list(judge_configs(composed, to_config(composed.cfg))) == ["predicate"]


CLIP = "clip changes nothing here: reward=environment has none of it."


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("judge.x=clip=tiny",), []),
        (("judge.x=prompt=a flag",), []),
        (("reward=environment", "judge.x=reward=clip"), []),  # which reads clip
        (("reward=environment", "judge.x=[reward=clip, clip=tiny]"), [CLIP]),
        (("prompt=mine", "judge.x=wording=paraphrases"), [SAME]),
        (("judge.x=seed=1",), [SAME]),
        (("clip.model=ViT-B-32", "judge.x=clip.name=other"), [SAME]),
        (
            ("reward=environment", "judge.x=clip=tiny"),
            [CLIP, f"judge.x: {CLIP}", SAME],
        ),
    ],
)  # fmt: skip
def test_a_judge_that_says_the_same_as_the_reward_is_told_of(words, told):
    keys = to_keys(
        ["task=mountaincar", "clip=nano", "name=test", *words], {}, program="config"
    )
    composed = composition.compose("config", *keys)
    config = to_config(composed.cfg)
    typed = [key.partition("=")[0] for key in keys]
    assert notes(judge_configs(composed, config), config, typed) == told
