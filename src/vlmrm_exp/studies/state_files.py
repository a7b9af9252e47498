"""States and labels that come from files: pictures, stored sets, what people judged."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from vlmrm_exp.config import ConfigError, TaskConfig
from vlmrm_exp.envs import world_of
from vlmrm_exp.measures import check_classes
from vlmrm_exp.studies import cache
from vlmrm_exp.studies.pictures import IMAGE_SUFFIXES, files_in
from vlmrm_exp.studies.state_sets import PREDICATE, StateSet, Truth


def labels_of(path: Path, states: StateSet) -> Truth:
    """Labels that people gave, from a CSV file with a header.

    Columns: `label`, 0 or 1, and what it is of: `file`, a name in the folder of
    pictures, or `index`, a row of a stored set, counted from 0.

    Raises:
        ConfigError: not such a file, labels that do not match the states one to one,
            or all of one class.
    """
    column = "file" if states.files else "index"
    named = read_labels(path, column)
    if states.files:
        names = [file.name for file in states.files]
    else:
        names = [str(i) for i in range(len(states))]
    known = set(names)
    unknown = [name for name in named if name not in known]
    missing = [name for name in names if name not in named]
    if unknown:
        raise ConfigError(
            f"{path} has a label for {column} {unknown[0]}, which is not among the "
            f"{len(names)} states of {states.world} ({len(unknown)} such labels): give "
            "the labels of these states."
        )
    if missing:
        raise ConfigError(
            f"{path} has {len(named)} label{'s' * (len(named) != 1)} for "
            f"{len(names)} states of "
            f"{states.world}: {column} {missing[0]} has none; label every one."
        )
    goal = np.array([named[name] for name in names])
    check_classes(goal, str(path))
    return Truth(goal, str(path))


def read_labels(path: Path, column: str) -> dict[str, bool]:
    """Labels by what stands in a column of a CSV file.

    Raises:
        ConfigError: there is no such file, it lacks a column, or a label is not 0 or 1.
    """
    if not path.is_file():
        raise ConfigError(f"There is no file of labels {path}: give labels=FILE.csv.")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            columns = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = columns
            # With the number of the line that each ends on, as editors count.
            lines = [(reader.line_num, line) for line in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} is no CSV file: {error}.") from error
    if not {column, "label"} <= set(columns):
        raise ConfigError(
            f"{path} needs the columns {column} and label, but has "
            f"{', '.join(columns) or 'none'}."
        )
    named: dict[str, bool] = {}
    for number, line in lines:
        name, label = ((line[key] or "").strip() for key in (column, "label"))
        if label not in ("0", "1"):
            raise ConfigError(
                f"{path}, line {number}: the label is {label!r}, but must be 1 (goal) "
                "or 0."
            )
        if name in named:
            raise ConfigError(
                f"{path}, line {number}: {column} {name} is labelled a second time."
            )
        named[name] = label == "1"
    return named


def picture_states(folder: Path) -> StateSet:
    """The pictures in a folder, in natural order; hidden files are left out.

    Each counts as drawn on its own: where pictures follow each other in a film,
    intervals are too narrow.

    Raises:
        ConfigError: there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise ConfigError(f"There is no folder {folder}: give one, as frames=FOLDER.")
    files = tuple(files_in(folder, IMAGE_SUFFIXES))
    if not files:
        raise ConfigError(
            f"There are no pictures ({', '.join(IMAGE_SUFFIXES)}) in {folder}: give a "
            "folder, as frames=FOLDER."
        )
    return StateSet(
        str(folder),
        np.full(len(files), "pictures"),
        files=files,
        group=np.arange(len(files)),
    )


def save_states(path: Path, states: StateSet, truths: dict[str, Truth]) -> None:
    """Write states, sources, groups and, for each task, labels into an .npz file.

    Args:
        path: of the file.
        states: with states.
        truths: by task.
    """
    assert states.states is not None
    more: dict[str, Any] = {}
    for task, truth in truths.items():
        more[f"goal_{task}"] = truth.goal
        more[f"labelled_by_{task}"] = truth.labelled_by
    if states.group is not None:
        more["group"] = states.group
    cache.store(
        path, world=states.world, states=states.states, source=states.source, **more
    )


def stored_states(path: Path, task: TaskConfig) -> tuple[StateSet, Truth | None]:
    """Read what `save_states` wrote.

    Returns:
        The states, and the task's labels if people gave them; the predicate's are to be
        computed anew, as it may have changed.

    Raises:
        ConfigError: there is no such file, it is not one, or of another world.
    """
    if not path.is_file():
        raise ConfigError(
            f"There is no stored state set {path}: give one that an earlier study "
            "left, as state_set=outputs/epic/TIME/states-humanoid.npz."
        )
    held = cache.load(path)
    if held and "rows" in held:  # as it was called before version 0.2
        held["states"] = held["rows"]
    if held is None or not {"world", "states", "source"} <= set(held):
        raise ConfigError(f"{path} is not a stored state set, or is damaged.")
    world = str(held["world"])
    if world != task.env:
        raise ConfigError(
            f"{path} holds states of {world}, but task={task.name} is of {task.env}: "
            "give a task of that world, or another file."
        )
    states, group = held["states"], held.get("group")
    if states.dtype.kind != "f":
        raise ConfigError(f"{path} holds states that are no numbers: it is damaged.")
    size = world_of(task).state_size
    if states.ndim != 2 or states.shape[1] != size:
        raise ConfigError(
            f"{path} holds states of shape {states.shape}, but those of {world} have "
            f"{size} numbers each: it is damaged."
        )
    if {len(held["source"]), len(states if group is None else group)} != {len(states)}:
        raise ConfigError(
            f"{path} has {len(states)} states, but not as many sources and groups: it "
            "is damaged."
        )
    if not np.isfinite(states).all():
        raise ConfigError(f"{path} holds states that are not finite numbers.")
    found = StateSet(world, held["source"], states, group=group)
    goal, labelled_by = (
        held.get(f"{what}_{task.name}") for what in ("goal", "labelled_by")
    )
    if goal is None or labelled_by is None or labelled_by == PREDICATE:
        return found, None
    if goal.shape != (len(states),) or goal.dtype != bool:
        raise ConfigError(
            f"{path} has labels of shape {goal.shape} for {len(states)} states: it is "
            "damaged."
        )
    check_classes(goal, str(path))
    return found, Truth(goal, str(labelled_by))
