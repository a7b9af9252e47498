"""Weights into a model: whole, fitting, and ready for the device it will run on."""

import logging
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vlmrm_exp.config import ClipConfig, ConfigError
from vlmrm_exp.files import reason, sha256
from vlmrm_exp.vlm.hub import unreadable
from vlmrm_exp.vlm.imported import open_clip
from vlmrm_exp.vlm.model_files import CONFIG_FILE, read_sizes
from vlmrm_exp.vlm.source import Source, quiet

logger = logging.getLogger(__name__)


def build(
    clip: ClipConfig, source: Source, precision: str, device: torch.device
) -> Any:
    """The model on its device, frozen, with its weights."""
    file = source.folder / CONFIG_FILE if source.folder else None  # read now
    try:
        # Random weights are the same everywhere, and no one else's numbers change.
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            options: Any = {"load_weights": False, "pretrained_text": False}
            text = source.config["text_cfg"]
            if precision != "fp32" and (
                "multimodal_cfg" in source.config or "hf_model_name" in text
            ):
                # open_clip would leave parts of CoCa and of Transformers' towers in
                # float32, which then do not fit the others.
                precision = f"pure_{precision}"
            model: Any = open_clip.create_model(
                source.model, precision=precision, device=device, **options
            )
        if source.file is None:
            logger.warning("clip=%s: random weights make random rewards", clip.name)
        else:
            file = source.file
            _load_weights(model, file, is_tag=source.repo is not None)
    except ConfigError:
        raise
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"The memory of {device} does not hold clip={clip.name} in {precision}: "
            "choose a smaller clip, clip.precision=bf16, or compute=cpu."
        ) from error
    except Exception as error:  # a damaged file can raise nearly anything
        if file is None:
            raise
        why = f"{clip.model}; {reason(error, named=True)}"
        instead = "give weights and a description that belong together"
        as_what = f" as that of clip={clip.name}"
        raise unreadable(file, why, instead, as_what) from error
    return model.eval().requires_grad_(False)


def _load_weights(model: Any, file: Path, is_tag: bool) -> None:
    """Put a file's tensors into the model; nothing of the file is run.

    Those that open_clip would interpolate are refused, but for its own tags.
    """
    own = model.state_dict()
    for name, size in read_sizes(file).items():
        wanted = own.get(name, own.get(f"text.{name}"))
        interpolated = name.endswith("positional_embedding") and not is_tag
        if interpolated and wanted is not None and wanted.shape != size:
            raise ConfigError(
                f"{name} has the size {list(size)} in {file}, but "
                f"{list(wanted.shape)} in the model: give the weights' own "
                f"image_size and context_length in {CONFIG_FILE}, or their own "
                "clip.model."
            )
    open_clip.load_checkpoint(model, str(file), weights_only=True)


def fold_batch_norms(visual: nn.Module) -> None:
    """Merge each batch normalisation of a ResNet into its convolution, in place.

    Embeddings are the same but for rounding, and take half of the time on a CPU.
    """
    if not isinstance(visual, open_clip.model.ModifiedResNet):
        return
    for module in visual.modules():
        # Each is behind its convolution, in blocks, shortcuts and the stem.
        for (conv, first), (norm, second) in pairwise(module.named_children()):
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                setattr(module, conv, fuse_conv_bn_eval(first, second))
                setattr(module, norm, nn.Identity())
    visual.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def digest(file: Path) -> str | None:
    """SHA-256 of a weights file; of a large one, what the hub names it by."""
    if file.stat().st_size <= 1e9:
        return sha256(file)
    name = file.resolve().name
    return name if len(name) == 64 else None  # hashing 10 GB would take a minute
