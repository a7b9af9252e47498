"""Sentence and pictures in, numbers out: the reward of training, for Python.

    pictures -> [embed] -> embeddings -> [formula] -> rewards

`python -m vlmrm_exp.score` and the wrappers of `vlmrm_exp.wrappers` ask the same.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypeAlias, TypedDict

import numpy as np
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from vlmrm_exp import composition, words
from vlmrm_exp.checks import check, to_config
from vlmrm_exp.composition import Composed
from vlmrm_exp.config import Config, ConfigError
from vlmrm_exp.device import choose_device
from vlmrm_exp.studies import settings
from vlmrm_exp.studies.pictures import read_one, to_rgb
from vlmrm_exp.vlm import tell_embedded

if TYPE_CHECKING:
    from PIL import Image

    from vlmrm_exp.vlm.encoder import Encoder

Picture: TypeAlias = "np.ndarray | Image.Image | str | Path"
"""(H, W, 3) uint8 RGB, a PIL image, or the path of a file that holds one picture."""
PLURAL = {"clip": "clips", "alpha": "alphas"}
"""As in the studies, but a single model."""


@dataclass
class ScoreConfig(Config):
    """See conf/score.yaml."""

    files: list[str] = field(default_factory=list)
    prompts: list[Any] | None = None
    baselines: list[Any] | None = None
    alphas: list[float] | None = None
    clips: list[str] | None = None
    every: int = 1
    pictures: int = 12
    out: str = ""


ConfigStore.instance().store(name="score_schema", node=ScoreConfig)


class ScorerArgs(TypedDict):
    """Arguments of `Scorer`, for what makes one."""

    prompt: str | Sequence[str]
    clip: str
    baseline: NotRequired[str | Sequence[str] | None]
    alpha: NotRequired[float]
    overrides: NotRequired[str | Sequence[str]]


class Scorer:
    """How well pictures match a sentence, by the reward that a run would learn from.

    kneeling = Scorer("a humanoid robot kneeling", clip="vitl14")
    kneeling(["1.png", frame])  # array([0.24, 0.19], dtype=float32)
    """

    def __init__(
        self,
        prompt: str | Sequence[str],
        *,
        clip: str,
        baseline: str | Sequence[str] | None = None,
        alpha: float = 0.0,
        overrides: str | Sequence[str] = (),
    ) -> None:
        """Load the model and embed the sentences.

        Args:
            prompt: the goal in words; the embeddings of several are averaged.
            clip: a model, as on the command line: `vitb32`, or `local-dir:/folder`.
            baseline: the scene in words, without the goal; needed where alpha is not 0.
            alpha: strength of goal-baseline regularisation, 0..1.
            overrides: further words of the command line, as `compute=cpu` or
                `clip.precision=bf16`.

        Raises:
            ConfigError: one sentence says what is wrong, or cannot be had.
        """
        from vlmrm_exp.vlm.encoder import load_encoder

        job = _job(prompt, baseline, alpha, clip, overrides)
        tell_embedded([job.clip])
        # The process is its user's: how it multiplies is not changed.
        device = choose_device(job.compute.device, widen=False)
        encoder = load_encoder(job.clip, device)
        self._rewards = rewards_of(encoder, [job])
        encoder.drop_text_tower()  # the sentences do not change any more
        self._clip, self._batch_size = job.clip.name, encoder.batch_size

    def __call__(self, pictures: Iterable[Picture]) -> np.ndarray:
        """Reward B pictures, of any sizes; only one batch is in memory at once.

        Returns:
            (B,) float32: at alpha 0 the cosine, -1..1.

        Raises:
            ConfigError: one is no picture, or damaged.
            FloatingPointError: a reward is not a finite number.
        """
        if isinstance(pictures, (str, Path)) or not isinstance(pictures, Iterable):
            raise ConfigError("A single picture is given: give a list, as [picture].")
        found = [np.empty(0, np.float32)]
        for _, alike in itertools.groupby(map(_pixels, pictures), np.shape):
            while batch := list(itertools.islice(alike, self._batch_size)):
                found.append(self._rewards(np.stack(batch))[:, 0])
        rewards = np.concatenate(found)
        if not np.isfinite(rewards).all():
            raise FloatingPointError(
                f"A picture's reward is not a finite number: the weights of "
                f"clip={self._clip} are damaged, or too large for their precision; try "
                "compute=cpu."
            )
        return rewards


def _pixels(picture: Picture) -> np.ndarray:
    """One picture as (H, W, 3) uint8."""
    from PIL import Image

    if isinstance(picture, (str, Path)):
        return read_one(Path(picture).expanduser())
    if isinstance(picture, Image.Image):
        return to_rgb(picture)
    shape, dtype = getattr(picture, "shape", ()), getattr(picture, "dtype", None)
    if len(shape) != 3 or shape[2] != 3 or 0 in shape or dtype != np.uint8:
        given = f"an array {shape} of {dtype}" if dtype else type(picture).__name__
        raise ConfigError(
            f"A picture is {given}, but must be an array (height, width, 3) of uint8, "
            "a PIL image, or a file's path."
        )
    return np.asarray(picture)


def _job(
    prompt: Any, baseline: Any, alpha: float, clip: str, overrides: str | Sequence[str]
) -> Config:
    """What a training run would be told."""
    overrides = [overrides] if isinstance(overrides, str) else list(overrides)
    own = ("prompt", "prompts", "baseline", "baselines", "alpha", "clip")
    for word in overrides:
        if word.partition("=")[0] in own:
            raise ConfigError(f"{word} is no override here: give it as an argument.")
    keys = words.to_keys(overrides, PLURAL)
    keys += [*words.several("clip", clip, PLURAL["clip"]), f"alpha={alpha}"]
    for name, said in (("prompt", prompt), ("baseline", baseline)):
        if said is not None:
            keys.append(f"{name}={_as_typed(name, said)}")
    # A program that uses this may be a Hydra application itself.
    instance = GlobalHydra.instance()
    theirs, instance.hydra = instance.hydra, None
    try:
        [job] = jobs_of(composition.compose("score", *keys))
    finally:
        GlobalHydra.instance().hydra = theirs
    return job


def _as_typed(name: str, said: Any) -> str:
    """Hydra's text of a sentence or a list of them."""
    if isinstance(said, str):
        return words.quoted(said)
    if isinstance(said, Sequence) and all(isinstance(one, str) for one in said):
        return f"[{','.join(words.quoted(one) for one in said)}]"
    raise ConfigError(f"{name} is {said!r}: give a sentence, or a list of sentences.")


def jobs_of(composed: Composed) -> list[Config]:
    """What a training run would be told, for each prompt at each alpha.

    A sentence that the model would not read to its end is refused too.
    """
    cfg = composed.cfg
    if cfg.task.env == "gym":
        raise ConfigError(
            "task=gym has no sentences of its own: leave it out, and give prompt."
        )
    if cfg.reward.model != "clip":
        raise ConfigError(
            f"reward={cfg.reward.name} is no reward of single pictures: leave it out."
        )
    choose_device(cfg.compute.device, widen=False)
    prompts = _sentences(composed, "prompt")
    baselines = _sentences(composed, "baseline")
    alphas = [cfg.alpha] if cfg.alphas is None else list(cfg.alphas)
    settings.check_list("alpha", alphas)
    if not prompts:
        raise ConfigError(
            'No prompt is given: say what to look for, as prompt="a robot kneeling", '
            "or take a task's, as task=kneeling."
        )
    if len(baselines) > 1 and len(baselines) != len(prompts):
        raise ConfigError(
            f"There are {len(baselines)} baselines for {len(prompts)} prompts: give "
            "one for all, or one for each."
        )
    if not baselines and max(alphas) > 0:
        raise ConfigError(
            f"alpha is {max(alphas):g}, which needs a baseline: give it, as "
            'baseline="a robot", or set alpha=0.'
        )
    # One baseline may be for all prompts, and at alpha 0 none is read.
    pairs = zip(prompts, itertools.cycle(baselines or prompts), strict=False)
    clip: Any = OmegaConf.to_object(cfg.clip)
    if cfg.clips is not None:
        if len(cfg.clips) != 1:
            raise ConfigError(f"clip names {len(cfg.clips)} models: give one.")
        clip = settings.model_of(composed, cfg.clips[0])
    # A plain Config, whose `prompts` (those that are averaged) a ScoreConfig hides.
    run = OmegaConf.masked_copy(cfg, [one.name for one in fields(Config)])
    said = {"prompt": "a", "baseline": "b", "alpha": 0}  # another in each job
    any_job: Any = OmegaConf.merge(OmegaConf.structured(Config), run, said)
    common = replace(to_config(any_job), clip=clip)
    jobs = [
        replace(common, prompt=prompt, baseline=baseline, alpha=alpha)
        for prompt, baseline in pairs
        for alpha in alphas
    ]
    for job in jobs:
        check(job)
    from vlmrm_exp.vlm.tokenizer import check_prompts  # here, as --help is immediate

    check_prompts(clip, [s for job in jobs for s in (*job.prompts, *job.baselines)])
    return jobs


def _sentences(composed: Composed, key: str) -> list[Any]:
    """What prompt or prompts (baseline or baselines) holds; empty: nothing is given."""
    cfg, several = composed.cfg, f"{key}s"
    if cfg[several] is None:
        return [] if OmegaConf.is_missing(cfg, key) else [cfg[key]]
    if any(word.startswith(f"{key}=") for word in composed.keys):
        raise ConfigError(f"{key} and {several} are both given: leave one out.")
    if not cfg[several]:
        raise ConfigError(f"{several} is an empty list: give at least one sentence.")
    return list(cfg[several])


def rewards_of(
    encoder: "Encoder", jobs: Sequence[Config]
) -> Callable[[np.ndarray], np.ndarray]:
    """What rewards pictures as training does: (B, H, W, 3) uint8 -> (B, C) float32."""
    import torch

    from vlmrm_exp.reward.clip import Sentence

    sentences = [Sentence(encoder, job) for job in jobs]

    def rewards(frames: np.ndarray) -> np.ndarray:
        embeddings = encoder.embed_frames(frames)[:, None]  # one view: (B, 1, D)
        each = [sentence(embeddings) for sentence in sentences]
        return torch.stack(each, dim=1).cpu().numpy()

    return rewards
