"""Hydra asks here before it makes a folder for a run, or starts a sweep's first job."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from vlmrm_exp.composition import Composed, compose, composed_by_hydra
from vlmrm_exp.leftovers import Before
from vlmrm_exp.refusals import ending, is_expected, one_sentence
from vlmrm_exp.sweep import check_jobs


class CheckFirst(Callback):
    """Lets a program refuse its settings before Hydra makes a folder for it.

    Hydra makes one for each configuration, so what it has to remember is the class's.
    """

    check: ClassVar[Callable[[Composed], object]]
    before = Before()
    goes_on: bool = False
    """Whether a sweep may be started again in its folder."""
    program: str = "config"
    """Its primary configuration, which a settings file may build on."""
    failed: ClassVar[list[str]] = []
    """Jobs of a sweep."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Check one run."""
        HydraConfig.instance().set_config(config)  # its folder may be of Hydra's names
        with ending():
            folder = Path(config.hydra.run.dir)
            CheckFirst.before = Before(folder)
            CheckFirst.check(composed_by_hydra(config, config.hydra, folder))

    def on_multirun_start(self, config: DictConfig, config_name: str, **_: Any) -> None:
        """Check all jobs of a sweep."""

        def check(*job: str) -> DictConfig:
            composed = compose(config_name, *job)
            CheckFirst.check(composed)
            return composed.cfg

        CheckFirst.failed.clear()
        with ending():
            check_jobs(config, check, CheckFirst.goes_on, CheckFirst.program)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Tell of a failed job of a sweep at once: the others go on for hours."""
        swept = config.hydra.mode == RunMode.MULTIRUN
        if swept and job_return.status == JobStatus.FAILED:
            job = f"Job {config.hydra.job.num} ({' '.join(job_return.overrides or [])})"
            error = job_return._return_value
            sentence = one_sentence(error) if is_expected(error) else error
            print(f"{job} failed: {sentence}", file=sys.stderr, flush=True)
            CheckFirst.failed.append(job)
