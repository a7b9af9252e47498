"""Captions, their probabilities, the tokenizer, and a pretraining in small."""

import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from vlmrm_exp.captions import (
    BASELINES,
    HELD_OUT,
    Caption,
    humanoid_facts,
    joint_mean,
    likelihood_ratios,
)
from vlmrm_exp.config import ConfigError, conf_dir
from vlmrm_exp.envs.goals import GOALS, HumanoidGoal
from vlmrm_exp.envs.poses import (
    ARM_NAMES,
    ARMS,
    LEG_NAMES,
    LEGS,
    PoseLibrary,
)
from vlmrm_exp.pretrain import (
    Batches,
    PretrainConfig,
    check,
    divergence,
    learn_merges,
    make_optimizers,
    model_config,
    write_tokenizer,
)
from vlmrm_exp.vlm.source import EMBEDDED, open_clip
from vlmrm_exp.worlds import (
    LOOKS,
    WORLDS,
    Captioner,
    Drawing,
    World,
    draw_rows,
    drawn_before,
)


def pretrain_config(*overrides: str) -> PretrainConfig:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = OmegaConf.to_object(hydra_compose("pretrain", [*overrides]))
    assert isinstance(config, PretrainConfig)
    return config


def world_of(name: str, count: int, seed: int = 0) -> World:
    """Without pictures."""
    rows = draw_rows(name, count, np.random.default_rng(seed))
    world = World(name, rows, np.zeros((count, 0)), np.zeros(count, int))
    if name == "humanoid":
        library = PoseLibrary()
        world.poses = library.leg_distances(rows), library.arm_distances(rows)
    return world


@pytest.mark.parametrize("name", WORLDS)
def test_held_out_sentences_are_never_drawn_but_their_words_are(name):
    captioner, rng = Captioner(world_of(name, 300)), np.random.default_rng(0)
    drawn = [c for _ in range(60) for c in captioner.draw(np.arange(300), rng)[0]]
    tasks = GOALS if name == "humanoid" else (name,)
    held_out = {s for task in tasks for s in HELD_OUT[task]}
    assert not (held_out | {BASELINES[name]}) & set(drawn)
    words = {w.strip(",") for sentence in drawn for w in sentence.split()}
    unknown = {w.strip(",") for s in held_out for w in s.split()} - words
    assert (
        unknown
        <= {
            "humanoid": {"balances", "does", "holds", "is", "sits"},
            "cartpole": {"stands", "that"},
            "mountaincar": {"standing"},
        }[name]
    )


@pytest.mark.parametrize("name", WORLDS)
def test_likelihood_ratios_average_to_one_over_states(name):
    """E_s[p(c | s) / p(c)] = 1 for every caption, over the states behind the mean."""
    captioner = Captioner(world_of(name, 200))
    _, ratios = captioner.draw(np.arange(200), np.random.default_rng(0))
    np.testing.assert_allclose(ratios.mean(axis=0), 1, atol=1e-6)


def test_likelihood_ratios_by_hand():
    facts = (np.array([[0.8, 0.2], [0.4, 0.6]]), np.array([[1.0, 0.0], [0.5, 0.5]]))
    captions = [
        Caption("first", ({0: 1.0}, None)),
        Caption("anything", (None, None)),
        Caption("second of both", ({1: 1.0}, {1: 1.0})),
        Caption("first, rarely second", ({0: 1.0, 1: 0.5}, None)),
    ]
    expected = [
        [0.8 / 0.6, 1, 0, 0.9 / 0.8],
        # second of both: 0 in one state and 0.3 in the other, 0.15 on average
        [0.4 / 0.6, 1, 0.3 / 0.15, 0.7 / 0.8],
    ]
    ratios = likelihood_ratios(facts, joint_mean(facts), captions)
    np.testing.assert_allclose(ratios, expected)


FORM = {"a", "the", "humanoid", "robot", "human-like", "robotic", "figure",
        "pole", "cart", "on", "of", "top", "is", "with", "and", "pole,"}  # fmt: skip


def near_pair(name: str) -> World:
    """Two states of a world of which several things can be said alike."""
    world = world_of(name, 2)
    match name:
        case "mountaincar":
            world.rows[:, 0] = (0.5, 0.2)
        case "cartpole":
            world.rows[:, (0, 2)] = ((0.3, 0.1), (1.0, 0.3))
        case "humanoid":  # on its back and falling: in two groups, and "falling over"
            legs, arms = np.full((2, len(LEG_NAMES)), 9.0), np.ones((2, len(ARM_NAMES)))
            fallen = [LEG_NAMES.index(n) for n in ("lying_back", "sitting")]
            falling = [LEG_NAMES.index(n) for n in ("falling_back", "falling_side")]
            legs[:, fallen] = ((0.5, 2), (2, 0.5))
            legs[:, falling] = ((1, 2), (2, 1.5))
            world.poses = legs, arms
    return world


def far_pair() -> World:
    """Two bodies that are in no pose of the library, one of them nearly in one."""
    world = world_of("humanoid", 2)
    legs, arms = np.full((2, len(LEG_NAMES)), 60.0), np.full((2, len(ARM_NAMES)), 30.0)
    legs[1, 0], arms[1, 0] = 2.0, 1.0
    world.poses = legs, arms
    return world


def test_a_pose_is_told_of_where_it_is_and_none_where_no_pose_is():
    squared = np.array([[0.0, 50, 50], [4, 50, 50], [16, 50, 50], [900, 900, 900]])
    told = humanoid_facts(squared, squared)[0]
    np.testing.assert_allclose(told.sum(axis=1), 1)
    assert (np.diff(told[:, 0]) < 0).all()  # a peak, not a plateau
    assert told[0, 0] > 0.6
    assert told[-1, -1] > 0.95
    # At twice the width of a bell alone, the pose is as probable as none: 2 for the
    # middle one, where the narrow one says none and the wide one hardly does.
    narrow, middle = (np.exp([-d / 2, -2.0]) for d in (4 / 0.5**2, 4.0))
    wide = np.exp([-4 / 9 / 2, -2.0, -50 / 9 / 2, -50 / 9 / 2])
    expected = sum(bell[0] / bell.sum() for bell in (narrow, middle, wide)) / 3
    assert told[1, 0] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("world", [near_pair(name) for name in WORLDS] + [far_pair()],
                         ids=[*WORLDS, "no_pose"])  # fmt: skip
def test_captions_are_drawn_as_often_as_their_ratio_says(world):
    """Of two states, the one with twice the ratio is captioned so twice as often."""
    captioner, rng = Captioner(world), np.random.default_rng(0)
    counts: Counter[tuple[int, str]] = Counter()
    seen: dict[str, np.ndarray] = {}
    for _ in range(9000):
        sentences, ratios = captioner.draw(np.arange(2), rng)
        for state, sentence in enumerate(sentences):
            # Who it is said of, and how, is drawn apart: less of it, more of each.
            words = " ".join(w for w in sentence.split() if w not in FORM)
            counts[state, words] += 1
            seen[words] = ratios[:, state]
    compared = set()
    for sentence, ratio in seen.items():
        both = counts[0, sentence], counts[1, sentence]
        if min(both) > 150:
            expected = ratio[0] / ratio[1]
            assert both[0] / both[1] == pytest.approx(expected, rel=0.25), sentence
            compared.add(sentence)
    assert len(compared) >= 3
    if world.poses is not None and world.poses[0].min() > 1:
        assert "moving awkwardly" in compared  # in no pose


def test_poses_that_captions_name_meet_the_tasks_predicates():
    """What captions call kneeling, lotus and so on is what success is judged by."""
    library = PoseLibrary()
    legs = {
        "kneeling": "kneeling",
        "lotus": "lotus",
        "standing_up": "standing",
        "splits": "splits",
        "one_leg": "one_leg",
    }
    arms = {"arms_raised": "raised", "hands_on_hips": "hips", "arms_crossed": "crossed"}
    for task in GOALS:
        named = [library.row(p, ARMS[0]) for p in LEGS if p.name == legs.get(task)]
        named += [library.row(LEGS[0], p) for p in ARMS if p.name == arms.get(task)]
        assert len(named) >= 2
        assert HumanoidGoal(task)(np.stack(named)).all(), task
    others = [library.row(p, ARMS[0]) for p in LEGS if p.name not in legs.values()]
    low = ("kneeling", "lotus", "splits")
    assert not any(HumanoidGoal(task)(np.stack(others)).any() for task in low)


def test_tokenizer_reads_back_what_it_wrote(tmp_path):
    from vlmrm_exp.vlm.source import open_clip

    corpus = ["a robot kneeling down", "a robot standing", "kneeling kneeling"]
    size = write_tokenizer(tmp_path / "bpe.txt.gz", learn_merges(corpus, 200))
    tokenizer = open_clip.tokenizer.SimpleTokenizer(str(tmp_path / "bpe.txt.gz"))
    assert tokenizer.vocab_size == size
    tokens = tokenizer.encode("a robot kneeling")
    assert len(tokens) == 3  # a token a word: all merges of these words are learned
    assert tokenizer.decode(tokens).split() == ["a", "robot", "kneeling"]
    unknown = tokenizer.encode("zebra")
    assert max(unknown) < size
    assert tokenizer.decode(unknown).split() == ["zebra"]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("processes=0", "processes is 0"),
        ("recipe.steps=0", "recipe.steps is 0"),
        ("recipe.learning_rate=0", "recipe.learning_rate is 0: give a number above 0"),
        ("recipe.matrix_learning_rate=nan", "matrix_learning_rate is nan"),
        ("recipe.states.humanoid=0", "recipe.states.humanoid is 0: give .* from 1 up"),
        ("held_out_states=0", "held_out_states is 0"),
        ("recipe.share.cartpole=0.001", "share.cartpole is 0.001, .* 1 of 1024"),
        ("recipe.share.cartpole=nan", "recipe.share.cartpole is nan"),
        ("recipe.text_heads=5", "recipe.text_width is 96, .* 5 heads"),
        ("recipe.image_layers=[1,1]", "four stages"),
        ("recipe.weight_decay=-1", "recipe.weight_decay is -1"),
        ("device=tpu", "device is 'tpu'"),
        ("clip.precision=fp7", "clip.precision is 'fp7'"),
        ("seed=-1", "seed is -1"),
        ("clip.frame_height=null", "clip.frame_height=96"),
        ("folder=FOLDER", "holds a model already"),
        ("init=FOLDER", "it has no bpe.txt.gz"),
        (f"init={EMBEDDED}/nano", "no model of the recipe's sizes"),
    ],
)
def test_impossible_pretraining_is_refused_at_once(tmp_path, override, says):
    (tmp_path / "open_clip_model.safetensors").touch()
    overrides = [override.replace("FOLDER", str(tmp_path))]
    if "folder" not in override:
        overrides.append(f"folder={tmp_path}/new")
    config = pretrain_config(*overrides)
    with pytest.raises(ConfigError, match=says):
        check(config)


def test_every_parameter_has_one_optimizer():
    config = pretrain_config("clip=nano")
    description = model_config(config.recipe, 700)
    model = open_clip.model.CLIP(**description["model_cfg"])
    matrices, others = (
        [p for group in optimizer.param_groups for p in group["params"]]
        for optimizer in make_optimizers(model, config.recipe)
    )
    assert sorted(map(id, matrices + others)) == sorted(map(id, model.parameters()))
    names = dict(model.named_parameters())
    hidden = ("visual.layer2.0.conv2.weight", "transformer.resblocks.0.mlp.c_fc.weight")
    outer = ("visual.conv1.weight", "token_embedding.weight", "text_projection")
    assert all(any(names[n] is p for p in matrices) for n in hidden)
    assert all(any(names[n] is p for p in others) for n in outer)
    assert all(p.ndim >= 2 for p in matrices)


def test_divergence_by_hand():
    """Of rows and of columns; 0 where the softmax is the posterior."""
    ratios = torch.tensor([[3.0, 1.0], [0.5, 1.5]])
    assert divergence(ratios.log(), ratios).item() == pytest.approx(0, abs=1e-6)
    predicted = torch.tensor([[0.0, 0.0], [1.0, 0.0]])

    def from_posterior(targets, logits):
        p = np.array(targets) / np.sum(targets)
        q = np.exp(logits) / np.exp(logits).sum()
        return (p * np.log(p / q)).sum()

    rows = from_posterior([3, 1], [0, 0]) + from_posterior([0.5, 1.5], [1, 0])
    columns = from_posterior([3, 0.5], [0, 1]) + from_posterior([1, 1.5], [0, 0])
    expected = (rows / 2 + columns / 2) / 2
    assert divergence(predicted, ratios).item() == pytest.approx(expected, abs=1e-6)


def test_shipped_models_are_a_ladder_made_by_their_recipes():
    sizes, steps = [], []
    for name in ("nano", "tiny", "small", "base"):
        recipe = pretrain_config(f"clip={name}").recipe
        folder = EMBEDDED / name
        shipped = json.loads((folder / "open_clip_config.json").read_text())
        vocabulary = shipped["model_cfg"]["text_cfg"]["vocab_size"]
        assert shipped == model_config(recipe, vocabulary)
        weights = load_file(folder / "open_clip_model.safetensors")
        sizes.append(sum(w.numel() for w in weights.values()))
        steps.append(recipe.steps)
        assert all(w.isfinite().all() for w in weights.values())
    assert sizes == sorted(set(sizes))
    assert steps == sorted(set(steps))
    files = [file for file in EMBEDDED.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 20e6


@pytest.mark.slow
def test_drawing_does_not_depend_on_the_number_of_processes(tmp_path):
    (one,), (two,) = (
        drawn_before(tmp_path / str(n), [Drawing("humanoid", 500, 0, 96, 64)], n)
        for n in (1, 2)
    )
    np.testing.assert_array_equal(one.rows, two.rows)
    np.testing.assert_array_equal(one.frames, two.frames)
    assert set(one.looks) <= set(range(len(LOOKS["humanoid"])))
    assert one.poses is not None
    assert one.poses[0].shape == (500, len(LEG_NAMES))
    assert one.poses[1].shape == (500, len(ARM_NAMES))


@pytest.mark.slow
def test_batches_do_not_depend_on_who_draws_them(tmp_path):
    drawings = [Drawing("humanoid", 16, 0, 96, 64), Drawing("cartpole", 16, 0, 96, 64)]
    captioners = [Captioner(w) for w in drawn_before(tmp_path, drawings, 1)]
    tokenizer = open_clip.tokenizer.SimpleTokenizer(
        str(EMBEDDED / "nano" / "bpe.txt.gz"), context_length=32
    )
    batches = Batches(captioners, [4, 3], tokenizer, seed=0, steps=5)
    alone = list(DataLoader(batches, batch_size=None))
    assert len(alone) == 5
    helped = DataLoader(batches, batch_size=None, num_workers=1)
    for one, other in zip(alone, helped, strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)
    indices, tokens, ratios = alone[0]
    assert [len(index) for index in indices] == [4, 3]
    assert tokens.shape == (7, 32)
    assert [ratio.shape for ratio in ratios] == [(4, 4), (3, 3)]
    assert not torch.equal(tokens, alone[1][1])  # drawn anew for each step
    others = Batches(captioners, [4, 3], tokenizer, seed=1, steps=5)
    assert not torch.equal(tokens, others[0][1])


@pytest.mark.slow
def test_pretraining_goes_on_from_a_model(tmp_path):
    """With no step to speak of it says what it said: its weights and its tokenizer."""
    command = [
        sys.executable, "-m", "vlmrm_exp.pretrain", "clip=nano", "threads=1",
        "recipe.steps=1", "recipe.learning_rate=1e-9",
        "recipe.matrix_learning_rate=1e-9", "recipe.batch_size=16",
        "recipe.states={humanoid: 16, cartpole: 16, mountaincar: 16}",
        "held_out_states=100", f"init={EMBEDDED}/nano", f"folder={tmp_path}/model",
    ]  # fmt: skip
    result = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    before, after = (
        load_file(folder / "open_clip_model.safetensors")
        for folder in (EMBEDDED / "nano", tmp_path / "model")
    )
    assert before.keys() == after.keys()
    for name, value in before.items():
        if "running" not in name and "num_batches" not in name:  # of batch statistics
            torch.testing.assert_close(after[name], value, atol=1e-5, rtol=1e-3)
    same = (EMBEDDED / "nano" / "bpe.txt.gz").read_bytes()
    assert (tmp_path / "model" / "bpe.txt.gz").read_bytes() == same


@pytest.mark.slow
def test_pretraining_makes_a_model_that_loads_and_a_report(tmp_path, monkeypatch):
    command = [
        sys.executable, "-m", "vlmrm_exp.pretrain", "recipe.steps=3", "threads=1",
        "recipe.states={humanoid: 64, cartpole: 32, mountaincar: 32}",
        "recipe.batch_size=16", "held_out_states=200", f"folder={tmp_path}/model",
    ]  # fmt: skip
    result = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "model" / "report.json").read_text())
    assert {row["task"] for row in report} == {*GOALS, "cartpole", "mountaincar"}
    made = OmegaConf.load(tmp_path / "model" / "config.yaml")
    assert (made.recipe.steps, made.recipe.states.humanoid) == (3, 64)
    assert (tmp_path / "model" / "versions.json").is_file()
    run = [
        sys.executable, "-m", "vlmrm_exp", "experiment=smoke", "log=none",
        f"clip.model=local-dir:{tmp_path}/model",
    ]  # fmt: skip
    trained = subprocess.run(
        run, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert trained.returncode == 0, trained.stderr
