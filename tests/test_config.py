"""Configurations are code: every option composes, every mistake gets one sentence."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlmrm_exp import composition
from vlmrm_exp.checks import to_config
from vlmrm_exp.config import Config, ConfigError, conf_dir
from vlmrm_exp.notes import unread
from worlds import composed

CONF = Path(conf_dir())


def options(group: str) -> list[str]:
    stems = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    return [stem for stem in stems if not stem.startswith("_")]


GYM = (
    "task.env_id=Pendulum-v1",
    "prompt=a pendulum standing upright",
    "baseline=a pendulum",
)


@pytest.mark.slow
@pytest.mark.parametrize("task", options("task"))
@pytest.mark.parametrize("experiment", [None, *options("experiment")])
def test_every_task_composes_with_every_experiment(compose, task, experiment):
    extra = GYM if task == "gym" else ()
    if experiment:
        extra = (*extra, f"experiment={experiment}")
    config = compose(f"task={task}", *extra)
    assert isinstance(config, Config)
    assert config.env_steps > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("group", "option"),
    [(g, o) for g in ("clip", "reward", "compute", "log") for o in options(g)],
)
def test_every_option_composes_under_its_own_name(group, option):
    if option == "xclip":
        pytest.importorskip("transformers", reason="the extra hf is not installed")
    task = "hill_then_flag" if option == "stages" else "mountaincar"  # it has some
    assert getattr(composed(f"task={task}", f"{group}={option}"), group).name == option


def test_task_brings_its_algorithm_prompt_and_numbers(compose):
    cartpole, kneeling = compose("task=cartpole"), compose("task=kneeling")
    assert (cartpole.algo.name, kneeling.algo.name) == ("dqn", "sac")
    assert kneeling.prompt == "a humanoid robot kneeling"
    assert kneeling.baseline == "a humanoid robot"
    assert (kneeling.algo.gamma, kneeling.task.episode_length) == (0.95, 50)
    assert kneeling.task.views == ["fixed", "side"]


def test_command_line_wins_over_experiment_and_experiment_over_task(compose):
    paper = compose("task=kneeling", "experiment=paper")
    assert (paper.env_steps, paper.task.version) == (10_000_000, "v4")
    assert not paper.algo.bootstrap_at_time_limit
    assert not paper.renormalise
    assert paper.clip.preprocess == "squash"
    # 100 steps of 15 ms, all scored from in front, Gymnasium's observation, plain
    # SAC (C.2).
    task, algo = paper.task, paper.algo
    assert task.views == ["fixed"]
    assert (task.episode_length, task.frame_skip, task.observation) == (100, 5, "full")
    assert (paper.reward.every, algo.batch_size, algo.num_envs) == (1, 512, 32)
    assert not algo.normalise_rewards
    assert not algo.layer_norm
    assert not algo.squash_observations
    changed = compose(
        "task=kneeling", "experiment=paper", "env_steps=90000", "alpha=0.5"
    )
    assert (changed.env_steps, changed.alpha) == (90_000, 0.5)


@pytest.mark.parametrize(
    "sentence",
    [
        "it's a robot (standing), with a=b",
        "'tis a car",
        '"stop" sign next to a car',
        "[red] car",
        r"a\b",
        r"it\'s \\",
        "a ${seed} car",
        "ein Auto über dem Tal, größer",
    ],
)
def test_prompt_is_taken_as_typed(compose, sentence):
    assert compose(f"prompt={sentence}").prompts == [sentence]


def test_list_and_quoted_prompts_keep_their_meaning(compose):
    assert compose("prompt=[one, two]").prompts == ["one", "two"]
    with pytest.raises(ConfigError, match="prompt holds 3, which is not text"):
        to_config(composition.compose("config", "prompt=[3]").cfg)  # as in a file


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["alpha=1.5"], "alpha is 1.5, but must lie between 0 and 1"),
        (["algo=dqn"], "use algo=sac"),
        (["task=cartpole", "algo=sac"], "use algo=dqn"),
        (["prompt=[]"], "prompt is an empty list"),
        (['prompt=" "'], "prompt is empty"),
        (["prompt=null"], "prompt holds None, which is not text"),
        (["task.textures=plian"], "Did you mean plain?"),
        (["task=cartpole", "task.camera=track"], "one of fixed for cartpole"),
        (["task=kneeling", "task.camera=side+side"], "has one view twice"),
        (["task=kneeling", "task.camera=front"], "or several as fixed+side, for"),
        (["task=kneeling", "task.camera=fixed+front"], "'front' is none of fixed,"),
        (["task=kneeling", "task.camera=fixed+"], "'fixed+', but '' is none of"),
        (["task.episode_length=null"], "task.episode_length is null"),
        (["algo.buffer_size=10"], "less than one rollout"),
        (["algo.gradient_steps=0"], "algo.gradient_steps is 0"),
        (["compute.physics_threads=0"], "compute.physics_threads is 0"),
        (["compute.workers=-1"], "compute.workers is -1"),
        (["reward.every=0"], "reward.every is 0"),
        (["evaluation.video_episodes=9"], "video_episodes is 9, but only 8"),
        (["task=cartpole", "task.goal=kneeling"], "cartpole has no such predicate"),
        (["task=kneeling", "task.goal=knee"], "task.goal is 'knee'"),
        (["task.env=mars"], "module:NAME of a World of your own"),
        (["task.env=nowhere:WORLD"], "there is no module nowhere"),
        (["task.env=json:Loads"], "json has no Loads: give task.env=module:NAME"),
        (["task.env=json:loads"], "no vlmrm_exp.envs.World"),
        (["algo.hidden=[]"], "at least one hidden layer"),
        (["algo.exploration_end=0.1"], "exploration_end is 0.1, but has no effect"),
        (["task=cartpole", "algo.layer_norm=true"], "no effect with algo=dqn"),
        (["task=mountaincar", "task.frame_skip=2"], "no effect with task=mountaincar"),
        (["env_steps=0"], "env_steps is 0"),
        (["+foo=1"], "There is no setting foo"),
        (
            ["++task.camra=side"],
            "no setting task.camra: see --help",
        ),
        (["algo.buffer_size=3000", "algo.learning_starts=2000"], "buffer of 1600 (wh"),
        (["algo.learning_starts=50000"], "would never learn"),
        (["clip.mean=[0.5]"], "three"),
        (["task=gym"], 'no value for prompt, baseline: give prompt="'),
        (["task=gym", "prompt=x"], 'no value for baseline: give baseline="a p'),
        (["task=kneel_then_stand", "task.hold=101"], "but an episode has 100: it co"),
        (
            [
                "stages=[{prompt: a, quantile: 0.9, hold: 201}]",
                "reward=stages",
            ],
            "stages[0].hold is 201 env steps, but an episode has 200",
        ),
        (["task=gym", "prompt=x", "baseline=y"], "task.env_id=Pendulum-v1"),
        (["reward=video", "reward.query_share=0.1"], "several states in a row: give"),
        (["reward=video", "reward.options.steps=0"], "options.steps is 0: give a wh"),
        (
            ["task=hill_then_flag", "reward=stages", "reward.options.shaping=-1"],
            "shaping is",
        ),
        (["reward=by_hand"], "has no reward that was written by hand"),
        (["reward.model=nosuch"], "reward.model is 'nosuch'"),
    ],
)
def test_impossible_value_is_refused_in_one_sentence(compose, overrides, words):
    with pytest.raises(ConfigError) as caught:
        compose(*overrides)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"]])
def test_help_and_config_import_nothing_heavy(tmp_path, arguments):
    program = (
        "import sys, runpy; sys.argv[1:] = " + repr(arguments) + "\n"
        "try: runpy.run_module('vlmrm_exp', run_name='__main__', alter_sys=True)\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'mujoco', 'open_clip', 'gymnasium', 'wandb', 'numpy',\n"
        "         'pygame', 'imageio', 'matplotlib', 'pandas', 'PIL'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.endswith("HEAVY []\n")
    assert "mountaincar" in result.stdout


def test_a_pool_whose_package_is_missing_is_refused(compose, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"ray, which is not .*'vlmrm_exp\[ray\]'"):
        compose("compute.pool=ray")
    with pytest.raises(ConfigError, match="Did you mean ray"):
        compose("compute.pool=rays")


def test_all_cores_are_used_unless_a_number_is_given(monkeypatch):
    gpu = []
    exists = os.path.exists
    monkeypatch.setattr(
        "os.path.exists",
        lambda path: bool(gpu) if path == "/proc/driver/nvidia" else exists(path),
    )
    for cores, workers, threads in ((1, 1, 1), (2, 2, 1), (8, 8, 4), (64, 16, 8)):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, n=cores: set(range(n)))
        compute = composed().compute
        assert (compute.num_workers, compute.num_physics_threads) == (workers, threads)
    gpu.append("one")
    assert composed().compute.num_workers == 1
    assert composed("compute=cpu").compute.num_workers == 16
    given = composed("compute.workers=0", "compute.physics_threads=3").compute
    assert (given.num_workers, given.num_physics_threads) == (0, 3)


def test_a_reward_that_costs_nothing_is_asked_for_every_state(compose):
    assert compose("task=kneeling").reward.every == 2
    for reward in ("predicate", "environment"):
        assert compose("task=kneeling", f"reward={reward}").reward.every == 1


@pytest.mark.slow
def test_render_presets_leave_embedded_models_their_own_pictures(compose):
    def picture(*words: str) -> tuple[int, bool]:
        config = compose("task=kneeling", *words)
        return config.frame_height, config.clip.render_effects

    assert picture("clip=vitb32") == (480, True)
    assert picture("clip=vitb32", "render=paper") == (480, True)
    assert picture("clip=vitb32", "render=fast") == (224, False)
    assert picture("render=fast", "clip=bigG", "clip.frame_height=300") == (300, False)
    assert picture("clip=base", "render=fast") == (96, False)
    assert picture("clip=base", "render=paper") == (96, False)
    toy = compose("task=cartpole", "clip=vitb32", "render=paper")
    assert toy.frame_height == 400


@pytest.mark.slow
def test_what_is_typed_but_not_read_is_told(compose):
    def notes(*words: str) -> list[str]:
        typed = [word.partition("=")[0] for word in words]
        return [note.split()[0] for note in unread(compose(*words), typed)]

    assert notes("reward=predicate", "task=cartpole", "alpha=0.5", "clip=nano") == [
        "alpha", "clip"]  # fmt: skip
    assert notes("reward=environment", "reward.every=7") == ["reward.every"]
    assert notes("reward=video", "reward.every=7") == ["reward.every"]
    assert notes("task.frame_height=30", "clip=nano") == ["task.frame_height"]
    assert notes("alpha=0", "baseline=a car") == ["baseline"]
    assert notes("clip=tiny", "render=fast") == ["render"]
    assert notes("clip=vitb32", "render=fast") == []
    assert notes("renormalise=false", "prompt=[a, b]") == []
    assert notes("renormalise=false", "log.project=x", "log=none") == [
        "renormalise", "log.project"]  # fmt: skip
    assert notes("task=kneeling", "alpha=0.5", "baseline=a", "clip.batch_size=8") == []
    assert notes("+task.options.x=1") == ["task.options.x"]
    assert notes("alpha=0", "baseline=a car", "reward=video") == ["baseline"]
    way = "reward=video", "reward.options.of=change", "baseline=a car"
    assert notes("alpha=0", *way) == []
    gym = "task=gym", "task.env_id=Pendulum-v1", "prompt=a", "baseline=b"
    assert notes(*gym, "clip=nano", "task.frame_height=60", "alpha=0.5") == []
    assert notes(*gym, "alpha=0.5", "clip.frame_height=60") == ["clip.frame_height"]
