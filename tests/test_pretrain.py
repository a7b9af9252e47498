"""Captions and their probabilities, what is drawn, and a pretraining in small."""

import errno
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from vlmrm_exp import composition, pretrain
from vlmrm_exp.config import Config, ConfigError, conf_dir
from vlmrm_exp.device import choose_device
from vlmrm_exp.envs.goals import GOALS, HumanoidGoal
from vlmrm_exp.envs.poses import ARM_NAMES, ARMS, LEG_NAMES, LEGS, PoseLibrary
from vlmrm_exp.measures import auroc, pearson
from vlmrm_exp.pretraining import check, drawing, settings
from vlmrm_exp.pretraining.captions import (
    BASELINES,
    HELD_OUT,
    Caption,
    Captioner,
    joint_mean,
    likelihood_ratios,
    pose_facts,
)
from vlmrm_exp.pretraining.drawing import WORLDS, Drawing, draw_states, drawn_before
from vlmrm_exp.pretraining.settings import PretrainConfig, model_config
from vlmrm_exp.pretraining.training import (
    Batches,
    divergence,
    learn_merges,
    make_optimizers,
    train,
    write_tokenizer,
)
from vlmrm_exp.reward import Episodes
from vlmrm_exp.reward.clip import ClipReward
from vlmrm_exp.vlm.imported import open_clip
from vlmrm_exp.vlm.source import EMBEDDED

pytestmark = pytest.mark.slow

WEIGHTS = "open_clip_model.safetensors"


def checked(*keys: str) -> PretrainConfig:
    return pretrain.check(composition.compose("pretrain", *keys))


@functools.cache
def captioner_of(name: str) -> Captioner:
    """Of 200 states."""
    return Captioner(name, draw_states(name, 200, np.random.default_rng(0)))


@pytest.mark.parametrize("name", WORLDS)
def test_held_out_sentences_are_never_drawn_but_their_words_are(name):
    captioner, rng = captioner_of(name), np.random.default_rng(0)
    drawn = [c for _ in range(60) for c in captioner.draw(np.arange(200), rng)[0]]
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


def test_first_held_out_sentence_is_the_tasks_prompt():
    read = lambda name: OmegaConf.load(conf_dir() / "task" / f"{name}.yaml")  # noqa: E731
    assert read("_humanoid").baseline == BASELINES["humanoid"]
    for task, sentences in HELD_OUT.items():
        assert read(task).prompt == sentences[0]
        if task in BASELINES:
            assert read(task).baseline == BASELINES[task]


@pytest.mark.parametrize("name", WORLDS)
def test_likelihood_ratios_average_to_one_over_states(name):
    """E_s[p(c | s) / p(c)] = 1 for every caption, over the states behind the mean."""
    _, ratios = captioner_of(name).draw(np.arange(200), np.random.default_rng(0))
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


def near_pair(name: str) -> Captioner:
    """Of two states of a world of which several things can be said alike."""
    states = draw_states(name, 2, np.random.default_rng(0))
    match name:
        case "mountaincar":
            states[:, 0] = (0.5, 0.2)
        case "cartpole":
            states[:, (0, 2)] = ((0.3, 0.1), (1.0, 0.3))
        case "humanoid":  # on its back and falling: in two groups, and "falling over"
            legs, arms = np.full((2, len(LEG_NAMES)), 9.0), np.ones((2, len(ARM_NAMES)))
            fallen = [LEG_NAMES.index(n) for n in ("lying_back", "sitting")]
            falling = [LEG_NAMES.index(n) for n in ("falling_back", "falling_side")]
            legs[:, fallen] = ((0.5, 2), (2, 0.5))
            legs[:, falling] = ((1, 2), (2, 1.5))
            return Captioner(name, states, pose_facts(legs, arms))
    return Captioner(name, states)


def far_pair() -> Captioner:
    """Of two bodies in no pose of the library, one of them nearly in one."""
    legs, arms = np.full((2, len(LEG_NAMES)), 60.0), np.full((2, len(ARM_NAMES)), 30.0)
    legs[1, 0], arms[1, 0] = 2.0, 1.0
    return Captioner("humanoid", np.zeros((2, 47)), pose_facts(legs, arms))


def test_a_pose_is_told_of_where_it_is_and_none_where_no_pose_is():
    squared = np.array([[0.0, 50, 50], [4, 50, 50], [16, 50, 50], [900, 900, 900]])
    told = pose_facts(squared, squared)[0]
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


@pytest.mark.parametrize("name", [*WORLDS, "no_pose"])
def test_captions_are_drawn_as_often_as_their_ratio_says(name):
    """Of two states, the one with twice the ratio is captioned so twice as often."""
    captioner = far_pair() if name == "no_pose" else near_pair(name)
    rng = np.random.default_rng(0)
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
    if name == "no_pose":
        assert "moving awkwardly" in compared


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
        named = [library.state(p, ARMS[0]) for p in LEGS if p.name == legs.get(task)]
        named += [library.state(LEGS[0], p) for p in ARMS if p.name == arms.get(task)]
        assert len(named) >= 2
        assert HumanoidGoal(task)(np.stack(named)).all(), task
    others = [library.state(p, ARMS[0]) for p in LEGS if p.name not in legs.values()]
    low = ("kneeling", "lotus", "splits")
    assert not any(HumanoidGoal(task)(np.stack(others)).any() for task in low)


def digest(value: bytes | str) -> str:
    value = value.encode() if isinstance(value, str) else value
    return hashlib.sha256(value).hexdigest()[:16]


def test_same_seed_draws_what_the_shipped_models_were_trained_with():
    """The numbers were computed by the code that made those models."""
    states, captioners = {}, []
    for name in WORLDS:
        part = 40, np.random.SeedSequence([0, WORLDS.index(name)]).spawn(1)[0]
        visited = 0.3 if name == "humanoid" else 0.0
        states[name], appearance = drawing.draw_seen(name, part, visited)
        if name == "humanoid":
            assert "".join(map(str, appearance)) == (
                "5104152500533340410101205152553043452123"
            )
        captioners.append(Captioner(name, states[name]))
    # Physics moves some of the states: their last digits may depend on the machine.
    sums = [np.abs(s).sum() for s in states.values()]
    expected = [969.5278599998576, 76.8318580608566, 19.273107739752653]
    np.testing.assert_allclose(sums, expected, rtol=1e-6)
    drawn = [c.draw(np.arange(40), np.random.default_rng(5)) for c in captioners]
    assert [digest("\n".join(sentences)) for sentences, _ in drawn] == [
        "a6967c46864720b7",
        "95049b3b2eade41a",
        "a39585060d73b167",
    ]
    spread = [ratios.std() for _, ratios in drawn]
    expected = [2.0792237073638336, 1.3355566996778614, 1.141212048903996]
    np.testing.assert_allclose(spread, expected, rtol=1e-6)
    batches = Batches(captioners, [6, 4, 3], nano_tokenizer(), seed=7, steps=3)
    indices, tokens, ratios = batches[1]
    assert [index.tolist() for index in indices] == [
        [2, 29, 5, 24, 30, 4],
        [22, 33, 9, 8],
        [21, 29, 27],
    ]
    assert digest(tokens.numpy().tobytes()) == "cacd3cfb7bd8d8c1"
    expected = [68.71379852294922, 19.127460479736328, 9.587624549865723]
    np.testing.assert_allclose([float(r.sum()) for r in ratios], expected, rtol=1e-5)


def nano_tokenizer() -> open_clip.SimpleTokenizer:
    merges = str(EMBEDDED / "nano" / "bpe.txt.gz")
    return open_clip.SimpleTokenizer(merges, context_length=32)


def test_batches_do_not_depend_on_who_draws_them():
    captioners = [captioner_of(name) for name in ("humanoid", "cartpole")]
    batches = Batches(captioners, [4, 3], nano_tokenizer(), seed=0, steps=5)
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
    others = Batches(captioners, [4, 3], nano_tokenizer(), seed=1, steps=5)
    assert not torch.equal(tokens, others[0][1])


@pytest.mark.long
def test_drawing_does_not_depend_on_the_number_of_processes(tmp_path):
    asked = Drawing("mountaincar", 502, 96, 64)  # two parts
    one, two = (
        drawn_before(tmp_path / str(processes), [asked], processes)["mountaincar"]
        for processes in (1, 2)
    )
    for field in ("states", "appearance", "frames"):
        np.testing.assert_array_equal(one[field], two[field])
    assert one["frames"].shape == (502, 64, 64, 3)
    assert set(one["appearance"]) == {0, 1}
    # The file is used again, and leaves nothing unfinished beside it.
    (file,) = (tmp_path / "1").iterdir()
    made = file.stat().st_mtime_ns
    # Processes have numbers below 2**22.
    killed, other = (file.with_name(f".x.{n}.part.npy") for n in (2**22, os.getpid()))
    killed.touch()
    other.touch()
    drawn_before(tmp_path / "1", [asked], 1)
    assert file.stat().st_mtime_ns == made
    assert {*file.parent.iterdir()} == {file, other}


def test_a_full_disk_is_found_before_drawing(tmp_path, monkeypatch):
    def full(file: int, start: int, size: int) -> None:
        assert size > 2 * 64 * 64 * 3
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"No space left .*/mountaincar-2-\w+\.npy"):
        drawn_before(tmp_path, [Drawing("mountaincar", 2, 96, 64)], 1)
    assert list(tmp_path.iterdir()) == []


def test_tokenizer_reads_back_what_it_wrote(tmp_path):
    corpus = ["a robot kneeling down", "a robot standing", "kneeling kneeling"]
    size = write_tokenizer(tmp_path / "bpe.txt.gz", corpus, 200)
    assert size == 2 * 256 + len(learn_merges(corpus, 200)) + 2
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
        ("held_out_states=999", "held_out_states is 999: .* from 1000 up"),
        ("recipe.share.cartpole=0.001", "share.cartpole is 0.001, .* 1 of 1024"),
        ("recipe.share.cartpole=nan", "recipe.share.cartpole is nan"),
        ("recipe.text_heads=5", "recipe.text_width is 96, .* 5 heads"),
        ("recipe.image_layers=[1,1]", "four stages"),
        ("recipe.image_size=95", "image_size is 95, .* give a multiple of 32"),
        ("recipe.image_size=16", "image_size is 16: give a whole number from 32 up"),
        ("recipe.image_width=0", "recipe.image_width is 0"),
        ("recipe.text_width=0", "recipe.text_width is 0"),
        ("recipe.text_layers=0", "recipe.text_layers is 0"),
        ("recipe.embed_dim=0", "recipe.embed_dim is 0"),
        ("recipe.context_length=2", "recipe.context_length is 2"),
        ("recipe.merges=-1", "recipe.merges is -1"),
        ("recipe.weight_decay=-1", "recipe.weight_decay is -1"),
        ("device=tpu", "device is 'tpu'"),
        ("clip.precision=fp7", "clip.precision is 'fp7'"),
        ("seed=-1", "seed is -1"),
        ("clip.frame_height=null", "clip.frame_height=96"),
        ("clip.precision=int8", 'precision is "int8", but pretraining needs "fp32"'),
        ("clip.pretrained=random", 'pretrained is "random", but .* needs null: leave'),
        ("clip.render_effects=true", "clip.render_effects is true"),
        ("clip.quick_gelu=true", "clip.quick_gelu is true"),
        ("folder=FOLDER", "holds a model already"),
        ("folder=", "folder is empty"),
        ("worlds=", "worlds is empty"),
        ("init=FOLDER", "it has no bpe.txt.gz"),
        (f"init={EMBEDDED}/nano", "no model of the recipe's sizes"),
    ],
)
def test_impossible_pretraining_is_refused_at_once(tmp_path, override, says):
    (tmp_path / WEIGHTS).touch()
    keys = [override.replace("FOLDER", str(tmp_path))]
    if "folder" not in override:
        keys.append(f"folder={tmp_path}/new")
    with pytest.raises(ConfigError, match=says):
        checked(*keys)


def test_damaged_weights_are_nothing_to_go_on_from(tmp_path):
    shutil.copytree(EMBEDDED / "nano", tmp_path / "cut")
    os.truncate(tmp_path / "cut" / WEIGHTS, 100_000)
    with pytest.raises(ConfigError, match=f"{WEIGHTS} cannot be read"):
        checked("clip=nano", f"init={tmp_path}/cut", f"folder={tmp_path}/new")


def test_other_results_are_kept_and_an_unfinished_pretraining_is_not(tmp_path):
    (tmp_path / "summary.json").touch()
    with pytest.raises(ConfigError, match=r"holds summary\.json already"):
        checked(f"folder={tmp_path}")
    (tmp_path / "summary.json").rename(tmp_path / "metrics.jsonl")
    config = tmp_path / "config.yaml"
    config.write_text("task: {}")
    with pytest.raises(ConfigError, match=r"holds config\.yaml already"):
        checked(f"folder={tmp_path}")
    config.write_text("recipe: {}")
    checked(f"folder={tmp_path}", "clip.batch_size=8", "clip.name=mine")


def test_jobs_of_a_sweep_have_folders_of_their_own(tmp_path):
    program = [sys.executable, "-m", "vlmrm_exp.pretrain", "-m", *KEYS]
    words = ("held_out_states=1000,1001", f"hydra.sweep.dir={tmp_path}")
    asked = {"cwd": tmp_path, "capture_output": True, "text": True}
    ended = subprocess.run([*program, *words], **asked)
    assert ended.returncode == 2
    assert "held_out_states=1001) cannot start, so none was started" in ended.stderr
    assert "folder is outputs/pretrain/nano-s0, as an earlier job's" in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_names_the_models_and_a_refusal_leaves_no_folder(
    start, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)

    def program(*words: str):
        asked = {"config_name": "pretrain", "check": pretrain.check}
        return start(words, pretrain.pretrain, **asked)

    told = program("--help")
    assert (told.code, told.err) == (0, "")
    assert "clip: base, nano, small, tiny\n" in told.out
    refused = program("clip=nano", "processes=0")
    assert refused.code == 2
    assert "processes is 0: give a whole number from 1 up.\n" in refused.err
    assert list(tmp_path.iterdir()) == []


def test_every_parameter_has_one_optimizer():
    recipe = checked("clip=nano").recipe
    model = open_clip.model.CLIP(**model_config(recipe, 700)["model_cfg"])
    matrices, others = (
        [p for group in optimizer.param_groups for p in group["params"]]
        for optimizer in make_optimizers(model, recipe)
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
        recipe = checked(f"clip={name}").recipe
        folder = EMBEDDED / name
        shipped = json.loads((folder / "open_clip_config.json").read_text())
        vocabulary = shipped["model_cfg"]["text_cfg"]["vocab_size"]
        assert shipped == model_config(recipe, vocabulary)
        weights = load_file(folder / WEIGHTS)
        sizes.append(sum(w.numel() for w in weights.values()))
        steps.append(recipe.steps)
        assert all(w.isfinite().all() for w in weights.values())
    assert sizes == sorted(set(sizes))
    assert steps == sorted(set(steps))
    files = [file for file in EMBEDDED.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 20e6


KEYS = (
    "clip=nano",
    "threads=1",
    "processes=1",
    "recipe.steps=2",
    "recipe.batch_size=16",
    "recipe.states={humanoid: 16, cartpole: 16, mountaincar: 16}",
)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    """The folder of a model that saw two batches; drawn states are beside it."""
    folder = tmp_path_factory.mktemp("pretrained")
    keys = (*KEYS, f"folder={folder}/model", f"worlds={folder}/worlds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "FEWEST_HELD_OUT", 60)  # quick, though of few goals
        pretrain.pretrain(composition.compose("pretrain", *keys, "held_out_states=60"))
    return folder / "model"


def trained_again(pretrained: Path, folder: Path, *keys: str) -> dict:
    """Weights of a model that was trained on the same drawn states."""
    config = checked(*KEYS, *keys, f"folder={folder}")
    files = {file.name.split("-")[0]: file for file in pretrained.parent.glob("*/*npy")}
    folder.mkdir()
    train(config, {name: np.load(files[name]) for name in WORLDS}, folder)
    return load_file(folder / WEIGHTS)


@pytest.mark.long
def test_pretraining_leaves_a_report_and_what_it_was_made_of(pretrained):
    report = json.loads((pretrained / "report.json").read_text())
    assert {line["task"] for line in report} == {*GOALS, "cartpole", "mountaincar"}
    assert len(report) == 3 * (len(GOALS) * 6 + 1 + 2)  # alphas, appearances
    seen = {
        (x["textures"], x["camera"]): x["states"]
        for x in report
        if x["task"] == "lotus"
    }
    assert sum(seen.values()) == 60
    made = OmegaConf.load(pretrained / "config.yaml")
    assert (made.recipe.steps, made.recipe.states.humanoid) == (2, 16)
    versions = json.loads((pretrained / "versions.json").read_text())
    assert versions["device"] == str(choose_device("auto"))
    (last,) = map(json.loads, (pretrained / "metrics.jsonl").read_text().splitlines())
    assert last["step"] == 2
    assert all(last[name] > 0 for name in WORLDS)


@pytest.mark.long
def test_report_is_of_the_rewards_that_a_run_makes(pretrained):
    (line,) = (
        line
        for line in json.loads((pretrained / "report.json").read_text())
        if (line["task"], line["textures"], line["alpha"])
        == ("mountaincar", "plain", 0.5)
    )
    clip = checked("clip=nano").clip
    clip.model = f"local-dir:{pretrained}"
    cfg = composition.compose(
        "config", "task=mountaincar", "task.textures=plain", "alpha=0.5"
    )
    config = OmegaConf.to_object(cfg.cfg)
    assert isinstance(config, Config)
    config.clip, config.compute.device = clip, "cpu"
    (part,) = drawing.parts_of("mountaincar", 60, check.HELD_OUT_SEED)
    states, appearance = drawing.draw_seen("mountaincar", part)
    states = states[appearance == 1]
    model = ClipReward(config)
    reward = model.rewards(Episodes(states=states[:, None]))[:, 0]
    model.close()
    assert line["states"] == len(states)
    assert line["pearson"] == pytest.approx(pearson(reward, states[:, 0]), abs=1e-4)
    ranked = auroc(reward, states[:, 0] >= 0.45)
    assert line["auroc"] == pytest.approx(ranked, abs=0.01)


@pytest.mark.long
def test_same_seed_makes_the_same_model_and_another_seed_another(pretrained, tmp_path):
    first = load_file(pretrained / WEIGHTS)
    again = trained_again(pretrained, tmp_path / "again")
    other = trained_again(
        pretrained, tmp_path / "other", "seed=1", f"init={pretrained}"
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    name = "visual.conv1.weight"
    assert not torch.equal(first[name], other[name])
    tokenizers = [folder / "bpe.txt.gz" for folder in (pretrained, tmp_path / "again")]
    assert tokenizers[0].read_bytes() == tokenizers[1].read_bytes()


@pytest.mark.long
def test_pretraining_goes_on_from_a_model(pretrained, tmp_path):
    """With no step to speak of it says what it said: its weights and its tokenizer."""
    rates = ("recipe.learning_rate=1e-9", "recipe.matrix_learning_rate=1e-9")
    after = trained_again(
        pretrained, tmp_path / "on", f"init={EMBEDDED}/nano", "recipe.steps=1", *rates
    )
    before = load_file(EMBEDDED / "nano" / WEIGHTS)
    assert before.keys() == after.keys()
    for name, value in before.items():
        if "running" not in name and "num_batches" not in name:  # of batch statistics
            torch.testing.assert_close(after[name], value, atol=1e-5, rtol=1e-3)
    same = (EMBEDDED / "nano" / "bpe.txt.gz").read_bytes()
    assert (tmp_path / "on" / "bpe.txt.gz").read_bytes() == same


@pytest.mark.long
def test_a_loss_that_is_no_number_ends_training(pretrained, tmp_path):
    keys = ("recipe.steps=3", "recipe.learning_rate=1e30", f"init={pretrained}")
    with pytest.raises(ConfigError, match="The loss is nan by step 3: lower recipe"):
        trained_again(pretrained, tmp_path / "lost", *keys)
