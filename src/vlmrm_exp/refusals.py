"""What goes wrong with a command line, in one sentence."""

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass

import yaml
from omegaconf.errors import OmegaConfBaseException

from vlmrm_exp.config import (
    Config,
    ConfigError,
    ForeignError,
    conf_dir,
    did_you_mean,
)
from vlmrm_exp.files import reason, unusable

UNREADABLE = (
    OmegaConfBaseException,
    yaml.YAMLError,
    ConfigError,
    TypeError,
    UnicodeDecodeError,
    OSError,  # OmegaConf's, of a file with one number
)
"""What a file of settings may raise."""


def one_sentence(error: BaseException) -> str:
    """What Hydra, OmegaConf and the system say over several lines, as one sentence."""
    text = str(error)
    if isinstance(error, OSError) and getattr(error, "filename", None) is not None:
        return f"{unusable(error)}."
    if is_memory(error):
        return f"There is not enough memory for this ({reason(error)})."
    if error.__cause__ is not None and text.startswith("Error merging"):
        value = text.removeprefix("Error merging override ").strip("'")
        why = one_sentence(error.__cause__)
        return f"{value} is not possible: {why}{_views_hint(value, '. ')}"
    if option := re.search(r"Could not find '([\w/]+)/(.*)'\n", text):
        group, wanted = option.groups()
        options = re.findall(r"^\t(\w+)$", text, re.MULTILINE)
        plugin = ""
        if group in ("hydra/launcher", "hydra/sweeper"):
            package = f"hydra-{wanted.partition('_')[0]}-{group.partition('/')[2]}"
            plugin = f" Others come with packages of their own, as {package}."
        return (
            f"{group}={wanted} does not exist: choose one of "
            f"{', '.join(o for o in options if not o.startswith('_'))}."
            f"{did_you_mean(wanted, options)}{plugin}"
        )
    if unknown := re.search(r"Could not override '(.+)'", text):
        wanted = unknown.group(1)
        return (
            f"There is no setting {wanted}: see --help for those there are."
            f"{did_you_mean(wanted, set(setting_names()) - {wanted})}"
        )
    if text.startswith("Ambiguous value for argument"):
        argument = text.splitlines()[0].split("'")[1]
        group = (conf_dir() / argument.partition("=")[0]).is_dir()
        return f"{argument} holds a comma: add -m to sweep over it" + (
            "." if group else f", or put it in quotes.{_views_hint(argument)}"
        )
    # A sentence of ours, from a resolver.
    text = text.removeprefix("ConfigError raised while resolving interpolation: ")
    lines = [line.strip() for line in text.splitlines()]
    dropped = ("full_key:", "object_type=", "reference_type=", "See https")
    return " ".join(x for x in lines if x and not x.startswith(dropped))


def is_memory(error: BaseException) -> bool:
    """Whether memory ran out, in Python's, torch's or CUDA's words."""
    words = "allocate memory" in str(error) or "out of memory" in str(error)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and words)


@contextlib.contextmanager
def blaming(other: object, doing: str | Callable[[], str]) -> Iterator[None]:
    """Name a reward model or world of one's own that fails in this block.

    Args:
        other: an instance or a class; the project's own errors pass as they are.
        doing: what it was asked for, as "in rewards", or what tells it afterwards.

    Raises:
        ForeignError: one sentence; the error itself is its cause.
    """
    try:
        yield
    except (ConfigError, FloatingPointError, ForeignError):
        raise
    except (Exception, SystemExit) as error:
        kind = other if isinstance(other, type) else type(other)
        if kind.__module__.split(".")[0] == "vlmrm_exp":
            raise
        name = f"{kind.__module__}:{kind.__qualname__}"
        where = doing if isinstance(doing, str) else doing()
        raise ForeignError(
            f"{name} failed {where} ({reason(error, named=True)})."
        ) from error


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
