"""Contrastive training (Radford et al. 2021) on drawn states and their captions.

The usual target says that picture i belongs to caption i alone. Here the captions'
probabilities are known, so the target is the probability that caption j, among the
batch's, was said of picture i: the expectation of the usual one, and the same optimum,
without the noise of drawing it (docs/embedded_models.md).
"""

import gzip
import itertools
import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from vlmrm_exp.config import ConfigError, cores
from vlmrm_exp.device import choose_device
from vlmrm_exp.log.progress import progress_bar
from vlmrm_exp.pretraining import settings
from vlmrm_exp.pretraining.captions import Captioner
from vlmrm_exp.pretraining.muon import Muon
from vlmrm_exp.vlm.imported import open_clip

REPORT_EVERY = 100  # steps; a GPU has to finish before it can tell a number


def train(
    config: settings.PretrainConfig, worlds: Mapping[str, np.ndarray], folder: Path
) -> None:
    """Train on what `drawing.drawn_before` returns; write the model and metrics.jsonl.

    A loss that is no number is a ConfigError.
    """
    recipe, device = config.recipe, choose_device(config.device, "device")
    captioners = [Captioner(name, w["states"]) for name, w in worlds.items()]
    if config.init is None:
        rng = np.random.default_rng([config.seed, 1])
        corpus: list[str] = []
        for captioner in captioners:
            for _ in range(80):
                some = rng.integers(len(captioner), size=256)
                corpus += captioner.draw(some, rng)[0]
        vocabulary = write_tokenizer(folder / settings.TOKENIZER, corpus, recipe.merges)
    else:
        shutil.copyfile(
            Path(config.init) / settings.TOKENIZER, folder / settings.TOKENIZER
        )
        vocabulary = settings.vocabulary_of(Path(config.init))
    description = settings.model_config(recipe, vocabulary)
    (folder / settings.DESCRIPTION).write_text(json.dumps(description, indent=2))
    tokenizer = open_clip.tokenizer.SimpleTokenizer(
        str(folder / settings.TOKENIZER), context_length=recipe.context_length
    )

    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    torch.backends.cudnn.benchmark = True  # all batches have the same shape
    model = open_clip.model.CLIP(**description["model_cfg"]).to(device)
    if config.init is not None:
        model.load_state_dict(load_file(Path(config.init) / settings.WEIGHTS))
    # Convolutions on a CPU are twice as fast with the channels last.
    model.visual.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizers = make_optimizers(model, recipe)
    steps = max(recipe.steps, 11)  # a warm-up of one step is divided by its length, 0
    one_cycle = partial(
        torch.optim.lr_scheduler.OneCycleLR, pct_start=0.1, cycle_momentum=False
    )
    schedules = [one_cycle(o, o.defaults["lr"], steps) for o in optimizers]
    mean, std = (
        torch.tensor(description["preprocess_cfg"][key], device=device).view(3, 1, 1)
        for key in ("mean", "std")
    )
    # Where the processor only imitates bfloat16, it is ten times slower than float32.
    fast = device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    sizes = [round(recipe.share[name] * recipe.batch_size) for name in worlds]
    batches = DataLoader(
        Batches(captioners, sizes, tokenizer, config.seed, recipe.steps),
        batch_size=None,
        # A CPU has nothing to spare, and a GPU would wait for the captions.
        num_workers=(config.processes or cores()) if device.type == "cuda" else 0,
        pin_memory=device.type == "cuda",
    )
    frames = [_frames(drawn["frames"], device) for drawn in worlds.values()]
    running = torch.zeros(len(worlds), device=device)
    with (
        progress_bar(recipe.steps, "step", "training") as bar,
        (folder / "metrics.jsonl").open("w", encoding="utf-8") as metrics,
    ):
        for step, (indices, tokens, ratios) in enumerate(batches, 1):
            # All worlds in each batch, so that batch normalisation sees in training
            # what its running averages hold; but contrast within a world only, since
            # telling a cart from a robot teaches nothing.
            drawn = zip(frames, indices, strict=True)
            pixels = torch.cat([look_up(index) for look_up, index in drawn])
            images = (pixels.permute(0, 3, 1, 2) / 255 - mean) / std  # channels last
            with torch.autocast(device.type, torch.bfloat16, enabled=fast):
                image, text, scale = model(images, tokens.to(device, non_blocking=True))
            known = [target.to(device, non_blocking=True) for target in ratios]
            split = (each.float().split(sizes) for each in (image, text))
            parts = zip(*split, known, strict=True)
            losses = torch.stack([divergence(scale * i @ t.T, r) for i, t, r in parts])
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
            bar.update()
            if step % REPORT_EVERY == 0 or step == recipe.steps:
                divergences = dict(zip(worlds, running.tolist(), strict=True))
                if not running.isfinite().all():
                    raise ConfigError(
                        f"The loss is {running.sum().item()} by step {step}: lower "
                        "recipe.learning_rate or recipe.matrix_learning_rate."
                    )
                metrics.write(json.dumps({"step": step, **divergences}) + "\n")
                metrics.flush()
                bar.set_postfix({k: f"{value:.4f}" for k, value in divergences.items()})
    half = {
        name: value.half().contiguous() if value.is_floating_point() else value
        for name, value in model.cpu().state_dict().items()
    }
    weights = folder / settings.WEIGHTS
    save_file(half, weights)
    weights.chmod(0o644)  # safetensors writes for the owner alone; wheels are for all


@dataclass
class Batches(Dataset):
    """What each step sees: states, captions drawn for them, and how well they fit.

    Item i is the same whoever draws it: a batch has a random generator of its own.
    """

    captioners: Sequence[Captioner]
    sizes: Sequence[int]
    tokenizer: Callable[[list[str]], torch.Tensor]
    seed: int
    steps: int

    def __len__(self) -> int:
        return self.steps

    def __getitem__(
        self, step: int
    ) -> tuple[list[torch.Tensor], torch.Tensor, list[torch.Tensor]]:
        """By world indices of states (B,); all tokens (sum of B, T); ratios (B, B)."""
        rng = np.random.default_rng([self.seed, 1, step])
        indices, sentences, ratios = [], [], []
        for captioner, size in zip(self.captioners, self.sizes, strict=True):
            index = rng.integers(len(captioner), size=size)
            drawn, ratio = captioner.draw(index, rng)
            indices.append(torch.from_numpy(index))
            sentences += drawn
            ratios.append(torch.from_numpy(ratio).float())
        return indices, self.tokenizer(sentences), ratios


def _frames(
    frames: np.ndarray, device: torch.device
) -> Callable[[torch.Tensor], torch.Tensor]:
    """What looks up frames of indices (B,): (B, H, H, 3) uint8 on `device`."""
    if device.type == "cpu":
        return lambda index: torch.from_numpy(frames[index.numpy()])
    # All of them: 28 kB each.
    held = torch.empty(frames.shape, dtype=torch.uint8, device=device)
    for part in np.array_split(np.arange(len(held)), 1 + len(held) // 10_000):
        held[part[0] : part[-1] + 1] = torch.from_numpy(frames[part])
    return lambda index: held[index.to(device, non_blocking=True)]


def make_optimizers(
    model: torch.nn.Module, recipe: settings.RecipeConfig
) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices of hidden layers, AdamW for all other parameters."""
    matrices, others = [], []
    outer = ("embedding", "visual.conv1", "text_projection")
    for name, parameter in model.named_parameters():
        hidden = parameter.ndim >= 2 and not any(part in name for part in outer)
        (matrices if hidden else others).append(parameter)
    rate, decay = recipe.learning_rate, recipe.weight_decay
    muon = Muon(matrices, recipe.matrix_learning_rate)
    return muon, torch.optim.AdamW(others, rate, weight_decay=decay)


def divergence(logits: torch.Tensor, ratios: torch.Tensor) -> torch.Tensor:
    """How far the softmax over a batch (B, C) is from the known posterior, both ways.

    The mean Kullback-Leibler divergence: cross-entropy, less the targets' own entropy.
    """
    one, other = (
        functional.kl_div(
            similarity.log_softmax(dim=1),
            functional.normalize(target, p=1, dim=1),
            reduction="batchmean",
        )
        for similarity, target in ((logits, ratios), (logits.T, ratios.T))
    )
    return (one + other) / 2


def write_tokenizer(path: Path, sentences: Sequence[str], merges: int) -> int:
    """Learn merges, write them for open_clip's tokenizer; the vocabulary's size."""
    learned = learn_merges(sentences, merges)
    lines = ["#version: vlmrm_exp", *(" ".join(pair) for pair in learned)]
    path.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))
    return 2 * 256 + len(learned) + 2


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
