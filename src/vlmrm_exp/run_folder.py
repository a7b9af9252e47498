"""A run's folder: whether a run can begin or go on in it, and how it was configured."""

import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from vlmrm_exp.checks import to_config
from vlmrm_exp.config import Config, ConfigError, FinishedError, FolderTakenError
from vlmrm_exp.files import lock
from vlmrm_exp.refusals import UNREADABLE, one_sentence
from vlmrm_exp.settings import defaults, flat, is_how

RUN_FORMAT = 1
"""Of a run's folder. Older ones have none, and no state to go on from."""
SHOWN = 5  # differences
MAY_CHANGE = ("name", "clip.batch_size", "env_steps")
"""Settings that a run may go on with in another way, beside those that say how it is
logged and computed; the last, if it is unfinished."""


def check_folder(folder: Path, settings: str) -> None:
    """Refuse a folder that holds another run; an unfinished one is gone on with.

    `settings` are those of the run that is to begin, as YAML.

    Raises:
        FolderTakenError: it is another run's, another process writes it, or it is of
            a version that left nothing to go on from.
        FinishedError: nothing is left to do.
    """
    metrics, checkpoints = folder / "metrics.jsonl", folder / "checkpoints"
    if metrics.exists():
        with metrics.open("rb") as file:
            lock(file)
    states = list(checkpoints.glob("state*.pt"))
    summary = mapping(folder / "summary.json")
    of_today = "run_format" in mapping(folder / "versions.json")
    if not states and not (metrics.exists() and metrics.stat().st_size):
        ours = (folder / ".hydra").exists() or not (folder / "config.yaml").exists()
        # Of a run that ended before its first line, as on a full disk: nothing is lost.
        others = not of_today and (checkpoints.exists() or not ours)
        if others or (folder / "summary.json").exists():
            raise FolderTakenError(
                f"{folder} holds files that a run would overwrite, as config.yaml or "
                "summary.json: give another folder, or remove them."
            )
        return
    another = "give another name=... (or hydra.run.dir), or remove it"
    finished = bool(summary) and not summary.get("interrupted")
    # A version may have settings that an older one had not.
    before = defaults() | flat(mapping(folder / "config.yaml"))
    now = flat(yaml.safe_load(settings))
    may_change = MAY_CHANGE[:-1] if finished else MAY_CHANGE
    changed = [
        f"{key}={now.get(key)} (was {before.get(key)})"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
        and not is_how(own := re.sub(r"^member\.[\w-]+\.", "", key))
        and own not in may_change
    ]
    if changed:
        raise FolderTakenError(
            f"{folder} holds a run of other settings, "
            f"{', '.join(changed[:SHOWN])}{' ...' * (len(changed) > SHOWN)}: {another}."
        )
    if finished:
        for path in states:  # it was killed before they were removed
            path.unlink()
        raise FinishedError(f"{folder} is finished: nothing is left to do.")
    if not of_today and not states:
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
    """Read the configuration that a run left in its folder; else a ConfigError."""
    if not folder.is_dir():
        told = (
            f"{folder} is a file" if folder.exists() else f"There is no folder {folder}"
        )
        raise ConfigError(f"{told}: give that of a run, as outputs/TASK/NAME.")
    path = folder / "config.yaml"
    if not path.is_file():
        raise ConfigError(
            f"{folder} is not the folder of a run: it has no config.yaml; runs are at "
            "outputs/TASK/NAME, and at outputs/sweeps/DATE/JOB."
        )
    try:
        cfg = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(path))
        groups, said = mapping(path), flat(mapping(path))
        # An empty list is nothing that a run has to say.
        unsaid = [k for k, own in defaults().items() if own != [] and k not in said]
        # Of a group that is not there, its name.
        tops = ((key.partition(".")[0], key) for key in unsaid)
        unsaid = dict.fromkeys(key if top in groups else top for top, key in tops)
        if unsaid:
            print(
                f"{path} does not say {', '.join(unsaid)}, as one of an older version: "
                "today's defaults are used."
            )
        return to_config(cfg)  # pyright: ignore[reportArgumentType]
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # not its contents, but the file cannot be had
        raise ConfigError(
            f"{path} is not a configuration that this version can read "
            f"({one_sentence(error).rstrip('.')}): train again, or use the version "
            "that wrote it (versions.json)."
        ) from error
