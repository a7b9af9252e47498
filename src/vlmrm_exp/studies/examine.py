"""The states of a study with the truth about them, for each of its tasks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vlmrm_exp.checks import no_effect
from vlmrm_exp.composition import Composed
from vlmrm_exp.config import Config, ConfigError
from vlmrm_exp.envs import world_of
from vlmrm_exp.studies import state_files, state_sets
from vlmrm_exp.studies.settings import StatesConfig, Study, resolve
from vlmrm_exp.studies.state_sets import Examined, StateSet, Truth, truth_of
from vlmrm_exp.vlm import tell_embedded

UNREAD = {
    "state_set": "states",
    "frames": "states task.camera task.textures task.frame_height clip.frame_height "
    "clip.render_effects",
}
"""Settings of states that are sampled or rendered, which these are not."""


def check(composed: Composed) -> Study:
    """What is to be measured, or a ConfigError; nothing is rendered for that."""
    study = resolve(composed)
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
        raise ConfigError("labels are of one task, but several are asked: give one.")
    if asked.runs and (asked.frames or asked.state_set):
        raise ConfigError(
            "runs adds to a sample, not to frames or state_set: leave one of them out."
        )
    for key, _, value in (key.partition("=") for key in composed.keys):
        for given, unread in UNREAD.items():
            if getattr(asked, given) and key in unread.split():
                raise no_effect(key, value, given)
    for task in study.tasks:
        if asked.frames or asked.state_set:
            _states_of(study, task)
        else:
            runs = [Path(run).expanduser() for run in asked.runs]
            state_sets.check_sampling(task.task, asked.states, runs)
    return study


def examine(study: Study) -> list[Examined]:
    """The states of each task, sampled or read, and labelled.

    A ConfigError if they cannot be had, do not fit the labels, or are of one class.
    """
    asked: StatesConfig = study.asked
    if not asked.frames:
        for task in study.tasks:
            # Nobody should wait to hear that there is nothing to render with.
            world_of(task.task).renders_with()
    examined = []
    for task in study.tasks:
        states, truth = _states_of(study, task)
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
) -> dict[str, Any]:
    """How each model's rewards agree with the truth: what a study's JSON holds.

    Also writes the states of each world with the labels of its tasks: states-WORLD.npz.
    `variants` of a task are what a row tells of each, and its configuration.
    """
    from vlmrm_exp.studies import rewards  # here, as --help is immediate

    if study.asked.frames:
        tell_embedded(study.models)
    said = [variant for task in study.tasks for _, variant in variants(task)]
    # Refuses what it can before states are sampled.
    loading = rewards.rewarders(study, said)
    examined = examine(study)

    def rows_of(rewarder: rewards.Rewarder) -> list[dict[str, Any]]:
        rows = []
        for one in examined:
            jobs = [
                (told, job)
                for told, variant in variants(one.config)
                for job in study.jobs(variant, rewarder.model)
            ]
            found = rewarder.rewards(one.states, [job for _, job in jobs])
            for (told, job), reward in zip(jobs, found, strict=True):
                row = {
                    "task": job.task.name,
                    "clip": rewarder.name,
                    "parameters": rewarder.parameters,
                    "alpha": job.alpha,
                }
                rows.append(row | told | one.agreement(reward, study.asked.resamples))
        return rows

    measured = rewards.of_each_model(loading, rows_of)
    for world in {one.states.world for one in examined}:
        # Tasks with other episodes are examined on other states.
        same: dict[bytes, list[Examined]] = {}
        for one in examined:
            if one.states.world == world and one.states.states is not None:
                same.setdefault(one.states.states.tobytes(), []).append(one)
        for number, ones in enumerate(same.values()):
            name = f"-{ones[0].config.task.name}" if number else ""
            truths = {one.config.task.name: one.truth for one in ones}
            path = study.folder / f"states-{world}{name}.npz"
            state_files.save_states(path, ones[0].states, truths)
    tasks = {one.config.task.name: one.about() for one in examined}
    return {"settings": study.settings(), "tasks": tasks, **measured}


def _states_of(study: Study, task: Config) -> tuple[StateSet, Truth | None]:
    """A task's states, and the labels if people gave some."""
    asked: StatesConfig = study.asked
    truth = None
    if asked.frames:
        states = state_files.picture_states(Path(asked.frames).expanduser())
    elif asked.state_set:
        path = Path(asked.state_set).expanduser()
        states, truth = state_files.stored_states(path, task.task)
    else:
        kept, runs = study.cache / "states", [Path(r).expanduser() for r in asked.runs]
        states = state_sets.sample(task.task, asked.states, asked.seed, runs, kept)
    if asked.labels:
        truth = state_files.labels_of(Path(asked.labels).expanduser(), states)
    return states, truth
