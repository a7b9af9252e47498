"""`python -m vlmrm_exp.evaluate` on runs whose policies' behaviour is known."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from vlmrm_exp.cli import load_run_config

from vlmrm_exp.config import ConfigError
from vlmrm_exp.envs import make_envs
from vlmrm_exp.evaluate import SEED_OFFSET, evaluate, main, parse

# The cart is pushed to where the pole falls, and a little towards the middle.
BALANCING = np.array([0.05, 0.1, 1.0, 0.3])


def make_run(folder: Path, config, controller: np.ndarray) -> Path:
    """A finished CartPole run whose policy pushes right where controller @ o > 0."""
    import torch

    from vlmrm_exp.rl.dqn import DQN
    from vlmrm_exp.rl.policy import save_policy

    envs = make_envs(config.task, 1)
    agent = DQN(
        config.algo, envs.observation_space, envs.action_space, 0, torch.device("cpu")
    )
    weights = {key: value.zero_() for key, value in agent.network.state_dict().items()}
    first, last = (w for key, w in weights.items() if key.endswith("weight"))
    first[0], first[1] = torch.tensor(controller), -torch.tensor(controller)
    last[1, 0] = last[0, 1] = 1.0  # Q(right) = max(s, 0), Q(left) = max(-s, 0)
    (folder / "checkpoints").mkdir(parents=True)
    OmegaConf.save(OmegaConf.structured(config), folder / "config.yaml")
    checkpoint = {**agent.checkpoint(), "env_steps": 1234}
    save_policy(folder / "checkpoints" / "best.pt", checkpoint)
    return folder


def play_by_hand(config, controller: np.ndarray, num_envs: int, seed: int):
    """One episode per environment: own rewards (T, N), success (N,)."""
    envs = make_envs(config.task, num_envs)
    observation, rewards, goals = envs.reset(seed), [], []
    for _ in range(envs.episode_length):
        step = envs.step((observation @ controller > 0).astype(np.int64))
        observation = step.observation
        rewards.append(step.env_reward)
        goals.append(step.goal)
    return np.array(rewards), np.all(goals, axis=0)


@pytest.fixture
def cartpole(compose):
    """CartPole with its own reward, and a network that `make_run` can fill."""
    return compose(
        "task=cartpole", "reward=ground_truth", "algo.hidden=[2]", "algo.num_envs=4"
    )


def test_evaluate_tells_a_good_policy_from_a_bad_one(tmp_path: Path, cartpole) -> None:
    good = make_run(tmp_path / "good", cartpole, BALANCING)
    bad = make_run(tmp_path / "bad", cartpole, -BALANCING)
    rates = []
    for folder in (good, bad):
        asked = parse([f"run={folder}", "episodes=10", "video=false"])
        rates.append(evaluate(asked)["eval/success_rate"])
    assert rates == [1.0, 0.0]


def test_evaluate_equals_the_same_episodes_played_by_hand(
    tmp_path: Path, cartpole
) -> None:
    controller = np.array([0.0, 0.0, 1.0, 0.01])  # fails, at different steps
    folder = make_run(tmp_path / "run", cartpole, controller)
    evaluate(parse([f"run={folder}", "episodes=4", "seed=5", "video=false"]))
    saved = json.loads((folder / "evaluation.json").read_text())
    rewards, success = play_by_hand(cartpole, controller, 4, 5)
    returns = rewards.sum(0)
    assert 0 < returns.std()
    assert saved["per_episode"]["return"] == returns.tolist()
    assert saved["per_episode"]["success"] == success.tolist()
    assert saved["eval/return_mean"] == pytest.approx(returns.mean())
    error = np.sqrt(((returns - returns.mean()) ** 2).sum() / 3 / 4)
    assert saved["eval/return_standard_error"] == pytest.approx(error)
    assert (saved["seed"], saved["policy_env_steps"]) == (5, 1234)
    assert (saved["textures"], saved["camera"]) == ("plain", "fixed")
    assert saved["versions"]["packages"]["numpy"] == np.__version__


def test_evaluate_plays_exactly_the_episodes_asked_for(
    tmp_path: Path, cartpole
) -> None:
    folder = make_run(tmp_path / "run", cartpole, BALANCING)
    result = evaluate(parse([f"run={folder}", "episodes=5", "video=false"]))
    assert len(result["per_episode"]["return"]) == result["eval/episodes"] == 5
    one = evaluate(parse([f"run={folder}", "episodes=1", "video=false"]))
    assert one["eval/return_standard_error"] is None


def test_random_actions_stand_beside_a_policy(tmp_path: Path, cartpole) -> None:
    """They need no checkpoint, repeat, and leave the policy's own file alone."""
    folder = make_run(tmp_path / "run", cartpole, BALANCING)
    evaluate(parse([f"run={folder}", "episodes=4", "video=false"]))
    (folder / "checkpoints" / "best.pt").unlink()
    asked = parse([f"run={folder}", "episodes=4", "checkpoint=random", "video=false"])
    returns = [evaluate(asked)["per_episode"]["return"] for _ in range(2)]
    assert returns[0] == returns[1]
    saved = json.loads((folder / "evaluation.json").read_text())
    assert min(saved["per_episode"]["return"]) > max(returns[0])
    assert (folder / "evaluation-random.json").is_file()
    assert (folder / "evaluation-random-2.json").is_file()  # the first is not lost


def test_evaluate_tells_when_the_weights_are_others(
    tmp_path: Path, cartpole, capsys
) -> None:
    folder = make_run(tmp_path / "run", cartpole, BALANCING)
    (folder / "versions.json").write_text('{"encoder": {"weights_sha256": "abcdefgh"}}')
    evaluate(parse([f"run={folder}", "episodes=1", "video=false"]))
    assert "abcdefgh then" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["{", "[]", '{"encoder": null}', '{"encoder": 3}'])
def test_damaged_versions_cost_no_episodes(tmp_path, cartpole, capsys, text) -> None:
    folder = make_run(tmp_path / "run", cartpole, BALANCING)
    (folder / "versions.json").write_text(text)
    evaluate(parse([f"run={folder}", "episodes=1", "video=false"]))
    assert (folder / "evaluation.json").is_file()
    damaged = "encoder" not in text
    assert ("versions.json cannot be read" in capsys.readouterr().out) == damaged


def test_evaluate_starts_elsewhere_than_training(tmp_path: Path, cartpole) -> None:
    folder = make_run(tmp_path / "run", cartpole, BALANCING)
    result = evaluate(parse([f"run={folder}", "episodes=1", "video=false"]))
    assert result["seed"] == cartpole.seed + SEED_OFFSET


def test_evaluate_draws_a_video(tmp_path: Path, compose, capsys) -> None:
    import imageio_ffmpeg

    options = ("reward=ground_truth", "algo.hidden=[2]", "task.episode_length=20")
    config = compose("task=cartpole", *options)
    folder = make_run(tmp_path / "run", config, BALANCING)
    evaluate(parse([f"run={folder}", "episodes=3"]))
    video = folder / "videos" / "evaluation.mp4"
    count, _ = imageio_ffmpeg.count_frames_and_secs(str(video))
    assert count == config.evaluation.video_episodes * 20
    printed = capsys.readouterr().out
    assert "success  1.00 (95 % interval 0.44 to 1.00), 3/3" in printed
    assert str(video) in printed


@pytest.mark.slow
def test_evaluate_scores_with_the_embedded_model(tmp_path: Path, compose) -> None:
    options = ("task=cartpole", "task.episode_length=60", "compute.scorer_workers=0")
    options += ("clip=base", "algo.hidden=[2]", "algo.num_envs=4")
    means = []
    for name, controller in (("good", BALANCING), ("bad", -BALANCING)):
        folder = make_run(tmp_path / name, compose(*options), controller)
        result = evaluate(parse([f"run={folder}", "episodes=4", "video=false"]))
        means.append(result["eval/reward_mean"])
        assert result["versions"]["drawn_by"]
    assert means[0] > means[1]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "Which run?"),
        (["run="], "Which run?"),
        (["outputs/a"], "write run=outputs/a"),
        (["run=a", "episode=3"], "Did you mean episodes?"),
        (["run=a", "episodes=many"], "could not be converted to Integer"),
        (["run=a", "episodes=[1"], "episodes=[1 cannot be read"),
        (["run=a", "episodes=0"], "at least 1"),
        (["run=a", "seed=-1"], "from 0 up"),
        (["run=a", "checkpoint=newest"], "must be one of best, last, random"),
        (["run=a", "compute=tpu"], "must be one of auto, cpu, gpu"),
    ],
)
def test_parse_refuses(arguments: list[str], reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(arguments)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_parse_takes_a_folder_as_it_is_typed() -> None:
    assert parse(["run=1e3"]).run == "1e3"
    assert parse(["run=a=[b"]).run == "a=[b"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "has no config.yaml"),
        ("task: [", "while parsing"),
        ("sead: 1", "sead"),
        ("- 1", "this version can read"),
        ("seed: 1", "has no value"),
        ("5", "this version can read"),
        (b"\xff\xfe\x80", "this version can read"),
    ],
)
def test_load_run_config_refuses(
    tmp_path: Path, text: str | bytes | None, reason: str
) -> None:
    if text is not None:
        data = text if isinstance(text, bytes) else text.encode()
        (tmp_path / "config.yaml").write_bytes(data)
    with pytest.raises(ConfigError, match=reason) as caught:
        load_run_config(tmp_path)
    assert "\n" not in str(caught.value)


def test_load_run_config_gives_back_what_was_written(tmp_path: Path, compose) -> None:
    config = compose("task=kneeling", "prompt=[a, b]", "algo.gamma=0.5", "seed=3")
    OmegaConf.save(OmegaConf.structured(config), tmp_path / "config.yaml")
    assert load_run_config(tmp_path) == config


def test_main_ends_bad_input_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, cartpole
) -> None:
    folder = make_run(tmp_path / "run", cartpole, BALANCING)
    for argument, reason in (
        (f"run={tmp_path / 'nowhere'}", "There is no folder"),
        (f"run={folder / 'config.yaml'}", "config.yaml is a file: give"),
        (f"run={tmp_path}", "has no config.yaml"),
        (f"run={folder}", "last.pt"),
    ):
        monkeypatch.setattr(sys, "argv", ["evaluate", argument, "checkpoint=last"])
        with pytest.raises(SystemExit) as caught:
            main()
        said = capsys.readouterr()
        assert caught.value.code == 2
        assert said.out == ""
        assert said.err.count("\n") == 1
        assert reason in said.err


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import runpy, sys; sys.argv[1:] = ['--help'];"
        "runpy.run_module('vlmrm_exp.evaluate', run_name='__main__');"
        "heavy = {'torch', 'mujoco', 'gymnasium', 'open_clip', 'wandb', 'PIL'};"
        "sys.exit(str(heavy & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == ""
    assert "episodes=100" in done.stdout


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_no_traceback(tmp_path: Path, cartpole) -> None:
    folder = make_run(tmp_path / "run", cartpole, BALANCING)
    command = [sys.executable, "-m", "vlmrm_exp.evaluate", f"run={folder}"]
    with subprocess.Popen(
        [*command, "episodes=1000000", "video=false"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        line = process.stderr.readline()  # progress: it has begun to play
        os.killpg(process.pid, signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert "env steps" in line
    assert rest.strip() == "Interrupted: nothing is saved of this."
    assert not (folder / "evaluation.json").exists()
