"""What the studies of rewards share: which tasks, models and states are looked at.

Each task and each model is composed as a training run would compose it, so whatever a
run can be told, a study can be told by the same words.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from vlmrm_exp.app import Composed
from vlmrm_exp.checks import to_config
from vlmrm_exp.config import ClipConfig, Config, ConfigError, FolderTakenError
from vlmrm_exp.envs import check_world, world_of
from vlmrm_exp.files import write_json
from vlmrm_exp.reward import checked_class, reward_class
from vlmrm_exp.told import with_members
from vlmrm_exp.words import quoted

LOCAL = "local-dir:"
REPORT = "report.json"
"""In a folder that `pretrain` made."""
DESCRIPTION = "open_clip_config.json"
"""As in vlm.source, whose import takes seconds: without it a folder holds no model."""
PLURAL = {"task": "tasks", "clip": "clips", "alpha": "alphas"}
"""Keys that may hold several values in a study."""
HELD = tuple(
    "epic.json peak.json prompts.json landscape.json scores.csv bench.json items.json "
    "label.json config.yaml summary.json metrics.jsonl report.html".split()
)
"""What no other results may be added to: files of two would be taken for one study."""


@dataclass
class StudyConfig(Config):
    """A study; see conf/_study.yaml."""

    tasks: list[str] = field(default_factory=list)
    clips: list[str] | None = None
    alphas: list[float] = field(default_factory=list)
    cache: str = ""
    out: str = ""


@dataclass
class StatesConfig(StudyConfig):
    """A study of states, as epic, prompts and accept are; see conf/_states.yaml."""

    states: int = 2000
    runs: list[str] = field(default_factory=list)
    state_set: str | None = None
    frames: str | None = None
    labels: str | None = None
    resamples: int = 1000


ConfigStore.instance().store(name="states_schema", node=StatesConfig)


@dataclass(frozen=True)
class Study:
    """What a study looks at."""

    asked: Any
    """A `StudyConfig` of the verb, as typed."""
    tasks: list[Config]
    """Each as a training run would have it."""
    models: list[ClipConfig]
    folder: Path
    """Of the results."""

    @property
    def cache(self) -> Path:
        """The folder in which embeddings and states are kept."""
        return Path(self.asked.cache).expanduser()

    def jobs(self, task: Config, model: ClipConfig | None) -> list[Config]:
        """What a run of this task would be with a model, or its own, for each alpha."""
        clip = model or task.clip
        return [replace(task, clip=clip, alpha=alpha) for alpha in self.asked.alphas]

    def settings(self) -> dict[str, Any]:
        """The study's own settings, for the record."""
        of_runs = {*vars(Config()), "name"} - {"seed"}
        return {k: v for k, v in vars(self.asked).items() if k not in of_runs}

    def save(
        self, name: str, found: Any, report: str, plot: Callable[[Path], None]
    ) -> None:
        """Print what was found; write NAME.json and, by `plot`, NAME.png and .svg."""
        print(report)
        write_json(self.folder / f"{name}.json", found)
        plot(self.folder / name)
        print(f"\nsaved {self.folder}/{name}.json, {name}.png, {name}.svg")


def resolve(composed: Composed) -> Study:
    """Compose a study's tasks and models; a ConfigError if one cannot be studied."""
    asked = composed.cfg
    if not asked.cache:
        raise ConfigError("cache is empty: give a folder, or leave it out.")
    folder = check_out(composed)
    for alpha in asked.alphas:
        if not 0 <= alpha <= 1:
            raise ConfigError(f"alpha is {alpha}, but must lie between 0 and 1.")
    check_list("alpha", asked.alphas)
    check_list("task", asked.tasks)
    models = None
    if asked.clips is not None:
        check_list("clip", asked.clips)
        _check_of_all(composed, len(asked.clips))
        models = [model_of(composed, entry) for entry in asked.clips]
    most = max(asked.alphas)
    tasks = [_task(composed, name, most) for name in asked.tasks]
    # A settings file's sentence is none of the keys.
    if len(tasks) > 1 and all(task.prompts == tasks[0].prompts for task in tasks):
        raise ConfigError("prompt is of one task, but several are asked: give one.")
    reward = tasks[0].reward
    if models is not None and reward.model != "clip":
        # It loads what `clip` names by itself: one model, if any.
        if reward_class(tasks[0]).sees_pictures and len(models) > 1:
            raise ConfigError(
                f"clip names {len(models)} models, but reward={reward.name} is studied "
                "with one at a time: give one."
            )
        tasks = [replace(task, clip=models[0]) for task in tasks]
    if models is None:
        models = list({task.clip.name: task.clip for task in tasks}.values())
    names = [model.name for model in models]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"Two models would be called {name}: rename a folder, as results "
                "are told apart by its last part."
            )
    return Study(OmegaConf.to_object(asked), tasks, models, folder)


def check_out(composed: Composed) -> Path:
    """The folder for results; a ConfigError if it holds some or a run already."""
    if not composed.cfg.out:
        raise ConfigError("out is empty: give a folder, or leave it out.")
    folder = composed.folder or Path(composed.cfg.out)
    for name in HELD:
        if (folder / name).exists():
            raise FolderTakenError(
                f"{folder} holds {name} already: choose another out=..., or remove it."
            )
    return folder


def check_list(name: str, values: Sequence[Any]) -> None:
    """Refuse an empty list and repetitions, with a ConfigError."""
    if not values:
        raise ConfigError(f"{name} is an empty list: give at least one.")
    for value in values:
        if values.count(value) > 1:
            raise ConfigError(f"{name} names {value} twice: give each once.")


def _check_of_all(composed: Composed, models: int) -> None:
    """Refuse settings of one model where several are studied."""
    for key in composed.keys:
        name, _, value = key.lstrip("+").partition("=")
        weights = name == "clip.pretrained" and value not in ("random", "null")
        if models > 1 and (weights or name in ("clip.name", "clip.model")):
            raise ConfigError(
                f"{name} is of one model, but clip names {models}: give one, or leave "
                f"{name} out."
            )


def _task(composed: Composed, name: str, alpha: float) -> Config:
    """A task as a training run would have it."""
    if name == "gym":
        raise ConfigError(
            "task=gym has no states to render: for pictures of another environment use "
            "epic with any other task's name, frames, labels, prompt and baseline."
        )
    if name.startswith("_"):
        raise ConfigError(f"task={name} is no task, but what some share.")
    # With the greatest alpha, so that two sentences that are the same are refused.
    told = composed.again(f"task={quoted(name)}", f"alpha={alpha}")
    task = to_config(told.cfg)
    check_world(task)
    model = checked_class(task)
    if model.window != 1 or not model.needs_states:
        states = "several states in a row"
        looks_at = states if model.needs_states else "an environment's steps"
        raise ConfigError(
            f"reward={task.reward.name} looks at {looks_at}, but a study rewards "
            "single states: choose another reward."
        )
    if world_of(task.task).state_size is None:
        raise ConfigError(
            f"task={name} renders itself, but studies need a world that renders states."
        )
    return with_members(told, task)


def model_of(composed: Composed, entry: str) -> ClipConfig:
    """A model as a training run would have it.

    A local folder's is fed as `vitb32` is, or as `base`, where `pretrain` made it.
    """
    if entry.startswith("_"):
        raise ConfigError(f"clip={entry} is no model, but what some share.")
    if not entry.startswith(LOCAL):
        clip = composed.again(f"clip={quoted(entry)}").cfg.clip
        return OmegaConf.to_object(clip)  # pyright: ignore[reportReturnType]
    folder = Path(entry.removeprefix(LOCAL)).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"There is no folder {folder} for clip={entry}.")
    if not (folder / DESCRIPTION).is_file():
        raise ConfigError(
            f"clip={entry} has no {DESCRIPTION}: give a folder that open_clip or "
            "python -m vlmrm_exp.pretrain saved."
        )
    alike = "base" if (folder / REPORT).is_file() else "vitb32"
    clip: Any = OmegaConf.to_object(composed.again(f"clip={alike}").cfg.clip)
    own = {"name": folder.resolve().name, "model": f"{LOCAL}{folder}"}
    return replace(clip, **own, pretrained=None, download_gb=None)
