"""The jobs of a sweep, checked before the first one starts."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, read_write

from vlmrm_exp import words
from vlmrm_exp.config import ConfigError, FolderTakenError
from vlmrm_exp.log.progress import progress_bar
from vlmrm_exp.settings import settings_hash


def check_jobs(
    config: DictConfig, check: Callable[..., DictConfig], goes_on: bool, program: str
) -> None:
    """Refuse a sweep of which a job cannot start, if they are known before it starts.

    What a sweep file says of settings is put into Hydra's words.

    Args:
        config: the sweep's, Hydra's part included.
        check: composes and checks a job, given its overrides.
        goes_on: whether a sweep may be started again in its folder.
        program: its primary configuration, as for `words.to_keys`.
    """
    if not config.hydra.sweeper._target_.endswith(".BasicSweeper"):
        return  # another one chooses its jobs as it goes
    if Path(config.hydra.sweep.dir, "multirun.yaml").exists() and not goes_on:
        raise FolderTakenError(
            f"{config.hydra.sweep.dir} holds a sweep already: choose another "
            "hydra.sweep.dir=..., or remove it."
        )
    params = config.hydra.sweeper.get("params") or {}
    keys = [words.swept(key, value, program) for key, value in params.items()]
    with read_write(config):
        config.hydra.sweeper.params = dict(key.split("=", 1) for key in keys)
    # As they are: ${} is of each job.
    typed: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    keys += typed
    if any(key.startswith("name=") for key in keys):
        print("name is not read in a sweep; sweep=NAME names its folder.")
    loader = GlobalHydra.instance().config_loader()
    overrides = OverridesParser.create(loader).parse_overrides(keys)
    [jobs] = BasicSweeper.split_arguments(overrides, None)
    named = "settings_hash" in OmegaConf.to_yaml(config.hydra.sweep)
    folders: dict[str, int] = {}
    with progress_bar(len(jobs), "job", "checking") as progress:
        for number, job in enumerate(jobs):
            try:
                cfg: Any = check(*job)
                if "WANDB_RUN_ID" in os.environ and goes_on:  # training
                    if cfg.log.mode != "none":
                        raise ConfigError(
                            "WANDB_RUN_ID is set, by which all jobs of a sweep would "
                            "be one W&B run: unset it."
                        )
                key = settings_hash(_root_=cfg) if named else str(number)
                if folders.setdefault(key, number) != number:
                    raise ConfigError(
                        f"job {folders[key]} has the same settings but for compute and "
                        "log, so the same folder: sweep these one by one."
                    )
            except ConfigError as error:
                raise ConfigError(
                    f"Job {number} of {len(jobs)} ({' '.join(job)}) cannot start, so "
                    f"none was started: {error}"
                ) from error
            progress.update()
