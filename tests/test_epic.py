"""`python -m vlmrm_exp.epic`, and the embeddings that it keeps."""

import json
import shutil
import weakref
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

import studies
from studies import Folders, forbid
from vlmrm_exp import epic, landscape, peak, prompts
from vlmrm_exp.config import ConfigError
from vlmrm_exp.envs import humanoid, humanoid_renderer, mountain_car, world_of
from vlmrm_exp.epic import measure, over_models
from vlmrm_exp.files import short_count
from vlmrm_exp.measures import auroc, interval
from vlmrm_exp.studies import cache, rewards
from vlmrm_exp.studies.rewards import Clip
from vlmrm_exp.studies.settings import PLURAL, Study
from vlmrm_exp.studies.state_files import save_states, stored_states
from vlmrm_exp.studies.state_sets import StateSet, sample, truth_of
from vlmrm_exp.vlm.source import EMBEDDED

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
GIVEN = ("task=mountaincar", "clip=nano", "resamples=20", "alpha=0")
"""With states of a file."""
MOUNTAIN = (*GIVEN, "states=100")


@pytest.fixture
def folders(tmp_path) -> Folders:
    return Folders(tmp_path)


@pytest.fixture(autouse=True)
def no_figures(request, monkeypatch):
    """Figures take most of the time of a small study: one test looks at them."""
    if "figure" not in request.node.name:
        monkeypatch.setattr(epic, "plot", lambda *arguments: None)


def asked(*words: str) -> Study:
    return studies.asked(epic, *words)


def epic_of(folders: Folders, *words: str) -> dict:
    return measure(asked(*words, *folders))


def test_epic_measures_every_alpha_and_writes_tables_and_a_figure(folders, capsys):
    words = ["task=mountaincar", "clip=tiny", "states=200", "alpha=0,1"]
    result = epic_of(folders, *words)
    out = folders.out
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


def test_a_second_look_renders_nothing_whatever_the_sentence(folders, monkeypatch):
    (first,) = epic_of(folders, *MOUNTAIN)["rows"]
    forbid(monkeypatch, mountain_car, "make_renderer")
    assert epic_of(folders, *MOUNTAIN)["rows"] == [first]
    (other,) = epic_of(folders, *MOUNTAIN, "alpha=0.3", "prompt=a car")["rows"]
    assert other["epic"] != first["epic"]
    for changed in ("task.textures=plain", "states=101"):
        with pytest.raises(AssertionError, match="forbidden"):
            epic_of(folders, *MOUNTAIN, changed)


def test_what_changes_an_embedding_changes_its_key(compose, tmp_path, monkeypatch):
    config = compose("task=mountaincar", "clip=nano")
    states = sample(config.task, 100)
    Clip(config.clip, CPU, tmp_path).rewards(states, [config])
    # The same weights under another name and in another place are the same model.
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED / "nano", folder)
    local = replace(config.clip, name="mine", model=f"local-dir:{folder}")
    forbid(monkeypatch, mountain_car, "make_renderer")

    def see(clip, states=states) -> None:
        Clip(clip, CPU, tmp_path).rewards(states, [replace(config, clip=clip)])

    see(local)
    moved = states.states.copy()
    moved[-1, 0] += 1e-9
    with pytest.raises(AssertionError, match="forbidden"):
        see(config.clip, replace(states, states=moved))
    for change in (
        {"frame_height": 80},
        {"preprocess": "crop"},
        {"precision": "bf16"},
        {"render_effects": True},
    ):
        with pytest.raises(AssertionError, match="forbidden"):
            see(replace(config.clip, **change))
    weights = folder / "open_clip_model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    with pytest.raises(AssertionError, match="forbidden"):
        see(local)


def test_code_and_libraries_are_part_of_the_key(compose, tmp_path, monkeypatch):
    digests = set()
    for text in ("a = 1", "a = 2"):
        (tmp_path / "module.py").write_text(text)
        digests.add(cache.sources([str(tmp_path / "module.py")]))
    assert len(digests) == 2

    config = compose("task=mountaincar", "clip=nano")
    states = sample(config.task, 100)
    Clip(config.clip, CPU, tmp_path).rewards(states, [config])
    forbid(monkeypatch, mountain_car, "make_renderer")
    Clip(config.clip, CPU, tmp_path).rewards(states, [config])
    of_libraries = cache.libraries
    for changed in ("envs/toy_renderers.py", "vlm/encoder.py", "reward/clip.py"):
        with monkeypatch.context() as other:
            other.setattr(
                cache,
                "sources",
                lambda files, c=changed: str(any(f.endswith(c) for f in files)),
            )
            with pytest.raises(AssertionError, match="forbidden"):
                Clip(config.clip, CPU, tmp_path).rewards(states, [config])
    for changed in ("pygame-ce", "timm"):
        with monkeypatch.context() as other:
            other.setattr(
                cache,
                "libraries",
                lambda names, c=changed: of_libraries(names) | {c: c in names},
            )
            with pytest.raises(AssertionError, match="forbidden"):
                Clip(config.clip, CPU, tmp_path).rewards(states, [config])


def test_the_code_is_hashed_once_for_a_model_and_a_question(
    compose, tmp_path, monkeypatch
):
    config = compose("task=mountaincar", "clip=nano")
    states = sample(config.task, 300)  # two parts
    asked, sources = [], cache.sources
    monkeypatch.setattr(cache, "sources", lambda files: asked.append(0) or sources([]))
    rewarder = Clip(config.clip, CPU, tmp_path)
    rewarder.rewards(states, [config])
    assert len(asked) == 2  # of the model, and of the world


def test_an_interruption_loses_one_part_at_most(compose, tmp_path, monkeypatch):
    config = compose("task=mountaincar", "clip=nano")
    states = sample(config.task, 300)  # a whole part of 256, and a rest
    rewarder = Clip(config.clip, CPU, tmp_path)
    see, parts = rewarder._see, []

    def interrupted(*arguments):
        if parts:
            raise KeyboardInterrupt
        parts.append(see(*arguments))
        return parts[0]

    monkeypatch.setattr(rewarder, "_see", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rewarder.rewards(states, [config])
    (kept,) = tmp_path.iterdir()
    monkeypatch.setattr(rewarder, "_see", see)
    before = kept.stat().st_mtime_ns
    whole = rewarder._embed(states, config)
    assert whole.shape[:2] == (300, 1)
    np.testing.assert_array_equal(whole[:256], parts[0])
    assert kept.stat().st_mtime_ns == before
    # A damaged file is made again, and one that holds something else.
    kept.write_bytes(kept.read_bytes()[:100])
    np.testing.assert_array_equal(rewarder._embed(states, config), whole)
    for other in (
        {"foo": 1},
        {"embeddings": whole[:5]},
        {"embeddings": whole * np.nan},
    ):
        np.savez(kept, **other)
        np.testing.assert_array_equal(rewarder._embed(states, config), whole)


def test_pictures_with_labels_measure_as_their_states_do(compose, tmp_path, folders):
    config = compose("task=mountaincar")
    states = sample(config.task, 100).states
    frames = tmp_path / "frames"
    frames.mkdir()
    renderer = world_of(config.task).make_renderer(config.task, 96, False)
    lines = ["file,label"]
    for i, frame in enumerate(renderer.render(states)):
        Image.fromarray(frame).save(frames / f"{i:03}.png")
        lines.append(f"{i:03}.png,{int(states[i, 0] >= 0.45)}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    given = [f"frames={frames}", f"labels={tmp_path}/labels.csv", "alpha=0.5"]
    (of_pictures,) = epic_of(folders, *GIVEN, *given)["rows"]
    (of_states,) = epic_of(folders, *MOUNTAIN, "alpha=0.5")["rows"]
    for key in ("epic", "auroc"):
        assert of_pictures[key] == pytest.approx(of_states[key], abs=1e-5)
    assert of_pictures["auroc_low"] <= of_pictures["auroc"]
    assert "epic_graded" not in of_pictures  # nobody knows the car's position
    whole = (frames / "000.png").read_bytes()
    broken = whole[:40] + b"\xff" * 8 + whole[48:]  # a chunk of impossible length
    for content in (b"no picture", broken):
        (frames / "000.png").write_bytes(content)
        with pytest.raises(
            ConfigError, match=r"000.png (cannot be|is not a)"
        ) as caught:
            epic_of(folders, *GIVEN, *given)
        assert "\n" not in str(caught.value)


def test_a_world_that_cannot_be_rendered_is_told_before_its_states(
    folders, monkeypatch
):
    def no_context(*size):
        raise RuntimeError("Cannot initialize a EGL device display.\nmore")

    monkeypatch.setattr(humanoid_renderer.mujoco, "GLContext", no_context)
    forbid(monkeypatch, humanoid, "sample_states")
    humanoid_renderer.renders_with.cache_clear()
    with pytest.raises(ConfigError, match=r"MUJOCO_GL=.*EGL device display") as caught:
        epic_of(folders, "task=kneeling", "clip=nano", "states=100")
    assert "\n" not in str(caught.value)
    humanoid_renderer.renders_with.cache_clear()


def test_one_model_is_in_memory_at_a_time(tmp_path, folders, monkeypatch):
    shutil.copytree(EMBEDDED / "nano", tmp_path / "other")
    made, alive = [], []

    class Watched(Clip):
        def __init__(self, *arguments):
            alive.append(sum(one() is not None for one in made))
            super().__init__(*arguments)
            made.append(weakref.ref(self))

    monkeypatch.setattr(rewards, "Clip", Watched)
    clips = f"clip=nano,local-dir:{tmp_path}/other"
    epic_of(folders, *MOUNTAIN, clips)
    assert alive == [0, 0]


def test_numbers_of_parameters_are_rounded_before_their_unit():
    numbers = (950, 999_400, 999_600, 1_610_000, 2_540_000_000)
    assert [short_count(n) for n in numbers] == [
        "950", "999 k", "1 M", "1.61 M", "2.54 G"
    ]  # fmt: skip


def test_labels_by_people_replace_the_predicate_of_a_stored_set(
    compose, tmp_path, folders
):
    states = sample(compose("task=mountaincar").task, 100)
    save_states(tmp_path / "s.npz", states, {})
    left = states.states[:, 0] < -0.9
    labels = [f"{i},{int(goal)}" for i, goal in enumerate(left)]
    (tmp_path / "l.csv").write_text("\n".join(["index,label", *labels]))
    given = [f"state_set={tmp_path}/s.npz", f"labels={tmp_path}/l.csv"]
    result = epic_of(folders, *GIVEN, *given)
    assert result["tasks"]["mountaincar"]["goal_states"] == left.sum()
    assert result["rows"][0]["auroc"] < 0.4  # people meant the other hill
    # And stay with the states that are kept with the results.
    kept = f"state_set={folders.out}/states-mountain_car.npz"
    again = epic_of(folders, *GIVEN, kept)
    assert again["tasks"]["mountaincar"]["labelled_by"] == f"{tmp_path}/l.csv"
    assert again["rows"] == result["rows"]


def test_kneeling_is_told_from_other_poses(compose, folders, tmp_path, monkeypatch):
    words = ["task=kneeling,standing_up", "clip=nano", "states=120", "resamples=20"]
    words += ["alpha=0", "task.camera=fixed"]
    result = epic_of(folders, *words)
    kneeling, standing = result["rows"]

    # States of one episode are drawn together, or intervals were far too narrow.
    config = compose("task=standing_up", "clip=nano", "task.camera=fixed")
    states, _ = stored_states(folders.out / "states-humanoid.npz", config.task)
    assert len(set(states.group)) < len(states)
    rewarder = Clip(config.clip, CPU, tmp_path / "cache" / "embeddings")
    (reward,) = rewarder.rewards(states, [config])
    goal = truth_of(config, states).goal
    together, alone = (
        interval(auroc, reward, goal, 20, 0, group) for group in (states.group, None)
    )
    measured = (standing["auroc_low"], standing["auroc_high"])
    assert measured == pytest.approx(together)
    assert measured != pytest.approx(alone)
    assert min(kneeling["auroc"], standing["auroc"]) > 0.8
    assert result["tasks"]["kneeling"]["sources"]["tasks"] == 48
    assert result["versions"]["drawn_by"].startswith("MuJoCo")
    # Neither simulated nor rendered again: the driver's name is part of the key.
    forbid(monkeypatch, humanoid, "make_renderer", "sample_states")
    assert epic_of(folders, *words)["rows"] == result["rows"]
    driver = replace(humanoid.WORLD, renders_with=lambda: "another driver")
    monkeypatch.setattr(humanoid, "WORLD", driver)
    with pytest.raises(AssertionError, match="forbidden"):
        epic_of(folders, *words)


def test_labels_in_a_file_of_states_are_of_its_states(folders):
    """Tasks of a world may have other episodes, and so be examined on other states."""
    tasks = "kneeling", "kneel_then_stand"
    epic_of(folders, f"task={','.join(tasks)}", "clip=nano", "states=100",
            "resamples=0", "alpha=0")  # fmt: skip
    files = [folders.out / f"states-humanoid{x}.npz" for x in ("", "-kneel_then_stand")]
    assert set(folders.out.glob("states-*")) == {*files}
    for task, file in zip(tasks, files, strict=True):
        held, config = np.load(file), studies.run_config(f"task={task}").task
        truth = humanoid.WORLD.predicate(config)(held["states"])
        np.testing.assert_array_equal(held[f"goal_{task}"], truth)


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


def test_models_of_folders_stand_beside_others(tmp_path, folders, capsys):
    for name in ("one", "two"):
        shutil.copytree(EMBEDDED / "nano", tmp_path / name)
    clips = f"clip=nano,local-dir:{tmp_path}/one,local-dir:{tmp_path}/two"
    result = epic_of(folders, *MOUNTAIN, clips)
    assert list(result["models"]) == ["nano", "one", "two"]
    assert "models of one size together" in capsys.readouterr().out
    assert len({row["epic"] for row in result["rows"]}) == 1
    with pytest.raises(ConfigError, match="Two models would be called nano"):
        asked(*MOUNTAIN, f"clip=nano,local-dir:{EMBEDDED}/nano", *folders)


def test_a_models_folder_is_fed_as_what_it_is(tmp_path, folders):
    """Pictures as pretrained models want them, unless `pretrain` made it."""
    shutil.copytree(EMBEDDED / "nano", tmp_path / "own")
    (tmp_path / "other").mkdir()
    description = "open_clip_config.json"
    shutil.copy(EMBEDDED / "nano" / description, tmp_path / "other" / description)
    for name, alike in (("own", "base"), ("other", "vitb32")):
        [mine] = asked(*MOUNTAIN, f"clip=local-dir:{tmp_path}/{name}", *folders).models
        [theirs] = asked(*MOUNTAIN, f"clip={alike}", *folders).models
        told = {"name": name, "model": f"local-dir:{tmp_path}/{name}"}
        unread = {"pretrained": None, "download_gb": None}
        assert mine == replace(theirs, **told, **unread)
    assert mine.preprocess == "pad"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["clip=tyni"], "clip=tyni does not exist: choose one of base, bigG"),
        (["clip=tiny,2"], "clip=2 does not exist: choose one of base, bigG"),
        (["clip=local-dir:/nowhere"], "no folder /nowhere"),
        (["clip=tiny,tiny"], "names tiny twice"),
        (["clip=_embedded"], "is no model"),
        (["clip=nano,tiny", "clip.model=embedded"], "clip.model is of one model, but"),
        (["clip=rn50,vitb32", "clip.pretrained=a.pt"], "clip.pretrained is of one mo"),
        (["task=kneel"], "Did you mean kneeling"),
        (["task=gym", "prompt=a"], "epic with any other task's name"),
        (["task=[kneeling"], "kneeling"),
        (["kneeling"], "kneeling is no setting"),
        (["alpha=2"], "alpha is 2.0"),
        (["alpha=[]"], "alpha is an empty list"),
        (["alpha=0,0"], "names 0.0 twice"),
        (["task.camera=above"], "camera is 'above', but must be one of fixed for"),
        (["resamples=-1"], "resamples is -1"),
        (["resamples=1"], "20 at least"),
        (["states=99"], "states is 99"),
        (["task=kneeling,lotus", "prompt=a robot"], "prompt is of one task"),
        (["frames=/nowhere"], "frames needs labels"),
        (["frames=/nowhere", "labels=/no.csv"], "no folder /nowhere"),
        (["labels=/no.csv"], "needs the states that they are of"),
        (["frames=/a", "state_set=/b"], "choose one"),
        (["state_set=/b.npz"], "no stored state set"),
        (["state_set=/b.npz", "runs=[/c]"], "leave one of them out"),
        (["task=kneeling", "runs=[/nowhere]"], "no folder /nowhere"),
        (["frames="], "frames is empty"),
        (["out="], "out is empty"),
        (["reward=environment"], "looks at an environment's steps"),
        (["reward=ensemble", "reward.options.weight=-1"], "weight is -1: give a numb"),
        (["missing.yaml"], "no settings file missing.yaml"),
    ],
)
def test_bad_input_is_one_sentence(words, says, folders):
    with pytest.raises(ConfigError, match=says) as caught:
        asked("task=cartpole", *folders, *words)
    assert "\n" not in str(caught.value)


def test_older_results_stay(tmp_path):
    words = [*MOUNTAIN, f"out={tmp_path}"]
    (tmp_path / "other.txt").touch()
    asked(*words)
    # Another verb's too: both would write states under the same name.
    for name in ("epic.json", "scores.csv", "metrics.jsonl"):
        (tmp_path / name).touch()
        with pytest.raises(ConfigError, match=f"holds {name} already"):
            asked(*words)
        (tmp_path / name).unlink()


def test_all_weights_are_there_before_the_first_model_is_used(folders, monkeypatch):
    forbid(monkeypatch, mountain_car, "make_renderer")
    with pytest.raises(ConfigError, match=r"clip=vitb32 .* cannot be had"):
        epic_of(folders, "task=mountaincar", "clip=nano,vitb32")


LABELLED = {"labelled_by_mountaincar": ["me"]}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ({"states": np.zeros((20, 3))}, "have 2 numbers each"),
        ({"states": np.zeros((0, 2))}, "holds no states"),
        ({"source": np.full(7, "x")}, r"source of shape \(7,\) for 20 states"),
        ({"source": "x"}, r"source of shape \(\)"),
        ({"group": np.arange(19)}, r"group of shape \(19,\)"),
        ({"group": np.zeros((20, 1))}, r"group of shape \(20, 1\)"),
        ({"states": np.full((20, 2), np.nan)}, "not finite"),
        ({"states": np.full((20, 2), "1")}, "of type <U1, which are no real numbers"),
        ({"goal_mountaincar": np.arange(20) > 3}, "say who gave the labels"),
        (LABELLED | {"goal_mountaincar": np.arange(20)}, "is not 0 or 1 for every"),
        (LABELLED | {"goal_mountaincar": np.full(20, "0")}, "is not 0 or 1 for every"),
        ({"world": ["cartpole"]}, "holds states of cartpole, but"),
        (None, "not a stored state set"),
    ],
)
def test_damaged_states_are_refused(tmp_path, compose, damage, words):
    whole = {"states": np.zeros((20, 2)), "source": np.full(20, "x")}
    with (tmp_path / "s.npz").open("wb") as file:
        if damage is None:
            np.save(file, whole["states"])  # one array, no archive
        else:
            np.savez(file, **(whole | {"world": "mountain_car"} | damage))
    with pytest.raises(ConfigError, match=words):
        stored_states(tmp_path / "s.npz", compose("task=mountaincar").task)


def test_states_that_others_stored_are_read(tmp_path, compose):
    """Whole numbers as states, labels of 0 and 1, texts in a list or as bytes."""
    goal = np.arange(20) > 3
    whole = {"world": [b"mountain_car"], "states": np.ones((20, 2), int)}
    whole |= LABELLED | {"source": np.full(20, "x"), "goal_mountaincar": goal * 1.0}
    np.savez(tmp_path / "s.npz", **whole)
    states, truth = stored_states(tmp_path / "s.npz", compose("task=mountaincar").task)
    assert states.states.dtype == np.float64
    assert (truth.labelled_by, truth.goal.tolist()) == ("me", goal.tolist())
    # A zip that somebody else packed: encrypted, or with other files in it.
    locked = bytearray((tmp_path / "s.npz").read_bytes())
    locked[locked.find(b"PK\1\2") + 8] |= 1  # of the first file: it is encrypted
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as packed:
        for name in ("world", "states", "source"):
            packed.writestr(name, "text")
    (tmp_path / "locked.npz").write_bytes(locked)
    for name in ("locked.npz", "other.npz"):
        with pytest.raises(ConfigError, match="not a stored state set"):
            stored_states(tmp_path / name, compose("task=mountaincar").task)


def test_states_of_one_episode_have_no_interval(tmp_path, folders):
    states = np.stack([np.linspace(-1.2, 0.6, 20), np.zeros(20)], axis=1)
    group = np.zeros(20, int)
    alike = StateSet("mountain_car", np.full(20, "x"), states, group=group)
    save_states(tmp_path / "s.npz", alike, {})
    given = ["task=mountaincar", "clip=nano", f"state_set={tmp_path}/s.npz", "alpha=0"]
    with pytest.raises(ConfigError, match="of one episode, which gives no interval"):
        epic_of(folders, *given)
    epic_of(folders, *given, "resamples=0")


@pytest.mark.parametrize(
    ("given", "unread"),
    [
        ("frames", "states=300"),
        ("frames", "task.camera=side"),
        ("frames", "clip.render_effects=true"),
        ("state_set", "states=300"),
    ],
)
def test_settings_that_have_no_effect_are_refused(folders, given, unread):
    words = ["task=kneeling", f"{given}=/nowhere", unread, *folders]
    if given == "frames":
        words.append("labels=/nowhere")
    with pytest.raises(ConfigError, match=f"has no effect with {given}: leave it out"):
        asked(*words)


def test_a_sentence_too_long_and_a_baseline_that_says_the_same_are_refused(folders):
    long = "prompt=" + "a car on the mountain " * 20
    with pytest.raises(ConfigError, match="reads 30 and would not see its end"):
        epic_of(folders, *MOUNTAIN, long)
    same = ["prompt=a car", "baseline=a car", "alpha=0,0.5"]
    with pytest.raises(ConfigError, match="prompt and baseline are both 'a car'"):
        asked(*MOUNTAIN, *same, *folders)


def test_what_is_typed_wins_over_a_settings_file(tmp_path, start):
    file = tmp_path / "settings" / "s.yaml"
    file.parent.mkdir()
    file.write_text(
        "defaults: [epic, _self_]\ntasks: [cartpole, mountaincar]\nalphas: [0, 1]\n"
        'prompt: ["a, b", c]\nseed: 4\ntask:\n  frame_height: 90\n'
    )
    checked = []
    words = [str(file), "alpha=0.5", "task=cartpole", "clip=nano,tiny"]
    words.append(f"out={tmp_path}/out")

    def check(composed) -> None:
        checked.append(epic.check(composed))

    ended = start(words, str, "epic", check, PLURAL)
    assert ended.code == 0, ended.err
    (study,) = checked
    assert study.settings()["alphas"] == [0.5]
    assert [model.name for model in study.models] == ["nano", "tiny"]
    (task,) = study.tasks
    assert (task.task.name, task.seed, task.task.frame_height) == ("cartpole", 4, 90)
    assert task.prompts == ["a, b", "c"]


def test_constant_rewards_are_refused(tmp_path, folders):
    """A state set in which every picture is the same."""
    still = np.zeros((20, 2))
    still[:, 1] = np.linspace(0, 0.01, 20)  # a speed cannot be seen
    states = StateSet("mountain_car", np.full(20, "same"), still)
    save_states(tmp_path / "s.npz", states, {})
    labels = [f"{i},{i % 2}" for i in range(20)]
    (tmp_path / "l.csv").write_text("\n".join(["index,label", *labels]))
    given = [f"state_set={tmp_path}/s.npz", f"labels={tmp_path}/l.csv"]
    with pytest.raises(ConfigError, match="in all 20 states"):
        epic_of(folders, *GIVEN, *given)


def test_a_command_writes_into_its_folder_and_a_refused_one_makes_none(folders, start):
    def program(*words: str):
        return start(
            words,
            lambda composed: measure(epic.check(composed)),
            "epic",
            epic.check,
            PLURAL,
        )

    refused = program(*MOUNTAIN, "alpha=9", *folders)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "alpha is 9.0" in refused.err
    assert not folders.out.exists()
    done = program(*MOUNTAIN, *folders)
    assert done.code == 0, done.err
    assert "mountaincar: a car at the peak" in done.out
    assert (folders.out / "epic.json").is_file()
    helped = program("--help")
    assert "epic task=kneeling clip=nano,tiny" in helped.out
    assert "resamples: 1000" in helped.out


@pytest.mark.parametrize("verb", [epic, prompts, landscape, peak])
def test_a_study_is_told_what_a_run_is_told_by_the_same_words(verb, folders, compose):
    words = ["task=splits" if verb is peak else "task=mountaincar", "clip=rn50"]
    words += ["experiment=paper", "clip.preprocess=crop", "clip.pretrained=FILE"]
    words += ["seed=5", "reward.every=3", "prompt=a, b", "baseline=c"]
    study = studies.asked(verb, *words, "alpha=0,0.5", *folders)
    run = compose(*words, "alpha=0.5")
    assert not run.renormalise  # as the paper's code had it
    assert study.models == [run.clip]
    wanted = vars(run) | {"name": None}  # a study has no folder of runs
    found = [vars(job) | {"name": None} for job in study.jobs(study.tasks[0], run.clip)]
    assert found[0].items() >= (wanted | {"alpha": 0.0}).items()
    assert found[1].items() >= wanted.items()


def test_without_a_model_each_task_brings_its_own(folders, compose):
    study = asked("task=cartpole,kneeling", *folders)
    assert study.models == [compose(f"task={t}").clip for t in ("cartpole", "kneeling")]


def test_a_reward_without_a_model_is_measured(folders):
    words = ["task=mountaincar", "states=100", "reward=predicate", "alpha=0"]
    (row,) = epic_of(folders, *words)["rows"]
    assert (row["clip"], row["auroc"], row["parameters"]) == ("predicate", 1, None)
    assert row["epic"] == pytest.approx(0, abs=1e-6)
