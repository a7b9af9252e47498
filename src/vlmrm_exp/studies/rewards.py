"""Rewards of state sets under any sentence, each picture seen once.

They are those of the reward model that a run would learn from. CLIP's embeddings are
kept on disk under a key of all that changes them: the model's weights and how it is
fed, the states, how they look, and what renders and computes them. Asking again with
other sentences or another alpha renders nothing.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from vlmrm_exp.config import ClipConfig, Config, ConfigError
from vlmrm_exp.device import choose_device
from vlmrm_exp.envs import world_of
from vlmrm_exp.log.progress import progress_bar
from vlmrm_exp.log.versions import versions
from vlmrm_exp.reward import Episodes, clip, facts_of, make_model, rewards_of
from vlmrm_exp.reward.clip import Appearance, Sentence
from vlmrm_exp.studies import cache, pictures
from vlmrm_exp.studies.settings import Study
from vlmrm_exp.studies.state_sets import StateSet
from vlmrm_exp.vlm import encoder, int8, loading, preprocess, source, tokenizer
from vlmrm_exp.vlm.encoder import load_encoder
from vlmrm_exp.vlm.tokenizer import check_prompts

PART = 256
"""States in one kept file: what an interruption loses at most."""
_RENDERING = ("gymnasium", "mujoco", "numpy", "pillow", "pygame-ce")
_EMBEDDING = ("open_clip_torch", "torch", "torchvision", "timm")
Rewarder: TypeAlias = "Clip | Plain"
"""One reward model on any states."""


def rewarders(study: Study, jobs: Sequence[Config]) -> Iterator[Rewarder]:
    """Load one model after another; what can be refused is refused before the first.

    `jobs` have all sentences that will be asked of them. A ConfigError if there are no
    such weights, there is no GPU, or a sentence is too long.
    """
    first = study.tasks[0]
    if first.reward.model != "clip":
        return iter([Plain(first)])
    device = choose_device(first.compute.device)
    said = [s for job in jobs for s in (*job.prompts, *job.baselines)]
    for model in study.models:
        check_prompts(model, said)
    for model in study.models:
        source.fetch(model)
    kept = study.cache / "embeddings"
    return (Clip(model, device, kept) for model in study.models)


def of_each_model(
    loading: Iterator[Rewarder], rows_of: Callable[[Rewarder], list[dict[str, Any]]]
) -> dict[str, Any]:
    """Rows of one model after another, and for the record what made them."""
    rows, models, drawn_by = [], {}, set()
    for rewarder in loading:
        rows += rows_of(rewarder)
        models[rewarder.name] = rewarder.facts
        drawn_by |= rewarder.drawn_by
        del rewarder  # before the next one is loaded
    record = versions({"drawn_by": "; ".join(sorted(drawn_by))})
    return {"models": models, "rows": rows, "versions": record}


class Plain:
    """A reward model that makes no embeddings."""

    model = None
    parameters = None

    def __init__(self, config: Config) -> None:
        self.name, self.drawn_by = config.reward.name, set()
        self.facts: dict[str, list[dict[str, Any]]] = {}
        """By task: an ensemble's scales are of its states, sentences and alpha."""

    def rewards(self, states: StateSet, jobs: Sequence[Config]) -> list[np.ndarray]:
        """As `Clip.rewards`."""
        if states.states is None:
            raise ConfigError(
                f"reward={self.name} is no reward of single pictures: leave frames out."
            )
        episodes = Episodes(states=states.states[:, None])
        found = []
        for job in jobs:
            with contextlib.closing(make_model(job)) as model:
                found.append(rewards_of(model, episodes)[:, 0])
                about, known = facts_of(model), self.facts.setdefault(job.task.name, [])
                if about and about not in known:
                    known.append(about)
        return found


class Clip:
    """CLIP's reward; embeddings are kept on disk."""

    def __init__(self, model: ClipConfig, device: torch.device, kept: Path) -> None:
        """Load the model; `kept` is the folder of embeddings."""
        self.name, self.model = model.name, model
        self._device = device
        self._kept = kept
        self._encoder = load_encoder(model, device)
        self.facts: dict[str, Any] = self._encoder.facts
        self.parameters = self.facts["parameters_image"] + self.facts["parameters_text"]
        modules = (encoder, loading, int8, tokenizer, preprocess, source, clip)
        self._made_by = {
            "model": _identity(model, self.facts),
            "device": device.type,
            "libraries": cache.libraries(_EMBEDDING),
            "sources": cache.sources(module.__file__ for module in modules),
        }
        self.drawn_by = set()
        """What rendered the pictures so far, now or at an earlier time."""

    def rewards(self, states: StateSet, jobs: Sequence[Config]) -> list[np.ndarray]:
        """Rewards (B,) float32 of the same B states for each of some configurations.

        These are of one task and model; sentences and alpha may differ.

        Raises:
            ConfigError: a file is not a picture, or prompt and baseline of a job mean
                the same to the model.
        """
        embeddings = torch.from_numpy(self._embed(states, jobs[0])).to(self._device)
        return [Sentence(self._encoder, job)(embeddings).cpu().numpy() for job in jobs]

    def _embed(self, states: StateSet, job: Config) -> np.ndarray:
        """(B, V, D) float32, from disk as far as they are there."""
        look = self._look(states, job)
        views = 1 if states.states is None else len(job.task.views)
        appearance: Appearance | None = None
        parts = []
        said = f"{self.name} sees {states.world}"
        with contextlib.ExitStack() as opened:
            progress = opened.enter_context(progress_bar(len(states), "state", said))
            for start in range(0, len(states), PART):
                part = states.part(slice(start, start + PART))
                file = self._kept / f"{self._key(look, part)}.npz"
                shape = (len(part), views, self.facts["embed_dim"])
                embeddings = cache.load(file).get("embeddings", np.empty(0))
                if embeddings.shape != shape or not np.isfinite(embeddings).all():
                    if appearance is None and part.states is not None:
                        one = self._encoder
                        appearance = Appearance(job, one.batch_size, one.embed_frames)
                        opened.callback(appearance.close)
                    embeddings = self._see(part, appearance)
                    cache.store(file, embeddings=embeddings)
                parts.append(embeddings)
                progress.update(len(part))
        if look["drawn_by"]:
            self.drawn_by.add(look["drawn_by"])
        return np.concatenate(parts)

    def _see(self, part: StateSet, appearance: Appearance | None) -> np.ndarray:
        """Embed some states: (B, V, D) float32."""
        if part.states is None:  # one by one, as pictures may differ in size
            see = self._encoder.embed_frames
            seen = torch.stack([see(pictures.read_one(f)[None]) for f in part.files])
        else:
            assert appearance is not None
            seen = appearance.see(part.states)
        return seen.cpu().numpy()

    def _look(self, states: StateSet, job: Config) -> dict[str, Any]:
        """What decides the picture of a state."""
        if states.files:
            return {"drawn_by": None, "sources": cache.sources([pictures.__file__])}
        world = world_of(job.task)
        return {
            "env": job.task.env,
            "textures": job.task.textures,
            "camera": job.task.camera,
            "options": job.task.options,
            "frame_height": job.frame_height,
            "effects": job.clip.render_effects,
            "drawn_by": world.renders_with(),
            "libraries": cache.libraries(_RENDERING),
            "sources": cache.sources(world.sources),
        }

    def _key(self, look: dict[str, Any], part: StateSet) -> str:
        about = {"look": look, **self._made_by}
        if part.states is None:
            return cache.key_of(about, *(f.read_bytes() for f in part.files))
        states = np.ascontiguousarray(part.states)
        return cache.key_of({**about, "shape": states.shape}, states.tobytes())


def _identity(model: ClipConfig, facts: dict[str, Any]) -> dict[str, Any]:
    """What makes the model what it is, wherever it lies and whatever it is called."""
    identity = {k: v for k, v in facts.items() if k not in ("name", "weights")}
    found = source.find(model)
    if found.folder:
        identity["model"] = found.config
    file = Path(str(facts["weights"]))
    if facts["weights_sha256"] is None and file.is_file():
        # Too large to be hashed each time.
        identity["file"] = [str(file), file.stat().st_size, file.stat().st_mtime_ns]
    return identity
