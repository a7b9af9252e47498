"""`python -m vlmrm_exp.bench`: what is counted is right, what is timed is whole.

No test here depends on how fast anything is.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from vlmrm_exp import bench, composition, timing
from vlmrm_exp.config import Config, ConfigError, cores
from vlmrm_exp.rl import Batch
from vlmrm_exp.rl.sac import SAC
from vlmrm_exp.timing import MatrixProducts, Stage, count_flop, summed_up, time_stage
from vlmrm_exp.vlm.imported import open_clip
from vlmrm_exp.vlm.int8 import to_int8
from vlmrm_exp.words import to_keys

SMALL = ("experiment=smoke", "turns=2", "turn_s=0.01", "compute.workers=0")


def asked(*words: str) -> tuple[bench.BenchConfig, Config | None]:
    keys = to_keys(list(words), {})
    config, reference, _ = bench.check(
        composition.compose("bench", *keys, "out=nowhere")
    )
    return config, reference


@pytest.mark.slow
def test_operations_of_an_image_tower_are_those_of_its_layers():
    patch, side, width, layers, dim = 8, 4, 32, 2, 12
    sizes = side * patch, patch, width, layers, 2, 4.0
    make = open_clip.transformer.VisionTransformer
    tower = make(*sizes, output_dim=dim).eval()
    tokens = side**2 + 1
    multiplications = side**2 * 3 * patch**2 * width  # the patches
    multiplications += layers * tokens * (4 + 2 * 4) * width**2  # dense layers
    multiplications += layers * 2 * tokens**2 * width  # attention
    multiplications += width * dim
    pictures = torch.zeros(3, 3, side * patch, side * patch)
    with torch.no_grad():
        assert count_flop(lambda: tower(pictures)) == 3 * 2 * multiplications
        to_int8(tower, "x")
        assert count_flop(lambda: tower(pictures)) == 3 * 2 * multiplications


def test_an_updates_matrix_products_are_found_all_and_nothing_else(
    compose: Callable[..., Config],
):
    algo = compose("task=kneeling", "algo.hidden=[8,6]").algo
    spaces = gym.spaces.Box(-1, 1, (5,)), gym.spaces.Box(-1, 1, (2,))
    agent = SAC(algo, *spaces, 0, torch.device("cpu"))
    rng = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=rng)

    last = torch.zeros(3, dtype=torch.bool)
    batch = Batch(random(3, 5), random(3, 2), random(3), random(3, 5), last)
    products = MatrixProducts()
    with products:
        agent.update(batch)
    before = [parameter.clone() for parameter in agent.actor.parameters()]
    assert count_flop(products.repeat) == count_flop(lambda: agent.update(batch)) > 0
    # Repeating them is no gradient step.
    products.repeat()
    after = list(agent.actor.parameters())
    agent.update(batch)
    assert len(before) == len(after)
    # A forward pass of the actor for the target and one for its own loss, with their
    # derivatives; a forward pass of both critics thrice, and their derivatives twice.
    actor = 5 * 8 + 8 * 6 + 6 * 4
    critics = 2 * (7 * 8 + 8 * 6)  # the last layer is no matrix product
    forward = 2 * actor + 3 * critics
    to_weights = actor + critics
    to_inputs = (actor - 5 * 8) + (critics - 2 * 7 * 8) + (critics - 2 * 5 * 8)
    expected = 2 * 3 * (forward + to_weights + to_inputs)
    assert count_flop(lambda: agent.update(batch)) == expected


def test_a_stage_is_repeated_until_its_time_is_over():
    calls = []

    def work() -> int:
        calls.append(sum(range(20_000)))
        return 3

    stage = Stage("", "", work, 1, 0)
    wall, cpu = time_stage(stage, 0.02)
    assert len(calls) > 1
    assert wall * 3 * len(calls) >= 0.02
    assert cpu > 0
    calls.clear()
    time_stage(stage, 0)
    assert len(calls) == 1


def test_ratios_are_taken_within_each_turn():
    stages = [
        Stage("simulate", "env step", lambda: 1, 1, 8),
        Stage("embed", "picture", lambda: 1, 0.5, 4, flop=600),
        Stage("update", "gradient step", lambda: 1, 0.1, 100),
        Stage("products", "gradient step", lambda: 1, 0, 0),
    ]

    def turn(slow: float, loop: float, reference: float) -> dict[str, Any]:
        """Seconds on the clock and of processors; everything takes `slow` as long."""
        seconds = [(0.1, 0.2), (1.0, 1.0), (2.0, 3.0), (0.5, 0.5)]
        return {
            "loop": loop,
            "reference": reference,
            "stages": [(wall * slow, cpu * slow) for wall, cpu in seconds],
            "matrix": [1000 / slow] * 4,
        }

    cpu = torch.device("cpu")
    turns = [turn(1, 3, 1), turn(2, 1.2, 0.6), turn(4, 0.5, 0.2)]
    result = summed_up(stages, turns, cpu)
    # CPU seconds of an env step: .2 + .5 + .3, over the cores.
    ratios = [cores() / 3, cores() / 1.2 / 2, cores() / 0.5 / 4]
    assert result["loop_over_stages"]["median"] == pytest.approx(np.median(ratios))
    assert result["loop_over_reference"] == pytest.approx(
        {"median": 2.5, "min": 2, "max": 3}
    )
    same = {"median": 4, "min": 4, "max": 4}  # however slow the machine is
    assert result["update_over_products"] == pytest.approx(same)
    _, embed, update = result["stages"]
    assert embed["of_ceiling"] == pytest.approx({k: 0.6 for k in same})
    assert embed["items_per_s"] == {"median": 0.5, "min": 0.25, "max": 1}
    assert embed["cpu_s_per_env_step"] == pytest.approx(2 * 0.5)
    assert update["bytes_per_env_step"] == pytest.approx(10)
    assert update["of_ceiling"] is None
    # On a GPU the slowest stage is the least: .5 s of embedding, alone.
    alone = summed_up(stages, turns[:1], torch.device("cuda"))
    assert alone["loop_over_stages"]["median"] == pytest.approx(
        1 / 3 / max(0.5, 1 / cores())
    )


@pytest.mark.long
def test_bench_of_a_humanoid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(timing, "MATRIX", 1024)
    monkeypatch.setattr(timing, "REFERENCE_STEPS", 4)  # 480 px each
    config, reference = asked("task=kneeling", "clip=nano", *SMALL)
    result = bench.measure(config, reference, tmp_path)
    assert json.loads((tmp_path / "bench.json").read_text()) == json.loads(
        json.dumps(result)
    )
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]
    rows = {row["stage"]: row for row in result["stages"]}
    assert list(rows) == ["simulate", "render", "embed", "update"]
    # Two episodes of ten steps, every second state in two views of 96 px, and two
    # gradient steps after them.
    per_env_step = {name: row["items_per_env_step"] for name, row in rows.items()}
    assert per_env_step == {"simulate": 1, "render": 0.5, "embed": 1, "update": 0.1}
    assert rows["simulate"]["bytes_per_env_step"] == 47 * 8
    assert rows["render"]["bytes_per_env_step"] == 2 * 96 * 96 * 3 / 2
    assert result["cores"] >= 1
    for name in ("embed", "update"):
        row = rows[name]
        assert row["of_ceiling"]["min"] <= row["of_ceiling"]["max"] < 2
    # Two turns: a ratio of each lies within those of the extremes.
    loop, plain = result["loop_env_steps_per_s"], result["reference_env_steps_per_s"]
    ratio = result["loop_over_reference"]
    assert loop["min"] / plain["max"] <= ratio["min"] <= ratio["max"]
    assert ratio["max"] <= loop["max"] / plain["min"]
    told = capsys.readouterr().out
    assert "kneeling, clip=nano" in told
    assert "times as fast" in told


@pytest.mark.slow
def test_bench_of_another_reward_and_algorithm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(timing, "MATRIX", 64)
    config, reference = asked("task=cartpole", "reward=predicate", *SMALL)
    assert reference is None
    result = bench.measure(config, reference, tmp_path)
    names = [row["stage"] for row in result["stages"]]
    assert names == ["simulate", "reward", "update"]
    assert result["reference_env_steps_per_s"] is None


@pytest.mark.slow
def test_bench_of_learned_rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What is not looked at costs no picture, but its estimate."""
    monkeypatch.setattr(timing, "MATRIX", 64)
    words = "task=kneeling", "clip=nano", "reward.query_share=0.2", *SMALL
    result = bench.measure(asked(*words)[0], None, tmp_path)
    rows = {row["stage"]: row["items_per_env_step"] for row in result["stages"]}
    assert rows == {
        "simulate": 1, "render": 0.2, "embed": 0.4, "estimate": 1, "update": 0.1
    }  # fmt: skip


def test_the_reference_is_fp32_and_may_be_of_another_model():
    config, reference = asked("task=kneeling", "clip=vitb32", "clip.precision=bf16")
    assert reference is not None
    assert (config.clip.precision, reference.clip.precision) == ("bf16", "fp32")
    assert reference.clip.pretrained == config.clip.pretrained
    words = ["task=kneeling", "clip.batch_size=8", "reference_clip=vitb32"]
    config, reference = asked(*words)
    assert reference is not None
    assert (config.clip.name, reference.clip.name) == ("base", "vitb32")
    assert reference.clip.pretrained == "random"
    assert (config.clip.batch_size, reference.clip.batch_size) == (8, None)


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("turns=0", "turns is 0"),
        ("turn_s=0", "turn_s is 0.0: give seconds above 0"),
        ("turn_s=nan", "turn_s is nan"),
        ("reference_clip=vitb33", "clip=vitb33"),
        ("algo=dqn", "use algo=sac"),
    ],
)
def test_what_cannot_be_timed_is_refused(word: str, sentence: str):
    with pytest.raises(ConfigError) as caught:
        asked("task=kneeling", word)
    assert sentence in str(caught.value)
