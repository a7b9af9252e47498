"""reward=xclip against Transformers' own X-CLIP, asked about video after video."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vlmrm_exp import composition
from vlmrm_exp.config import ConfigError
from vlmrm_exp.envs import world_of
from vlmrm_exp.notes import unread
from vlmrm_exp.reward import Episodes, make_model, reward_class
from worlds import composed, make_renderer

T, N, F = 5, 2, 3
GOALS, BASELINES = ["a robot on its knees", "kneeling"], ["a robot", "a machine"]
TWO = [f"prompt={json.dumps(GOALS)}", f"baseline={json.dumps(BASELINES)}"]


@pytest.fixture(scope="module")
def transformers():
    from vlmrm_exp.vlm import source  # noqa: F401  # it mends torchvision's import

    return pytest.importorskip("transformers", reason="the extra hf is not installed")


@pytest.fixture(scope="module")
def folder(transformers, tmp_path_factory) -> Path:
    """Random weights of a tiny X-CLIP, of 3 frames of 32 px; tokens are letters."""
    made = tmp_path_factory.mktemp("models") / "xclip"
    tiny = {"intermediate_size": 32, "num_attention_heads": 2}
    text = {**tiny, "hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 54,
            "max_position_embeddings": 40}  # fmt: skip
    vision = {**tiny, "hidden_size": 32, "num_hidden_layers": 2, "image_size": 32,
              "patch_size": 16, "num_frames": F, "mit_hidden_size": 16,
              "mit_intermediate_size": 32, "mit_num_attention_heads": 2}  # fmt: skip
    config = transformers.XCLIPConfig(
        text_config=text, vision_config=vision, projection_dim=16,
        prompt_num_attention_heads=2, prompt_alpha=1.0,
    )  # fmt: skip
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{x}</w>" for x in letters)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]  # the end has the highest number
    pictures = transformers.VideoMAEImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32},
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
    )  # fmt: skip
    transformers.logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.XCLIPModel(config).save_pretrained(made)
    transformers.XCLIPProcessor(
        pictures, transformers.CLIPTokenizer({t: i for i, t in enumerate(tokens)}, [])
    ).save_pretrained(made)
    return made


@pytest.fixture
def of(compose, folder):
    """Makes reward models, and closes them."""
    made = []

    def make(*words):
        own = ("task=kneeling", "reward=xclip", f"clip.model=xclip:{folder}",
               "clip.frame_height=48", "clip.render_effects=false", "compute=cpu",
               "prompt=a robot on its knees")  # fmt: skip
        made.append(make_model(compose(*own, *words)))
        return made[-1]

    yield make
    for model in made:
        model.close()


@pytest.fixture(scope="module")
def states() -> np.ndarray:
    task = composed("task=kneeling").task
    return world_of(task).sample_states(task, T * N, 0).states.reshape(T, N, -1)


@pytest.fixture(scope="module")
def ask(transformers, folder):
    """What Transformers itself says of F frames, (H, W, 3) each, and of sentences."""
    processor = transformers.XCLIPProcessor.from_pretrained(folder)
    model = transformers.XCLIPModel.from_pretrained(folder)
    how = {"padding": True, "return_tensors": "pt"}

    @torch.no_grad()
    def said(frames, sentences):
        return model(**processor(videos=frames, text=sentences, **how))

    said.scale, said.pictures = (
        model.logit_scale.exp().item(),
        processor.image_processor,
    )
    return said


def videos_of(states, stride):
    """Step, episode, and the frames of one view of its video."""
    task = composed("task=kneeling").task
    renderer = make_renderer(task, 48, False)
    for t in range(T):
        for n in range(N):
            steps = [max(t - stride * back, 0) for back in reversed(range(F))]
            both = [renderer.render(states[step, n][None])[0] for step in steps]
            for view in (slice(0, 48), slice(48, 96)):
                yield t, n, [frame[:, view] for frame in both]
    renderer.close()


@pytest.mark.parametrize(("stride", "batch"), [(1, 1), (2, 64)])
def test_a_reward_is_the_models_own_cosine(of, ask, states, stride, batch):
    model = of(f"reward.options.stride={stride}", f"clip.batch_size={batch}")
    found = model.rewards(Episodes(states=states))
    expected = np.zeros((T, N))
    for t, n, frames in videos_of(states, stride):
        logit = ask(frames, ["a robot on its knees"]).logits_per_video.item()
        expected[t, n] += logit / ask.scale / 2  # two views
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(expected) > 0.01


@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_each_video_has_a_goal_and_a_baseline_of_its_own(of, ask, states, alpha):
    model = of(*TWO, f"alpha={alpha}", "reward.options.stride=2")
    found = model.rewards(Episodes(states=states))
    expected, goals = np.zeros((T, N)), []
    for t, n, frames in videos_of(states, 2):
        said = ask(frames, GOALS + BASELINES)
        s, texts = said.video_embeds[0].numpy(), said.text_embeds[0].numpy()
        g, b = texts[:2].sum(0), texts[2:].sum(0)
        g, b = g / np.linalg.norm(g), b / np.linalg.norm(b)
        on_line = g + (s - g) @ (g - b) / ((g - b) @ (g - b)) * (g - b)
        moved = alpha * on_line + (1 - alpha) * s
        expected[t, n] += (1 - ((moved - g) ** 2).sum() / 2) / 2  # two views
        goals.append(g)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(goals, axis=0).max() > 0.01  # else this would be CLIP's formula


def test_pixels_are_those_of_the_models_own_image_processor(of, ask):
    encoder, rng = of("clip.preprocess=crop")._encoder, np.random.default_rng(0)
    for height, width in ((48, 48), (60, 91), (91, 60), (32, 32)):
        frames = rng.integers(0, 256, (F, height, width, 3), np.uint8)
        expected = ask.pictures(list(frames), return_tensors="pt").pixel_values[0]
        found = encoder.pixels(frames)
        # One level of 255 at most, where rounding differs.
        torch.testing.assert_close(found, expected, atol=1.01 / 255 / 0.224, rtol=0)
        assert (found - expected).abs().mean() < 1e-3


def test_every_state_is_rendered_once(of, states, monkeypatch):
    model = of()
    rendered, render = [], model._views.pictures
    monkeypatch.setattr(
        model._views, "pictures", lambda s: rendered.extend(s) or render(s)
    )
    model.rewards(Episodes(states=states))
    assert sorted(map(tuple, rendered)) == sorted(map(tuple, states.reshape(T * N, -1)))


def in_the_layout_of_2022(folder: Path) -> None:
    """As Microsoft's repositories are: a .bin file, and sizes as bare numbers."""
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()
    now = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    kept = {k: now[k] for k in ("image_mean", "image_std", "resample", "do_resize")}
    old = {"feature_extractor_type": "VideoMAEFeatureExtractor", "size": 32}
    text = json.dumps({**kept, **old, "crop_size": 32, "do_center_crop": True})
    (folder / "preprocessor_config.json").write_text(text)
    (folder / "processor_config.json").unlink()


def test_a_name_is_found_in_the_hubs_cache(of, states, folder, tmp_path, monkeypatch):
    cached = tmp_path / "models--microsoft--xclip-base-patch32"
    snapshot = shutil.copytree(folder, cached / "snapshots" / "abc")
    in_the_layout_of_2022(snapshot)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    named = of("clip.model=xclip:microsoft/xclip-base-patch32")
    assert named.about()["encoder"]["weights"].startswith(str(cached))
    rewards = [m.rewards(Episodes(states=states)) for m in (named, of())]
    np.testing.assert_array_equal(*rewards)
    with pytest.raises(ConfigError, match=r"an/other\) is not in the cache"):
        of("clip.model=xclip:an/other", "clip.download_gb=null")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_learns_from_it(program, folder, tmp_path, workers):
    ended = program(
        "experiment=smoke", "task=mountaincar", "reward=xclip", "log=none",
        f"clip.model=xclip:{folder}", "prompt=a car at the flag", "clip.name=tiny",
        f"compute.workers={workers}", f"hydra.run.dir={tmp_path}/run",
        "task.frame_height=64", "compute=cpu",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert -1 <= summary["eval/reward_mean"] <= 1
    assert "changes nothing here" not in ended.out
    encoder = json.loads((tmp_path / "run" / "versions.json").read_text())["encoder"]
    assert encoder["num_frames"] == F
    assert len(encoder["weights_sha256"]) == 64


# What is refused


def test_without_its_package_it_is_refused(compose, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"reward=xclip needs .*vlmrm_exp\[hf\]"):
        compose("reward=xclip")


def test_a_model_of_pictures_is_refused():
    with pytest.raises(ConfigError, match=r"clip=nano \(embedded\) is one of pictures"):
        composed("reward=xclip", "clip=nano")


def test_others_refuse_a_video_model(compose):
    with pytest.raises(ConfigError, match=r"is a video model.*give reward=xclip"):
        make_model(compose("clip=xclip_b32", "compute=cpu"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["prompt=" + "a" * 40], r"40 tokens, but clip=xclip_b32 reads 38 .*\"aa\""),
        (["reward.options.stride=0"], r"reward\.options\.stride is 0: give a whole"),
        (["+reward.options.strid=2"], r"no option reward\.options\.strid, only stride"),
        (["clip.mean=[0.5,0.5,0.5]"], r"clip\.mean is .* no effect with reward=xclip"),
        (["alpha=0.5", "prompt=a ROBOT", "baseline=a robot"], "same embedding"),
    ],
)
def test_what_cannot_be_is_refused(of, states, words, told):
    with pytest.raises(ConfigError, match=told):
        of(*words).rewards(Episodes(states=states))


def broken(folder: Path, how: str) -> None:
    """Damage a copy of the model."""
    weights, config = folder / "model.safetensors", folder / "config.json"
    if how == "no weights":
        weights.unlink()
    elif how == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "of pictures":
        config.write_text(config.read_text().replace('"xclip"', '"clip"'))
    elif how == "larger pictures":
        config.write_text(
            config.read_text().replace('"image_size": 32', '"image_size": 48')
        )
    elif how == "incomplete":
        tensors = load_file(weights)
        del tensors["prompts_generator.alpha"]
        save_file(tensors, weights, {"format": "pt"})
    elif how == "nearest":
        pictures = folder / "processor_config.json"
        pictures.write_text(
            pictures.read_text().replace('"resample": 2', '"resample": 0')
        )
    elif how == "gone":
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("no weights", r"has no model\.safetensors or pytorch_model\.bin: give one"),
        ("cut", "cannot be read as X-CLIP .*: give a folder"),
        ("of pictures", "is of the kind 'clip', not X-CLIP"),
        ("larger pictures", "cannot be read as X-CLIP"),
        ("incomplete", r"have no prompts_generator\.alpha, which would be random"),
        ("nearest", r"asks for pictures of another kind .*\(0, 32, 32\)"),
        ("gone", r"has no config\.json"),
    ],
)
def test_a_folder_that_will_not_do_is_refused(of, folder, tmp_path, how, told):
    copy = shutil.copytree(folder, tmp_path / "copy")
    broken(copy, how)
    with pytest.raises(ConfigError, match=told) as refusal:
        of(f"clip.model=xclip:{copy}")
    assert "\n" not in str(refusal.value)


def test_studies_of_single_states_refuse_it(transformers):
    from vlmrm_exp import epic

    study = composition.compose("epic", "task=kneeling", "reward=xclip", "out=x")
    with pytest.raises(ConfigError, match="but a study rewards single states"):
        epic.check(study)


def test_it_brings_its_model_and_reads_its_settings(transformers):
    config = composed("task=mountaincar", "reward=xclip", "render=fast")
    assert (config.clip.name, config.frame_height) == ("xclip_b32", 224)
    assert reward_class(config).window > 1
    assert unread(config, ["prompt", "clip.precision", "reward.options.stride"]) == []
    with torch.device("meta"):  # base, patches of 32: as Transformers has it by default
        model = transformers.XCLIPModel(transformers.XCLIPConfig())
    size_gb = sum(4 * one.numel() for one in model.parameters()) / 1e9
    assert config.clip.download_gb == pytest.approx(size_gb, rel=0.05)
