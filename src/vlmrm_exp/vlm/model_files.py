"""What is in a model's files, as far as it can be told without running any of it."""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from vlmrm_exp.config import ConfigError
from vlmrm_exp.files import reason
from vlmrm_exp.vlm.hub import unreadable

CONFIG_FILE = "open_clip_config.json"
TORCHSCRIPT = (
    "is TorchScript, as OpenAI's own files are, and holds code, which is not run here: "
    "give clip.pretrained=openai, which has the same tensors, or, where you trust the "
    "file, save those: python -c \"import torch; t = torch.jit.load(IN, 'cpu')"
    ".state_dict(); torch.save({k: v for k, v in t.items() if v.ndim or k == "
    "'logit_scale'}, OUT)\"."
)
TOKENIZER_KWARGS = {"clean", "strip_sep_token", "language"}
"""Of open_clip's own; those that its descriptions use."""
LFS = b"version https://git-lfs"
"""Begins what Git keeps in place of a large file."""
TRANSFORMERS = (
    "is in the layout of Hugging Face's Transformers, which open_clip does not read: "
    "give the same weights in open_clip's; for openai/clip-vit-base-patch32 that is "
    "clip.model=ViT-B-32-quickgelu clip.pretrained=openai, for a laion/CLIP-... "
    "repository clip.model=hf-hub:laion/CLIP-... clip.pretrained=null."
)


def read_description(folder: Path) -> dict[str, Any]:
    """open_clip's description of the model in a folder, or a ConfigError.

    It has `model_cfg` and `preprocess_cfg`; what is used of them is of the right kind.
    """
    file = folder / CONFIG_FILE
    if not file.exists() and "model_type" in _json(folder / "config.json"):
        raise ConfigError(f"The folder {folder} {TRANSFORMERS}")
    try:
        description = {"preprocess_cfg": {}, **json.loads(file.read_text("utf-8"))}
        _check_kind(description, dict, "model_cfg", "preprocess_cfg")
        model = description["model_cfg"]
        _check_kind(model, dict, "text_cfg", "vision_cfg")
        _check_kind(model, int, "embed_dim")
        text = model["text_cfg"]
        if not text.get("hf_tokenizer_name"):
            _check_kind(text, int, "vocab_size")
        # Others go on to Transformers, which runs code from the hub if they say so.
        if more := {*text.get("tokenizer_kwargs", {})} - TOKENIZER_KWARGS:
            raise ValueError(f"tokenizer_kwargs has {', '.join(sorted(more))}")
    except (OSError, ValueError, TypeError) as error:
        instead = "give a folder that open_clip saved"
        as_what = " as open_clip's description of a model"
        raise unreadable(file, reason(error), instead, as_what) from error
    return description


def _check_kind(settings: dict[str, Any], kind: type, *names: str) -> None:
    """Raise a ValueError where a part is missing or of another kind."""
    for name in names:
        if not isinstance(settings.get(name), kind):
            wanted = "a whole number" if kind is int else "an object"
            raise ValueError(f"{name} is {settings.get(name)!r}, not {wanted}")


def _json(file: Path) -> Any:
    """What a JSON file holds; {} where it is none."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def is_torchscript(file: Path) -> bool:
    """Whether a file is TorchScript, as OpenAI's own are."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any("/code/" in name for name in archive.namelist())


def read_sizes(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and sizes of a file's tensors; those themselves stay on the disk.

    Raises:
        ConfigError: it holds none, or more, or is in Transformers' layout.
    """
    sizes, why, instead = {}, "it is empty", "give a whole file, of tensors alone"
    with file.open("rb") as opened:
        start = opened.read(len(LFS))
    if start == LFS:
        why, instead = "it is a Git LFS pointer", "run git lfs pull in its folder"
    elif start:
        try:
            sizes, why = _sizes(file), "it holds no tensors"
        except SafetensorError as error:
            why = reason(error)
        except Exception:  # a damaged file can raise nearly anything
            why = "it is damaged, or holds more than tensors"
    if not sizes:
        raise unreadable(file, why, instead)
    if any(name.startswith("vision_model.") for name in sizes):
        raise ConfigError(f"The file {file} {TRANSFORMERS}")
    return {name.removeprefix("module."): tuple(size) for name, size in sizes.items()}


def _sizes(file: Path) -> dict[str, Sequence[int]]:
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as opened:
            names = opened.keys()
            return {name: opened.get_slice(name).get_shape() for name in names}
    mapped = zipfile.is_zipfile(file)
    tensors = torch.load(file, "cpu", weights_only=True, mmap=mapped)
    tensors = tensors.get("state_dict", tensors)
    return {name: tensor.shape for name, tensor in tensors.items()}
