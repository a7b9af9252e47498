"""What people type on the command line, as the overrides that Hydra reads.

Sentences are data: they arrive as they were typed, whatever Hydra's grammar makes of
their commas, brackets and letters.

    prompt=a car (red), next to a flag      one sentence, to its end
    prompt=[a car, "a car, red"]            a list; quotes hold a comma
    prompt="a car","a flag"                 with -m, a job for each
    prompt=choice(a car, a flag)            the same
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from vlmrm_exp.config import ConfigError, conf_dir

HYDRA_TAKES_VALUE = tuple(
    "-c --cfg -p --package -cd --config-dir -cn --config-name -cp --config-path -i "
    "--info --experimental-rerun".split()
)
"""Options of Hydra that a value follows."""
SENTENCES = {"prompt": 1, "baseline": 1, "prompts": 2, "baselines": 2}
"""Settings that hold sentences, and how many lists may lie in one another."""
QUOTED = re.compile(r"""(['"])(?:\\.|(?!\1)[^\\])*\1""", re.DOTALL)
"""A text in quotes, as Hydra reads it: a backslash keeps the next quote inside."""


def to_keys(
    words: list[str], plural: Mapping[str, str], files: bool = False
) -> list[str]:
    """Turn words that Hydra would refuse, merge or misread into overrides for it.

    - `prompt=a car, next to a flag`: a sentence is quoted.
    - `clip=tiny,base`, where several can be studied: `clips=[tiny,base]`, `clip=tiny`.
    - `sweeps/x.yaml`: `--config-dir sweeps --config-name x`.
    - `photo.jpg`, where files are looked at: an element of `files=[...]`.

    Args:
        words: of the command line.
        plural: for keys that may hold several values, the key of the list.
        files: whether words without a key are files.

    Raises:
        ConfigError: a word is no setting, or cannot be read; the sentence names it.
    """
    options, keys, named = [], [], []
    sweeps = is_sweep(words)
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
            keys += several(key, value, plural[key])
        elif key.lstrip("+") in SENTENCES:
            keys.append(f"{key}={sentences(key.lstrip('+'), value, sweeps)}")
        else:
            keys.append(readable(word))
    if named:
        keys.append(f"files=[{','.join(quoted(name) for name in named)}]")
    return options + keys  # which Hydra takes in this order alone


def is_sweep(words: list[str]) -> bool:
    """Whether -m, or a settings file that says so, asks for several jobs."""
    if {"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(words):
        return True
    for path in (Path(word) for word in words if word.endswith((".yaml", ".yml"))):
        if path.is_file():
            try:
                return yaml.safe_load(path.read_bytes())["hydra"]["mode"] == "MULTIRUN"
            except (yaml.YAMLError, KeyError, TypeError, ValueError):
                pass  # told when Hydra reads it
    return False


def several(key: str, value: str, plural: str) -> list[str]:
    """One or several values of a group, such as models: a list, and the first one."""
    if value == "null":
        return [f"{plural}=null"]
    parts = _whole_list(value.strip()) or _whole_list(f"[{value}]") or [value]
    parts = [part if _reads(f"x={part}") else quoted(part) for part in parts]
    # Other keys may be of the first option.
    own = [f"{key}={parts[0]}"] if re.fullmatch(r"\w[\w.]*", parts[0]) else []
    return [f"{plural}=[{','.join(parts)}]", *own]


def sentences(key: str, value: str, sweeps: bool) -> str:
    """Hydra's text of one sentence, a list of them, or one for each job of a sweep.

    Args:
        key: the setting.
        value: as typed.
        sweeps: whether there are several jobs.

    Raises:
        ConfigError: a bracket is not closed, or several sentences have but one job.
    """
    text, depth = value.strip(), SENTENCES[key]
    if text in ("", "null"):
        return text
    choice = re.fullmatch(r"choice\((.*)\)", text, re.DOTALL)
    parts = _whole_list(f"[{choice[1] if choice else text}]") or []
    marked = [QUOTED.fullmatch(part) or _whole_list(part) for part in parts]
    if choice or (len(parts) > 1 and all(marked)):
        if sweeps:
            given = [_hydras(key, part, depth) for part in parts]
            # Hydra's sweepers take the quotes off a text, but not those in a list.
            lists = [one if one.startswith("[") else f"[{one}]" for one in given]
            return f"choice({','.join(lists)})"
        raise ConfigError(
            f"{key} has several sentences, one for each job of a sweep: add -m, or "
            f"write {key}=[...] to use them together; a sentence that looks so needs "
            "quotes around it."
        )
    if text.startswith("[") and not _whole_list(text):
        if text.count("[") != text.count("]"):
            raise ConfigError(
                f"{key} has a bracket that is not closed: close it, or put a sentence "
                f"with brackets in quotes, as {key}='\"...\"'."
            )
    return _hydras(key, text if any(marked) else value, depth)


def _hydras(key: str, text: str, depth: int) -> str:
    """Hydra's text of a sentence in quotes or not, or of a list of them."""
    if QUOTED.fullmatch(text):
        return literal(text)
    parts = _whole_list(text) if depth else None
    if parts is None:
        return quoted(text)
    if "" in parts and text[1:-1].strip():
        raise ConfigError(
            f"{key} has nothing between two commas of {text}: put a sentence with "
            "commas in quotes."
        )
    return f"[{','.join(_hydras(key, part, depth - 1) for part in parts if part)}]"


def _whole_list(text: str) -> list[str] | None:
    """The parts of a list in brackets; None: the text is something else."""
    found = _parts(text, 1) if text.startswith("[") else None
    return found[0] if found and found[1] == len(text) else None


def _parts(text: str, at: int) -> tuple[list[str], int] | None:
    """The parts of a list, from behind its bracket, and the place where it ends.

    Commas in quotes and in further brackets do not part it. A quote counts only around
    a whole part, so that apostrophes do not. None: it does not end.
    """
    parts: list[str] = []
    start, depth = at, 0
    while at < len(text):
        if not text[start:at].strip():
            quotes = QUOTED.match(text, at)
            inner = _parts(text, at + 1) if text[at] == "[" else None
            end = quotes.end() if quotes else inner[1] if inner else at
            if end > at and re.match(r"\s*[],]", text[end:]):
                at = end
        char = text[at]
        if char in ",]" and depth == 0:
            parts.append(text[start:at].strip())
            start = at + 1
            if char == "]":
                return parts, start
        depth += (char == "[") - (char == "]")
        at += 1
    return None


def _reads(word: str) -> bool:
    """Whether Hydra's grammar has such an override."""
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return False
    return True


def quoted(text: str) -> str:
    """A text in Hydra's quotes, to be taken as it is."""
    # A backslash means something only before a quote or at the end.
    text = re.sub(r"(\\*)'", r"\1\1\\'", text)
    text = re.sub(r"(\\+)$", r"\1\1", text)
    return f"'{literal(text)}'"


def literal(text: str) -> str:
    """A text in which OmegaConf interpolates nothing."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def readable(word: str) -> str:
    """Any other key=value as it is; what Hydra cannot read is taken as a text.

    Raises:
        ConfigError: that is not clear, because of commas, quotes or brackets.
    """
    key, _, value = word.partition("=")
    as_text = f"{key}={quoted(value)}"
    if _reads(word):
        return word
    if re.search(r"""[,'"]|^\s*[\[{]|\$\{""", value) or not _reads(as_text):
        raise ConfigError(
            f"{key} cannot be read from {value!r}: close its quotes and brackets, or "
            f"put a text in quotes, as {key}='\"...\"'."
        )
    return as_text
