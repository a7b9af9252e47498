"""Frames and prompts to unit embeddings: any open_clip model, run as it was trained.

With its own tokenizer, normalisation and interpolation; normalisation and unit length
in float32 whatever the precision of the weights. These are tensors, never unpickled.
"""

import contextlib
import importlib.util
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vlmrm_exp.config import ClipConfig, ConfigError
from vlmrm_exp.files import reason, sha256, shorten
from vlmrm_exp.vlm.hub import hub_file, way_out
from vlmrm_exp.vlm.imported import open_clip
from vlmrm_exp.vlm.int8 import not_for, to_int8
from vlmrm_exp.vlm.preprocess import preprocess
from vlmrm_exp.vlm.source import (
    CONFIG_FILE,
    Source,
    fetch,
    fetch_description,
    find,
    read_description,
    read_sizes,
)

logger = logging.getLogger(__name__)

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
        self._clip, self._source = clip, source
        self._tokenizer, self._device = tokenizer, device
        self.batch_size, precision = on_device(clip, device)
        loaded_in = "fp32" if precision == "int8" else precision
        self._dtype = DTYPES[loaded_in]
        self._model = _build(clip, source, loaded_in, device)
        size = self._model.visual.image_size
        self._size = (size, size) if isinstance(size, int) else (size[0], size[1])
        config = _model_config(source)
        self._dim = config["embed_dim"]
        image = sum(p.numel() for p in self._model.visual.parameters())
        everything = sum(p.numel() for p in self._model.parameters())
        self.facts: dict[str, object] = {
            **{name: getattr(clip, name) for name in ("name", "model", "pretrained")},
            "weights": str(source.file or "random weights (seed 0)"),
            "weights_sha256": digest(source.file) if source.file else None,
            "parameters_image": image,
            "parameters_text": everything - image,
            "embed_dim": self._dim,
            "quick_gelu": bool(config.get("quick_gelu")),
            "image_size": list(self._size),
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
            _fold_batch_norms(self._model.visual)

    @torch.no_grad()
    def embed_frames(self, frames: np.ndarray) -> torch.Tensor:
        """Embed (B, H, W, 3) uint8 frames, `batch_size` at a time; B may be 0.

        Returns:
            (B, D) float32 of unit length, on the device.
        """
        parts = [torch.empty((0, self._dim), device=self._device)]
        for start in range(0, len(frames), self.batch_size):
            # A copy, because torch takes neither read-only nor flipped arrays.
            part = np.array(frames[start : start + self.batch_size], order="C")
            pictures, source = torch.from_numpy(part).to(self._device), self._source
            look = self._clip.preprocess, source.interpolation, source.mean, source.std
            pixels = preprocess(pictures, self._size, *look)
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
    if clip.precision == "int8" and device.type != "cpu":
        raise ConfigError(
            "clip.precision=int8 is for CPUs, but a GPU embeds here: use bf16, or "
            "compute=cpu."
        )
    if clip.precision == "int8":
        vision = _model_config(_described(clip))["vision_cfg"]
        if isinstance(vision.get("layers"), list):  # a ResNet
            raise not_for(clip.name)
    tokenizer = _load_tokenizer(clip)  # before gigabytes, for it may be missing
    return Encoder(clip, fetch(clip, find(clip)), tokenizer, device)


def fetch_weights(clip: ClipConfig) -> None:
    """Download what `load_encoder` will read, if it is not here; loads nothing."""
    fetch(clip, find(clip))


def on_device(clip: ClipConfig, device: torch.device) -> tuple[int, str]:
    """Frames per forward pass and precision, where `clip` leaves them open."""
    size, precision = (16, "fp32") if device.type == "cpu" else (64, "bf16")
    return clip.batch_size or size, (
        precision if clip.precision == "auto" else clip.precision
    )


def check_prompts(clip: ClipConfig, prompts: Sequence[str]) -> None:
    """Refuse a prompt that the model would not read to its end; reads no weights.

    Raises:
        ConfigError: as `find`, or a prompt is cut; it shows what would be lost.
    """
    tokenizer: Any = _load_tokenizer(clip)
    for prompt in prompts:
        if isinstance(tokenizer, open_clip.SimpleTokenizer):
            inner, special = tokenizer, 2  # start and end
            tokens = tokenizer.encode(prompt)
        else:  # a Hugging Face one, wrapped by open_clip
            inner = tokenizer.tokenizer
            clips = tokenizer.tokenizer_mode == "clips"
            special = 3 if clips else inner.num_special_tokens_to_add()
            text = tokenizer.clean_fn(prompt)
            tokens = inner(text, add_special_tokens=False)["input_ids"]
        room = int(tokenizer.context_length or 0) - special
        check_length(clip, prompt, tokens, room, inner)


def check_length(
    clip: ClipConfig, prompt: str, tokens: Sequence[int], room: int, tokenizer: Any
) -> None:
    """Refuse a prompt of more tokens than there is room for; show what would be lost.

    Raises:
        ConfigError: it would be cut.
    """
    if len(tokens) > room:
        lost = tokenizer.decode(tokens[room:]).strip()
        raise ConfigError(
            f'The prompt "{shorten(prompt, 200)}" has {len(tokens)} tokens, but '
            f"clip={clip.name} reads {room} and would not see its end, "
            f'"{shorten(lost, 200)}": shorten it.'
        )


def digest(file: Path) -> str | None:
    """SHA-256 of a weights file; of a large one, what the hub names it by."""
    if file.stat().st_size <= 1e9:
        return sha256(file)
    name = file.resolve().name
    return name if len(name) == 64 else None  # hashing 10 GB would take a minute


def _load_tokenizer(clip: ClipConfig) -> Any:
    """open_clip's tokenizer of the model: a SimpleTokenizer or an HFTokenizer."""
    source, name = _described(clip), find(clip).model
    text = _model_config(source)["text_cfg"]
    wanted = text.get("hf_tokenizer_name")
    if not wanted:
        return _simple_tokenizer(source, text["vocab_size"])
    what = f"The tokenizer of clip={clip.name} ({wanted})"
    if importlib.util.find_spec("transformers") is None:
        raise ConfigError(
            f"{what} needs the package transformers, which is not installed: run pip "
            "install 'vlmrm_exp[hf]' (in a checkout: make setup EXTRAS=dev,hf), or "
            "choose another clip."
        )
    if not name.startswith("local-dir:"):
        hub_file(wanted, ("tokenizer_config.json",), what, "choose another clip")
    try:
        with quiet():
            return open_clip.get_tokenizer(name)
    except Exception as error:  # of several packages, each with its own kinds
        raise ConfigError(
            f"{what} cannot be loaded ({reason(error, named=True)}): delete it from "
            "the cache, or choose another clip."
        ) from error


def _simple_tokenizer(source: Source, vocab_size: int) -> Any:
    """CLIP's own tokenizer, with the merges in the model's folder where it has any."""
    merges = (source.folder or Path()) / "bpe.txt.gz"
    own: Any = {"bpe_path": str(merges)} if source.folder and merges.is_file() else {}
    put = f"put the merges of its training there as {merges.name}"
    try:
        with quiet():
            tokenizer: Any = open_clip.get_tokenizer(source.model, **own)
    except Exception as error:  # a damaged file can raise nearly anything
        if not own:
            raise
        raise ConfigError(
            f"{merges} cannot be read ({reason(error, named=True)}): {put}."
        ) from error
    made = tokenizer.vocab_size
    if made > vocab_size or (own and made < vocab_size):
        raise ConfigError(
            f"{merges if own else 'The tokenizer of CLIP'} makes {made} tokens, but "
            f"the model in {source.folder} knows {vocab_size}: {put}."
        )
    return tokenizer


def _described(clip: ClipConfig) -> Source:
    """Where the description is: of a repository downloaded, without the weights."""
    source = find(clip)
    if source.model.startswith("hf-hub:"):
        return Source(f"local-dir:{fetch_description(clip)}")
    return source


def _model_config(source: Source) -> dict[str, Any]:
    """open_clip's description of the architecture."""
    if source.folder:
        return read_description(source.folder)["model_cfg"]
    return open_clip.get_model_config(source.model) or {}


def _build(
    clip: ClipConfig, source: Source, precision: str, device: torch.device
) -> Any:
    """The model on its device, frozen, with its weights."""
    file = source.folder / CONFIG_FILE if source.folder else None  # read now
    try:
        # Random weights are the same everywhere, and no one else's numbers change.
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            options: Any = {"load_weights": False, "pretrained_text": False}
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
        instead = "give weights and a description that belong together"
        raise ConfigError(
            f"The file {file} cannot be read as that of clip={clip.name} "
            f"({clip.model}; {reason(error, named=True)}): {way_out(file, instead)}."
        ) from error
    return model.eval().requires_grad_(False)


def _load_weights(model: Any, file: Path, is_tag: bool) -> None:
    """Put a file's tensors into the model; nothing of the file is run.

    Raises:
        ConfigError: they cannot be read, or open_clip would interpolate some; it may
            for its own tags.
        Exception: they do not fit the model.
    """
    own = model.state_dict()
    for name, size in read_sizes(file).items():
        if is_tag or not name.endswith("positional_embedding"):
            continue
        wanted = own.get(name, own.get(f"text.{name}"))
        if wanted is not None and wanted.shape != size:
            raise ConfigError(
                f"{name} has the size {list(size)} in {file}, but "
                f"{list(wanted.shape)} in the model: give the weights' own "
                f"image_size and context_length in {CONFIG_FILE}, or their own "
                "clip.model."
            )
    open_clip.load_checkpoint(model, str(file), weights_only=True)


def _fold_batch_norms(visual: torch.nn.Module) -> None:
    """Merge each batch normalisation of a ResNet into its convolution, in place.

    Embeddings are the same but for rounding, and take half of the time on a CPU.
    """
    if not isinstance(visual, open_clip.model.ModifiedResNet):
        return
    for module in visual.modules():
        layers = module._modules
        pairs = [(f"conv{i}", f"bn{i}") for i in (1, 2, 3)]
        if isinstance(module, torch.nn.Sequential) and "-1" in layers:
            pairs = [("0", "1")]  # a shortcut: pooling, convolution, normalisation
        for conv, norm in pairs:
            match layers.get(conv), layers.get(norm):
                case torch.nn.Conv2d() as first, torch.nn.BatchNorm2d() as second:
                    layers[conv] = fuse_conv_bn_eval(first, second)
                    layers[norm] = torch.nn.Identity()
    visual.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence open_clip's progress reports, which go to the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
