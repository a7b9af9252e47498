"""What all programs share: Hydra composes the command line, bad input is one sentence.

    words -> keys -> [Hydra composes conf/] -> checked values -> folder -> program

A few words that Hydra would refuse or merge are turned into keys before it sees them:
see `words`. How a program ends because of what it was given is in `refusals`.
"""

import functools
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from vlmrm_exp import words
from vlmrm_exp.check_first import CheckFirst
from vlmrm_exp.checks import to_config
from vlmrm_exp.composition import Composed, composed_by_hydra, options_text
from vlmrm_exp.config import conf_dir
from vlmrm_exp.refusals import end, is_expected, refuse
from vlmrm_exp.signals import INTERRUPTED, REQUEUE, REQUEUE_SIGNALS


def start(
    act: Callable[[Composed], object],
    config_name: str = "config",
    check: Callable[[Composed], object] = lambda composed: to_config(composed.cfg),
    plural: Mapping[str, str] = MappingProxyType({}),
    files: bool = False,
    interrupted: str = "Interrupted: nothing is saved of this.",
    goes_on: bool = False,
) -> None:
    """Run a program on the command line; bad input ends in one sentence.

    Args:
        act: does it, given the composed configuration.
        config_name: of its primary configuration in conf/.
        check: refuses what is known to be impossible, before a folder is made.
        plural: as for `words.to_keys`.
        files: as for `words.to_keys`.
        interrupted: what to say after Ctrl-C.
        goes_on: whether a sweep may be started again in its folder.
    """
    # With this variable Hydra raises its errors instead of printing them. Whoever set
    # it wants to see tracebacks.
    wants_traceback = "HYDRA_FULL_ERROR" in os.environ
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed by who started the program
            setattr(sys, stream, open(os.devnull, "w"))
        # A file's name may have letters that this terminal does not.
        getattr(sys, stream).reconfigure(errors="backslashreplace")
    # A job scheduler's polite request to stop is treated like Ctrl-C.
    stopped: list[int] = []

    def stop(number: int, frame: object) -> NoReturn:
        stopped.append(number)
        raise KeyboardInterrupt

    for number in REQUEUE_SIGNALS:
        signal.signal(number, stop)
    OmegaConf.register_new_resolver("options", options_text, replace=True)
    CheckFirst.check, CheckFirst.goes_on = check, goes_on
    CheckFirst.program = config_name

    @hydra.main(
        version_base="1.3", config_path=str(conf_dir()), config_name=config_name
    )
    @functools.wraps(act)
    def program(cfg: DictConfig) -> object:
        own = HydraConfig.get()
        alone = own.mode == RunMode.RUN
        folder = Path(own.runtime.output_dir)
        try:
            return act(composed_by_hydra(cfg, own, folder))
        except Exception as error:
            if own.output_subdir is not None:  # the program has a folder
                CheckFirst.before.leave(folder, error, alone)
            # A sweep goes on; else Hydra would tell of it over several lines.
            if alone and not wants_traceback and is_expected(error):
                end(error, folder)
            raise

    try:
        sys.argv[1:] = words.to_keys(sys.argv[1:], plural, files, config_name)
        program()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read along has stopped, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        sys.exit(REQUEUE if goes_on and stopped else INTERRUPTED)
    except Exception as error:
        if CheckFirst.failed and is_expected(error):
            failed = len(CheckFirst.failed)
            refuse(f"{failed} of the sweep's jobs failed, as told above.", 1)
        if is_expected(error) and not wants_traceback:
            end(error)
        raise
