"""What the verbs that study rewards without training share.

The settings of `epic`, `peak`, `landscape` and `prompts`, how the tasks and models in
them are resolved, and which states are looked at.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import yaml

from vlmrm_exp import cli
from vlmrm_exp.config import ClipConfig, Config, ConfigError, check

if TYPE_CHECKING:
    from vlmrm_exp.study.embeddings import Embedder
    from vlmrm_exp.study.state_sets import StateSet, Truth

LOCAL = "local-dir:"
DESCRIPTION = "open_clip_config.json"
"""As in vlm.source, whose import takes seconds: without it a folder holds no model."""

MODELS_HELP = """\
  clip=base         models: names in conf/clip, or local-dir:/folder (drawn as for base)
  compute=auto      auto, cpu or gpu
  cache=outputs/cache   where embeddings are kept: a second look costs nothing
  out=null          folder of the results; null: outputs/VERB/TIME
"""
STATES_HELP = """\
  textures=null     plain or realistic; null: the task's own
  camera=null       fixed, side, track or several, as fixed+side; null: the task's own
  states=2000       how many: a grid for cartpole and mountaincar, a mixture of poses,
                    falls and random actions for the humanoid; embedded models were
                    trained on the same kinds of poses and falls, in other draws
  seed=0            of the humanoid's states
  runs=[]           folders of humanoid runs, [A,B]: half of the states are visited by
                    their best and last policies
  state_set=null    states-WORLD.npz of an earlier study, instead
  frames=null       a folder of pictures, instead; needs labels
  labels=null       CSV file by people: columns label (0 or 1) and file (of frames) or
                    index (in state_set); null: as stored by people, else the task's
                    predicate
  resamples=1000    of the bootstrap (its seed is seed=), 20 at least; 0: no intervals
"""


@dataclass
class ModelsConfig:
    """Which models, and where things are; see MODELS_HELP."""

    clip: list[str] = field(default_factory=lambda: ["base"])
    compute: str = "auto"
    cache: str = "outputs/cache"
    out: str | None = None


class Look(Protocol):
    """Settings of how worlds are drawn; None: as the task says."""

    textures: str | None
    camera: str | None


class Worded(Protocol):
    """Settings of tasks and their sentences; None: the task's own."""

    task: list[str]
    alpha: list[float]
    prompt: list[str] | None
    baseline: list[str] | None


@dataclass
class StatesConfig(ModelsConfig):
    """Which states besides; see STATES_HELP."""

    textures: str | None = None
    camera: str | None = None
    states: int = 2000
    seed: int = 0
    runs: list[str] = field(default_factory=list)
    state_set: str | None = None
    frames: str | None = None
    labels: str | None = None
    resamples: int = 1000


TEXT = ("cache", "out", "runs", "state_set", "frames", "labels")
"""Settings that are taken as they are typed."""


@dataclass(frozen=True)
class Examined:
    """A task with the states it is examined on."""

    config: Config
    states: "StateSet"
    truth: "Truth"

    def agreement(self, reward: np.ndarray, asked: StatesConfig) -> dict[str, float]:
        """All measures of a reward (B,), with intervals where the states are a sample.

        Raises:
            ConfigError: a reward is not finite or always the same.
        """
        from vlmrm_exp.study.metrics import agreement

        goal, graded, group = self.truth.goal, self.truth.graded, self.states.group
        resamples = 0 if group is None else asked.resamples
        return agreement(reward, goal, graded, resamples, asked.seed, group)

    def about(self) -> dict[str, Any]:
        """For the record."""
        sources, counts = np.unique(self.states.source, return_counts=True)
        goals = int(self.truth.goal.sum())
        group = self.states.group
        return {
            "prompt": self.config.prompts,
            "baseline": self.config.baselines,
            "textures": None if self.states.files else self.config.task.textures,
            "camera": None if self.states.files else self.config.task.camera,
            "world": self.states.world,
            "states": len(self.states),
            "independent_groups": None if group is None else len(np.unique(group)),
            "goal_states": goals,
            "goal_share": goals / len(self.states),
            "labelled_by": self.truth.labelled_by,
            "graded_by": self.truth.graded_by,
            "sources": dict(zip(sources.tolist(), counts.tolist(), strict=True)),
        }


def with_settings_files(arguments: Sequence[str]) -> list[str]:
    """Replace files of settings among arguments by what they hold.

    What is typed wins over what stands in a file, wherever it stands.

    Raises:
        ConfigError: no such file, or not settings.
    """
    files = [a for a in arguments if "=" not in a and a.endswith((".yaml", ".yml"))]
    settings: list[str] = []
    for file in files:
        try:
            held = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"The settings file {file} cannot be read: {reason}."
            ) from error
        if not isinstance(held, Mapping):
            raise ConfigError(f"{file} holds no settings: write them as key: value.")
        if {"defaults", "hydra"} & set(held):
            path = Path(file)
            raise ConfigError(
                f"{file} is a sweep of trainings, which this does not run: start it as "
                f"python -m vlmrm_exp --config-dir {path.parent} --config-name "
                f"{path.stem}."
            )
        settings += [f"{k}={_as_typed(v)}" for k, v in held.items() if v is not None]
    return [*settings, *(a for a in arguments if a not in files)]


def check_alphas(alphas: Sequence[float]) -> None:
    """Refuse an empty list, values outside 0..1, and repetitions.

    Raises:
        ConfigError: one of these.
    """
    for alpha in alphas:
        if not 0 <= alpha <= 1:
            raise ConfigError(f"alpha is {alpha}, but must lie between 0 and 1.")
    check_list("alpha", alphas)


def check_list(name: str, values: Sequence[Any]) -> None:
    """Refuse an empty list and repetitions.

    Raises:
        ConfigError: one of these.
    """
    if not values:
        raise ConfigError(f"{name} is an empty list: give at least one.")
    for value in values:
        if values.count(value) > 1:
            raise ConfigError(f"{name} names {value} twice: give each once.")


def check_one_task(asked: Worded) -> None:
    """Refuse one prompt for several tasks.

    Raises:
        ConfigError: that.
    """
    if asked.prompt is not None and len(asked.task) > 1:
        raise ConfigError(
            f"prompt is of one task, but {len(asked.task)} are asked: give one task."
        )


def resolve_models(asked: ModelsConfig) -> list[ClipConfig]:
    """The models asked for, each with a name of its own.

    Raises:
        ConfigError: there is no such model or folder, or two have the same name.
    """
    for name in ("cache", "out"):
        if getattr(asked, name) == "":
            raise ConfigError(f"{name} is empty: give a folder, or leave it out.")
    check_list("clip", asked.clip)
    cli.composed(f"compute={asked.compute}")
    models = []
    for entry in asked.clip:
        if entry.startswith("_"):
            raise ConfigError(f"clip={entry} is no model, but what some share.")
        if not entry.startswith(LOCAL):
            models.append(cli.composed(f"clip={entry}").clip)
            continue
        folder = Path(entry.removeprefix(LOCAL)).expanduser()
        if not folder.is_dir():
            raise ConfigError(f"There is no folder {folder} for clip={entry}.")
        if not (folder / DESCRIPTION).is_file():
            raise ConfigError(
                f"clip={entry} has no {DESCRIPTION}: give a folder that open_clip or "
                "python -m vlmrm_exp.pretrain saved."
            )
        clip = cli.composed("clip=base").clip
        model = f"{LOCAL}{folder}"
        models.append(replace(clip, name=folder.resolve().name, model=model))
    names = [clip.name for clip in models]
    for name, entry in zip(names, asked.clip, strict=True):
        if names.count(name) > 1:
            raise ConfigError(
                f"Two models would be called {name}, {entry} is one: rename a folder, "
                "as results are told apart by its last part."
            )
    return models


def worded(configs: Sequence[Config], asked: Worded) -> list[Config]:
    """Tasks with the prompt and baseline that are asked for in place of their own.

    Raises:
        ConfigError: a sentence is empty, or both are the same and alpha is not 0.
    """
    given = {"prompt": asked.prompt, "baseline": asked.baseline}
    given = {name: texts for name, texts in given.items() if texts is not None}
    configs = [replace(config, **given) for config in configs]
    for config in configs:
        check(replace(config, alpha=max(asked.alpha)))
    return configs


def resolve_tasks(tasks: Sequence[str], asked: Look) -> list[Config]:
    """The tasks asked for, with their look.

    Raises:
        ConfigError: there is no such task, or it has no such look.
    """
    check_list("task", tasks)
    if "gym" in tasks:
        raise ConfigError(
            "task=gym has no states to draw: for pictures of another environment use "
            "epic with any other task's name, frames, labels, prompt and baseline."
        )
    for key in ("textures", "camera"):
        if "," in (getattr(asked, key) or ""):
            joined = (
                "; views are joined with +, as fixed+side" if key == "camera" else ""
            )
            raise ConfigError(
                f"{key}={getattr(asked, key)} holds a comma, but the states have one "
                f"look: give one{joined}."
            )
    look = [
        f"task.{key}={value}"
        for key in ("textures", "camera")
        if (value := getattr(asked, key)) is not None
    ]
    try:
        return [cli.composed(f"task={task}", *look) for task in tasks]
    except ConfigError as error:  # here a look's keys are given without their group
        raise ConfigError(str(error).removeprefix("task.")) from None


def check_states(configs: Sequence[Config], asked: StatesConfig) -> None:
    """Refuse what `examine` could not do, as far as that is known without drawing.

    Raises:
        ConfigError: settings that exclude each other, or lack or hold the impossible.
    """
    from vlmrm_exp.study.state_sets import check_drawing

    for name in ("state_set", "frames", "labels"):
        if getattr(asked, name) == "":
            raise ConfigError(f"{name} is empty: give a path, or leave it out.")
    if asked.seed < 0:
        raise ConfigError(f"seed is {asked.seed}: give a whole number from 0 up.")
    if asked.resamples < 0 or 0 < asked.resamples < 20:
        raise ConfigError(
            f"resamples is {asked.resamples}: give 20 at least, or 0 for no intervals."
        )
    if asked.frames and asked.state_set:
        raise ConfigError("frames and state_set are both given: choose one of them.")
    for name in ("textures", "camera"):
        if asked.frames and getattr(asked, name):
            raise ConfigError(
                f"{name} says how states are drawn, but frames are pictures already: "
                "leave it out."
            )
    if asked.frames and not asked.labels:
        raise ConfigError(
            "frames needs labels: give a CSV file with the columns file and label, as "
            "labels=FILE.csv."
        )
    if asked.labels and not (asked.frames or asked.state_set):
        raise ConfigError(
            "labels needs the states that they are of: give frames=FOLDER or "
            "state_set=FILE.npz."
        )
    if asked.labels and len(configs) > 1:
        raise ConfigError(
            f"labels are of one task, but {len(configs)} are asked: give one task."
        )
    if asked.runs and (asked.frames or asked.state_set):
        raise ConfigError(
            "runs adds to drawn states, but frames or state_set gives others: leave "
            "one of them out."
        )
    if asked.frames or asked.state_set:
        for config in configs:
            _given_states(config, asked)
        return
    for config in configs:
        check_drawing(config.task, asked.states, _run_folders(asked))


def examine(configs: Sequence[Config], asked: StatesConfig) -> list[Examined]:
    """Draw or read states for each task, and label them.

    Args:
        configs: of the tasks.
        asked: has passed `check_states`.

    Raises:
        ConfigError: they cannot be had, do not fit the labels, or are of one class.
    """
    from vlmrm_exp.study.embeddings import drawn_by
    from vlmrm_exp.study.state_sets import draw_states, truth_of

    kept = Path(asked.cache).expanduser() / "states"
    if not asked.frames:
        for config in configs:
            drawn_by(config.task.env)  # nobody should wait to hear that it cannot draw
    examined = []
    for config in configs:
        truth = None
        if asked.frames or asked.state_set:
            states, truth = _given_states(config, asked)
        else:
            states = draw_states(
                config.task, asked.states, asked.seed, _run_folders(asked), kept
            )
        examined.append(Examined(config, states, truth or truth_of(config, states)))
    return examined


def _given_states(
    config: Config, asked: StatesConfig
) -> "tuple[StateSet, Truth | None]":
    """States of `frames` or `state_set`, and the labels if people gave some.

    Raises:
        ConfigError: they cannot be read, or do not match.
    """
    from vlmrm_exp.study.state_files import labels_of, picture_states, stored_states

    if asked.frames:
        states, truth = picture_states(Path(asked.frames).expanduser()), None
    else:
        assert asked.state_set is not None
        path = Path(asked.state_set).expanduser()
        states, truth = stored_states(path, config.task)
    if not asked.labels:
        return states, truth
    return states, labels_of(Path(asked.labels).expanduser(), states)


def embedders(
    models: Sequence[ClipConfig], asked: ModelsConfig, sentences: Sequence[str]
) -> "Iterator[Embedder]":
    """Load one model after another; what can be refused is refused before the first.

    Whoever takes them must forget one before asking for the next (`del`), or two are
    in memory at once.

    Args:
        models: which.
        asked: where they compute, and where embeddings are kept.
        sentences: all that will be asked of them.

    Raises:
        ConfigError: no such weights, no GPU, or a sentence that is too long.
    """
    kept = Path(asked.cache).expanduser() / "embeddings"
    kept.mkdir(parents=True, exist_ok=True)

    from vlmrm_exp.study.embeddings import Embedder
    from vlmrm_exp.vlm.encoder import check_prompts, fetch_weights
    from vlmrm_exp.vlm.scorer import choose_device

    device = choose_device(cli.composed(f"compute={asked.compute}").compute.device)
    for clip in models:
        check_prompts(clip, sentences)
    for clip in models:
        fetch_weights(clip)
    return (Embedder(clip, device, kept) for clip in models)


def tell_embedded(models: Sequence[ClipConfig]) -> None:
    """Say which models know nothing of pictures that people bring."""
    for clip in models:
        if clip.model == "embedded":
            print(
                f"clip={clip.name} is an embedded model: it knows the pictures of this "
                "project's worlds alone, and its rewards of others mean nothing."
            )


def parameters(facts: Mapping[str, Any]) -> int:
    """Of both towers of a model."""
    return facts["parameters_image"] + facts["parameters_text"]


def save_state_sets(folder: Path, examined: Sequence[Examined]) -> None:
    """Write the states of each world with the labels of its tasks: states-WORLD.npz."""
    from vlmrm_exp.study.state_files import save_states

    worlds: dict[str, list[Examined]] = {}
    for one in examined:
        if one.states.rows is not None:
            worlds.setdefault(one.states.world, []).append(one)
    for world, ones in worlds.items():
        truths = {one.config.task.name: one.truth for one in ones}
        save_states(folder / f"states-{world}.npz", ones[0].states, truths)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns in line: the first to the left, the others to the right."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  "
        + "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def short_count(number: int) -> str:
    """A number of parameters, for people: 950 k, 1.6 M, 2.54 G."""
    rounded = float(f"{number:.3g}")  # first, or 999,999 would be 1e+03 k
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if rounded >= size:
            return f"{rounded / size:.3g} {letter}"
    return str(number)


def _run_folders(asked: StatesConfig) -> list[Path]:
    return [Path(run).expanduser() for run in asked.runs]


def _as_typed(value: Any) -> str:
    # JSON is YAML, which the command line's lists are read as.
    return json.dumps(value) if isinstance(value, list) else str(value)
