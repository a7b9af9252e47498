"""`scripts/best_of_n.py`: pressure without learning, beside learning."""

import importlib
import json
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import yaml

from vlmrm_exp.config import ConfigError
from vlmrm_exp.envs import world_of
from vlmrm_exp.reward import make_model

pytestmark = pytest.mark.slow

WORDS = ("task=mountaincar", "clip=nano", "compute.workers=0", "task.episode_length=40")
EVALUATED = [(0, 0.1, 0.0), (50, 0.3, 0.25), (100, 0.2, 0.5)]
"""Gradient steps, reward, share of steps in the goal."""


@pytest.fixture
def best_of_n(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "scripts")
    monkeypatch.chdir(tmp_path)  # where it writes
    return importlib.import_module("best_of_n")


@pytest.fixture
def write(tmp_path, compose):
    def written(name: str, *words: str, judged: bool = True):
        config, folder = compose(*words), tmp_path / name
        folder.mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump(asdict(config)))
        with (folder / "metrics.jsonl").open("w") as file:
            for steps, reward, goal in EVALUATED:
                line = {"env_steps": 10 * steps, "train/gradient_steps": steps,
                        "eval/reward_mean": reward}  # fmt: skip
                json.dump(line | ({"judge/predicate": goal} if judged else {}), file)
                file.write("\n")
        return config, str(folder)

    return written


def test_random_policies_are_judged_by_each_runs_reward(
    best_of_n, write, monkeypatch, capsys, tmp_path
):
    runs = [
        write("own", *WORDS),
        write("left", *WORDS, "prompt=a car, in the valley", "alpha=0.5"),
        write("bare", *WORDS, "reward=environment"),
    ]
    folders = [folder for _, folder in runs]
    monkeypatch.setattr("sys.argv", ["best_of_n", *folders, "--policies", "10"])
    best_of_n.main()
    _, *tables = capsys.readouterr().out.split("mountaincar: ")
    episodes = best_of_n.random_episodes(runs[0][0], 10)
    assert episodes.states.shape == (40, 10, 2)
    of_each = episodes.states.swapaxes(0, 1)
    for (config, _), table in zip(runs, tables, strict=True):
        model = make_model(config)
        rewards = model.rewards(episodes).mean(0)
        model.close()
        met = world_of(config.task).predicate(config.task)
        goals = np.array([met(states).mean() for states in of_each])
        one, ten, learned = [
            re.findall(r"-?\d\.\d{3}", line) for line in table.splitlines()[4:7]
        ]
        assert one[0] == f"{rewards.mean():.3f}"
        assert one[3] == f"{goals.mean():.3f}"
        assert ten[0] == f"{rewards.max():.3f}"
        assert ten[1] == f"{goals[rewards.argmax()]:.3f}"
        assert learned == ["0.300", "0.250"]
    assert (tmp_path / "best_of_n.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("words", "judged", "sentence"),
    [
        (("clip=tiny",), True, "another clip than"),
        (("task.episode_length=20",), True, "another task than"),
        (("task=hill_then_flag", "reward=stages"), True, "not of states alone"),
        ((), False, "no evaluations with judge=predicate"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(
    best_of_n, write, monkeypatch, words, judged, sentence
):
    _, first = write("first", *WORDS)
    _, other = write("other", *WORDS, *words, judged=judged)
    monkeypatch.setattr("sys.argv", ["best_of_n", first, other])
    with pytest.raises(ConfigError, match=f"^{other} has .*{sentence}"):
        best_of_n.main()


@pytest.mark.parametrize("policies", ["0", "-1"])
def test_there_is_a_policy(best_of_n, write, monkeypatch, policies):
    _, folder = write("first", *WORDS)
    monkeypatch.setattr("sys.argv", ["best_of_n", folder, f"--policies={policies}"])
    with pytest.raises(ConfigError, match="give one at least"):
        best_of_n.main()
