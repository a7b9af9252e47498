"""What goes wrong with a command line, in one sentence, and how a program ends then."""

import contextlib
import errno
import re
import sys
import traceback
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import yaml
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vlmrm_exp.checks import did_you_mean
from vlmrm_exp.config import (
    Config,
    ConfigError,
    FinishedError,
    ForeignError,
    StageConfig,
    UnavailableError,
    conf_dir,
)
from vlmrm_exp.files import reason, unusable

NO_HOME = "Could not determine home directory"
"""Python's words for a path of ~name, where nobody has that name."""
MAY_PASS = (
    *(errno.EIO, errno.ESTALE, errno.ENOMEM, errno.ENOTCONN, errno.ETIMEDOUT),
    *(errno.EHOSTUNREACH, errno.EHOSTDOWN),
)
"""Of a file that cannot be used: its storage is away or damaged, or memory ran out."""
UNREADABLE = (
    OmegaConfBaseException,
    yaml.YAMLError,
    ConfigError,
    TypeError,
    UnicodeDecodeError,
    OSError,  # OmegaConf's, of a file with one number
)
"""What a file of settings may raise."""
WANTED = {
    r"converted to Integer$": "a whole number",
    r"converted to Float$": "a number",
    r"is not a valid bool \(type \w+\)$": "true or false",
    r"is not a ListConfig, list or tuple\.?$": "a list, as [a,b]",
    r"^Cannot assign \w+ to Dict\S*": "a mapping, as {key: value}",
    r"is not Optional$": "a value",
    r"is not a subclass of StageConfig": "mappings, as [{prompt: ..., quantile: 0.99}]",
}
"""How OmegaConf refuses a value, and what to give instead."""
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
    told = NO_HOME in str(error) or "/submitit/" in last
    return isinstance(error, kinds) or is_memory(error) or told


def end(error: BaseException, folder: Path | None = None) -> None:
    """End the program with one sentence, if the error is not a mistake of ours.

    `folder` is where its traceback is, of an error of others.
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
    sentence = one_sentence(error)
    if isinstance(error, ForeignError) and folder and (folder / "error.txt").exists():
        sentence += f" Its traceback is in {folder / 'error.txt'}."
    refuse(sentence, 1 if _may_pass(error) else 2)


def _may_pass(error: BaseException) -> bool:
    """Whether the same command may do better elsewhere or later: not its settings."""
    if isinstance(error, OSError):
        return error.errno in MAY_PASS
    failed = FloatingPointError, ForeignError, UnavailableError
    return isinstance(error, failed) or is_memory(error)


def refuse(sentence: str, code: int = 2) -> NoReturn:
    """End the program with a sentence."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = (spec.name if spec else "vlmrm_exp").removesuffix(".__main__")
    print(f"{program}: {sentence}", file=sys.stderr)
    sys.exit(code)


def one_sentence(error: BaseException) -> str:
    """What Hydra, OmegaConf and the system say over several lines, as one sentence."""
    text = str(error)
    if isinstance(error, OSError) and getattr(error, "filename", None) is not None:
        return f"{unusable(error)}."
    if is_memory(error):
        return f"There is not enough memory for this ({reason(error)})."
    if NO_HOME in text:
        return "A path begins with ~ and the name of nobody here: give the whole path."
    if "Could not load 'hydra/launcher/ray'" in text:
        return (
            "hydra/launcher=ray_cluster needs an extra: pip install "
            "'vlmrm_exp[ray-launcher]'."
        )
    if error.__cause__ is not None and text.startswith("Error merging"):
        value = text.removeprefix("Error merging override ").strip("'")
        why = one_sentence(error.__cause__)
        gives = (f"give {WANTED[how]}" for how in WANTED if re.search(how, why))
        why = next(gives, why.rstrip("."))
        return f"{value} is not possible: {why}.{_views_hint(value)}"
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
        wanted, names = unknown[1], set(setting_names()) - {unknown[1]}
        if stage := re.search(r"Key '(.+)' not in 'StageConfig'", str(error.__cause__)):
            wanted = f"{wanted}.{stage[1]}"
            names = {f"stages.{field.name}" for field in fields(StageConfig)}
        return (
            f"There is no setting {wanted}: see --help for those there are."
            f"{did_you_mean(wanted, names)}"
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


def _views_hint(argument: str) -> str:
    """How several cameras are given, to who gave camera=VALUE otherwise."""
    if not argument.partition("=")[0].endswith("camera"):
        return ""
    return " Views are joined with +, as fixed+side."


def setting_names() -> list[str]:
    """Every key of the schema, dotted."""
    schema: Any = OmegaConf.to_container(OmegaConf.structured(Config))
    groups = {group: held for group, held in schema.items() if isinstance(held, dict)}
    inner = (f"{group}.{key}" for group, held in groups.items() for key in held)
    return ["experiment", *schema, *inner]
