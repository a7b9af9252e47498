"""What all programs share: Hydra composes the command line, bad input is one sentence.

    words -> keys -> [Hydra composes conf/] -> checked values -> folder -> program

A few words that Hydra would refuse or merge are turned into keys before it sees them:
see `to_keys`.
"""

import contextlib
import copy
import functools
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from vlmrm_exp.config import ClipConfig, Config, ConfigError, conf_dir, to_config

INTERRUPTED = 130  # exit code, the shell's after Ctrl-C
EXPECTED = (
    ConfigError,
    FloatingPointError,
    HydraException,
    OmegaConfBaseException,
    OSError,
    MemoryError,
)
"""What a program may end with because of what it was given."""
HYDRA_TAKES_VALUE = tuple(
    "-c --cfg -p --package -cd --config-dir -cn --config-name -cp --config-path -i "
    "--info --experimental-rerun".split()
)
"""Options of Hydra that a value follows."""
SENTENCES = ("prompt", "baseline")
"""Settings that are typed as plain sentences."""

ConfigStore.instance().store(name="schema", node=Config)


class CheckFirst(Callback):
    """Lets a program refuse its settings before Hydra makes a folder for it."""

    check: Callable[["Composed"], object] | None = None

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Check. Hydra makes a warning of an exception, so the program ends here."""
        try:
            if CheckFirst.check is not None:
                CheckFirst.check(composed_by_hydra(config, config.hydra))
        except Exception as error:
            if isinstance(error, EXPECTED):
                end(error)
            traceback.print_exc()
            sys.exit(1)


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
    """For results; None: not made yet."""

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
) -> None:
    """Run a program on the command line; bad input ends in one sentence.

    Args:
        act: does it, given the composed configuration.
        config_name: of its primary configuration in conf/.
        check: refuses what is known to be impossible, before a folder is made.
        plural: as for `to_keys`.
        files: as for `to_keys`.
        interrupted: what to say after Ctrl-C.
    """
    # With this variable Hydra raises its errors instead of printing them. Whoever set
    # it wants to see tracebacks.
    wants_traceback = "HYDRA_FULL_ERROR" in os.environ
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    # A job scheduler's polite request to stop is treated like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    OmegaConf.register_new_resolver("options", options_text, replace=True)
    CheckFirst.check = check

    @hydra.main(
        version_base="1.3", config_path=str(conf_dir()), config_name=config_name
    )
    @functools.wraps(act)
    def program(cfg: DictConfig) -> object:
        own = HydraConfig.get()
        try:
            return act(composed_by_hydra(cfg, own, made=True))
        except EXPECTED as error:
            # A sweep goes on; else Hydra would tell of it over several lines.
            if own.mode == RunMode.RUN and not wants_traceback:
                end(error)
            raise

    try:
        sys.argv[1:] = to_keys(sys.argv[1:], plural, files)
        program()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read along has stopped, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except EXPECTED as error:
        if not wants_traceback:
            end(error)
        raise


def end(error: BaseException) -> None:
    """End the program with one sentence, if the error is not a mistake of ours."""
    from vlmrm_exp.refusals import one_sentence

    nameless = isinstance(error, OSError) and not getattr(error, "filename", None)
    if nameless and not isinstance(error, HydraException):  # some are both
        return
    refuse(one_sentence(error), 1 if isinstance(error, FloatingPointError) else 2)


def to_keys(
    words: list[str], plural: Mapping[str, str], files: bool = False
) -> list[str]:
    """Turn words that Hydra would refuse into keys and values.

    - `prompt=a car, next to a flag`: a plain sentence is quoted.
    - `clip=tiny,base`, where several can be studied: `clips=[tiny,base]`, `clip=tiny`.
    - `sweeps/x.yaml`: `--config-dir sweeps --config-name x`.
    - `photo.jpg`, where files are looked at: an element of `files=[...]`.

    Args:
        words: of the command line.
        plural: for keys that may hold several values, the key of the list.
        files: whether words without a key are files.
    """
    options, keys, named = [], [], []
    for before, word in zip(["", *words], words, strict=False):
        key, equals, value = word.partition("=")
        if word.startswith("-") or before in HYDRA_TAKES_VALUE:
            options.append(word)
        elif files and (not equals or os.path.exists(os.path.expanduser(word))):
            named.append(word)
        elif not equals and word.endswith((".yaml", ".yml")):
            path = Path(word)
            if not path.is_file():
                raise ConfigError(f"There is no settings file {word}.")
            if (conf_dir() / path.name).exists():  # Hydra would take that one
                raise ConfigError(
                    f"{word} has the name of a file of the program's own: rename it."
                )
            options += ["--config-dir", str(path.parent), "--config-name", path.stem]
        elif not equals:
            raise ConfigError(f"{word} is no setting: those are key=value; see --help.")
        elif key in plural:
            whole = value == "null" or re.fullmatch(r"\[.*\]", value)
            listed = value if whole else f"[{value}]"
            keys.append(f"{plural[key]}={listed}")
            first = listed.strip("[]").partition(",")[0].strip()
            if re.fullmatch(r"\w[\w.]*", first) and first != "null":
                keys.append(f"{key}={first}")  # other keys may be of this option
        else:
            keys.append(quote_sentence(word))
    if named:
        keys.append(f"files=[{','.join(quoted(name) for name in named)}]")
    return options + keys  # which Hydra takes in this order alone


def quote_sentence(word: str) -> str:
    """Let prompt=... and baseline=... be typed as a plain sentence.

    Hydra would take its commas for a sweep. What is quoted or a list already stays,
    and so does null, which is no sentence.
    """
    key, equals, value = word.partition("=")
    inner = value.strip()
    brackets = inner[:1] + inner[-1:]
    if key.lstrip("+") not in SENTENCES or not inner or not equals:
        return word
    if inner == "null" or (brackets in ("[]", "''", '""') and len(inner) > 1):
        return word
    return f"{key}={quoted(value)}"


def quoted(text: str) -> str:
    """A text in Hydra's quotes, to be taken as it is."""
    # A backslash means something only before a quote or at the end.
    text = re.sub(r"(\\*)'", r"\1\1\\'", text)
    text = re.sub(r"(\\+)$", r"\1\1", text).replace("${", "\\${")
    return f"'{text}'"


def compose(config_name: str, *keys: str) -> Composed:
    """Compose a configuration, within a program or without.

    Raises:
        ConfigError: no such option, or an impossible value.
    """
    from vlmrm_exp.refusals import one_sentence

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


def composed_by_hydra(cfg: DictConfig, own: Any, made: bool = False) -> Composed:
    """What a program gets of Hydra's composition; `own` is Hydra's own part."""
    if "hydra" in cfg:
        cfg = copy.deepcopy(cfg)
        with read_write(cfg), open_dict(cfg):
            del cfg["hydra"]
    folder = Path(own.runtime.output_dir) if made else None
    return Composed(cfg, tuple(own.overrides.task), own.job.config_name, folder)


def resolved(cfg: DictConfig) -> str:
    """A configuration as YAML, without interpolations; OmegaConf reads it back."""

    def escaped(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: escaped(each) for key, each in value.items()}
        if isinstance(value, list):
            return [escaped(each) for each in value]
        return value.replace("${", r"\${") if isinstance(value, str) else value

    return OmegaConf.to_yaml(escaped(OmegaConf.to_container(cfg, resolve=True)))


def options_text(*groups: str) -> str:
    """The options of some groups, a line each, for --help."""
    loader = GlobalHydra.instance().config_loader()
    lines = []
    for group in groups:
        options = loader.get_group_options(group)
        shown = [option for option in options if not option.startswith("_")]
        lines.append(f"  {group}: {', '.join(shown)}")
    return "\n".join(lines)


def load_run_config(folder: Path) -> Config:
    """Read the configuration that a run left in its folder.

    Raises:
        ConfigError: no such folder, no config.yaml in it, or not one of ours.
    """
    if not folder.is_dir():
        told = f"There is no folder {folder}"
        if folder.exists():
            told = f"{folder} is a file"
        raise ConfigError(f"{told}: give that of a run, as run=...")
    path = folder / "config.yaml"
    if not path.is_file():
        raise ConfigError(
            f"{folder} is not the folder of a run: it has no config.yaml; runs are at "
            "outputs/TASK/NAME, and at outputs/sweeps/DATE/JOB."
        )
    from vlmrm_exp.refusals import UNREADABLE, one_sentence

    try:
        written = OmegaConf.load(path)
        cfg = OmegaConf.merge(OmegaConf.structured(Config), written)
        return to_config(cfg)  # pyright: ignore[reportArgumentType]
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # not its contents, but the file cannot be had
        raise ConfigError(
            f"{path} is not a configuration that this version can read "
            f"({one_sentence(error).rstrip('.')}): train again, or use the version "
            "that wrote it (versions.json)."
        ) from error


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
