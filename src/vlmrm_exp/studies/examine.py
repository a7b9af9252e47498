"""The states of a study with the truth about them, for each of its tasks."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlmrm_exp import app
from vlmrm_exp.checks import no_effect
from vlmrm_exp.config import Config, ConfigError
from vlmrm_exp.envs import world_of
from vlmrm_exp.studies import state_sets
from vlmrm_exp.studies.settings import StatesConfig, Study
from vlmrm_exp.studies.state_files import (
    labels_of,
    picture_states,
    save_states,
    stored_states,
)
from vlmrm_exp.studies.state_sets import Examined, StateSet, Truth, truth_of

LOOK = "task.camera task.textures task.frame_height clip.frame_height"
UNREAD = {
    "state_set": ("states",),
    "frames": ("states", *LOOK.split(), "clip.render_effects"),
}
"""Settings of states that are sampled or rendered, which these are not."""


def check_states(study: Study, keys: Sequence[str]) -> None:
    """Refuse what `examine` could not do, as far as that is known without rendering.

    Args:
        study: is resolved.
        keys: key=value, as typed.

    Raises:
        ConfigError: settings that exclude each other, or lack or hold the impossible.
    """
    asked: StatesConfig = study.asked
    for name in ("state_set", "frames", "labels"):
        if getattr(asked, name) == "":
            raise ConfigError(f"{name} is empty: give a path, or leave it out.")
    if asked.resamples < 0 or 0 < asked.resamples < 20:
        raise ConfigError(
            f"resamples is {asked.resamples}: give 20 at least, or 0 for no intervals."
        )
    if asked.frames and asked.state_set:
        raise ConfigError("frames and state_set are both given: choose one of them.")
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
    if asked.labels and len(study.tasks) > 1:
        raise ConfigError(
            f"labels are of one task, but {len(study.tasks)} are asked: give one task."
        )
    if asked.runs and (asked.frames or asked.state_set):
        raise ConfigError(
            "runs adds to sampled states, but frames or state_set gives others: leave "
            "one of them out."
        )
    for key, _, value in (key.partition("=") for key in keys):
        for given, unread in UNREAD.items():
            if getattr(asked, given) and key in unread:
                raise no_effect(key, value, given)
    for task in study.tasks:
        if asked.frames or asked.state_set:
            _given(task, asked)
        else:
            state_sets.check_sampling(task.task, asked.states, _runs(asked))


def examine(study: Study) -> list[Examined]:
    """Sample or read states for each task, and label them.

    Args:
        study: has passed `check_states`.

    Raises:
        ConfigError: they cannot be had, do not fit the labels, or are of one class.
    """
    asked: StatesConfig = study.asked
    if not asked.frames:
        for task in study.tasks:
            # Nobody should wait to hear that there is nothing to render with.
            world_of(task.task).renders_with()
    examined = []
    for task in study.tasks:
        truth = None
        if asked.frames or asked.state_set:
            states, truth = _given(task, asked)
        else:
            kept = study.cache / "states"
            states = state_sets.sample(
                task.task, asked.states, asked.seed, _runs(asked), kept
            )
        alone = states.group is not None and len(np.unique(states.group)) == 1
        if alone and asked.resamples:
            raise ConfigError(
                f"All {len(states)} states are of one episode, which gives no "
                "interval: set resamples=0."
            )
        examined.append(Examined(task, states, truth or truth_of(task, states)))
    return examined


def measure(
    study: Study, variants: Callable[[Config], list[tuple[dict[str, Any], Config]]]
) -> tuple[dict[str, Any], list[Examined]]:
    """How each model's rewards agree with the truth, for each task and alpha.

    Args:
        study: has passed `check_states`.
        variants: of a task: what a row tells of each, and its configuration.

    Returns:
        What a study's JSON holds, and the states it is of.
    """
    # Here, so that --help and refusals are immediate.
    from vlmrm_exp.studies.rewards import Rewarder, of_each_model, rewarders

    if study.asked.frames:
        app.tell_embedded(study.models)
    said = [variant for task in study.tasks for _, variant in variants(task)]
    loading = rewarders(study, said)  # refuses what it can before states are sampled
    examined = examine(study)

    def rows_of(rewarder: Rewarder) -> list[dict[str, Any]]:
        rows = []
        for one in examined:
            jobs = [
                (told, job)
                for told, variant in variants(one.config)
                for job in study.jobs(variant, rewarder.model or variant.clip)
            ]
            rewards = rewarder.rewards(one.states, [job for _, job in jobs])
            for (told, job), reward in zip(jobs, rewards, strict=True):
                row = {
                    "task": job.task.name,
                    "clip": rewarder.name,
                    "parameters": rewarder.parameters,
                    "alpha": job.alpha,
                }
                rows.append(row | told | one.agreement(reward, study.asked.resamples))
        return rows

    tasks = {one.config.task.name: one.about() for one in examined}
    found = of_each_model(loading, rows_of)
    return {"settings": study.settings(), "tasks": tasks, **found}, examined


def save_state_sets(folder: Path, examined: Iterable[Examined]) -> None:
    """Write the states of each world with the labels of its tasks: states-WORLD.npz."""
    worlds: dict[str, list[Examined]] = {}
    for one in examined:
        if one.states.states is not None:
            worlds.setdefault(one.states.world, []).append(one)
    for world, ones in worlds.items():
        truths = {one.config.task.name: one.truth for one in ones}
        save_states(folder / f"states-{world}.npz", ones[0].states, truths)


def _given(task: Config, asked: StatesConfig) -> tuple[StateSet, Truth | None]:
    """States of `frames` or `state_set`, and the labels if people gave some.

    Raises:
        ConfigError: they cannot be read, or do not match.
    """
    if asked.frames:
        states, truth = picture_states(Path(asked.frames).expanduser()), None
    else:
        assert asked.state_set is not None
        path = Path(asked.state_set).expanduser()
        states, truth = stored_states(path, task.task)
    if not asked.labels:
        return states, truth
    return states, labels_of(Path(asked.labels).expanduser(), states)


def _runs(asked: StatesConfig) -> list[Path]:
    return [Path(run).expanduser() for run in asked.runs]
