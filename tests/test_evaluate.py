"""`python -m vlmrm_exp.evaluate` on runs whose policies' behaviour is known."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from vlmrm_exp import __main__ as training
from vlmrm_exp import composition
from vlmrm_exp.config import Config, ConfigError
from vlmrm_exp.envs import world_of
from vlmrm_exp.evaluate import SEED_OFFSET, check, evaluate
from vlmrm_exp.run_folder import load_run_config

pytestmark = pytest.mark.slow

# The cart is pushed to where the pole falls, and a little towards the middle.
BALANCING = np.array([0.05, 0.1, 1.0, 0.3])
FAILING = np.array([0.0, 0.0, 1.0, 0.01])  # at different steps

CARTPOLE = (
    "experiment=smoke",
    "task=cartpole",
    "clip=nano",
    "compute=cpu",
    "compute.workers=0",
    "algo.hidden=[2]",
    "algo.num_envs=4",
    "log=none",
    "name=test",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of a run of CartPole, learned from a sentence in a few steps."""
    folder = tmp_path_factory.mktemp("trained")
    composed = composition.compose("config", *CARTPOLE)
    text = OmegaConf.to_yaml(composed.cfg, resolve=True)
    (folder / "config.yaml").write_text(text)
    training.run(training.check(composed), folder, {})
    return folder


Make = Callable[..., Path]


@pytest.fixture
def make(trained: Path, tmp_path: Path) -> Make:
    """A copy of the run whose policy pushes right where controller @ o > 0.

    Its episodes are of full length, and the reward is the environment's own unless
    another is asked for.
    """

    def made(controller: np.ndarray, *keys: str, name: str = "run") -> Path:
        folder = tmp_path / name
        shutil.copytree(trained, folder)
        keys = ("reward=environment", "task.episode_length=200", *keys)
        cfg = composition.compose("config", *CARTPOLE, *keys).cfg
        OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
        path = folder / "checkpoints" / "best.pt"
        checkpoint = torch.load(path, weights_only=True)
        weights = {key: w.zero_() for key, w in checkpoint["policy"].items()}
        first, last = (w for key, w in weights.items() if key.endswith("weight"))
        first[0], first[1] = torch.tensor(controller), -torch.tensor(controller)
        last[1, 0] = last[0, 1] = 1.0  # Q(right) = max(s, 0), Q(left) = max(-s, 0)
        torch.save(checkpoint | {"env_steps": 1234}, path)
        return folder

    return made


def evaluated(folder: Path, *words: str) -> dict[str, Any]:
    """What `python -m vlmrm_exp.evaluate run=FOLDER WORDS` would return."""
    words = ("video=false", "compute.workers=0", *words)
    return evaluate(*check(composition.compose("evaluate", f"run={folder}", *words)))


def play_by_hand(config: Config, controller: np.ndarray, num_envs: int, seed: int):
    """One episode per environment: own rewards (T, N), success (N,)."""
    envs = world_of(config.task).make_envs(config.task, num_envs, 1)
    observation, rewards, goals = envs.reset(seed), [], []
    for _ in range(envs.episode_length):
        step = envs.step((observation @ controller > 0).astype(np.int64))
        observation = step.observation
        rewards.append(step.env_reward)
        goals.append(step.goal)
    return np.array(rewards), np.all(goals, axis=0)


def test_a_good_policy_is_told_from_a_bad_one(make: Make, capsys):
    good = evaluated(make(BALANCING), "episodes=10")
    assert good["eval/success_rate"] == 1
    assert "success  1.00 (95 % interval 0.72 to 1.00), 10/10" in (
        capsys.readouterr().out
    )
    bad = evaluated(make(-BALANCING, name="bad"), "episodes=10")
    assert bad["eval/success_rate"] == 0


def test_it_equals_the_same_episodes_played_by_hand(make: Make):
    folder = make(FAILING)
    evaluated(folder, "episodes=4", "seed=5")
    saved = json.loads((folder / "evaluation.json").read_text())
    rewards, success = play_by_hand(load_run_config(folder), FAILING, 4, 5)
    returns = rewards.sum(0)
    assert 0 < returns.std()
    assert saved["per_episode"]["return"] == returns.tolist()
    assert saved["per_episode"]["success"] == success.tolist()
    assert saved["eval/return_mean"] == pytest.approx(returns.mean())
    error = np.sqrt(((returns - returns.mean()) ** 2).sum() / 3 / 4)
    assert saved["eval/return_standard_error"] == pytest.approx(error)
    assert (saved["seed"], saved["policy_env_steps"]) == (5, 1234)
    assert saved["reward"] == "environment"
    assert saved["versions"]["packages"]["numpy"] == np.__version__


def test_exactly_the_episodes_asked_for_are_played(make: Make):
    folder = make(BALANCING)
    result = evaluated(folder, "episodes=5")
    assert result["seed"] == SEED_OFFSET  # elsewhere than training
    assert len(result["per_episode"]["return"]) == result["eval/episodes"] == 5
    # Rewards that need no picture are known of all episodes.
    assert len(result["per_episode"]["reward_mean"]) == 5
    one = evaluated(folder, "episodes=1")
    assert one["eval/return_standard_error"] is None
    # Earlier ones are kept.
    assert json.loads((folder / "evaluation.json").read_text())["eval/episodes"] == 5
    assert json.loads((folder / "evaluation-2.json").read_text()) == one


def test_only_the_first_episodes_are_rendered(make: Make, capsys):
    means = []
    for name, controller in (("good", BALANCING), ("bad", -BALANCING)):
        keys = ("reward=clip", "task.episode_length=40")
        folder = make(controller, *keys, name=name)
        result = evaluated(folder, "episodes=6", "reward_episodes=3")
        assert len(result["per_episode"]["reward_mean"]) == 3
        assert len(result["per_episode"]["success"]) == 6
        assert (result["eval/reward_episodes"], result["eval/episodes"]) == (3, 6)
        assert result["versions"]["drawn_by"]
        means.append(result["eval/reward_mean"])
    assert means[0] > means[1]
    printed = capsys.readouterr().out
    assert "(± standard error), of 3 episodes" in printed
    assert "rewards differ" not in printed  # its weights are the run's


def test_a_reward_that_learned_is_asked_with_what_it_has_learned(program, tmp_path):
    folder = tmp_path / "run"
    ended = program(
        *CARTPOLE, "reward.options.sign=-1", "reward.model=point_mass:Rare",
        "env_steps=160",
        f"hydra.run.dir={folder}",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    learned = json.loads((folder / "summary.json").read_text())["eval/reward_mean"]
    assert learned < 0  # nothing is learned: 0
    assert evaluated(folder, "episodes=2")["eval/reward_mean"] == learned
    (folder / "checkpoints" / "reward.pt").write_bytes(b"damaged")
    with pytest.raises(ConfigError, match=r"reward learns, but .* cannot be read"):
        evaluated(folder, "episodes=2")
    (folder / "checkpoints" / "reward.pt").unlink()
    with pytest.raises(ConfigError, match=r"but there is no .*reward\.pt"):
        check(
            composition.compose("evaluate", f"run={folder}")
        )  # before any model is loaded


def test_random_actions_stand_beside_a_policy(make: Make):
    """They need no checkpoint, repeat, and leave the policy's own file alone."""
    folder = make(BALANCING)
    evaluated(folder, "episodes=4")
    (folder / "checkpoints" / "best.pt").unlink()
    returns = [
        evaluated(folder, "episodes=4", "checkpoint=random")["per_episode"]["return"]
        for _ in range(2)
    ]
    assert returns[0] == returns[1]
    saved = json.loads((folder / "evaluation.json").read_text())
    assert min(saved["per_episode"]["return"]) > max(returns[0])
    assert (folder / "evaluation-random.json").is_file()
    assert (folder / "evaluation-random-2.json").is_file()  # the first is not lost


def test_the_last_policy_has_a_file_of_its_own(make: Make):
    folder = make(BALANCING)
    result = evaluated(folder, "episodes=1", "checkpoint=last")
    assert result["policy_env_steps"] == 40  # as trained
    assert (folder / "evaluation-last.json").is_file()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"encoder": {"weights_sha256": "abcdefgh"}}', "abcdefgh then, None now"),
        ('{"encoder": null}', None),
        ("{", "versions.json cannot be read"),
        ("[]", "versions.json cannot be read"),
        ('{"encoder": 3}', "versions.json cannot be read"),
    ],
)
def test_it_says_when_the_weights_may_be_others(make: Make, capsys, text, reason):
    """Damaged versions cost no episodes."""
    folder = make(BALANCING)
    (folder / "versions.json").write_text(text)
    evaluated(folder, "episodes=1")
    assert (folder / "evaluation.json").is_file()
    printed = capsys.readouterr().out
    assert (reason or "success") in printed
    assert ("versions.json" in printed or "then" in printed) == bool(reason)


def test_the_first_episodes_are_shown_in_a_video(make: Make, capsys):
    folder = make(BALANCING, "task.episode_length=20")
    evaluated(folder, "episodes=3", "video=true")
    video = folder / "videos" / "evaluation.mp4"
    count, _ = imageio_ffmpeg.count_frames_and_secs(str(video))
    assert count == 2 * 20
    assert str(video) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "Which run?"),
        (["run="], "Which run?"),
        (["run=a", "episode=3"], "no setting episode"),
        (["run=a", "episodes=many"], "give a whole number"),
        (["run=a", "episodes=0"], "episodes is 0: give a whole number from 1 up"),
        (["run=a", "reward_episodes=0"], "reward_episodes is 0"),
        (["run=a", "seed=-1"], "from 0 up"),
        (["run=a", "checkpoint=newest"], "must be one of best, last, random"),
        (["run=a", "compute=tpu"], "choose one of auto, cpu, gpu"),
        (["run=a", "compute.workers=-1"], "compute.workers is -1"),
        (["run=/nowhere"], "There is no folder /nowhere"),
        (["run=/"], "has no config.yaml"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(words, reason):
    with pytest.raises(ConfigError) as caught:
        check(composition.compose("evaluate", *words))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_without_a_policy_is_refused(trained: Path, tmp_path: Path):
    shutil.copy(trained / "config.yaml", tmp_path)
    with pytest.raises(ConfigError, match=r"There is no .*best\.pt: the run ended"):
        check(composition.compose("evaluate", f"run={tmp_path}"))


def test_compute_is_told_here_and_all_else_by_the_run(trained: Path):
    words = (f"run={trained}", "compute=cpu", "compute.torch_threads=3")
    _, config = check(composition.compose("evaluate", *words))
    run = load_run_config(trained)
    assert config.compute.torch_threads == 3
    assert config.compute.workers is None
    assert replace(config, compute=run.compute) == run


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"task: [", "while parsing"),
        (b"sead: 1", "sead"),
        (b"- 1", "this version can read"),
        (b"seed: 1", "no value for prompt, algo.name, .* and [0-9]+ others"),
        (b"5", "this version can read"),
        (b"\xff\xfe\x80", "this version can read"),
    ],
)
def test_load_run_config_refuses(tmp_path: Path, text: bytes, reason: str):
    (tmp_path / "config.yaml").write_bytes(text)
    with pytest.raises(ConfigError, match=reason) as caught:
        load_run_config(tmp_path)
    assert "\n" not in str(caught.value)


def test_load_run_config_gives_back_what_was_written(tmp_path: Path):
    keys = ("task=kneeling", "prompt=[a, b]", "algo.gamma=0.5", "seed=3", "name=x")
    composed = composition.compose("config", *keys)
    OmegaConf.save(composed.cfg, tmp_path / "config.yaml")
    assert load_run_config(tmp_path) == training.check(composed)


def test_an_older_runs_settings_that_are_not_said(tmp_path: Path, capsys):
    """One of what a run may have, and may have none of, is no such setting."""
    composed = composition.compose("config", "name=test")
    settings = OmegaConf.to_container(composed.cfg, resolve=True)
    for key in ("judge", "renormalise", "evaluation"):
        del settings[key]
    OmegaConf.save(settings, tmp_path / "config.yaml")
    assert load_run_config(tmp_path) == training.check(composed)
    said = capsys.readouterr().out
    assert "does not say evaluation, renormalise, as one of" in said


@pytest.mark.slow
def test_a_refusal_imports_nothing_heavy_and_makes_no_file(tmp_path: Path):
    code = (
        "import runpy, sys; sys.argv[1:] = ['run=nowhere']\n"
        "try: runpy.run_module('vlmrm_exp.evaluate', run_name='__main__')\n"
        "except SystemExit as ended: print('code', ended.code)\n"
        "heavy = {'torch', 'mujoco', 'gymnasium', 'open_clip', 'wandb', 'PIL'}\n"
        "print('heavy', heavy & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ended.stdout.split() == ["code", "2", "heavy", "set()"]
    assert ended.stderr.count("\n") == 1
    assert "There is no folder nowhere: give that of a run" in ended.stderr
    assert list(tmp_path.iterdir()) == []
