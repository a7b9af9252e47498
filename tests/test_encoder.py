"""The encoder against open_clip's own pipeline, and what it refuses."""

import functools
import gzip
import json
import logging
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from vlmrm_exp.checks import check_clip
from vlmrm_exp.config import VIDEO_MODEL, ClipConfig, ConfigError
from vlmrm_exp.vlm import preprocess as preprocess_module
from vlmrm_exp.vlm.encoder import Encoder, load_encoder
from vlmrm_exp.vlm.imported import open_clip
from vlmrm_exp.vlm.int8 import Int8Attention, Int8Linear, to_int8
from vlmrm_exp.vlm.preprocess import preprocess
from vlmrm_exp.vlm.source import EMBEDDED, find
from vlmrm_exp.vlm.tokenizer import check_prompts
from worlds import composed

pytestmark = pytest.mark.slow

PreprocessCfg = open_clip.transform.PreprocessCfg
image_transform_v2 = open_clip.transform.image_transform_v2

CONF = Path(__file__).resolve().parents[1] / "conf" / "clip"
CPU = torch.device("cpu")
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
MERGES = ["t h", "th e</w>", "a n"]
MODEL: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2},
    "text_cfg": {
        "context_length": 12,
        "vocab_size": 2 * 256 + len(MERGES) + 2,
        "width": 32,
        "heads": 2,
        "layers": 1,
    },
}
SHORT_MERGES = gzip.compress(b"#version\nt h", mtime=0)  # the same in each process
SIMPLE = MODEL["text_cfg"] | {"vocab_size": 49408}
"""With CLIP's own merges."""
PICTURES = {"mean": MEAN, "std": STD, "interpolation": "bicubic"}


def write_model(
    folder: Path,
    model: dict | None = None,
    pictures: dict | None = None,
    kind: type = open_clip.CLIP,
) -> Path:
    """A model of random weights, as open_clip saves one, with merges of its own."""
    model, pictures = model or MODEL, PICTURES if pictures is None else pictures
    folder.mkdir()
    torch.manual_seed(3)
    weights = kind(
        **{k: v for k, v in model.items() if k != "custom_text"}
    ).state_dict()
    save_file(
        {name: value.contiguous() for name, value in weights.items()},
        folder / "open_clip_model.safetensors",
    )
    description = {"model_cfg": model, "preprocess_cfg": pictures}
    (folder / "open_clip_config.json").write_text(json.dumps(description))
    merges = gzip.compress("\n".join(["#version", *MERGES]).encode())
    (folder / "bpe.txt.gz").write_bytes(merges)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "small")


def clip_of(folder: Path, **changes: Any) -> ClipConfig:
    return ClipConfig(name="small", model=f"local-dir:{folder}", **changes)


@pytest.fixture(scope="module")
def encoder(folder) -> Encoder:
    return load_encoder(clip_of(folder, preprocess="squash", batch_size=4), CPU)


def frames(count: int, height: int, width: int) -> np.ndarray:
    """Pictures with smooth shades, hard edges and fine grain, (count, H, W, 3)."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width]
    shade = 127 + 127 * np.sin(x / 17 + y / 29)
    edges = 255 * ((x // 13 + y // 11) % 2)
    mixed = np.stack([shade, edges, (shade + edges) / 2], -1)[None]
    grain = rng.normal(0, 20, (count, height, width, 3))
    return np.clip(mixed + grain, 0, 255).astype(np.uint8)


# Preprocessing


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("shape", [(400, 600), (60, 90), (96, 96), (300, 130)])
@pytest.mark.parametrize(
    ("fit", "resize_mode"),
    [("pad", "longest"), ("squash", "squash"), ("crop", "shortest")],
)
def test_preprocess_agrees_with_open_clip(fit, resize_mode, shape, interpolation):
    batch = frames(2, *shape)
    ours = preprocess(torch.tensor(batch), (112, 112), fit, interpolation, MEAN, STD)
    asked = PreprocessCfg(112, "RGB", MEAN, STD, interpolation, resize_mode)
    theirs = image_transform_v2(asked, is_train=False)
    expected = torch.stack([theirs(Image.fromarray(f)) for f in batch])
    # Their border is black, ours the mean, which is zero here.
    white = theirs(Image.new("RGB", shape[::-1], "white"))
    expected[:, white < 0] = 0
    levels = (ours - expected).abs() * torch.tensor(STD).view(3, 1, 1) * 255
    # Both round to 8 bits after each pass, PIL with finer weights. On tall frames some
    # versions of PIL do the height first, and overshoot is clipped in between.
    is_tall = shape[0] > shape[1]
    assert levels.max() < (20 if is_tall else 2.01)
    assert levels.mean() < (0.5 if is_tall else 0.1)


def test_square_frame_is_the_same_in_every_mode():
    batch = torch.tensor(frames(1, 96, 96))
    pad, squash, crop = (
        preprocess(batch, (64, 64), fit, "bicubic", MEAN, STD)
        for fit in ("pad", "squash", "crop")
    )
    assert torch.equal(pad, squash)
    assert torch.equal(pad, crop)


@pytest.mark.parametrize(("fit", "seen"), [("pad", 1), ("squash", 1), ("crop", 0)])
def test_only_crop_hides_the_sides(fit, seen):
    batch = torch.zeros((1, 400, 600, 3), dtype=torch.uint8)
    batch[:, :, 520:] = 255  # where MountainCar's flag stands
    pixels = preprocess(batch, (224, 224), fit, "bicubic", [0] * 3, [1] * 3)
    assert pixels.max() == seen


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_accelerators_resize_gives_the_cpus_picture(interpolation):
    pixels = torch.tensor(frames(2, 200, 300)).permute(0, 3, 1, 2)
    cpu = preprocess_module.resize(pixels, (96, 144), interpolation)
    other = preprocess_module.resize(pixels.float(), (96, 144), interpolation)
    levels = (cpu.float() - other).abs()
    assert levels.max() <= 1
    assert levels.mean() < 0.01


# Embeddings


def test_embeddings_agree_with_open_clip(folder, encoder):
    pictures = {**PICTURES, "resize_mode": "squash"}
    whole = write_model(folder.with_name("whole"), pictures=pictures)
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{whole}")
    batch = frames(6, 40, 60)
    inputs = torch.stack([transform(Image.fromarray(f)) for f in batch])
    words = open_clip.SimpleTokenizer(str(whole / "bpe.txt.gz"), context_length=12)
    with torch.no_grad():
        image = model.eval().encode_image(inputs, normalize=True)
        text = model.encode_text(words(["the ant", "a hat"]), normalize=True)
    assert torch.allclose(encoder.embed_frames(batch), image, atol=2e-3)
    assert torch.allclose(encoder.embed_prompts(["the ant", "a hat"]), text, atol=1e-6)


def test_batch_norms_are_folded_away_without_a_change():
    clip = composed("clip=nano").clip
    ours = load_encoder(clip, CPU)
    kinds = {type(module) for module in ours._model.visual.modules()}
    assert torch.nn.BatchNorm2d not in kinds
    source = find(clip)
    assert source.folder
    theirs = open_clip.create_model(f"local-dir:{source.folder}").eval()
    frames = np.random.default_rng(0).integers(0, 256, (4, 96, 96, 3), np.uint8)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        wanted = theirs.encode_image((pixels - 0.5) / 0.25, normalize=True)
    torch.testing.assert_close(ours.embed_frames(frames), wanted, atol=1e-5, rtol=0)


def test_embedding_does_not_depend_on_its_batch(encoder):
    batch = frames(9, 40, 60)
    together = encoder.embed_frames(batch)  # in chunks of 4, 4 and 1
    alone = torch.cat([encoder.embed_frames(batch[i : i + 1]) for i in range(9)])
    assert (together - alone).abs().max() < 1e-5
    assert (together[0] - together[1:]).abs().max() > 1e-3


def test_embeddings_are_unit_float32_without_gradient(encoder):
    for embedding in (
        encoder.embed_frames(frames(3, 32, 32)),
        encoder.embed_prompts("a"),
    ):
        assert embedding.dtype == torch.float32
        assert not embedding.requires_grad
        assert torch.allclose(embedding.norm(dim=-1), torch.ones(len(embedding)))
    assert encoder.embed_frames(frames(0, 32, 32)).shape == (0, 16)


def test_frames_may_be_read_only_or_flipped(encoder):
    batch = frames(3, 40, 60)
    flipped = batch[:, ::-1]
    plain = encoder.embed_frames(np.ascontiguousarray(flipped))
    batch.setflags(write=False)
    assert torch.equal(encoder.embed_frames(flipped), plain)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "int8"])
def test_low_precision_is_near_float32(folder, encoder, precision):
    clip = clip_of(folder, preprocess="squash", precision=precision)
    low, batch = load_encoder(clip, CPU), frames(3, 40, 60)
    difference = (low.embed_frames(batch) - encoder.embed_frames(batch)).abs().max()
    assert 0 < difference < 0.05
    assert low.embed_prompts(["the ant"]).dtype == torch.float32


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_of_coca_is_near_float32(tmp_path, precision):
    vision, text = MODEL["vision_cfg"], MODEL["text_cfg"]
    heads = {"attn_pooler_heads": 2}
    model = {
        **MODEL,
        "vision_cfg": vision
        | heads
        | {"attentional_pool": True, "output_tokens": True},
        "text_cfg": text | {"embed_cls": True, "output_tokens": True},
        "multimodal_cfg": text | heads,
        "custom_text": True,
    }
    folder = write_model(tmp_path / "coca", model, kind=open_clip.CoCa)
    (exact, told), (near, told_near) = (
        (encoder.embed_frames(frames(3, 40, 60)), encoder.embed_prompts(["the ant"]))
        for encoder in (
            load_encoder(clip_of(folder, precision=p), CPU) for p in ("fp32", precision)
        )
    )
    assert 0 < (near - exact).abs().max() < 0.05
    assert 0 < (told_near - told).abs().max() < 0.05


def test_int8_layers_round_and_sum_as_by_hand():
    rng = np.random.default_rng(0)
    x, weight, bias = rng.normal(size=(5, 24)), rng.normal(size=(7, 24)), np.arange(7)
    x[2] = 0

    def rounded(rows, most):
        scale = np.abs(rows).max(axis=1, keepdims=True) / most
        return np.divide(rows, scale, where=scale > 0, out=rows * 0).round(), scale

    (x_int, x_scale), (w_int, w_scale) = rounded(x, 127), rounded(weight, 63)
    expected = (x_int @ w_int.T) * x_scale * w_scale.T + bias
    layer = Int8Linear(torch.tensor(weight).float(), torch.tensor(bias).float())
    y = layer(torch.tensor(x).float()[None])[0]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(x @ weight.T + bias - expected).max() > 1e-3  # they do round
    attention = nn.MultiheadAttention(16, 4, batch_first=True).requires_grad_(False)
    tokens = torch.tensor(rng.normal(size=(2, 9, 16))).float()
    exact, _ = attention(tokens, tokens, tokens)
    near, _ = Int8Attention(attention)(tokens, tokens, tokens)
    assert 0 < (near - exact).abs().max() < 0.02 * exact.abs().max()


@pytest.mark.parametrize("instructions", ["SSE41", "AVX2", "DEFAULT"])
def test_int8_sums_are_exact_on_older_processors(instructions):
    """Which add pairs of products in 16 bits; the largest are asked for."""
    code = (
        "import torch; from vlmrm_exp.vlm.int8 import Int8Linear\n"
        "weight, x = torch.ones(32, 512), torch.ones(5, 512)\n"
        "weight[::2] *= -1; x[1] *= -1\n"
        "print((Int8Linear(weight, None)(x) - x @ weight.T).abs().max().item())"
    )
    told = os.environ | {"ONEDNN_MAX_CPU_ISA": instructions}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=told, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1e-3


def test_int8_leaves_layers_whose_weights_are_read_by_others():
    from timm.models.eva import EvaBlock  # after vlm.imported, which mends its import

    visual = nn.Module()
    visual.trunk = nn.Module()
    visual.trunk.blocks = nn.Sequential(EvaBlock(16, 2, qkv_fused=True, qkv_bias=True))
    visual.eval().requires_grad_(False)
    tokens = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0))
    exact = visual.trunk.blocks(tokens)
    to_int8(visual, "eva")
    near = visual.trunk.blocks(tokens)
    assert 0 < (near - exact).abs().max() < 0.02 * exact.abs().max()


def test_int8_is_refused_where_it_is_not_to_be_had(folder, tmp_path):
    with pytest.raises(ConfigError, match="a GPU embeds here: use bf16, or compute"):
        load_encoder(clip_of(folder, precision="int8"), torch.device("cuda"))
    resnet = MODEL | {"vision_cfg": MODEL["vision_cfg"] | {"layers": [1, 1, 1, 1]}}
    clip = clip_of(write_model(tmp_path / "resnet", resnet), precision="int8")
    with pytest.raises(ConfigError, match="vision transformers as open_clip and timm"):
        load_encoder(clip, CPU)
    convolutions = nn.Module()
    convolutions.trunk = nn.Module()
    convolutions.trunk.blocks = nn.Sequential(nn.Conv2d(3, 3, 1))
    with pytest.raises(ConfigError, match="clip=mobile is none"):
        to_int8(convolutions, "mobile")


def test_half_precision_on_disk_computes_in_float32(encoder, tmp_path):
    half = write_model(tmp_path / "half")
    file = half / "open_clip_model.safetensors"
    save_file({name: value.half() for name, value in load_file(file).items()}, file)
    loaded = load_encoder(clip_of(half, preprocess="squash"), CPU)
    batch = frames(2, 40, 60)
    difference = (loaded.embed_frames(batch) - encoder.embed_frames(batch)).abs().max()
    assert 0 < difference < 5e-3
    assert {p.dtype for p in loaded._model.parameters()} == {torch.float32}


def test_loading_leaves_the_random_numbers_alone(folder):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    load_encoder(clip_of(folder), CPU)
    assert torch.equal(torch.rand(3), expected)


def test_text_tower_can_be_dropped(folder, encoder):
    clip = clip_of(folder, preprocess="squash")
    light = load_encoder(clip, CPU)
    image, text = (int(light.facts[f"parameters_{x}"]) for x in ("image", "text"))
    light.drop_text_tower()
    left = sum(p.numel() for p in light._model.parameters())
    assert image <= left < image + text / 20
    batch = frames(2, 40, 60)
    assert torch.allclose(light.embed_frames(batch), encoder.embed_frames(batch))


def test_facts_say_what_the_embeddings_depend_on(encoder):
    facts = json.loads(json.dumps(encoder.facts))
    assert facts["embed_dim"] == 16
    assert facts["image_size"] == [32, 32]
    assert facts["mean"] == list(MEAN)
    assert facts["precision"] == "fp32"
    text = facts["parameters_text"]
    assert facts["parameters_image"] + text == sum(
        p.numel() for p in open_clip.CLIP(**MODEL).parameters()
    )


def test_random_weights_run_and_say_so(caplog):
    """Of a small model; larger ones are trained with in test_main."""
    clip = ClipConfig(name="x", model="ViT-S-32-alt", pretrained="random")
    caplog.set_level(logging.WARNING)
    encoder = load_encoder(clip, CPU)
    assert "random weights" in caplog.text
    assert "random weights" in str(encoder.facts["weights"])
    batch = frames(3, 96, 96)
    embedding = encoder.embed_frames(batch)
    assert embedding.isfinite().all()
    assert torch.allclose(embedding.norm(dim=-1), torch.ones(3), atol=1e-5)
    assert encoder.embed_prompts(["a dog"]).shape == embedding[:1].shape
    # The same in every process, whatever was drawn before.
    torch.rand(5)
    assert torch.equal(load_encoder(clip, CPU).embed_frames(batch), embedding)


# Prompts


def test_prompt_that_fits_exactly_is_accepted():
    clip = ClipConfig(name="b", model="ViT-B-32", pretrained="random")
    check_prompts(clip, ["dog " * 75, "a humanoid robot kneeling"])


@pytest.mark.parametrize(
    ("model", "room"), [("ViT-B-32", 75), ("PE-Core-L-14-336", 30)]
)
def test_cut_prompt_shows_what_is_lost(model, room):
    clip = ClipConfig(name="b", model=model, pretrained="random")
    with pytest.raises(ConfigError, match=f'reads {room} .*"yellow flag"'):
        check_prompts(clip, ["a dog", "dog " * room + "yellow flag"])


def test_prompt_is_cut_by_the_models_own_merges(folder):
    check_prompts(clip_of(folder), ["the the the the the the the the the the"])
    with pytest.raises(ConfigError, match=r'11 tokens.*reads 10 .*"t"'):
        check_prompts(clip_of(folder), ["the the the the the the the the a ant"])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (SHORT_MERGES, "bpe.txt.gz makes 515 tokens, .* knows 517"),
        (SHORT_MERGES[:-9], "bpe.txt.gz cannot be read .*EOFError"),
        (b"text", "bpe.txt.gz cannot be read .*BadGzipFile"),
        (None, r"CLIP makes 49408 tokens, .* knows 517: put .* as bpe\.txt\.gz"),
    ],
)
def test_merges_that_do_not_suit_are_refused(tmp_path, content, says):
    merges = write_model(tmp_path / "odd") / "bpe.txt.gz"
    merges.unlink() if content is None else merges.write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        load_encoder(clip_of(merges.parent), CPU)


def test_missing_tokenizer_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    clip = option("siglip2_so400m")
    with pytest.raises(ConfigError, match=r"transformers.*vlmrm_exp\[hf\]"):
        check_prompts(clip, ["a dog"])


def test_hugging_face_tokenizer_is_checked_too(tmp_path):
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", "a", "dog", "flag"])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    text = {**MODEL["text_cfg"], "hf_tokenizer_name": "some/where"}
    folder = write_model(tmp_path / "hf", {**MODEL, "text_cfg": text})
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    check_prompts(clip_of(folder), ["a dog " * 5 + "flag"])  # 11, and the end is 12
    with pytest.raises(ConfigError, match=r'12 tokens.*reads 11 .*"flag"'):
        check_prompts(clip_of(folder), ["a dog " * 5 + "a flag"])
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=f"put its files into {folder}"):
        check_prompts(clip_of(folder), ["a dog"])
    text["tokenizer_kwargs"] = {"clean": "lower", "trust_remote_code": True}
    folder = write_model(tmp_path / "evil", {**MODEL, "text_cfg": text})
    with pytest.raises(ConfigError, match="tokenizer_kwargs has trust_remote_code"):
        check_prompts(clip_of(folder), ["a dog"])


# What is refused


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "ViT-B32"}, "Did you mean ViT-B-32?"),
        ({"pretrained": "laion2b_s34b"}, "Did you mean laion2b_s34b_b79k?"),
        ({"pretrained": None}, "laion2b_s34b_b79k"),
        ({"pretrained": "/nowhere/weights.pt"}, "does not exist"),
        ({"pretrained": "openai"}, "set clip.model=ViT-B-32-quickgelu"),
        ({"mean": [0.5, 0.5, 0.5]}, "set clip.mean=null"),
        ({"model": "local-dir:/nowhere", "pretrained": None}, "open_clip_config.json"),
        ({"model": "hf-hub:some/where"}, "set clip.pretrained=null"),
        ({"model": "embedded", "pretrained": None}, "vlmrm_exp.pretrain clip=x"),
        ({"name": "base"}, "small pictures of an embedded model"),
        ({"name": "base", "model": "embedded"}, "weights of its own"),
        ({"name": ""}, "clip.name is empty"),
        ({"pretrained": "/dev"}, "/dev is a folder"),
        ({"pretrained": "/dev/null"}, "/dev/null is no file"),
        *(
            ({"model": f"hf-hub:{name}", "pretrained": None}, "names no repository")
            for name in ("", "a/b/c", "a/b@main", "../../etc/x")
        ),
    ],
)
def test_impossible_source_is_one_sentence(changes, says):
    openclip = {"name": "x", "model": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"}
    with pytest.raises(ConfigError) as refusal:
        check_prompts(ClipConfig(**openclip | changes), ["a dog"])
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.fixture
def weights_file(tmp_path) -> Path:
    file = tmp_path / "weights.pt"
    file.touch()
    return file


def test_file_of_a_model_with_several_normalisations_needs_one(weights_file):
    clip = ClipConfig(name="x", model="ViT-L-14", pretrained=str(weights_file))
    clip.quick_gelu = False
    needed = (
        r"clip\.mean=\[0\.5,0\.5,0\.5\] clip\.std=\[0\.5,0\.5,0\.5\] as "
        r"laion2b_s32b_b82k; "
        r"clip\.mean=\[0\.48.* as its others"
    )
    with pytest.raises(ConfigError, match=needed):
        find(clip)
    clip.mean, clip.std = [0.5] * 3, [0.5] * 3
    assert find(clip).mean == (0.5, 0.5, 0.5)


def test_file_takes_the_only_normalisation_there_is(weights_file):
    model = "ViT-SO400M-14-SigLIP2"
    source = find(ClipConfig(name="x", model=model, pretrained=str(weights_file)))
    assert source.mean == source.std == (0.5, 0.5, 0.5)


def test_file_of_a_model_always_trained_with_quick_gelu_is_refused(weights_file):
    clip = ClipConfig(name="x", model="RN50", pretrained=str(weights_file))
    with pytest.raises(ConfigError, match="RN50-quickgelu"):
        find(clip)


def test_file_that_may_have_been_trained_with_quick_gelu_or_not_needs_a_word(
    weights_file,
):
    clip = ClipConfig(name="x", model="ViT-B-32", pretrained=str(weights_file))
    clip.mean, clip.std = [0.5] * 3, [0.5] * 3
    with pytest.raises(ConfigError, match=r"=true as openai, .*=false as its others"):
        find(clip)
    clip.quick_gelu = True
    with pytest.raises(ConfigError, match=r"set clip\.model=ViT-B-32-quickgelu"):
        find(clip)
    clip.quick_gelu = False
    assert find(clip).file == weights_file
    clip.pretrained = "laion2b_s34b_b79k"
    with pytest.raises(ConfigError, match=r"clip\.quick_gelu is False, but is asked"):
        find(clip)


class Archive(torch.nn.Module):
    """Tensors under their dotted names."""

    def __init__(self, tensors: dict[str, torch.Tensor]):
        super().__init__()
        for name, tensor in tensors.items():
            *path, leaf = name.split(".")
            place = self
            for part in path:
                if not hasattr(place, part):
                    place.add_module(part, torch.nn.Module())
                place = getattr(place, part)
            place.register_buffer(leaf, tensor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_openais_own_file_is_told_how_to_be_read(tmp_path):
    name = f"made-{tmp_path.name}"
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(MODEL | {"quick_gelu": True, "text_cfg": SIMPLE}))
    open_clip.add_model_config(path)
    torch.manual_seed(5)
    model = open_clip.create_model(name).eval()
    archive = Archive(model.state_dict() | {"context_length": torch.tensor(12)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(archive).save(tmp_path / "ours.pt")
        held = torch.jit.load(tmp_path / "ours.pt", "cpu").state_dict()  # as told below
    clip = ClipConfig(name="x", model=name, pretrained=str(tmp_path / "ours.pt"))
    clip.mean, clip.std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    with pytest.raises(ConfigError, match=r"TorchScript.*clip\.pretrained=openai"):
        find(clip)
    kept = {k: v for k, v in held.items() if v.ndim or k == "logit_scale"}
    assert "context_length" not in kept
    torch.save(kept, tmp_path / "tensors.pt")
    clip.pretrained = str(tmp_path / "tensors.pt")
    encoder = load_encoder(clip, CPU)
    tokens = open_clip.get_tokenizer(name)(["a dog"])
    with torch.no_grad():
        expected = model.encode_text(tokens, normalize=True)
    torch.testing.assert_close(encoder.embed_prompts(["a dog"]), expected)


def test_the_layout_of_transformers_is_told_as_such(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file({"vision_model.embeddings.weight": torch.zeros(2)}, file)
    clip = ClipConfig(name="x", model="ViT-B-32", pretrained=str(file))
    with pytest.raises(ConfigError, match=r"Transformers.*ViT-B-32-quickgelu"):
        find(clip)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ConfigError, match=r"folder .*Transformers"):
        find(clip_of(tmp_path))
    clip.model, clip.pretrained = "ViT-S-32-alt", str(tmp_path / "pytorch_model.bin")
    clip.mean, clip.std = [0.5] * 3, [0.5] * 3
    torch.save({"vision_model.embeddings.weight": torch.zeros(2)}, clip.pretrained)
    with pytest.raises(ConfigError, match=r"pytorch_model.bin is in the .*Transf"):
        load_encoder(clip, CPU)


def test_folder_without_normalisation_is_refused(tmp_path):
    bare = write_model(tmp_path / "bare", pictures={"interpolation": "bicubic"})
    with pytest.raises(ConfigError, match=r"clip\.mean="):
        find(clip_of(bare))
    assert find(clip_of(bare, mean=[0.5] * 3, std=[0.2] * 3)).std == (0.2, 0.2, 0.2)


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_weights_file_is_never_unpickled(tmp_path):
    sprung = tmp_path / "sprung"
    for name in ("zipped.pt", "plain.pt"):
        file = tmp_path / name
        trap = {"state_dict": Trap(sprung)}
        if name == "zipped.pt":
            torch.save(trap, file)
        else:
            file.write_bytes(pickle.dumps(trap))
        clip = ClipConfig(name="x", model="ViT-S-32-alt", pretrained=str(file))
        clip.mean, clip.std = [0.5] * 3, [0.5] * 3
        with pytest.raises(ConfigError, match="cannot be read"):
            load_encoder(clip, CPU)
        assert not sprung.exists()


def test_weights_of_another_architecture_are_refused(folder, tmp_path):
    other = {**MODEL, "embed_dim": 24}
    mixed = write_model(tmp_path / "mixed", other)
    weights = "open_clip_model.safetensors"
    (mixed / weights).write_bytes((folder / weights).read_bytes())
    with pytest.raises(ConfigError, match="cannot be read as that of clip=small"):
        load_encoder(clip_of(mixed), CPU)


def test_of_several_weights_none_is_taken_but_one_of_open_clips_name(tmp_path):
    several = write_model(tmp_path / "several")
    own = several / "open_clip_model.safetensors"
    save_file({"step": torch.zeros(1)}, several / "a_optimizer.safetensors")
    assert find(clip_of(several)).file == own
    own.rename(several / "model.safetensors")
    names = r"\(a_optimizer\.safetensors, model\.safetensors\)"
    with pytest.raises(ConfigError, match=names):
        find(clip_of(several))
    (several / "a_optimizer.safetensors").unlink()
    assert find(clip_of(several)).file == several / "model.safetensors"


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
@pytest.mark.parametrize(
    ("part", "key", "value", "sizes"),
    [
        ("vision_cfg", "image_size", 64, r"\[17, 64\].*\[65, 64\]"),
        ("text_cfg", "context_length", 20, r"\[12, 32\].*\[20, 32\]"),
    ],
)
def test_positions_are_not_interpolated(tmp_path, name, part, key, value, sizes):
    weights = write_model(tmp_path / "of") / "open_clip_model.safetensors"
    other = {**MODEL, part: {**MODEL[part], key: value}}
    changed = write_model(tmp_path / "changed", other)
    (changed / weights.name).unlink()
    tensors = load_file(weights)
    if name.endswith(".pth"):
        tensors = {f"module.{key}": value for key, value in tensors.items()}
        torch.save({"state_dict": tensors, "epoch": 3}, changed / name)
    else:
        save_file(tensors, changed / name)
    with pytest.raises(ConfigError, match=f"positional_embedding .*{sizes}"):
        load_encoder(clip_of(changed), CPU)


def without(key: str, settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != key}


@pytest.mark.parametrize(
    ("model", "pictures", "says"),
    [
        ({"text_cfg": None}, {}, "text_cfg is None, not an object"),
        ({"embed_dim": "16"}, {}, "embed_dim is '16', not a whole number"),
        ({"text_cfg": without("vocab_size", MODEL["text_cfg"])}, {}, "vocab_size is N"),
        ({"no_such": 1}, {}, r"config\.json cannot be read as .*'no_such'"),
        ({}, None, "preprocess_cfg is None, not an object"),
        ({}, {"interpolation": "nearest"}, "interpolation 'nearest'"),
        ({}, {"mode": "BGR"}, "mode 'BGR'"),
        ({}, {"mean": [122, 116, 104]}, r"mean is \[122, .* in 0\.\.1"),
        ({}, {"mean": 0.5}, r"mean is 0\.5, but must be three numbers"),
        ({}, {"std": [0.2, "a", 0.2]}, "std is .* three numbers"),
        ({}, {"std": [0.2, 0.2, 0]}, r"std is \[0\.2, 0\.2, 0\].* above 0"),
    ],
)
def test_wrong_description_is_named(tmp_path, model, pictures, says):
    wrong = write_model(tmp_path / "wrong")
    asked = None if pictures is None else PICTURES | pictures
    text = json.dumps({"model_cfg": MODEL | model, "preprocess_cfg": asked})
    (wrong / "open_clip_config.json").write_text(text)
    with pytest.raises(ConfigError, match=says):
        load_encoder(clip_of(wrong), CPU)


@pytest.mark.parametrize(
    ("part", "values"),
    [("mean", [-5, 0.5, 0.5]), ("mean", [float("nan")] * 3), ("std", [0, 0.2, 0.2])],
)
def test_impossible_colours_are_refused_before_anything(part, values):
    with pytest.raises(ConfigError, match=rf"clip\.{part} is .* in 0\.\.1"):
        check_clip(ClipConfig(name="x", **{part: values}))


def test_weights_of_zeros_are_refused(tmp_path):
    empty = write_model(tmp_path / "empty")
    file = empty / "open_clip_model.safetensors"
    save_file({name: 0 * value for name, value in load_file(file).items()}, file)
    encoder = load_encoder(clip_of(empty), CPU)
    with pytest.raises(ConfigError, match=f"zeros: its weights .*{file}"):
        encoder.embed_prompts(["the ant"])


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize(
    ("content", "says"),
    [("", "it is empty"), (LFS, "run git lfs pull"), ("hello", r"cannot be read \(")],
)
def test_what_is_no_weights_file_is_told_as_what_it_is(tmp_path, suffix, content, says):
    file = tmp_path / f"weights{suffix}"
    file.write_text(content)
    clip = ClipConfig(name="x", model="ViT-S-32-alt", pretrained=str(file))
    clip.mean, clip.std = [0.5] * 3, [0.5] * 3
    with pytest.raises(ConfigError, match=says) as refusal:
        load_encoder(clip, CPU)
    assert "weights_only" not in str(refusal.value)


def test_truncated_file_is_refused(tmp_path):
    short = write_model(tmp_path / "short")
    file = short / "open_clip_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=f"{file} cannot be read.*whole file"):
        load_encoder(clip_of(short), CPU)


# conf/clip


PRETRAINED = sorted(
    file.stem
    for file in CONF.glob("[!_]*.yaml")
    if not (EMBEDDED / file.stem).is_dir() and VIDEO_MODEL not in file.read_text()
)


@functools.cache
def option(name: str) -> ClipConfig:
    return composed(f"clip={name}").clip


@pytest.mark.parametrize("name", PRETRAINED)
def test_option_names_weights_that_open_clip_has(name):
    clip = option(name)
    assert clip.name == name
    assert find(clip).repo  # model, tag, QuickGELU and normalisation agree
    tag = open_clip.get_pretrained_cfg(clip.model, clip.pretrained)
    trained_squashed = tag["resize_mode"] == "squash"
    assert clip.preprocess == ("squash" if trained_squashed else "pad")


@pytest.mark.parametrize("name", PRETRAINED)
def test_option_knows_the_size_of_its_download(name):
    clip = option(name)
    with torch.device("meta"):
        model = open_clip.create_model(
            clip.model, device="meta", load_weights=False, pretrained_text=False
        )
    size_gb = sum(4 * value.numel() for value in model.state_dict().values()) / 1e9
    assert clip.download_gb == pytest.approx(size_gb, rel=0.05)
