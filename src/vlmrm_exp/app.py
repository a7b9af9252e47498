"""What all programs share: Hydra composes the command line, bad input is one sentence.

    words -> keys -> [Hydra composes conf/] -> checked values -> folder -> program

A few words that Hydra would refuse or merge are turned into keys before it sees them:
see `words`.
"""

import contextlib
import copy
import errno
import functools
import hashlib
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NoReturn

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from vlmrm_exp import words
from vlmrm_exp.config import (
    ClipConfig,
    Config,
    ConfigError,
    FinishedError,
    FolderTakenError,
    ForeignError,
    conf_dir,
    to_config,
)
from vlmrm_exp.refusals import is_memory, one_sentence
from vlmrm_exp.signals import INTERRUPTED, REQUEUE, REQUEUE_SIGNALS

EXPECTED = (
    ConfigError,
    FloatingPointError,
    ForeignError,
    HydraException,
    OmegaConfBaseException,
    OSError,
    MemoryError,
)
"""What a program may end with because of what it was given."""
ConfigStore.instance().store(name="schema", node=Config)
OmegaConf.register_new_resolver("wording", words.wording, replace=True)
# Hydra copies all of the store for each group of options that it lists, and gives out
# nothing of it uncopied: this was most of the time of --help.
setattr(ConfigStore, "__deepcopy__", lambda store, memo: store)  # noqa: B010


HYDRAS = tuple(".hydra config.yaml versions.json error.txt wandb tensorboard".split())
"""What lies in a folder before anything has come of a run."""
SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


class CheckFirst(Callback):
    """Lets a program refuse its settings before Hydra makes a folder for it.

    Hydra makes one for each configuration, so what it has to remember is the class's.
    """

    check: Callable[["Composed"], object] | None = None
    before: frozenset[str] = frozenset()
    """What was in the folder before; empty where there was none."""
    missing: tuple[Path, ...] = ()
    """Folders that were not there before, the innermost first."""
    goes_on: bool = False
    """Whether a sweep may be started again in its folder."""
    failed: ClassVar[list[str]] = []
    """Jobs of a sweep."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Check one run."""
        HydraConfig.instance().set_config(config)  # its folder may be of Hydra's names
        with ending():
            folder = Path(config.hydra.run.dir)
            CheckFirst.before = frozenset(names_in(folder))
            above = (folder, *folder.parents)
            CheckFirst.missing = tuple(path for path in above if not path.exists())
            self._check(composed_by_hydra(config, config.hydra, folder))

    def on_multirun_start(self, config: DictConfig, config_name: str, **_: Any) -> None:
        """Check all jobs of a sweep, if they are known before it starts."""
        CheckFirst.failed.clear()
        with ending():
            if config.hydra.sweeper._target_ != SWEEPER:
                return
            begun = Path(config.hydra.sweep.dir, "multirun.yaml").exists()
            if begun and not CheckFirst.goes_on:
                raise FolderTakenError(
                    f"{config.hydra.sweep.dir} holds a sweep already: choose another "
                    "hydra.sweep.dir=..., or remove it."
                )
            params = config.hydra.sweeper.get("params") or {}
            with read_write(config):
                for key, value in params.items():
                    params[key] = words.swept(key, value)
            keys = [f"{key}={value}" for key, value in params.items()]
            keys += config.hydra.overrides.task
            if any(key.startswith("name=") for key in keys):
                print("name is not read in a sweep; sweep=NAME names its folder.")
            loader = GlobalHydra.instance().config_loader()
            overrides = OverridesParser.create(loader).parse_overrides(keys)
            [jobs] = BasicSweeper.split_arguments(overrides, None)
            named = "settings_hash" in OmegaConf.to_yaml(config.hydra.sweep)
            folders: dict[str, int] = {}
            for number, job in enumerate(jobs):
                try:
                    composed = compose(config_name, *job)
                    self._check(composed)
                    key = settings_hash(_root_=composed.cfg) if named else str(number)
                    if folders.setdefault(key, number) != number:
                        raise ConfigError(
                            f"job {folders[key]} has the same settings, compute and "
                            "log aside, so the same folder: sweep these one by one."
                        )
                except ConfigError as error:
                    raise ConfigError(
                        f"Job {number} of {len(jobs)} ({' '.join(job)}) cannot start, "
                        f"so none was started: {error}"
                    ) from error

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Tell of a failed job of a sweep at once: the others go on for hours."""
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        if job_return.status == JobStatus.FAILED:
            job = f"Job {config.hydra.job.num} ({' '.join(job_return.overrides or [])})"
            error = job_return._return_value
            sentence = one_sentence(error) if is_expected(error) else error
            print(f"{job} failed: {sentence}", file=sys.stderr, flush=True)
            CheckFirst.failed.append(job)

    def _check(self, composed: "Composed") -> None:
        if CheckFirst.check is not None:
            CheckFirst.check(composed)


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """End the program where the block fails: Hydra makes a warning of an exception."""
    try:
        yield
    except Exception as error:
        if is_expected(error):
            end(error)
        traceback.print_exc()
        sys.exit(1)


def is_expected(error: BaseException) -> bool:
    """Whether an error comes from what the program was given, or from the machine."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1].filename if frames else ""
    by_hydra = "/hydra/" in last or "/omegaconf/" in last  # they raise plain ones too
    kinds = (*EXPECTED, ValueError, AssertionError) if by_hydra else EXPECTED
    return isinstance(error, kinds) or is_memory(error)


def names_in(folder: Path) -> list[str]:
    """Names of what lies in a folder, if there is one."""
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def leave(folder: Path, error: BaseException, alone: bool) -> None:
    """Leave nothing of a run that was refused, and error.txt of one that failed.

    Args:
        folder: of the run.
        error: what ended it.
        alone: not a job of a sweep, which goes on and is read later.
    """
    # That run is not to blame, nor is this one where nobody reads along any more.
    if isinstance(error, (FolderTakenError, BrokenPipeError)):
        return
    new = set(names_in(folder)) - CheckFirst.before
    metrics = folder / "metrics.jsonl"
    if "metrics.jsonl" in new and metrics.stat().st_size == 0:
        metrics.unlink()
        new.remove("metrics.jsonl")
    if alone and isinstance(error, ConfigError) and new <= set(HYDRAS):
        for path in (folder / name for name in new):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        with contextlib.suppress(OSError):  # something else was put there
            for path in CheckFirst.missing:
                path.rmdir()
        return
    with contextlib.suppress(OSError):  # a full disk
        text = "".join(traceback.format_exception(error))
        (folder / "error.txt").write_text(text, encoding="utf-8")


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

    def again(self, *keys: str) -> "Composed":
        """Compose once more with other values; settings files hold for it too.

        Raises:
            ConfigError: no such option, or an impossible value.
        """
        changed = {key.partition("=")[0] for key in keys}
        kept = [key for key in self.keys if key.partition("=")[0] not in changed]
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
    OmegaConf.register_new_resolver("settings_hash", settings_hash, replace=True)
    CheckFirst.check, CheckFirst.goes_on = check, goes_on

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
                leave(folder, error, alone)
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


def end(error: BaseException, folder: Path | None = None) -> None:
    """End the program with one sentence, if the error is not a mistake of ours.

    Args:
        error: what ended it.
        folder: where its traceback is, of an error of others.
    """
    nameless = isinstance(error, OSError) and not getattr(error, "filename", None)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = folder or error.filename or Path.cwd()
        refuse(f"The disk is full ({where}): make room, start again.", 1)
    if nameless and not isinstance(error, HydraException):  # some are both
        return
    if isinstance(error, FinishedError):
        print(error)
        sys.exit(0)
    sentence, failed = one_sentence(error), (FloatingPointError, ForeignError)
    if isinstance(error, ForeignError) and folder and (folder / "error.txt").exists():
        sentence += f" Its traceback is in {folder / 'error.txt'}."
    refuse(sentence, 1 if isinstance(error, failed) else 2)


def compose(config_name: str, *keys: str) -> Composed:
    """Compose a configuration, within a program or without.

    Raises:
        ConfigError: no such option, or an impossible value.
    """
    known = GlobalHydra.instance().is_initialized()
    context = (
        contextlib.nullcontext()
        if known
        else hydra.initialize_config_dir(str(conf_dir()), version_base="1.3")
    )
    try:
        with context:
            return Composed(hydra.compose(config_name, list(keys)), keys, config_name)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(one_sentence(error)) from error


def composed_by_hydra(cfg: DictConfig, own: Any, folder: Path) -> Composed:
    """What a program gets of Hydra's composition; `own` is Hydra's own part."""
    if "hydra" in cfg:
        cfg = copy.deepcopy(cfg)
        with read_write(cfg), open_dict(cfg):
            del cfg["hydra"]
    # As they are: reading them would take the backslash off a \${ in a sentence.
    keys: Any = OmegaConf.to_container(own.overrides.task, resolve=False)
    return Composed(cfg, tuple(keys), own.job.config_name, folder)


def resolved(config: Config) -> str:
    """A configuration as YAML, which OmegaConf reads back."""

    def escaped(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: escaped(each) for key, each in value.items()}
        if isinstance(value, list):
            return [escaped(each) for each in value]
        return words.literal(value) if isinstance(value, str) else value

    return OmegaConf.to_yaml(escaped(asdict(config)))


def flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        nested = isinstance(value, Mapping)
        found |= flat(value, f"{before}{key}.") if nested else {before + key: value}
    return found


def defaults() -> dict[str, Any]:
    """The schema's own values by their dotted names: what no file sets."""
    own: Any = OmegaConf.to_container(OmegaConf.structured(Config))
    return flat(own)


def settings_hash(*, _root_: DictConfig) -> str:
    """Six digits of a job's settings, by which a sweep finds its folder again.

    Values that are the schema's own are left out: a later version, with settings that
    there were not when a sweep began, goes on with it.
    """
    own = defaults()
    parts = {key: _root_[key] for key in _root_ if key != "hydra"}
    settings: Any = OmegaConf.to_container(OmegaConf.create(parts), resolve=True)
    kept = {
        key: value
        for key, value in flat(settings).items()
        if not key.startswith(("log.", "compute.")) and key != "name"
        if key not in own or own[key] != value
    }
    text = json.dumps(kept, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def options_text(*groups: str) -> str:
    """The options of some groups, a line each, for --help."""
    loader = GlobalHydra.instance().config_loader()
    lines = []
    for group in groups:
        options = loader.get_group_options(group)
        shown = [option for option in options if not option.startswith("_")]
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


def refuse(sentence: str, code: int = 2) -> NoReturn:
    """End the program with a sentence."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = (spec.name if spec else "vlmrm_exp").removesuffix(".__main__")
    print(f"{program}: {sentence}", file=sys.stderr)
    sys.exit(code)
