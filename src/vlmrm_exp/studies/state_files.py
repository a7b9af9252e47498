"""States and labels that come from files: pictures, stored sets, what people judged."""

import csv
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np

from vlmrm_exp.config import ConfigError, TaskConfig
from vlmrm_exp.envs import world_of
from vlmrm_exp.measures import check_classes
from vlmrm_exp.studies import cache
from vlmrm_exp.studies.pictures import IMAGE_SUFFIXES, files_in
from vlmrm_exp.studies.state_sets import PREDICATE, StateSet, Truth

LABELS = {"0": False, "1": True, "0.0": False, "1.0": True}
"""Also as spreadsheets and pandas write them."""


def labels_of(path: Path, states: StateSet) -> Truth:
    """Labels that people gave, from a CSV file with a header.

    Columns: `label`, 0 or 1, and what it is of: `file`, a name in the folder of
    pictures, or `index`, a row of a stored set, counted from 0. A ConfigError if they
    do not match the states one to one, or are all of one class.
    """
    column = "file" if states.files else "index"
    named = read_labels(path, column)
    if states.files:
        # As people see them: one letter can have two spellings in Unicode.
        names = [unicodedata.normalize("NFC", file.name) for file in states.files]
    else:
        names = [str(i) for i in range(len(states))]
    known = set(names)
    unknown = [name for name in named if name not in known]
    missing = [name for name in names if name not in named]
    if unknown:
        bare = ", by names without folders" if states.files else ""
        raise ConfigError(
            f"{path} has a label for {column} {unknown[0]}, which is not among the "
            f"{len(names)} states of {states.world}: give labels of these{bare}."
        )
    if missing:
        raise ConfigError(
            f"{path} has {len(named)} label{'s' * (len(named) != 1)} for {len(names)} "
            f"states of {states.world}: {column} {missing[0]} has none; label all."
        )
    goal = np.array([named[name] for name in names])
    check_classes(goal, str(path))
    return Truth(goal, str(path))


def read_labels(path: Path, column: str) -> dict[str, bool]:
    """Labels by the name in a column of a CSV file; a ConfigError if it has faults."""
    if not path.is_file():
        raise ConfigError(f"There is no file of labels {path}: give labels=FILE.csv.")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, skipinitialspace=True)
            # With the number of the line that each ends on, as editors count.
            lines = [(reader.line_num, [x.strip() for x in line]) for line in reader]
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not in UTF-8: save it as CSV UTF-8.") from error
    except csv.Error as error:
        raise ConfigError(f"{path} is no CSV file: {error}.") from error
    lines = [(number, cells) for number, cells in lines if any(cells)]
    columns = lines[0][1] if lines else []
    if not {column, "label"} <= set(columns):
        commas = ", between commas" if len(columns) == 1 else ""
        raise ConfigError(
            f"{path} needs the columns {column} and label{commas}, but has "
            f"{', '.join(columns) or 'none'}."
        )
    for name in (column, "label"):
        if columns.count(name) > 1:
            raise ConfigError(f"{path} has two columns {name}: leave one.")
    named: dict[str, bool] = {}
    for number, cells in lines[1:]:
        line = dict(zip(columns, cells, strict=False))
        name = unicodedata.normalize("NFC", line.get(column, ""))
        label, fault = line.get("label", ""), ""
        if any(cells[len(columns) :]):
            fault = "there are more cells than columns: put what has a comma in quotes"
        elif label not in LABELS:
            fault = f"the label is {label!r}, but must be 1 (goal) or 0"
        elif name in named:
            fault = f"{column} {name} is labelled a second time"
        if fault:
            raise ConfigError(f"{path}, line {number}: {fault}.")
        named[name] = LABELS[label]
    return named


def picture_states(folder: Path) -> StateSet:
    """The pictures in a folder, in natural order; a ConfigError if it has none.

    Each counts as drawn on its own: where pictures follow each other in a film,
    intervals are too narrow.
    """
    if not folder.is_dir():
        raise ConfigError(f"There is no folder {folder}: give one, as frames=FOLDER.")
    files = tuple(files_in(folder, IMAGE_SUFFIXES))
    if not files:
        raise ConfigError(
            f"{folder} holds no pictures ({', '.join(IMAGE_SUFFIXES)}): give another."
        )
    source, group = np.full(len(files), "pictures"), np.arange(len(files))
    return StateSet(str(folder), source, files=files, group=group)


def save_states(path: Path, states: StateSet, truths: dict[str, Truth]) -> None:
    """Write states, sources, groups and the labels by task into an .npz file."""
    labels: dict[str, Any] = {}
    for task, truth in truths.items():
        labels[f"goal_{task}"] = truth.goal
        labels[f"labelled_by_{task}"] = truth.labelled_by
    cache.store(path, world=states.world, **states.arrays(), **labels)


def stored_states(path: Path, task: TaskConfig) -> tuple[StateSet, Truth | None]:
    """Read what `save_states` wrote; a ConfigError if it does not fit the task.

    With the task's labels if people gave them: the predicate's are to be computed anew,
    as it may have changed.
    """
    if not path.is_file():
        raise ConfigError(
            f"There is no stored state set {path}: give states-WORLD.npz of a study."
        )
    path.open("rb").close()  # or it would be told to be damaged
    held = cache.load(path)
    if "rows" in held:  # as it was called before version 0.2
        held["states"] = held["rows"]
    if not {"world", "states", "source"} <= set(held):
        raise ConfigError(
            f"{path} is not a stored state set, or is damaged: give another file."
        )
    world = "".join(np.ravel(held["world"]).astype(str))
    states, size = held["states"], world_of(task).state_size
    goal, labelled_by = f"goal_{task.name}", f"labelled_by_{task.name}"
    unfit = [
        f"{name} of shape {held[name].shape}"
        for name in ("source", "group", goal)
        if name in held and held[name].shape != states.shape[:1]
    ]
    fault = ""
    if world != task.env:
        fault = f"holds states of {world}, but task={task.name} is of {task.env}"
    elif states.dtype.kind not in "fiu":
        fault = f"holds states of type {states.dtype}, which are no real numbers"
    elif states.ndim != 2 or states.shape[1] != size:
        fault = f"holds states {states.shape}, but they have {size} numbers each"
    elif not len(states):
        fault = "holds no states"
    elif unfit:
        fault = f"has {unfit[0]} for {len(states)} states, not one for each"
    elif not np.isfinite(states).all():
        fault = "holds states that are not finite numbers"
    elif (goal in held) != (labelled_by in held):
        one, other = (goal, labelled_by) if goal in held else (labelled_by, goal)
        fault = f"has {one} without {other}, which together say who gave the labels"
    if fault:
        raise ConfigError(f"{path} {fault}: mend it, or give another file.")
    states = states.astype(float)
    found = StateSet(world, held["source"], states, group=held.get("group"))
    if goal not in held or held[labelled_by].tolist() == PREDICATE:
        return found, None
    labels, by = held[goal], "".join(np.ravel(held[labelled_by]).astype(str)[:1])
    if labels.dtype.kind not in "bfiu" or not np.isin(labels, (0, 1)).all():
        raise ConfigError(
            f"{path} has {goal} that is not 0 or 1 for every state: mend it."
        )
    check_classes(labels.astype(bool), str(path))
    return found, Truth(labels.astype(bool), by)
