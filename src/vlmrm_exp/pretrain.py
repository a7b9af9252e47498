"""Make an embedded CLIP from nothing: draw states, render, caption, contrast.

    python -m vlmrm_exp.pretrain clip=base

The result is a folder that open_clip loads like any other (`local-dir:`), with a report
on states and paraphrases that were held out. The models know only these worlds.
"""

import gzip
import itertools
import json
import logging
import math
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import hydra
import numpy as np
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from vlmrm_exp import cli
from vlmrm_exp.config import (
    ClipConfig,
    ConfigError,
    at_least,
    check_clip,
    conf_dir,
    one_of,
)
from vlmrm_exp.held_out import examine, print_table
from vlmrm_exp.log import versions, write_json
from vlmrm_exp.muon import Muon
from vlmrm_exp.vlm.scorer import choose_device
from vlmrm_exp.worlds import (
    WORLDS,
    Captioner,
    Drawing,
    World,
    drawn_before,
)

logger = logging.getLogger(__name__)

STATES_SEED = 0  # one set for all seeds: `seed` decides weights, batches and captions
HELD_OUT_SEED = 1_000_000  # states that training never saw
# A model's files; open_clip asks for the last two names.
TOKENIZER, WEIGHTS, CONFIG_FILE = (
    "bpe.txt.gz",
    "open_clip_model.safetensors",
    "open_clip_config.json",
)


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
    visited: float = MISSING
    """Share of the humanoid's states that agents visited."""
    steps: int = MISSING
    batch_size: int = MISSING
    share: dict[str, float] = MISSING
    learning_rate: float = MISSING
    matrix_learning_rate: float = MISSING
    weight_decay: float = MISSING


@dataclass
class PretrainConfig:
    """One pretraining run."""

    clip: ClipConfig = field(default_factory=ClipConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    seed: int = 0
    folder: str = MISSING
    init: str | None = None
    """Folder of a model of the same sizes to go on from, with its tokenizer; null: from
    the beginning."""
    worlds: str = MISSING
    """Folder of drawn states, shared by sizes that have the same `states`."""
    held_out_states: int = 6_000
    """Per world, for the report."""
    processes: int | None = None
    """That draw states before training, and on a GPU captions during it; null: one for
    each core."""
    threads: int = 2
    """Of tensor operations on the CPU."""
    device: str = "auto"
    """auto, cpu or gpu: where the model is trained."""


def learn_merges(sentences: Sequence[str], merges: int) -> list[tuple[str, str]]:
    """Byte-pair merges (Sennrich et al. 2016) in the format of CLIP's tokenizer."""
    # Letters alone, as CLIP's tokenizer splits words from punctuation.
    counts = Counter(w for s in sentences for w in re.findall(r"[a-z]+", s.lower()))
    words = {word: [*word[:-1], word[-1] + "</w>"] for word in counts}
    learned: list[tuple[str, str]] = []
    while len(learned) < merges:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in words.items():
            for pair in itertools.pairwise(parts):
                pairs[pair] += counts[word]
        if not pairs:
            break
        # Ties are broken by spelling, so that the same captions give the same file.
        best = max(pairs, key=lambda p: (pairs[p], p))
        learned.append(best)
        for parts in words.values():
            i = 0
            while i < len(parts) - 1:
                if (parts[i], parts[i + 1]) == best:
                    parts[i : i + 2] = ["".join(best)]
                i += 1
    return learned


def write_tokenizer(path: Path, merges: Sequence[tuple[str, str]]) -> int:
    """Write merges for open_clip's SimpleTokenizer; returns the vocabulary size."""
    lines = ["#version: vlmrm_exp", *(" ".join(m) for m in merges)]
    path.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))
    return 2 * 256 + len(merges) + 2


def model_config(recipe: RecipeConfig, vocabulary: int) -> dict:
    """open_clip's description of the model: `open_clip_config.json`."""
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


def train(config: PretrainConfig, worlds: Sequence[World], folder: Path) -> None:
    """Contrastive training (Radford et al. 2021); writes the model's folder.

    The usual target says that picture i belongs to caption i alone. Here the captions'
    probabilities are known, so the target is the probability that caption j, among
    the batch's, was said of picture i: the expectation of the usual one, and the same
    optimum, without the noise of drawing it.

    Raises:
        ConfigError: the loss stops being a number.
    """
    from safetensors.torch import load_file, save_file

    from vlmrm_exp.vlm.source import open_clip

    recipe, device = config.recipe, choose_device(config.device, "device")
    captioners = [Captioner(w) for w in worlds]
    if config.init is None:
        rng = np.random.default_rng([config.seed, 1])
        vocabulary = _learn_tokenizer(captioners, worlds, recipe.merges, folder, rng)
    else:
        shutil.copyfile(Path(config.init) / TOKENIZER, folder / TOKENIZER)
        vocabulary = _vocabulary(Path(config.init))
    description = model_config(recipe, vocabulary)
    (folder / CONFIG_FILE).write_text(json.dumps(description, indent=2))
    tokenizer = open_clip.tokenizer.SimpleTokenizer(
        str(folder / TOKENIZER), context_length=recipe.context_length
    )

    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    torch.backends.cudnn.benchmark = True  # all batches have the same shape
    model = open_clip.model.CLIP(**description["model_cfg"]).to(device)
    if config.init is not None:
        model.load_state_dict(load_file(Path(config.init) / WEIGHTS))
    # Convolutions on a CPU are twice as fast with the channels last.
    model.visual.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizers = make_optimizers(model, recipe)
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            optimizer.defaults["lr"],
            max(recipe.steps, 11),  # a warm-up of one step is divided by its length, 0
            pct_start=0.1,
            cycle_momentum=False,
        )
        for optimizer in optimizers
    ]
    mean, std = (
        torch.tensor(description["preprocess_cfg"][key], device=device).view(3, 1, 1)
        for key in ("mean", "std")
    )
    # Where the processor only imitates bfloat16, it is ten times slower than float32.
    fast = device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    sizes = [round(recipe.share[w.name] * recipe.batch_size) for w in worlds]
    batches = DataLoader(
        Batches(captioners, sizes, tokenizer, config.seed, recipe.steps),
        batch_size=None,
        # A CPU has nothing to spare, and a GPU would wait for the captions.
        num_workers=_processes(config) if device.type == "cuda" else 0,
        pin_memory=device.type == "cuda",
    )
    frames = [_frames(world, device) for world in worlds]
    started = time.monotonic()
    running = torch.zeros(len(worlds), device=device)
    for step, (indices, tokens, ratios) in enumerate(batches, 1):
        # All worlds in each batch, so that batch normalisation sees in training what
        # its running averages hold; but contrast within a world only, since telling
        # a cart from a robot teaches nothing.
        drawn = zip(frames, indices, strict=True)
        pixels = torch.cat([look_up(index) for look_up, index in drawn])
        # Stays channels_last.
        images = (pixels.permute(0, 3, 1, 2) / 255 - mean) / std
        with torch.autocast(device.type, torch.bfloat16, enabled=fast):
            image, text, scale = model(images, tokens.to(device, non_blocking=True))
        parts = zip(image.float().split(sizes), text.float().split(sizes), strict=True)
        losses = torch.stack(
            [
                divergence(
                    scale * images @ texts.T, target.to(device, non_blocking=True)
                )
                for (images, texts), target in zip(parts, ratios, strict=True)
            ]
        )
        loss = losses @ losses.new_tensor(sizes) / sum(sizes)
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        running.lerp_(losses.detach(), 0.02 if step > 1 else 1.0)
        # Numbers are asked for rarely: a GPU has to finish first.
        if step % 100 == 0 or step == recipe.steps:
            if not running.isfinite().all():
                raise ConfigError(
                    f"The loss is {running.sum().item()} by step {step}: lower "
                    "recipe.learning_rate or recipe.matrix_learning_rate."
                )
            left = (time.monotonic() - started) / step * (recipe.steps - step)
            names = (world.name for world in worlds)
            values = zip(names, running.tolist(), strict=True)
            logger.info(
                "step %d/%d  %s  scale %.1f  %d min left",
                step,
                recipe.steps,
                "  ".join(f"{n} {v:.4f}" for n, v in values),
                model.logit_scale.exp().item(),
                math.ceil(left / 60),
            )
    half = {
        name: value.half().contiguous() if value.is_floating_point() else value
        for name, value in model.cpu().state_dict().items()
    }
    weights = folder / WEIGHTS
    save_file(half, weights)
    weights.chmod(0o644)  # safetensors writes for the owner alone; wheels are for all


class Batches(Dataset):
    """What each step sees: states, captions drawn for them, and how well they fit.

    Item i is the same whoever draws it: a batch has a random generator of its own.
    """

    def __init__(
        self,
        captioners: Sequence[Captioner],
        sizes: Sequence[int],
        tokenizer: Callable[[list[str]], torch.Tensor],
        seed: int,
        steps: int,
    ) -> None:
        self._captioners, self._sizes = captioners, sizes
        self._tokenizer, self._seed, self._steps = tokenizer, seed, steps

    def __len__(self) -> int:
        """Steps of training."""
        return self._steps

    def __getitem__(
        self, step: int
    ) -> tuple[list[torch.Tensor], torch.Tensor, list[torch.Tensor]]:
        """Draw one batch.

        Returns:
            Per world the states' indices (B,); the captions' tokens, of all worlds
            (sum of B, T); per world the likelihood ratios (B, B).
        """
        rng = np.random.default_rng([self._seed, 1, step])
        indices, sentences, ratios = [], [], []
        for captioner, size in zip(self._captioners, self._sizes, strict=True):
            index = rng.integers(len(captioner), size=size)
            drawn, ratio = captioner.draw(index, rng)
            indices.append(torch.from_numpy(index))
            sentences += drawn
            ratios.append(torch.from_numpy(ratio).float())
        return indices, self._tokenizer(sentences), ratios


def _frames(
    world: World, device: torch.device
) -> Callable[[torch.Tensor], torch.Tensor]:
    """What looks up frames of indices (B,): (B, H, H, 3) uint8 on `device`."""
    if device.type == "cpu":
        return lambda index: torch.from_numpy(world.frames[index.numpy()])
    # All of them: 28 kB each.
    held = torch.empty(world.frames.shape, dtype=torch.uint8, device=device)
    for part in np.array_split(np.arange(len(held)), 1 + len(held) // 10_000):
        held[part[0] : part[-1] + 1] = torch.from_numpy(world.frames[part])
    return lambda index: held[index.to(device, non_blocking=True)]


def _processes(config: PretrainConfig) -> int:
    return config.processes or len(os.sched_getaffinity(0))


def _learn_tokenizer(
    captioners: Sequence[Captioner],
    worlds: Sequence[World],
    merges: int,
    folder: Path,
    rng: np.random.Generator,
) -> int:
    """Write a tokenizer of the worlds' captions; the size of its vocabulary."""
    corpus = [
        caption
        for world, captioner in zip(worlds, captioners, strict=True)
        for _ in range(80)
        for caption in captioner.draw(rng.integers(len(world.rows), size=256), rng)[0]
    ]
    return write_tokenizer(folder / TOKENIZER, learn_merges(corpus, merges))


def _vocabulary(folder: Path) -> int:
    """Tokens that a model's tokenizer has."""
    description = json.loads((folder / CONFIG_FILE).read_text())
    return description["model_cfg"]["text_cfg"]["vocab_size"]


def make_optimizers(
    model: torch.nn.Module, recipe: RecipeConfig
) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices of hidden layers, AdamW for all other parameters."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        outer = ("embedding", "visual.conv1", "text_projection")
        hidden = parameter.ndim >= 2 and not any(part in name for part in outer)
        (matrices if hidden else others).append(parameter)
    return (
        Muon(matrices, recipe.matrix_learning_rate),
        torch.optim.AdamW(
            others, recipe.learning_rate, weight_decay=recipe.weight_decay
        ),
    )


def divergence(logits: torch.Tensor, ratios: torch.Tensor) -> torch.Tensor:
    """How far the softmax over a batch is from the known posterior, both ways.

    Args:
        logits: (B, C) scaled similarity of picture and caption.
        ratios: (B, C) likelihood ratio of state and caption.

    Returns:
        () the mean Kullback-Leibler divergence: the cross-entropy of contrastive
        training, less the targets' own entropy. 0 is perfect.
    """
    both = []
    for similarity, target in ((logits, ratios), (logits.T, ratios.T)):
        posterior = functional.normalize(target, p=1, dim=1)
        predicted = similarity.log_softmax(dim=1)
        both.append(functional.kl_div(predicted, posterior, reduction="batchmean"))
    return (both[0] + both[1]) / 2


def check(config: PretrainConfig) -> None:
    """Refuse impossible values before anything is drawn.

    Raises:
        ConfigError: one sentence says which, and what to do.
    """
    recipe = config.recipe
    at_least("seed", config.seed, 0)
    if config.processes is not None:
        at_least("processes", config.processes, 1)
    at_least("threads", config.threads, 1)
    at_least("held_out_states", config.held_out_states, 1)
    for name in ("steps", "batch_size", "text_heads"):
        at_least(f"recipe.{name}", getattr(recipe, name), 1)
    for world in WORLDS:
        at_least(f"recipe.states.{world}", recipe.states.get(world, 0), 1)
    for name in ("learning_rate", "matrix_learning_rate"):
        rate = getattr(recipe, name)
        if not 0 < rate < math.inf:
            raise ConfigError(f"recipe.{name} is {rate:g}: give a number above 0.")
    if not recipe.weight_decay >= 0:
        raise ConfigError(
            f"recipe.weight_decay is {recipe.weight_decay:g}: give a number from 0 up."
        )
    if not 0 <= recipe.visited <= 1:
        raise ConfigError(
            f"recipe.visited is {recipe.visited:g}, but a share lies between 0 and 1."
        )
    for world in WORLDS:
        share = recipe.share.get(world, 0.0)
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
    check_clip(config.clip)
    one_of("device", config.device, ("auto", "cpu", "gpu"))
    choose_device(config.device, "device")
    if config.clip.frame_height is None:
        raise ConfigError(
            "clip.frame_height is null, but the states have to be drawn at some "
            "height: give the pixels, as clip.frame_height=96."
        )
    if config.init is not None:
        _check_init(Path(config.init), recipe)
    if (Path(config.folder) / WEIGHTS).exists():
        raise ConfigError(
            f"{config.folder} holds a model already: choose another folder=..., or "
            "remove it."
        )


def _check_init(folder: Path, recipe: RecipeConfig) -> None:
    """Refuse a folder that holds no model of the recipe's sizes."""
    for name in (WEIGHTS, TOKENIZER, CONFIG_FILE):
        if not (folder / name).is_file():
            raise ConfigError(
                f"init={folder} is not the folder of a pretrained model: it has no "
                f"{name}."
            )
    try:
        held = json.loads((folder / CONFIG_FILE).read_text())
        same = held == model_config(recipe, _vocabulary(folder))
    except (ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise ConfigError(
            f"init={folder} holds no model of the recipe's sizes: give one that was "
            "made with the same clip=."
        )


ConfigStore.instance().store(name="pretrain_schema", node=PretrainConfig)


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="pretrain")
def pretrain(cfg: DictConfig) -> None:
    """Draw the worlds, train, and report on what was held out."""
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, PretrainConfig)
    check(config)
    folder = Path(config.folder)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    recipe = config.recipe
    logger.info("drawing states, or reading them from %s", config.worlds)
    drawings = [
        *(
            _drawing(config, n, recipe.states[n], STATES_SEED, recipe.visited)
            for n in WORLDS
        ),
        *(
            _drawing(config, n, config.held_out_states, HELD_OUT_SEED, 0.0)
            for n in WORLDS
        ),
    ]
    drawn = drawn_before(Path(config.worlds), drawings, _processes(config))
    worlds, held_out = drawn[: len(WORLDS)], drawn[len(WORLDS) :]
    # What the weights are made of and by, for whoever gets them.
    OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
    write_json(folder / "versions.json", versions({"device": config.device}))
    train(config, worlds, folder)
    rows = examine(folder, config.clip, held_out)
    write_json(folder / "report.json", rows)
    print_table(rows)
    logger.info("%s after %.0f min", folder, (time.monotonic() - started) / 60)


def _drawing(
    config: PretrainConfig, world: str, count: int, seed: int, visited: float
) -> Drawing:
    assert config.clip.frame_height is not None
    return Drawing(
        world,
        count,
        seed,
        config.clip.frame_height,
        config.recipe.image_size,
        # Not of the other worlds, so that theirs are drawn once for every share.
        visited if world == "humanoid" else 0.0,
    )


def main() -> None:
    """Run `pretrain`; bad input ends in one sentence."""
    interrupted = "Interrupted: a model without a report.json is not finished."
    cli.run_hydra(pretrain, interrupted, "pretrain")


if __name__ == "__main__":
    main()
