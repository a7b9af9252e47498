"""A run's folder: whether a run can begin or go on in it, and how it was configured."""

import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from vlmrm_exp.checks import to_config
from vlmrm_exp.config import Config, ConfigError, FinishedError, FolderTakenError
from vlmrm_exp.files import lock
from vlmrm_exp.refusals import UNREADABLE, one_sentence
from vlmrm_exp.settings import defaults, flat

RUN_FORMAT = 1
"""Of a run's folder. Older ones have none, and no state to go on from."""
SHOWN = 5  # differences
MAY_CHANGE = ("name", "log.", "compute.", "clip.batch_size", "env_steps")
"""Settings that a run may go on with in another way; the last, if it is unfinished."""


def check_folder(folder: Path, settings: str) -> None:
    """Refuse a folder that holds another run; an unfinished one is gone on with.

    `settings` are those of the run that is to begin, as YAML.

    Raises:
        FolderTakenError: it is another run's, another process writes it, or it is of
            a version that left nothing to go on from.
        FinishedError: nothing is left to do.
    """
    metrics, states = folder / "metrics.jsonl", folder / "checkpoints"
    if metrics.exists():
        with metrics.open("rb") as file:
            lock(file)
    empty = not metrics.exists() or metrics.stat().st_size == 0
    if empty and not any(states.glob("state*.pt")):
        ours = (folder / ".hydra").exists() or not (folder / "config.yaml").exists()
        # Of a run that ended before its first line, as on a full disk: nothing is lost.
        begun = "run_format" in mapping(folder / "versions.json")
        others = not begun and (states.exists() or not ours)
        if others or (folder / "summary.json").exists():
            raise FolderTakenError(
                f"{folder} holds files that a run would overwrite, as config.yaml or "
                "summary.json: give another folder, or remove them."
            )
        return
    another = "give another name=... (or hydra.run.dir), or remove it"
    held = {
        name: mapping(folder / name)
        for name in ("config.yaml", "summary.json", "versions.json")
    }
    summary = held["summary.json"]
    finished = bool(summary) and not summary.get("interrupted")
    # A version may have settings that an older one had not.
    before = defaults() | flat(held["config.yaml"])
    now = flat(yaml.safe_load(settings))
    changed = [
        f"{key}={now.get(key)} (was {before.get(key)})"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
        and not re.sub(r"^member\.[\w-]+\.", "", key).startswith(
            MAY_CHANGE[:-1] if finished else MAY_CHANGE
        )
    ]
    if changed:
        raise FolderTakenError(
            f"{folder} holds a run of other settings, "
            f"{', '.join(changed[:SHOWN])}{' ...' * (len(changed) > SHOWN)}: {another}."
        )
    if finished:
        for path in states.glob("state*.pt"):  # killed before they were removed
            path.unlink()
        raise FinishedError(f"{folder} is finished: nothing is left to do.")
    older = "run_format" not in held["versions.json"]
    if older and not any(states.glob("state*.pt")):
        raise FolderTakenError(
            f"{folder} holds a run of an older version, which left no state to go on "
            f"from: {another}."
        )


def mapping(path: Path) -> dict[str, Any]:
    """What a YAML or JSON file holds; {} where that is no mapping."""
    try:
        held = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return held if isinstance(held, dict) else {}


def load_run_config(folder: Path) -> Config:
    """Read the configuration that a run left in its folder.

    Raises:
        ConfigError: no such folder, no config.yaml in it, or not one of ours.
    """
    if not folder.is_dir():
        told = f"There is no folder {folder}"
        if folder.exists():
            told = f"{folder} is a file"
        raise ConfigError(f"{told}: give that of a run, as outputs/TASK/NAME.")
    path = folder / "config.yaml"
    if not path.is_file():
        raise ConfigError(
            f"{folder} is not the folder of a run: it has no config.yaml; runs are at "
            "outputs/TASK/NAME, and at outputs/sweeps/DATE/JOB."
        )

    try:
        written = OmegaConf.load(path)
        schema = OmegaConf.structured(Config)
        if unsaid := _unsaid(schema, written):
            print(
                f"{path} does not say {', '.join(unsaid)}, as one of an older version: "
                "today's defaults are used."
            )
        cfg = OmegaConf.merge(schema, written)
        return to_config(cfg)  # pyright: ignore[reportArgumentType]
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # not its contents, but the file cannot be had
        raise ConfigError(
            f"{path} is not a configuration that this version can read "
            f"({one_sentence(error).rstrip('.')}): train again, or use the version "
            "that wrote it (versions.json)."
        ) from error


def _unsaid(schema: Any, written: Any) -> list[str]:
    """Settings of a schema that a file does not have, dotted."""
    found = []
    for key in schema:
        inner = None if OmegaConf.is_missing(schema, key) else schema[key]
        if key not in written:
            # Nothing of what a run may have none of.
            found += [key] if inner not in ({}, []) else []
        elif isinstance(inner, DictConfig) and isinstance(written[key], DictConfig):
            found += [f"{key}.{name}" for name in _unsaid(inner, written[key])]
    return found
