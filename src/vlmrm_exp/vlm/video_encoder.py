"""Videos and prompts to unit embeddings: X-CLIP, as Hugging Face's Transformers has it.

X-CLIP (Ni et al. 2022, arXiv 2208.02816) is a CLIP whose frames exchange messages in
every layer. Letters: B videos of F frames, P prompts, D embedding.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from vlmrm_exp.config import VIDEO_MODEL, ClipConfig, ConfigError
from vlmrm_exp.files import reason
from vlmrm_exp.vlm.encoder import DTYPES, on_device
from vlmrm_exp.vlm.hub import hub_file, unreadable
from vlmrm_exp.vlm.loading import digest
from vlmrm_exp.vlm.preprocess import preprocess
from vlmrm_exp.vlm.source import quiet
from vlmrm_exp.vlm.tokenizer import check_length

FILES = (
    ("config.json",),
    ("preprocessor_config.json", "processor_config.json"),
    ("tokenizer_config.json",),
    ("tokenizer.json",),
    ("model.safetensors", "pytorch_model.bin"),
)
"""What a model consists of, the weights last; of each the first name that is there."""
RESAMPLE = {2: "bilinear", 3: "bicubic"}
"""PIL's numbers."""


class VideoEncoder:
    """X-CLIP and the prompts it is asked about, frozen, in evaluation mode.

    `facts` says all that its embeddings depend on, in JSON's types.
    """

    def __init__(
        self, clip: ClipConfig, prompts: Sequence[str], device: torch.device
    ) -> None:
        """Find, check, download if need be, and load the model that `clip` names.

        Raises:
            ConfigError: it cannot be had or read, is no X-CLIP, or would not read a
                prompt to its end.
        """
        # It takes seconds, and is an extra.
        import transformers  # pyright: ignore[reportMissingImports]

        weights = _find(clip)
        transformers.logging.disable_progress_bar()
        self.batch_size, precision = on_device(clip, device)
        self._dtype, self._device = DTYPES[precision], device
        try:
            with quiet():
                of = weights.parent
                processor: Any = transformers.XCLIPProcessor.from_pretrained(of)
                config: Any = transformers.XCLIPConfig.from_pretrained(of)
                tokenizer = processor.tokenizer
                room = config.text_config.max_position_embeddings
                room -= tokenizer.num_special_tokens_to_add()
                for prompt in prompts:
                    tokens = tokenizer(prompt, add_special_tokens=False)["input_ids"]
                    check_length(clip, prompt, tokens, room, tokenizer)
                loaded: Any = transformers.XCLIPModel.from_pretrained(
                    of, dtype=self._dtype, output_loading_info=True
                )
        except ConfigError:
            raise
        except Exception as error:  # a damaged file can raise nearly anything
            raise _unreadable(weights.parent, error) from error
        model, told = loaded
        if missing := told["missing_keys"]:
            raise ConfigError(
                f"The weights {weights} have no {min(missing)}, which would be random: "
                "give those of a whole X-CLIP."
            )
        self._model: Any = model.to(device).eval().requires_grad_(False)
        tokens = tokenizer(list(prompts), padding=True, return_tensors="pt")
        self._tokens = {
            name: tokens[name].to(device) for name in ("input_ids", "attention_mask")
        }
        self.num_frames: int = config.vision_config.num_frames
        size, look = config.vision_config.image_size, processor.image_processor
        asked = (
            look.resample,
            (look.size or {}).get("shortest_edge"),
            (look.crop_size or {}).get("height"),
        )
        if asked[0] not in RESAMPLE or asked[1:] != (size, size):
            raise ConfigError(
                f"clip={clip.name} asks for pictures of another kind (resample, size, "
                f"crop_size {asked}) than {size} px, bilinear or bicubic: choose "
                "another clip.model."
            )
        mean, std = look.image_mean, look.image_std
        interpolation = RESAMPLE[look.resample]
        self._look: Any = (size, size), clip.preprocess, interpolation, mean, std
        image = sum(p.numel() for p in model.vision_model.parameters())
        self.facts: dict[str, object] = {
            "name": clip.name,
            "model": clip.model,
            "weights": str(weights),
            "weights_sha256": digest(weights),
            "parameters_image": image,
            "parameters_text": sum(p.numel() for p in model.parameters()) - image,
            "embed_dim": config.projection_dim,
            "num_frames": self.num_frames,
            "image_size": [size, size],
            "context_length": config.text_config.max_position_embeddings,
            "mean": list(mean),
            "std": list(std),
            "interpolation": interpolation,
            "preprocess": clip.preprocess,
            "precision": precision,
        }

    def pixels(self, frames: np.ndarray) -> torch.Tensor:
        """Frames (B, H, W, 3) uint8 -> (B, 3, h, w) as the model wants, on its device.

        Where they are square, or `clip.preprocess` is crop, that is what the model's
        own image processor makes of them.
        """
        pictures = torch.from_numpy(np.array(frames, order="C")).to(self._device)
        return preprocess(pictures, *self._look).to(self._dtype)

    @torch.no_grad()
    def embed(self, videos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Videos (B, F, 3, h, w) of `pixels` -> (B, D), and the prompts': (B, P, D).

        Both are float32 of unit length. The prompts' depend on the video, for X-CLIP
        adds to a sentence's embedding what a small transformer (its prompt generator)
        makes of that sentence and the patches of the video.
        """
        seen = self._model(pixel_values=videos, **self._tokens)
        video, text = seen.video_embeds.float(), seen.text_embeds.float()
        return functional.normalize(video, dim=-1), functional.normalize(text, dim=-1)


def _find(clip: ClipConfig) -> Path:
    """The weights, beside the rest of FILES: in a folder or the hub's cache."""
    name = clip.model.removeprefix(VIDEO_MODEL)
    folder = Path(name).expanduser()
    on_hub = name.count("/") == 1 and name[0] not in "/~." and not folder.is_dir()
    size = f", a download of {clip.download_gb:g} GB" if clip.download_gb else ""
    what = f"clip={clip.name} ({name}{size})"
    found: list[Path] = []
    for names in FILES:
        if on_hub:
            instead = f"give a folder by clip.model={VIDEO_MODEL}/path/to/folder"
            found.append(hub_file(name, names, what, instead))
        elif there := [folder / one for one in names if (folder / one).is_file()]:
            found.append(there[0])
        else:
            raise ConfigError(
                f"The folder {folder} has no {' or '.join(names)}: give one with X-CLIP"
                " and its processor, as save_pretrained of Transformers writes them."
            )
        if len(found) == 1:  # before gigabytes
            _check_kind(clip, found[0])
    return found[-1]


def _check_kind(clip: ClipConfig, file: Path) -> None:
    """Refuse another kind of model."""
    try:
        kind = json.loads(file.read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _unreadable(file, error) from error
    if kind != "xclip":
        raise ConfigError(
            f"clip.model={clip.model} is of the kind {kind!r}, not X-CLIP: give an "
            "X-CLIP, or another reward."
        )


def _unreadable(path: Path, error: Exception) -> ConfigError:
    instead = "give a folder that save_pretrained of Transformers wrote"
    return unreadable(path, reason(error, named=True), instead, " as X-CLIP")
