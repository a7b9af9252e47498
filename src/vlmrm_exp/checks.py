"""Which settings are possible: every rule that needs nothing but their values.

A refusal is a ConfigError: one sentence with the value, what was expected, what to do.
Nothing heavy is imported, so that it comes at once. What a world or a reward model can
do is checked where it is known (`envs.check_world`, `told`).
"""

import difflib
import importlib.util
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vlmrm_exp.config import (
    VIDEO_MODEL,
    AlgoConfig,
    ClipConfig,
    ComputeConfig,
    Config,
    ConfigError,
    TaskConfig,
    as_list,
)

MAX_TAG = 64  # characters, W&B's own limit
UNREAD = {
    "sac": ("exploration_start", "exploration_end", "exploration_steps"),
    "dqn": (
        "random_action_repeat",
        "layer_norm",
        "temperature",
        "learn_temperature",
        "target_entropy",
    ),
}
"""Settings in `AlgoConfig` that an algorithm does not read."""


def to_config(cfg: DictConfig) -> Config:
    """Turn a composed Hydra config into a checked `Config`."""
    missing = OmegaConf.missing_keys(cfg)
    if missing:
        examples = {
            "prompt": 'prompt="a pendulum standing upright"',
            "baseline": 'baseline="a pendulum"',
        }
        keys, others = sorted(missing, key=lambda key: (key != "prompt", key)), ""
        if len(keys) > 5:
            keys, others = keys[:4], f" and {len(keys) - 4} others"
        gives = " ".join(examples.get(key, f"{key}=VALUE") for key in keys)
        raise ConfigError(
            f"There is no value for {', '.join(keys)}{others}: give {gives}."
        )
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, Config)
    _check_keys(cfg, config)
    check(config)
    return config


def _check_keys(cfg: DictConfig, settings: Any, group: str = "") -> None:
    """Refuse settings that +key=value added: nothing would read them."""
    known = {field.name: getattr(settings, field.name) for field in fields(settings)}
    for key in map(str, cfg):
        if key not in known:
            raise ConfigError(
                f"There is no setting {group}{key}: leave it out."
                f"{did_you_mean(key, known)}"
            )
        if is_dataclass(known[key]):
            _check_keys(cfg[key], known[key], f"{key}.")


def check(config: Config) -> None:
    """Refuse impossible values and combinations."""
    _check_prompts("prompt", config.prompt)
    _check_prompts("baseline", config.baseline)
    folder_name("name", config.name, "outputs/<task>/")
    for group in ("", "task", "algo", "reward", "evaluation", "log"):
        check_values(group, getattr(config, group) if group else config)
    check_compute(config.compute)
    if config.alpha > 0 and config.prompts == config.baselines:
        raise ConfigError(
            f"prompt and baseline are both {config.prompts[0]!r}: with alpha above 0 "
            "they must differ."
        )
    number_from_0("reward.pessimism", config.reward.pessimism)
    _check_task(config.task)
    _check_stages(config)
    check_clip(config.clip)
    if config.reward.model == "xclip":
        _check_video_model(config.clip)
    if config.log.mode == "tensorboard":
        check_extra("log=tensorboard", "tensorboard", "tensorboard", "log=offline")
    for tag in config.log.tags:
        if not 1 <= len(tag) <= MAX_TAG:
            raise ConfigError(
                f"log.tags holds {tag!r} of {len(tag)} characters, but W&B takes tags "
                f"of 1 to {MAX_TAG}: shorten it."
            )
    _check_algo(config.algo, config.task, config.env_steps)
    evaluation = config.evaluation
    most = min(evaluation.reward_episodes, evaluation.final_episodes)
    if evaluation.video_episodes > most:
        raise ConfigError(
            f"evaluation.video_episodes is {evaluation.video_episodes}, but only "
            f"{most} are rendered (evaluation.reward_episodes): give that at most."
        )


OPTIONS = {
    "task.version": ("v4", "v5"),
    "task.observation": ("full", "joints"),
    "clip.precision": ("auto", "fp32", "bf16", "fp16", "int8"),
    "clip.preprocess": ("pad", "squash", "crop"),
    "algo.name": ("sac", "dqn"),
    "compute.device": ("auto", "cpu", "gpu"),
    "compute.pool": ("processes", "ray"),
    "log.mode": ("offline", "online", "tensorboard", "none"),
}
AT_LEAST = {
    key: low
    for low, keys in {
        0: "seed compute.checkpoint_s algo.learning_starts algo.random_steps "
        "algo.exploration_steps compute.workers evaluation.video_episodes",
        1: "env_steps task.frame_skip task.episode_length task.hold clip.batch_size "
        "reward.every "
        "algo.num_envs algo.gradient_steps algo.batch_size algo.buffer_size "
        "algo.random_action_repeat compute.torch_threads compute.physics_threads "
        "evaluation.every evaluation.episodes evaluation.final_episodes "
        "evaluation.reward_episodes",
        16: "task.frame_height clip.frame_height",
    }.items()
    for key in keys.split()
}
SHARES = (
    "alpha",
    "reward.query_share",
    "reward.max_error",
    "algo.gamma",
    "algo.tau",
    "algo.exploration_start",
    "algo.exploration_end",
)
"""Numbers between 0 and 1."""
ABOVE_0 = ("algo.learning_rate", "algo.temperature", "reward.query_share")


def _check_stages(config: Config) -> None:
    if config.reward.model == "stages" and not config.stages:
        raise ConfigError(
            f"reward={config.reward.name} needs sentences in order: choose a task that "
            "has some, as task=kneel_then_stand, or give stages=[{prompt: ..., "
            "quantile: 0.99}, ...]."
        )
    said = [stage.prompts for stage in config.stages]
    for k, stage in enumerate(config.stages):
        name = f"stages[{k}]"
        _check_prompts(f"{name}.prompt", stage.prompt)
        at_least(f"{name}.hold", stage.hold, 1)
        if config.reward.model == "stages":
            _fits_into_episode(f"{name}.hold", stage.hold, config.task)
        if (stage.quantile is None) == (stage.margin is None):
            raise ConfigError(
                f"{name} must have either a quantile or a margin, which says when it "
                "is reached: give one of both."
            )
        if stage.quantile is not None and not 0 < stage.quantile <= 1:
            raise ConfigError(
                f"{name}.quantile is {stage.quantile}, but must lie above 0, and at 1 "
                "at most."
            )
        if stage.margin is not None and not math.isfinite(stage.margin):
            raise ConfigError(f"{name}.margin is {stage.margin}: give a number.")
        if stage.margin is not None and all(other == said[k] for other in said):
            raise ConfigError(
                f"{name} has a margin, but no other stage says anything else: give it "
                "a quantile."
            )


def check_values(group: str, settings: object) -> None:
    """Refuse values that one setting alone cannot have; null is left alone."""
    for name, value in vars(settings).items():
        key = f"{group}.{name}" if group else name
        if value is None:
            continue
        if key in OPTIONS:
            one_of(key, value, OPTIONS[key])
        if key in AT_LEAST:
            at_least(key, value, AT_LEAST[key])
        if key in SHARES and not 0 <= value <= 1:
            raise ConfigError(f"{key} is {value}, but must lie between 0 and 1.")
        if key in ABOVE_0 and not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{key} is {value}: give a number above 0.")


def folder_name(key: str, value: str, above: str) -> None:
    """Refuse a value that is no name of a folder in `above`."""
    if "/" in value or value in ("", ".", ".."):
        raise ConfigError(
            f"{key} is {value!r}, but it becomes a folder in {above}: give a word "
            "without slashes."
        )


def _check_task(task: TaskConfig) -> None:
    """What needs no world; the rest is in `envs.check_world`."""
    folder = Path(task.name)  # a Gymnasium id may have a slash
    if not folder.name or folder.is_absolute() or ".." in folder.parts:
        raise ConfigError(
            f"task.name is {task.name!r}, but it becomes a folder in outputs/: give a "
            "word."
        )
    if len(set(task.views)) < len(task.views):
        raise ConfigError(
            f"task.camera is {task.camera!r}, which has one view twice: give each once."
        )
    if task.before:
        _fits_into_episode("task.hold", task.hold, task)
    if task.env == "gym" and not task.env_id:
        raise ConfigError(
            "task=gym needs the Gymnasium id of an environment: "
            "give it, as task.env_id=Pendulum-v1."
        )
    if task.episode_length is None and task.env != "gym":
        raise ConfigError(
            "task.episode_length is null, but only task=gym has a limit of its own: "
            "give a number of env steps."
        )


def _fits_into_episode(name: str, hold: int, task: TaskConfig) -> None:
    if task.episode_length is not None and hold > task.episode_length:
        raise ConfigError(
            f"{name} is {hold} env steps, but an episode has {task.episode_length}: "
            "it could never be held so long."
        )


def check_compute(compute: ComputeConfig) -> None:
    """Refuse impossible values of `compute`, and a pool whose package is missing."""
    check_values("compute", compute)
    if compute.pool == "ray":
        check_extra("compute.pool=ray", "ray", "ray", "compute.pool=processes")


def check_extra(asked: str, package: str, extra: str, instead: str) -> None:
    """Refuse what is `asked` for where a package of an extra is not installed.

    `package` is as it is imported; `instead` is what can be used without it.
    """
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"{asked} needs the package {package.replace('_', '-')}, which is not "
            f"installed: run pip install 'vlmrm_exp[{extra}]' (in a checkout: make "
            f"setup EXTRAS=dev,{extra}), or use {instead}."
        )


def check_clip(clip: ClipConfig) -> None:
    """Refuse impossible values of `clip`."""
    check_values("clip", clip)
    for part in ("mean", "std"):
        if (values := getattr(clip, part)) is not None:
            check_colour(f"clip.{part}", values)


def _check_video_model(clip: ClipConfig) -> None:
    if not clip.model.startswith(VIDEO_MODEL):
        raise ConfigError(
            f"reward=xclip needs a video model, and clip={clip.name} ({clip.model}) is "
            f"one of pictures: give clip=xclip_b32, or clip.model={VIDEO_MODEL} with a "
            "repository or a folder of X-CLIP."
        )
    if clip.precision == "int8":
        raise ConfigError("clip.precision=int8 is not for reward=xclip: use fp32.")
    for name in ("pretrained", "quick_gelu", "mean", "std"):
        if (value := getattr(clip, name)) is not None:
            raise no_effect(f"clip.{name}", value, "reward=xclip")
    check_extra("reward=xclip", "transformers", "hf", "reward=video")


def check_colour(name: str, values: Any) -> None:
    """Refuse R, G and B that no mean or std (as `name` ends) of 0..1 can be."""
    rgb, above = as_list(values), ", above 0" if name.endswith("std") else ""
    fit = all(isinstance(v, (int, float)) and 0 <= v <= 1 for v in rgb)
    if len(rgb) != 3 or not fit or (above and min(rgb) == 0):
        raise ConfigError(
            f"{name} is {values}, but must be three numbers, of R, G and B in 0..1"
            f"{above}: give what the weights were trained with."
        )


def _check_algo(algo: AlgoConfig, task: TaskConfig, env_steps: int) -> None:
    if not algo.hidden or min(algo.hidden) < 1:
        raise ConfigError(
            f"algo.hidden is {list(algo.hidden)}: give the width of at least one "
            "hidden layer, as [256,256]."
        )
    if task.episode_length is not None:
        check_buffer(algo, algo.num_envs * task.episode_length, env_steps)


def check_buffer(algo: AlgoConfig, rollout: int, env_steps: int) -> None:
    """Refuse a replay buffer that nothing is learned from; a rollout's transitions."""
    kept = algo.buffer_size // rollout * rollout  # replay holds whole rollouts
    if kept and algo.learning_starts >= min(kept, env_steps):
        raise ConfigError(
            f"algo.learning_starts is {algo.learning_starts}, but the run has only "
            f"{env_steps} env steps and a buffer of {kept} (whole rollouts): it would "
            "never learn: lower it."
        )
    if algo.buffer_size < rollout:
        raise ConfigError(
            f"algo.buffer_size is {algo.buffer_size}, less than one rollout "
            f"({algo.num_envs} episodes of {rollout // algo.num_envs} steps = "
            f"{rollout} transitions): give a larger buffer or fewer environments."
        )


def check_effect(algo: AlgoConfig) -> None:
    """Refuse settings that the algorithm does not read: they would change nothing."""
    for name in UNREAD.get(algo.name, ()):
        if getattr(algo, name) != getattr(AlgoConfig(), name):
            raise no_effect(f"algo.{name}", getattr(algo, name), f"algo={algo.name}")


def no_effect(key: str, value: Any, reader: str) -> ConfigError:
    """That a setting is given which `reader` does not read."""
    return ConfigError(
        f"{key} is {value}, but has no effect with {reader}: leave it out."
    )


def _check_prompts(name: str, value: Any) -> None:
    prompts = as_list(value)
    if not prompts:
        raise ConfigError(f"{name} is an empty list: give at least one sentence.")
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise ConfigError(
                f"{name} holds {prompt!r}, which is not text: give a sentence or a "
                'list of sentences, in quotes where one contains a comma or an "=".'
            )
        if not prompt.strip():
            raise ConfigError(f"{name} is empty: say in words what to look for.")


def one_of(name: str, value: Any, options: Sequence[str], where: str = "") -> None:
    """Refuse a setting that is none of its options."""
    if value not in options:
        raise ConfigError(
            f"{name} is {value!r}, but must be one of {', '.join(options)}{where}."
            f"{did_you_mean(str(value), options)}"
        )


def reward_options(
    known: Mapping[str, tuple[Any, Callable[[str, Any], None]]],
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """All that `reward.options` asks a reward model for, of which some are `given`.

    `known` has each option's default, and what refuses impossible values.
    """
    for key in given:
        if key not in known:
            raise ConfigError(
                f"There is no option reward.options.{key}, only {', '.join(known)}."
                f"{did_you_mean(key, known) or ' Leave it out.'}"
            )
    asked = {key: given.get(key, default) for key, (default, _) in known.items()}
    for key, (_, refuse) in known.items():
        refuse(f"reward.options.{key}", asked[key])
    return asked


def whole_number(name: str, value: Any) -> None:
    """Refuse an option that is no whole number from 1 up."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} is {value}: give a whole number from 1 up.")


def number_from_0(name: str, value: Any) -> None:
    """Refuse a setting that is no finite number from 0 up."""
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    if not fits or not 0 <= value < math.inf:
        raise ConfigError(f"{name} is {value}: give a number from 0 up.")


def did_you_mean(wanted: str, options: Iterable[str]) -> str:
    """A hint at the nearest option, with a space before it, or nothing."""
    close = difflib.get_close_matches(wanted, list(options), n=1, cutoff=0.7)
    return f" Did you mean {close[0]}?" if close else ""


def at_least(name: str, value: int, low: int) -> None:
    """Refuse a setting that is too low."""
    if value < low:
        raise ConfigError(f"{name} is {value}: give a whole number from {low} up.")
