"""What the programs' command lines share.

Hydra composes a training run. The other verbs take a handful of key=value settings of
their own; they share how those are read, and all share how a program ends.
"""

import os
import re
import signal
import sys
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vlmrm_exp.config import Config, ConfigError, conf_dir, did_you_mean, to_config

BAD_INPUT, INTERRUPTED = 2, 130  # exit codes; the second is the shell's after Ctrl-C
# What a file of settings may raise. OSError: OmegaConf's, of a file with one number.
_UNREADABLE = (
    OmegaConfBaseException,
    yaml.YAMLError,
    ConfigError,
    TypeError,
    UnicodeDecodeError,
    OSError,
)

ConfigStore.instance().store(name="schema", node=Config)

Settings = TypeVar("Settings")


def parse(
    schema: type[Settings],
    arguments: Sequence[str],
    positional: str | None = None,
    text: Sequence[str] = (),
) -> Settings:
    """Turn key=value arguments into a dataclass.

    A list is written `clip=[nano,tiny]`, `clip=nano,tiny` or, if it has one element,
    `clip=nano`.

    Args:
        schema: a dataclass; a field without a default has to be given.
        arguments: as typed.
        positional: the list field that arguments without a key go to; it is text.
        text: fields that are taken as they are typed, commas and `${` too: sentences
            and folders. Those that are lists are split only in brackets. `null` is
            None where a field may be that.

    Raises:
        ConfigError: one sentence says what is wrong.
    """
    kinds = typing.get_type_hints(schema)
    names = [field.name for field in fields(schema)]  # pyright: ignore[reportArgumentType]
    cfg = OmegaConf.structured(schema)
    typed: dict[str, Any] = {}  # OmegaConf would read a meaning into some texts
    collected: list[str] = []
    for argument in arguments:
        if argument.startswith("-"):
            raise ConfigError(
                f"{argument} is no setting: those are key=value; see --help."
            )
        key, equals, value = argument.partition("=")
        if positional and (not equals or (key not in names and _exists(argument))):
            collected.append(argument)
            continue
        if not equals:
            likely = "task" if "task" in names else names[0]
            raise ConfigError(f"{argument} is no setting: write {likely}={argument}?")
        if key not in names:
            raise ConfigError(
                f"There is no setting {key}: there are {', '.join(names)}."
                f"{did_you_mean(key, names)}"
            )
        is_list = _is_list(kinds[key])
        if key in text or key == positional:
            optional = type(None) in typing.get_args(kinds[key])
            if value == "null" and optional:
                typed[key] = None
                continue
            typed[key] = _texts(key, value) if is_list else value
            continue
        if not value:
            raise ConfigError(f"{key} is empty: give a value, as {key}=...")
        listed = is_list and not value.startswith("[")
        if listed and not all(part.strip() for part in value.split(",")):
            raise ConfigError(f"{argument} has an empty element: leave a comma out.")
        try:
            cfg[key] = _value(value, is_list)
            if OmegaConf.is_config(cfg[key]):  # which also resolved a single value
                OmegaConf.to_container(cfg[key], resolve=True, throw_on_missing=True)
        except yaml.YAMLError as error:
            how = f"a list is written {key}=[a,b]" if is_list else "give one value"
            raise ConfigError(f"{argument} cannot be read: {how}.") from error
        except OmegaConfBaseException as error:
            reason = str(error).splitlines()[0]
            hint = _views_hint(argument)
            raise ConfigError(f"{argument} is not possible: {reason}.{hint}") from error
    if positional and collected:
        typed[positional] = [*typed.get(positional, []), *collected]
    missing = [n for n in names if n not in typed and OmegaConf.is_missing(cfg, n)]
    if missing:
        raise ConfigError(f"{missing[0]} is not given: add {missing[0]}=...")
    for key in typed:
        cfg[key] = [] if _is_list(kinds[key]) else ""
    asked = OmegaConf.to_object(cfg)
    assert isinstance(asked, schema)
    for key, value in typed.items():
        setattr(asked, key, value)
    return asked


def composed(*overrides: str) -> Config:
    """A checked training configuration, as `python -m vlmrm_exp OVERRIDES` has it.

    Raises:
        ConfigError: no such option, or an impossible value.
    """
    quoted = [quote_sentence(o) for o in overrides]
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return to_config(compose("config", [*quoted, "name=composed"]))
    except ConfigError:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(one_sentence(error)) from error
    except ValueError as error:  # Hydra's, of clip=null
        typed = " ".join(overrides)
        raise ConfigError(f"{typed} is not possible: {error}.") from error


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
    try:
        written = OmegaConf.load(path)
        cfg = OmegaConf.merge(OmegaConf.structured(Config), written)
        return to_config(cfg)  # pyright: ignore[reportArgumentType]
    except _UNREADABLE as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # not its contents, but the file cannot be had
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(
            f"{path} is not a configuration that this version can read ({reason}): "
            "train again, or use the version that wrote it (versions.json)."
        ) from error


def run_verb(verb: str, help_text: str, act: Callable[[list[str]], object]) -> None:
    """Run a verb on the command line's arguments; bad input ends in one sentence.

    Args:
        verb: its name, for messages.
        help_text: printed for --help.
        act: does it.
    """
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(help_text, end="")
        return
    # A job scheduler's polite request to stop is treated like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        act(arguments)
    except (ConfigError, FloatingPointError) as error:
        refuse(str(error), verb)
    except BrokenPipeError:  # whoever read along has stopped, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.filename is None:
            raise
        refuse(f"{unusable(error)}.", verb)
    except MemoryError as error:
        refuse(f"There is not enough memory for this: {error}.", verb)
    except KeyboardInterrupt:
        print("\nInterrupted: nothing is saved of this.", file=sys.stderr)
        sys.exit(INTERRUPTED)


def refuse(sentence: str, verb: str = "") -> NoReturn:
    """End the program because of bad input."""
    program = f"vlmrm_exp.{verb}" if verb else "vlmrm_exp"
    print(f"{program}: {sentence}", file=sys.stderr)
    sys.exit(BAD_INPUT)


def unusable(error: OSError, path: Path | None = None) -> str:
    """Which file or folder the system refused and why, without the full stop.

    Args:
        error: the system's.
        path: named if the error does not say which it was.
    """
    reason = error.strerror
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        reason = "a file is where a folder is needed"
    return f"{error.filename or path} cannot be used: {reason}"


def one_sentence(error: BaseException) -> str:
    """What Hydra and OmegaConf say over several lines and causes, as one sentence."""
    if error.__cause__ is not None and str(error).startswith("Error merging"):
        value = str(error).removeprefix("Error merging override ").strip("'")
        reason = one_sentence(error.__cause__)
        return f"{value} is not possible: {reason}{_views_hint(value, '. ')}"
    text = str(error)
    if option := re.search(r"Could not find '(\w+)/(.*)'\n", text):
        group, wanted = option.groups()
        options = re.findall(r"^\t(\w+)$", text, re.MULTILINE)
        return (
            f"{group}={wanted} does not exist: choose one of "
            f"{', '.join(o for o in options if not o.startswith('_'))}."
            f"{did_you_mean(wanted, options)}"
        )
    if unknown := re.search(r"Could not override '(.+)'", text):
        wanted = unknown.group(1)
        return (
            f"There is no setting {wanted}: see --help for those there are."
            f"{did_you_mean(wanted, setting_names())}"
        )
    if text.startswith("Ambiguous value for argument"):
        argument = text.splitlines()[0].split("'")[1]
        group = (conf_dir() / argument.partition("=")[0]).is_dir()
        return f"{argument} holds a comma: add -m to sweep over it" + (
            "." if group else f", or put it in quotes.{_views_hint(argument)}"
        )
    lines = [line.strip() for line in text.splitlines()]
    dropped = ("full_key:", "object_type=", "reference_type=", "See https", "")
    return " ".join(x for x in lines if x and not x.startswith(dropped[:-1]))


def _views_hint(argument: str, before: str = " ") -> str:
    """How several cameras are given, to who gave camera=VALUE otherwise."""
    if not argument.partition("=")[0].endswith("camera"):
        return ""
    return f"{before}Views are joined with +, as fixed+side."


def setting_names() -> list[str]:
    """Every key of the schema, dotted."""
    names: list[str] = ["experiment"]
    for field in fields(Config):
        inner = field.default_factory
        if isinstance(inner, type) and is_dataclass(inner):
            names += [field.name, *(f"{field.name}.{f.name}" for f in fields(inner))]
        else:
            names.append(field.name)
    return names


def quote_sentence(argument: str) -> str:
    """Let prompt=... and baseline=... be typed as a plain sentence.

    Hydra would take its commas for a sweep. What is quoted or a list already stays.
    """
    key, equals, value = argument.partition("=")
    inner = value.strip()
    brackets = inner[:1] + inner[-1:]
    if key.lstrip("+") not in ("prompt", "baseline") or not inner or not equals:
        return argument
    if brackets in ("[]", "''", '""') and len(inner) > 1:
        return argument
    # In Hydra's quotes a backslash means something only before a quote or at the end.
    value = re.sub(r"(\\*)'", r"\1\1\\'", value)
    value = re.sub(r"(\\+)$", r"\1\1", value).replace("${", "\\${")
    return f"{key}='{value}'"


def run_hydra(app: Callable[[], object], interrupted: str, verb: str = "") -> None:
    """Run a Hydra application; bad input ends in one sentence, without a traceback.

    Args:
        app: decorated with `hydra.main`; reads the command line.
        interrupted: what to say after Ctrl-C.
        verb: its name, for messages.
    """
    # Hydra then raises its errors here instead of printing them over many lines.
    wants_traceback = "HYDRA_FULL_ERROR" in os.environ
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    # A job scheduler's polite request to stop is treated like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.argv = [quote_sentence(argument) for argument in sys.argv]
    try:
        app()
    except FloatingPointError as error:  # a reward or a loss; what was written stays
        sys.exit(f"vlmrm_exp: {error}")
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        if wants_traceback:
            raise
        refuse(one_sentence(error), verb)
    except OSError as error:
        if wants_traceback or error.filename is None:
            raise
        refuse(f"{unusable(error)}.", verb)
    except KeyboardInterrupt:
        print(interrupted, flush=True)
        sys.exit(INTERRUPTED)


def _exists(path: str) -> bool:
    return os.path.exists(os.path.expanduser(path))


def _is_list(kind: Any) -> bool:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return any(_is_list(part) for part in typing.get_args(kind))
    return typing.get_origin(kind) is list


def _value(value: str, is_list: bool) -> Any:
    if not is_list or value == "null" or (value[0] == "[" and value[-1] == "]"):
        return yaml.safe_load(value)
    return [yaml.safe_load(part) for part in value.split(",")]


def _texts(key: str, value: str) -> list[str]:
    """The elements of a list in brackets, or the one text that it is."""
    never_closed = value.startswith("[") and "]" not in value
    if not (never_closed or (value.startswith("[") and value.endswith("]"))):
        return [value]
    try:
        texts = yaml.load(value, yaml.BaseLoader)  # every scalar is a string to it
    except yaml.YAMLError:
        texts = None
    if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
        return texts
    raise ConfigError(
        f"{key}={value} is no list that can be read: put each element in double "
        f'quotes, as \'{key}=["one", "two"]\'.'
    )
