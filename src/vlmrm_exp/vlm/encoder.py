"""Frames and prompts to unit embeddings: any open_clip model, run as it was trained.

With its own tokenizer, normalisation and interpolation; normalisation and unit length
in float32 whatever the precision of the weights. These are tensors, never unpickled.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from vlmrm_exp.config import ClipConfig, ConfigError
from vlmrm_exp.vlm.int8 import not_for, to_int8
from vlmrm_exp.vlm.loading import build, digest, fold_batch_norms
from vlmrm_exp.vlm.preprocess import preprocess
from vlmrm_exp.vlm.source import Source, described, fetch
from vlmrm_exp.vlm.tokenizer import load_tokenizer

DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.int8,
}
"""Of the factors of matrix products."""


class Encoder:
    """A vision-language model, frozen, in evaluation mode. Made by `load_encoder`.

    `facts` says all that its embeddings depend on, in JSON's types.
    """

    def __init__(
        self, clip: ClipConfig, source: Source, tokenizer: Any, device: torch.device
    ):
        self._clip, self._tokenizer, self._device = clip, tokenizer, device
        self.batch_size, precision = on_device(clip, device)
        loaded_in = "fp32" if precision == "int8" else precision
        self._dtype = DTYPES[loaded_in]
        self._model = build(clip, source, loaded_in, device)
        size = self._model.visual.image_size
        size = (size, size) if isinstance(size, int) else (size[0], size[1])
        self._pixels = functools.partial(
            preprocess,
            size=size,
            fit=clip.preprocess,
            interpolation=source.interpolation,
            mean=source.mean,
            std=source.std,
        )
        self._dim = source.config["embed_dim"]
        image = sum(p.numel() for p in self._model.visual.parameters())
        everything = sum(p.numel() for p in self._model.parameters())
        self.facts: dict[str, object] = {
            **{name: getattr(clip, name) for name in ("name", "model", "pretrained")},
            "weights": str(source.file or "random weights (seed 0)"),
            "weights_sha256": digest(source.file) if source.file else None,
            "parameters_image": image,
            "parameters_text": everything - image,
            "embed_dim": self._dim,
            "quick_gelu": bool(source.config.get("quick_gelu")),
            "image_size": list(size),
            "context_length": self._tokenizer.context_length,
            "mean": list(source.mean),
            "std": list(source.std),
            "interpolation": source.interpolation,
            "preprocess": clip.preprocess,
            "precision": precision,
        }
        if precision == "int8":
            to_int8(self._model.visual, clip.name)
        elif device.type == "cpu" and self._dtype == torch.float32:
            fold_batch_norms(self._model.visual)

    @torch.no_grad()
    def embed_frames(self, frames: np.ndarray) -> torch.Tensor:
        """Frames (B, H, W, 3) uint8 -> (B, D) float32 of unit length, on the device.

        `batch_size` of them at a time; B may be 0.
        """
        parts = [torch.empty((0, self._dim), device=self._device)]
        for start in range(0, len(frames), self.batch_size):
            # A copy, because torch takes neither read-only nor flipped arrays.
            part = np.array(frames[start : start + self.batch_size], order="C")
            pixels = self._pixels(torch.from_numpy(part).to(self._device))
            embedding = self._model.encode_image(pixels.to(self._dtype))
            parts.append(functional.normalize(embedding.float(), dim=-1))
        return torch.cat(parts)

    @torch.no_grad()
    def embed_prompts(self, prompts: Sequence[str]) -> torch.Tensor:
        """Embed P prompts: (P, D) float32 of unit length, on the device.

        Raises:
            ConfigError: the weights are of no use, as an embedding is zero.
        """
        tokens = self._tokenizer(list(prompts)).to(self._device)
        embedding = self._model.encode_text(tokens).float()
        if not embedding.any(dim=-1).all():
            raise ConfigError(
                f"clip={self._clip.name} embeds a sentence as zeros: its weights "
                f"({self.facts['weights']}) are empty or damaged; give others."
            )
        return functional.normalize(embedding, dim=-1)

    def drop_text_tower(self) -> None:
        """Free the text tower's memory, a quarter of bigG; `embed_prompts` is over."""
        for name in ("text", "transformer", "token_embedding", "text_decoder"):
            if hasattr(self._model, name):
                delattr(self._model, name)


def load_encoder(clip: ClipConfig, device: torch.device) -> Encoder:
    """Find, check, download if need be, and load the model that `clip` names.

    Raises:
        ConfigError: unknown model or weights, no network, a damaged or unfitting file,
            a precision that this device or model has not.
    """
    if clip.precision == "int8":
        if device.type != "cpu":
            raise ConfigError(
                "clip.precision=int8 is for CPUs, but a GPU embeds here: use bf16, or "
                "compute=cpu."
            )
        vision = described(clip).config["vision_cfg"]
        if isinstance(vision.get("layers"), list):  # a ResNet
            raise not_for(clip.name)
    tokenizer = load_tokenizer(clip)  # before gigabytes, for it may be missing
    return Encoder(clip, fetch(clip), tokenizer, device)


def on_device(clip: ClipConfig, device: torch.device) -> tuple[int, str]:
    """Frames per forward pass and precision, where `clip` leaves them open."""
    size, precision = (16, "fp32") if device.type == "cpu" else (64, "bf16")
    if clip.precision != "auto":
        precision = clip.precision
    return clip.batch_size or size, precision
