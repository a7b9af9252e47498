"""`python -m vlmrm_exp.epic`, and the embeddings that it keeps."""

import json
import shutil
import subprocess
import sys
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from vlmrm_exp.cli import composed
from vlmrm_exp.study import cache, embeddings
from vlmrm_exp.study.embeddings import Embedder
from vlmrm_exp.study.folder import result_folder
from vlmrm_exp.study.metrics import auroc, interval
from vlmrm_exp.study.settings import short_count, with_settings_files
from vlmrm_exp.study.state_files import picture_states, save_states, stored_states
from vlmrm_exp.study.state_sets import StateSet, draw_states, truth_of

from vlmrm_exp import envs
from vlmrm_exp.config import ConfigError
from vlmrm_exp.epic import main, measure, over_models, parse
from vlmrm_exp.vlm.source import EMBEDDED

CPU = torch.device("cpu")
MOUNTAIN = ("task=mountaincar", "clip=tiny", "states=200", "resamples=50")


def no_drawing(*arguments):
    raise AssertionError("a picture was drawn")


class Folders:
    """One cache, and for each use another folder of results: out, out-2, ..."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.uses = 0

    def __iter__(self) -> Iterator[str]:
        self.uses += 1
        name = "out" if self.uses == 1 else f"out-{self.uses}"
        yield from (f"cache={self.path}/cache", f"out={self.path}/{name}")


@pytest.fixture
def folders(tmp_path) -> Folders:
    return Folders(tmp_path)


def rows_of(folder: Path) -> list[dict]:
    """Of the latest results."""
    files = sorted(folder.glob("out*/epic.json"), key=lambda f: f.stat().st_mtime_ns)
    return json.loads(files[-1].read_text())["rows"]


def test_epic_measures_every_alpha_and_writes_all_of_it(tmp_path, folders, capsys):
    asked = parse([*MOUNTAIN, "alpha=0,1", *folders])
    result = measure(asked)
    out = tmp_path / "out"
    assert {f.name for f in out.iterdir()} == {
        "epic.json", "epic.png", "epic.svg", "states-mountain_car.npz"
    }  # fmt: skip
    written = json.loads((out / "epic.json").read_text())
    assert written == result
    assert [row["alpha"] for row in written["rows"]] == [0, 1]
    about = written["tasks"]["mountaincar"]
    assert (about["states"], about["goal_states"]) == (200, 17)  # 0.15 of 1.8
    assert about["prompt"] == [
        "a car at the peak of the mountain, next to the yellow flag"
    ]
    facts = written["models"]["tiny"]
    for row in written["rows"]:
        assert row["auroc"] > 0.8
        assert row["epic"] < 0.7
        assert "epic_low" not in row  # a grid is no sample
        assert row["epic_graded"] < 0.3
        assert row["parameters"] == facts["parameters_image"] + facts["parameters_text"]
    assert "pygame" in written["versions"]["drawn_by"]
    shown = capsys.readouterr().out
    assert "200 states, 17 of them goals (8.5%, by predicate)" in shown
    assert f"{written['rows'][1]['auroc']:.3f}" in shown
    with Image.open(out / "epic.png") as picture:
        assert picture.size[0] == 1200


@pytest.mark.parametrize(
    "task",
    [
        ["task=mountaincar", "prompt=[a car, a flag]", "baseline=[a hill, a car]"],
        ["task=kneeling", "task.camera=side+fixed"],
    ],
)
def test_rewards_are_those_that_a_run_would_give(task, tmp_path):
    """Against the scorer of training, which draws and embeds on its own."""
    from functools import partial

    from vlmrm_exp.vlm.scorer import LocalScorer

    from vlmrm_exp.envs import make_renderer

    config = composed(*task, "clip=nano", "alpha=0.4", "compute=cpu")
    states = draw_states(config.task, 300)  # more than one kept part
    embedder = Embedder(config.clip, CPU, tmp_path)
    embedded = embedder.embed(states, config.task)
    reward = embedder.reward(embedded, config.prompts, config.baselines, 0.4)
    height = config.frame_height
    draw = partial(make_renderer, config.task, height, config.clip.render_effects)
    scorer = LocalScorer(config, draw)
    np.testing.assert_allclose(reward, scorer.score(states.rows), atol=1e-6)
    scorer.close()


@pytest.mark.slow
def test_a_second_look_draws_nothing_whatever_the_sentence(
    tmp_path, folders, monkeypatch
):
    measure(parse([*MOUNTAIN, "alpha=0", *folders]))
    (first,) = rows_of(tmp_path)
    monkeypatch.setattr(envs, "make_renderer", no_drawing)
    measure(parse([*MOUNTAIN, "alpha=0", *folders]))
    assert rows_of(tmp_path) == [first]
    measure(parse([*MOUNTAIN, "alpha=0.3", "prompt=a car", *folders]))
    (other,) = rows_of(tmp_path)
    assert other["epic"] != first["epic"]
    for changed in ("textures=plain", "states=201"):
        with pytest.raises(AssertionError, match="was drawn"):
            measure(parse([*MOUNTAIN, "alpha=0", changed, *folders]))


def test_what_changes_an_embedding_changes_its_key(tmp_path, monkeypatch):
    config = composed("task=mountaincar", "clip=tiny")
    states = draw_states(config.task, 100)
    embedder = Embedder(config.clip, CPU, tmp_path)
    embedder.embed(states, config.task)
    # The same weights under another name and in another place are the same model.
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED / "tiny", folder)
    local = replace(config.clip, name="mine", model=f"local-dir:{folder}")
    monkeypatch.setattr(envs, "make_renderer", no_drawing)
    Embedder(local, CPU, tmp_path).embed(states, config.task)

    rows = states.rows.copy()
    rows[-1, 0] += 1e-9
    with pytest.raises(AssertionError, match="was drawn"):
        embedder.embed(replace(states, rows=rows), config.task)
    for change in (
        {"frame_height": 80},
        {"preprocess": "crop"},
        {"precision": "bf16"},
        {"render_effects": True},
    ):
        other = Embedder(replace(config.clip, **change), CPU, tmp_path)
        with pytest.raises(AssertionError, match="was drawn"):
            other.embed(states, config.task)
    weights = folder / "open_clip_model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    with pytest.raises(AssertionError, match="was drawn"):
        Embedder(local, CPU, tmp_path).embed(states, config.task)


def test_code_and_libraries_are_part_of_the_key(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_PACKAGE", tmp_path)
    digests = set()
    for text in ("a = 1", "a = 2"):
        (tmp_path / "module.py").write_text(text)
        digests.add(cache.sources(["module.py"]))
    assert len(digests) == 2
    monkeypatch.undo()

    config = composed("task=mountaincar", "clip=tiny")
    states = draw_states(config.task, 100)
    embedder = Embedder(config.clip, CPU, tmp_path)
    embedder.embed(states, config.task)
    monkeypatch.setattr(envs, "make_renderer", no_drawing)
    embedder.embed(states, config.task)
    of_files, of_libraries = cache.sources, cache.libraries
    for changed in ("envs/mountain_scene.py", "vlm/encoder.py"):
        with monkeypatch.context() as other:
            other.setattr(
                cache, "sources", lambda f, c=changed: of_files(f) + str(c in f)
            )
            with pytest.raises(AssertionError, match="was drawn"):
                embedder.embed(states, config.task)
    for changed in ("pygame-ce", "timm"):
        with monkeypatch.context() as other:
            other.setattr(
                cache,
                "libraries",
                lambda names, c=changed: of_libraries(names) | {c: c in names},
            )
            with pytest.raises(AssertionError, match="was drawn"):
                embedder.embed(states, config.task)


def test_an_interruption_loses_one_part_at_most(tmp_path, monkeypatch):
    config = composed("task=mountaincar", "clip=tiny")
    states = draw_states(config.task, 300)  # a whole part of 256, and a rest
    embedder = Embedder(config.clip, CPU, tmp_path)
    see, parts = embedder._see, []

    def interrupted(*arguments):
        if parts:
            raise KeyboardInterrupt
        parts.append(see(*arguments))
        return parts[0]

    monkeypatch.setattr(embedder, "_see", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embedder.embed(states, config.task)
    (kept,) = tmp_path.iterdir()
    monkeypatch.setattr(embedder, "_see", see)
    before = kept.stat().st_mtime_ns
    whole = embedder.embed(states, config.task)
    assert whole.shape == (300, 1, 128)
    np.testing.assert_array_equal(whole[:256, 0], parts[0])
    assert kept.stat().st_mtime_ns == before
    # A damaged file is made again.
    kept.write_bytes(kept.read_bytes()[:100])
    np.testing.assert_array_equal(embedder.embed(states, config.task), whole)


def test_pictures_with_labels_measure_as_their_states_do(tmp_path, folders):
    config = composed("task=mountaincar")
    states = draw_states(config.task, 100)
    frames = tmp_path / "frames"
    frames.mkdir()
    renderer = envs.make_renderer(config.task, 96, effects=False)
    lines = ["file,label"]
    for i, (frame, row) in enumerate(
        zip(renderer.render(states.rows), states.rows, strict=True)
    ):
        Image.fromarray(frame).save(frames / f"{i:03}.png")
        lines.append(f"{i:03}.png,{int(row[0] >= 0.45)}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    given = [f"frames={frames}", f"labels={tmp_path}/labels.csv"]
    measure(parse([*MOUNTAIN, "alpha=0.5", *given, *folders]))
    (of_pictures,) = rows_of(tmp_path)
    measure(parse([*MOUNTAIN, "alpha=0.5", "states=100", *folders]))
    (of_states,) = rows_of(tmp_path)
    for key in ("epic", "auroc"):
        assert of_pictures[key] == pytest.approx(of_states[key], abs=1e-5)
    assert of_pictures["auroc_low"] <= of_pictures["auroc"]
    assert "epic_graded" not in of_pictures  # nobody knows the car's position
    whole = (frames / "000.png").read_bytes()
    broken = whole[:40] + b"\xff" * 8 + whole[48:]  # a chunk of impossible length
    for content in (b"no picture", broken):
        (frames / "000.png").write_bytes(content)
        with pytest.raises(ConfigError, match=r"000.png cannot be read") as caught:
            measure(parse([*MOUNTAIN, *given, *folders]))
        assert "\n" not in str(caught.value)


def test_pictures_are_read_as_score_reads_them(tmp_path):
    upright = np.zeros((4, 6, 3), np.uint8)
    upright[:, :3] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(upright)))
    turned.save(tmp_path / "a.png", exif=exif)
    Image.new("RGBA", (6, 4), (0, 0, 0, 0)).save(tmp_path / "b.webp", lossless=True)
    Image.new("RGB", (6, 4)).save(tmp_path / ".hidden.png")
    states = picture_states(tmp_path)
    assert [file.name for file in states.files] == ["a.png", "b.webp"]
    first, second = embeddings._frames(states, slice(0, 2), 64, None)
    np.testing.assert_array_equal(first[0], upright)
    assert (second == 255).all()


def test_a_world_that_cannot_be_drawn_is_told_before_its_states(
    tmp_path, folders, monkeypatch
):
    from vlmrm_exp.study import state_sets

    from vlmrm_exp.envs import humanoid

    def no_context(*size):
        raise RuntimeError("Cannot initialize a EGL device display.\nmore")

    monkeypatch.setattr(humanoid.mujoco, "GLContext", no_context)
    monkeypatch.setattr(state_sets, "_drawn_states", None)
    embeddings.drawn_by.cache_clear()
    with pytest.raises(ConfigError, match=r"MUJOCO_GL=.*EGL device display") as caught:
        measure(parse(["task=kneeling", "clip=tiny", "states=100", *folders]))
    assert "\n" not in str(caught.value)
    embeddings.drawn_by.cache_clear()


def test_one_model_is_in_memory_at_a_time(tmp_path, folders, monkeypatch):
    shutil.copytree(EMBEDDED / "tiny", tmp_path / "other")
    made, alive = [], []

    class Watched(Embedder):
        def __init__(self, *arguments):
            alive.append(sum(one() is not None for one in made))
            super().__init__(*arguments)
            made.append(weakref.ref(self))

    monkeypatch.setattr(embeddings, "Embedder", Watched)
    clips = f"clip=[tiny,local-dir:{tmp_path}/other]"
    measure(parse([*MOUNTAIN, "states=100", "alpha=0", clips, *folders]))
    assert alive == [0, 0]


def test_null_is_what_is_not_given():
    asked = parse([f"{name}=null" for name in ("prompt", "out", "frames", "camera")])
    assert asked == parse([])


def test_numbers_of_parameters_are_rounded_before_their_unit():
    numbers = (950, 999_400, 999_600, 1_610_000, 2_540_000_000)
    assert [short_count(n) for n in numbers] == [
        "950", "999 k", "1 M", "1.61 M", "2.54 G"
    ]  # fmt: skip


def test_labels_by_people_replace_the_predicate_of_a_stored_set(tmp_path, folders):
    task = composed("task=mountaincar").task
    states = draw_states(task, 100)
    save_states(tmp_path / "s.npz", states, {})
    left = states.rows[:, 0] < -0.9
    labels = [f"{i},{int(goal)}" for i, goal in enumerate(left)]
    (tmp_path / "l.csv").write_text("\n".join(["index,label", *labels]))
    given = [f"state_set={tmp_path}/s.npz", f"labels={tmp_path}/l.csv"]
    result = measure(parse([*MOUNTAIN, "alpha=0", *given, *folders]))
    assert result["tasks"]["mountaincar"]["goal_states"] == left.sum()
    assert result["rows"][0]["auroc"] < 0.4  # people meant the other hill
    # And stay with the states that are kept with the results.
    kept = f"state_set={tmp_path}/out/states-mountain_car.npz"
    again = measure(parse([*MOUNTAIN, "alpha=0", kept, *folders]))
    assert again["tasks"]["mountaincar"]["labelled_by"] == f"{tmp_path}/l.csv"
    assert again["rows"] == result["rows"]


@pytest.mark.slow
def test_kneeling_is_told_from_other_poses(tmp_path, folders, monkeypatch):
    arguments = ["task=kneeling,standing_up", "states=300", "resamples=50", "alpha=0"]
    result = measure(parse([*arguments, *folders]))
    kneeling, standing = result["rows"]

    # States of one episode are drawn together, or intervals were far too narrow.
    config = composed("task=standing_up", "clip=base")
    states, _ = stored_states(tmp_path / "out" / "states-humanoid.npz", config.task)
    assert len(set(states.group)) < len(states)
    embedder = Embedder(config.clip, CPU, tmp_path / "cache" / "embeddings")
    embedded = embedder.embed(states, config.task)
    reward = embedder.reward(embedded, config.prompts, config.baselines, 0)
    goal = truth_of(config, states).goal
    together, alone = (
        interval(auroc, reward, goal, 50, 0, group) for group in (states.group, None)
    )
    measured = (standing["auroc_low"], standing["auroc_high"])
    assert measured == pytest.approx(together)
    assert measured != pytest.approx(alone)
    assert min(kneeling["auroc"], standing["auroc"]) > 0.8
    assert result["tasks"]["kneeling"]["sources"]["tasks"] == 120
    assert result["versions"]["drawn_by"].startswith("MuJoCo")
    # Neither simulated nor drawn again: the driver's name is part of the key.
    monkeypatch.setattr(envs, "make_renderer", no_drawing)
    from vlmrm_exp.study import state_sets

    monkeypatch.setattr(state_sets, "_drawn_states", no_drawing)
    again = measure(parse([*arguments, *folders]))
    assert again["rows"] == result["rows"]
    embeddings.drawn_by.cache_clear()
    monkeypatch.setattr(embeddings, "drawn_by", lambda env: "another driver")
    with pytest.raises(AssertionError, match="was drawn"):
        measure(parse([*arguments, *folders]))


def test_models_of_one_size_have_an_interval_over_them():
    epics = {"a": [0.5, 0.6, 0.55], "b": [0.3, 0.2, 0.35]}
    rows = [
        {"task": task, "clip": f"s{i}", "parameters": 1000 + i % 2, "alpha": 0.0,
         "epic": value}
        for task, values in epics.items() for i, value in enumerate(values)
    ]  # fmt: skip
    rows += [{**row, "clip": "other", "parameters": 5000} for row in rows[::3]]
    found = {row["task"]: row for row in over_models(rows)}
    epics["mean over tasks"] = [0.4, 0.4, 0.45]
    assert list(found) == list(epics)  # none of the size that one model has
    for task, values in epics.items():
        wanted = stats.ttest_1samp(values, 0).confidence_interval()
        assert found[task]["models"] == 3
        got = [found[task][key] for key in ("epic", "epic_low", "epic_high")]
        np.testing.assert_allclose(got, [np.mean(values), *wanted])


@pytest.mark.slow
def test_models_of_folders_stand_beside_others(tmp_path, folders, capsys):
    for name in ("one", "two"):
        shutil.copytree(EMBEDDED / "tiny", tmp_path / name)
    clips = f"clip=[tiny,local-dir:{tmp_path}/one,local-dir:{tmp_path}/two]"
    result = measure(parse([*MOUNTAIN, "alpha=0", clips, *folders]))
    assert list(result["models"]) == ["tiny", "one", "two"]
    assert "models of one size together" in capsys.readouterr().out
    assert len({row["epic"] for row in result["rows"]}) == 1
    with pytest.raises(ConfigError, match="Two models would be called tiny"):
        measure(parse([*MOUNTAIN, f"clip=[tiny,local-dir:{EMBEDDED}/tiny]", *folders]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["clip=tyni"], "clip=tyni does not exist: choose one of base, bigG"),
        (["clip=local-dir:/nowhere"], "no folder /nowhere"),
        (["clip=tiny,tiny"], "names tiny twice"),
        (["task=kneel"], "Did you mean kneeling"),
        (["alpha=2"], "alpha is 2.0"),
        (["alpha=[]"], "alpha is an empty list"),
        (["alpha=0,0"], "names 0.0 twice"),
        (["camera=above"], "^camera is 'above', but must be one of fixed for"),
        (["camera=fixed,side"], r"joined with \+, as fixed\+side"),
        (["camera=[fixed,side]"], r"joined with \+, as fixed\+side"),
        (["state=3"], "no setting state.*Did you mean states"),
        (["resamples=-1"], "resamples is -1"),
        (["resamples=1"], "20 at least"),
        (["alpha=0.5,,1"], "has an empty element"),
        (["task=[kneeling"], r"a list is written task=\[a,b\]"),
        (["kneeling"], "write task=kneeling"),
        (["clip=_embedded"], "is no model"),
        ([str(Path(__file__).parents[1] / "sweeps/alpha.yaml")], "--config-name alpha"),
        (["task=kneeling,lotus", "prompt=a robot"], "prompt is of one task"),
        (["frames=/nowhere"], "frames needs labels"),
        (["frames=/nowhere", "labels=/no.csv"], "no folder /nowhere"),
        (["labels=/no.csv"], "needs the states that they are of"),
        (["frames=/a", "state_set=/b"], "choose one"),
        (["state_set=/b.npz"], "no stored state set"),
        (["state_set=/b.npz", "runs=/c"], "leave one of them out"),
        (["runs=/nowhere"], "no folder /nowhere"),
        (["compute=tpu"], "compute=tpu does not exist"),
        (["seed=-1"], "seed is -1"),
        (["prompt="], "prompt is empty"),
        (["prompt=[]"], "prompt is an empty list"),
        (["baseline="], "baseline is empty"),
        (["frames="], "frames is empty"),
        (["frames=/a", "labels=/b", "camera=fixed"], "frames are pictures already"),
        (["out="], "out is empty"),
        (["task=gym", "prompt=a"], "epic with any other task's name"),
        (["missing.yaml"], "missing.yaml cannot be read"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path, arguments, words):
    places = [f"cache={tmp_path}/cache", f"out={tmp_path}/out", "states=100"]
    if not any(a.startswith("task=") for a in arguments):
        places.append("task=kneeling" if "runs" in arguments[0] else "task=cartpole")
    with pytest.raises(ConfigError, match=words) as caught:
        measure(parse([*places, *arguments]))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_older_results_stay_and_two_commands_do_not_share_a_folder(tmp_path):
    (tmp_path / "out").mkdir()
    asked = parse([*MOUNTAIN, f"cache={tmp_path}/cache", f"out={tmp_path}/out"])
    with (
        result_folder(asked, "epic") as folder,
        pytest.raises(ConfigError, match="Another command is writing into"),
    ):
        measure(asked)
    assert not folder.exists()  # as nothing was written
    folder.mkdir()
    (folder / "epic.json").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds epic\.json already"):
        measure(asked)
    assert (folder / "epic.json").read_text() == "mine"
    # Another verb's too: both would write states under the same name.
    (folder / "epic.json").rename(folder / "prompts.json")
    with pytest.raises(ConfigError, match=r"holds prompts\.json already"):
        measure(asked)
    assert not list(folder.glob("states*"))


def test_all_weights_are_there_before_the_first_model_is_used(
    tmp_path, folders, monkeypatch
):
    monkeypatch.setattr(envs, "make_renderer", no_drawing)
    with pytest.raises(ConfigError, match=r"clip=vitb32 .* cannot be had"):
        measure(parse([*MOUNTAIN[:1], "clip=nano,vitb32", "states=200", *folders]))


def test_folders_of_one_second_have_different_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with (
        result_folder(parse([]), "epic") as one,
        result_folder(parse([]), "epic") as other,
    ):
        assert one != other
        (other / "epic.json").touch()
    assert (one.exists(), other.exists()) == (False, True)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ({"rows": np.zeros((20, 3))}, "have 2 numbers each"),
        ({"source": np.full(7, "x")}, "not as many sources"),
        ({"group": np.arange(19)}, "not as many sources"),
        ({"rows": np.full((20, 2), np.nan)}, "not finite"),
        ({"rows": np.full((20, 2), "1")}, "no numbers"),
        (None, "not a stored state set"),
    ],
)
def test_damaged_states_are_refused_at_once(tmp_path, folders, damage, words):
    whole = {"rows": np.zeros((20, 2)), "source": np.full(20, "x")}
    with (tmp_path / "s.npz").open("wb") as file:
        if damage is None:
            np.save(file, whole["rows"])  # one array, no archive
        else:
            np.savez(file, world="mountain_car", **(whole | damage))
    with pytest.raises(ConfigError, match=words):
        measure(parse([*MOUNTAIN, f"state_set={tmp_path}/s.npz", *folders]))
    assert not (tmp_path / "out").exists()


def test_a_sentence_too_long_and_a_baseline_that_says_the_same_are_refused(folders):
    long = "prompt=" + "a car on the mountain " * 20
    with pytest.raises(ConfigError, match="reads 30 and would not see its end"):
        measure(parse([*MOUNTAIN, long, *folders]))
    same = ["prompt=a car", "baseline=a car", "alpha=0.5"]
    with pytest.raises(ConfigError, match="prompt and baseline are both 'a car'"):
        measure(parse([*MOUNTAIN, *same, *folders]))


def test_what_is_typed_wins_over_a_settings_file(tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text(
        "task: [cartpole, mountaincar]\nalpha: [0, 1]\nframes: null\n"
        'prompt: ["a, b", c]\nseed: 4\n'
    )
    asked = parse(["alpha=0.5", "task=cartpole", str(file)])
    assert (asked.task, asked.alpha, asked.seed) == (["cartpole"], [0.5], 4)
    assert asked.prompt == ["a, b", "c"]
    assert asked.frames is None
    file.write_text("just words")
    with pytest.raises(ConfigError, match="holds no settings"):
        with_settings_files([str(file)])


def test_a_prompt_is_typed_as_a_plain_sentence():
    asked = parse(["prompt=a robot on its knees, arms up"])
    assert asked.prompt == ["a robot on its knees, arms up"]
    asked = parse(['prompt=["on its knees, arms up", kneeling]'])
    assert asked.prompt == ["on its knees, arms up", "kneeling"]


def test_constant_rewards_are_refused(tmp_path, folders):
    """A state set in which every picture is the same."""
    task = composed("task=mountaincar").task
    rows = np.zeros((20, 2))
    rows[:, 1] = np.linspace(0, 0.01, 20)  # a speed cannot be seen
    states = StateSet("mountain_car", np.full(20, "same"), rows)
    save_states(tmp_path / "s.npz", states, {})
    labels = [f"{i},{i % 2}" for i in range(20)]
    (tmp_path / "l.csv").write_text("\n".join(["index,label", *labels]))
    given = [f"state_set={tmp_path}/s.npz", f"labels={tmp_path}/l.csv"]
    with pytest.raises(ConfigError, match="in all 20 states"):
        measure(parse([f"task={task.name}", *given, *folders]))


def test_the_program_prints_help_at_once_and_refuses_with_its_name():
    command = [sys.executable, "-m", "vlmrm_exp.epic"]
    helped = subprocess.run(
        [*command, "--help"], capture_output=True, text=True, check=True
    )
    assert "task=kneeling" in helped.stdout
    refused = subprocess.run([*command, "alpha=9"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.startswith("vlmrm_exp.epic: alpha is 9.0")
    assert refused.stderr.count("\n") == 1


def test_a_reader_that_stops_early_is_no_error(folders):
    command = [sys.executable, "-u", "-m", "vlmrm_exp.epic", *MOUNTAIN, *folders]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
    assert process.returncode == 0


def test_main_reads_the_command_line(monkeypatch, folders, capsys):
    monkeypatch.setattr(sys, "argv", ["epic", *MOUNTAIN, "alpha=0", *folders])
    main()
    assert "mountaincar: a car at the peak" in capsys.readouterr().out
