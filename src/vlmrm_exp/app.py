"""What all programs share: Hydra composes the command line, bad input is one sentence.

    words -> keys -> [Hydra composes conf/] -> checked values -> folder -> program

A few words that Hydra would refuse or merge are turned into keys before it sees them:
see `words`. How a program ends because of what it was given is in `refusals`.
"""

import copy
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NoReturn

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from vlmrm_exp import words
from vlmrm_exp.checks import to_config
from vlmrm_exp.config import ClipConfig, Config, ConfigError, conf_dir
from vlmrm_exp.leftovers import Before
from vlmrm_exp.refusals import end, ending, is_expected, one_sentence, refuse
from vlmrm_exp.settings import settings_hash
from vlmrm_exp.signals import INTERRUPTED, REQUEUE, REQUEUE_SIGNALS
from vlmrm_exp.sweep import check_jobs

ConfigStore.instance().store(name="schema", node=Config)
OmegaConf.register_new_resolver("wording", words.wording, replace=True)
OmegaConf.register_new_resolver("settings_hash", settings_hash, replace=True)
# Hydra copies all of the store for each group of options that it lists, and gives out
# nothing of it uncopied: this was most of the time of --help.
setattr(ConfigStore, "__deepcopy__", lambda store, memo: store)  # noqa: B010


class CheckFirst(Callback):
    """Lets a program refuse its settings before Hydra makes a folder for it.

    Hydra makes one for each configuration, so what it has to remember is the class's.
    """

    check: ClassVar[Callable[["Composed"], object]]
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


@dataclass(frozen=True)
class Composed:
    """A configuration, and how it was asked for."""

    cfg: DictConfig
    """Without Hydra's own part."""
    keys: tuple[str, ...]
    """key=value, as Hydra got them."""
    config_name: str
    """The primary configuration."""
    folder: Path | None = None
    """For results; None: a job of a sweep that has not begun."""

    def again(self, *keys: str, without: tuple[str, ...] = ()) -> "Composed":
        """Compose once more with other values; settings files hold for it too.

        Keys that begin with one of `without` are left out.
        """
        changed = {key.partition("=")[0] for key in keys}
        kept = [
            key
            for key in self.keys
            if key.partition("=")[0] not in changed
            and not key.lstrip("+~").startswith(without)
        ]
        return compose(self.config_name, *kept, *keys)


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


def compose(config_name: str, *keys: str) -> Composed:
    """Compose a configuration, within a program or without; else a ConfigError."""
    try:
        if GlobalHydra.instance().is_initialized():
            loader: Any = GlobalHydra.instance().config_loader()
            cfg = compose_values(loader, config_name, keys)
        else:
            with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
                cfg = hydra.compose(config_name, list(keys))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(one_sentence(error)) from error
    return Composed(cfg, keys, config_name)


def compose_values(
    loader: Any, config_name: str, keys: tuple[str, ...], once: object = None
) -> DictConfig:
    """Compose options once, some .2 s each time, and set values in a copy of that.

    Hydra sets them at last too. A sweep's jobs, judges and members differ mostly in
    values. `loader` is Hydra's present one; options are those of `once`, or of it.
    """
    # With what a configuration itself adds to the search path.
    read = loader._parse_overrides_and_create_caching_repo
    overrides, repository = read(config_name, list(keys))
    values = [
        one
        for one in overrides
        if not one.is_sweep_override()
        and not one.is_hydra_override()
        and (
            isinstance(one.value(), dict)
            or not repository.group_exists(one.key_or_group)
        )
    ]
    lines = {one.input_line for one in values}
    options = tuple(key for key in keys if key not in lines)
    cfg = copy.deepcopy(_compose(once or loader, config_name, options))
    try:
        ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
    except (HydraException, OmegaConfBaseException):
        return hydra.compose(config_name, list(keys))  # it says what is wrong
    return cfg


@functools.lru_cache(maxsize=256)
def _compose(once: object, config_name: str, options: tuple[str, ...]) -> DictConfig:
    """Compose with options alone."""
    return hydra.compose(config_name, list(options))


def composed_by_hydra(cfg: DictConfig, own: Any, folder: Path) -> Composed:
    """What a program gets of Hydra's composition; `own` is Hydra's own part."""
    cfg = copy.deepcopy(cfg)
    with read_write(cfg), open_dict(cfg):
        cfg.pop("hydra", None)
    # As they are: reading them would take the backslash off a \${ in a sentence.
    keys: Any = OmegaConf.to_container(own.overrides.task, resolve=False)
    return Composed(cfg, tuple(keys), own.job.config_name, folder)


def options_text(*groups: str) -> str:
    """The options of some groups, a line each, for --help."""
    loader = GlobalHydra.instance().config_loader()
    lines = []
    for group in groups:
        shown = [o for o in loader.get_group_options(group) if not o.startswith("_")]
        lines.append(f"  {group}: {', '.join(shown)}")
    return "\n".join(lines)


def tell_embedded(clips: Iterable[ClipConfig]) -> None:
    """Say which models know nothing of pictures that people bring."""
    for clip in clips:
        if clip.model == "embedded":
            print(
                f"clip={clip.name} is an embedded model: it knows the pictures of this "
                "project's worlds alone, and its rewards of others mean nothing."
            )
