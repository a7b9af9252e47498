"""What a pretraining can be told, and which of it is impossible."""

import contextlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING

from vlmrm_exp.checks import at_least, check_clip, one_of
from vlmrm_exp.config import ClipConfig, ConfigError, conf_dir

# A model's files; open_clip asks for the names of the last two.
TOKENIZER, WEIGHTS = "bpe.txt.gz", "open_clip_model.safetensors"
DESCRIPTION = "open_clip_config.json"
FEWEST_HELD_OUT = 1_000  # at 750 some tasks have no goal state: measures are nan
LEAST = {
    **dict.fromkeys(("steps", "batch_size", "text_layers", "text_heads"), 1),
    **dict.fromkeys(("embed_dim", "image_width", "text_width"), 2),
    "image_size": 32,  # px, of which five halvings leave one
    "context_length": 6,  # start, end and a word more than "a humanoid robot"
    "merges": 0,
}
"""How low a recipe's whole numbers may be."""


@dataclass
class RecipeConfig:
    """Architecture, data and optimisation of one embedded model."""

    embed_dim: int = MISSING
    image_size: int = MISSING
    image_layers: list[int] = MISSING
    image_width: int = MISSING
    text_width: int = MISSING
    text_layers: int = MISSING
    text_heads: int = MISSING
    context_length: int = MISSING
    merges: int = MISSING
    states: dict[str, int] = MISSING
    visited: float = MISSING  # share of the humanoid's states that agents visited
    steps: int = MISSING
    batch_size: int = MISSING
    share: dict[str, float] = MISSING
    learning_rate: float = MISSING
    matrix_learning_rate: float = MISSING
    weight_decay: float = MISSING


@dataclass
class PretrainConfig:
    """One pretraining."""

    clip: ClipConfig = field(default_factory=ClipConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    seed: int = 0  # of weights, batches and captions; drawn states are one set for all
    folder: str = MISSING
    init: str | None = None  # folder of a model of the same sizes to go on from
    worlds: str = MISSING  # folder of drawn states, shared by all of the same `states`
    held_out_states: int = 6_000  # per world, for the report
    processes: int | None = None  # that draw states, captions on a GPU; null: all cores
    threads: int = 2  # of tensor operations on the CPU
    device: str = "auto"  # auto, cpu or gpu: where the model is trained


def model_config(recipe: RecipeConfig, vocabulary: int) -> dict[str, Any]:
    """open_clip's description of the model."""
    return {
        "model_cfg": {
            "embed_dim": recipe.embed_dim,
            "vision_cfg": {
                "image_size": recipe.image_size,
                "layers": list(recipe.image_layers),
                "width": recipe.image_width,
                "head_width": 32,
            },
            "text_cfg": {
                "context_length": recipe.context_length,
                "vocab_size": vocabulary,
                "width": recipe.text_width,
                "heads": recipe.text_heads,
                "layers": recipe.text_layers,
            },
        },
        "preprocess_cfg": {
            "size": [recipe.image_size, recipe.image_size],
            "mode": "RGB",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
            "interpolation": "bicubic",
            "resize_mode": "squash",
        },
    }


def vocabulary_of(folder: Path) -> int:
    """Tokens that a model's tokenizer has."""
    description = json.loads((folder / DESCRIPTION).read_text())
    return description["model_cfg"]["text_cfg"]["vocab_size"]


def check(config: PretrainConfig) -> None:
    """Refuse impossible values, with a ConfigError, before anything is drawn."""
    at_least("seed", config.seed, 0)
    at_least("held_out_states", config.held_out_states, FEWEST_HELD_OUT)
    for name in ("processes", "threads"):
        if (count := getattr(config, name)) is not None:
            at_least(name, count, 1)
    for name in ("folder", "worlds"):
        if not getattr(config, name):
            raise ConfigError(f"{name} is empty: give a folder, or leave it out.")
    one_of("device", config.device, ("auto", "cpu", "gpu"))
    _check_clip(config.clip)
    _check_recipe(config.recipe)
    if config.init is not None:
        _check_init(Path(config.init), config.recipe)
    if (Path(config.folder) / WEIGHTS).exists():
        raise ConfigError(
            f"{config.folder} holds a model already: remove it, or choose another."
        )


def _check_clip(clip: ClipConfig) -> None:
    check_clip(clip)
    if clip.frame_height is None:
        raise ConfigError(
            "clip.frame_height is null: give the pixels, as clip.frame_height=96."
        )
    own = yaml.safe_load((conf_dir() / "clip" / "_embedded.yaml").read_text("utf-8"))
    for name, needed in {**vars(ClipConfig()), **own}.items():
        given = getattr(clip, name)
        if given != needed and name not in ("name", "frame_height", "batch_size"):
            raise ConfigError(
                f"clip.{name} is {json.dumps(given)}, but pretraining needs "
                f"{json.dumps(needed)}: leave it out."
            )


def _check_recipe(recipe: RecipeConfig) -> None:
    for name, low in LEAST.items():
        at_least(f"recipe.{name}", getattr(recipe, name), low)
    if recipe.image_size % 32 == 31:
        raise ConfigError(
            f"recipe.image_size is {recipe.image_size}, which the picture's tower "
            "cannot halve five times: give a multiple of 32."
        )
    for name, fits, wanted in (
        ("learning_rate", lambda rate: 0 < rate < math.inf, "above 0"),
        ("matrix_learning_rate", lambda rate: 0 < rate < math.inf, "above 0"),
        ("weight_decay", lambda decay: decay >= 0, "from 0 up"),
        ("visited", lambda share: 0 <= share <= 1, "from 0 to 1"),
    ):
        if not fits(value := getattr(recipe, name)):
            raise ConfigError(f"recipe.{name} is {value:g}: give a number {wanted}.")
    for world, count in recipe.states.items():
        at_least(f"recipe.states.{world}", count, 1)
    for world, share in recipe.share.items():
        pictures = round(share * recipe.batch_size) if math.isfinite(share) else 0
        if pictures < 2:
            raise ConfigError(
                f"recipe.share.{world} is {share:g}, which makes {pictures} of "
                f"{recipe.batch_size} pictures, but contrast needs two: raise it."
            )
    if len(recipe.image_layers) != 4 or min(recipe.image_layers) < 1:
        raise ConfigError(
            f"recipe.image_layers is {list(recipe.image_layers)}, but the picture's "
            "tower has four stages: give four numbers from 1 up."
        )
    if recipe.text_width % recipe.text_heads:
        raise ConfigError(
            f"recipe.text_width is {recipe.text_width}, which {recipe.text_heads} "
            "heads cannot share evenly: choose another number of recipe.text_heads."
        )


def _check_init(folder: Path, recipe: RecipeConfig) -> None:
    """Refuse a folder that holds no model of the recipe's sizes."""
    for name in (WEIGHTS, TOKENIZER, DESCRIPTION):
        if not (folder / name).is_file():
            raise ConfigError(
                f"init={folder} is no folder of a pretrained model: it has no {name}."
            )
    from vlmrm_exp.vlm.model_files import read_sizes  # here, as its import is slow

    read_sizes(folder / WEIGHTS)  # a damaged file is a ConfigError
    with contextlib.suppress(ValueError, KeyError, TypeError):
        held = json.loads((folder / DESCRIPTION).read_text())
        if held == model_config(recipe, vocabulary_of(folder)):
            return
    raise ConfigError(
        f"init={folder} holds no model of the recipe's sizes: give one of that clip=."
    )
