"""What people type on the command line, as the overrides that Hydra reads.

Sentences are data: they arrive as they were typed, whatever Hydra's grammar makes of
their commas, brackets and letters. As the program gets them, behind the shell's quotes:

    prompt=a car (red), next to a flag      one sentence, to its end
    prompt=[a car, "a car, red"]            a list; quotes hold a comma
    prompt="a car","a flag"                 with -m, a job for each
    prompt=choice(a car, a flag)            the same
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from vlmrm_exp.checks import folder_name
from vlmrm_exp.config import ConfigError, conf_dir

HYDRA_TAKES_VALUE = tuple(
    "-c --cfg -p --package -cd --config-dir -cn --config-name -cp --config-path -i "
    "--info --experimental-rerun".split()
)
"""Options of Hydra that a value follows."""
SETTINGS = (".yaml", ".yml", ".YAML", ".YML")
OPEN = ("task.options.", "reward.options.")
"""How keys begin that name settings of one's own, which need not be there before."""
TOLD = {
    "judge.": ("config",),
    "member.": ("config", "bench", "epic", "landscape", "peak"),
}
"""How settings begin that hold others, and which primary configurations read them."""
SENTENCES = {"prompt": 1, "baseline": 1, "prompts": 2, "baselines": 2, "question": 0}
"""Settings that hold sentences, and how many lists may lie in one another."""
NUMBER = re.compile(r"[+-]?(\d[\w.+-]*|\.\d+|inf|nan)|true|false", re.IGNORECASE)
"""What Hydra may read as a number or a truth value."""
QUOTED = re.compile(r"""(['"])(?:\\.|(?!\1)[^\\])*\1""", re.DOTALL)
"""A text in quotes, as Hydra reads it: a backslash keeps the next quote inside."""


def to_keys(
    words: list[str],
    plural: Mapping[str, str],
    files: bool = False,
    program: str = "",
) -> list[str]:
    """Turn words that Hydra would refuse, merge or misread into overrides for it.

    - `prompt=a car, next to a flag`: a sentence is quoted.
    - `clip=tiny,base`, where several can be studied: `clips=[tiny,base]`, `clip=tiny`.
    - `sweeps/x.yaml`: `--config-dir sweeps --config-name x`.
    - `sweep=NAME`: `hydra.sweep.dir=outputs/sweeps/NAME`.
    - `resume=FOLDER`, of a run: what that run was told, and its folder.
    - `judge.NAME=prompt=a car, red`, `member.NAME=...`: added, quoted as a sentence.
    - `photo.jpg`, where files are looked at: an element of `files=[...]`.

    Args:
        words: of the command line.
        plural: for keys that may hold several values, the key of the list.
        files: whether words without a key are files.
        program: its primary configuration, where judges or members may be told.

    Raises:
        ConfigError: a word is no setting, or cannot be read; the sentence names it.
    """
    options, keys, named, files_read, told_before = [], [], [], [], []
    words = [_text(word) for word in words]
    sweeps = bool({"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(words))
    for word in words:
        if "=" not in word and word.endswith(SETTINGS):
            files_read.append(word)
            sweeps |= _read_settings(Path(word), sweeps)
    if len(files_read) > 1:
        raise ConfigError(
            f"{' and '.join(files_read)} are both settings files: give one, whose "
            "defaults may name others."
        )
    for before, word in zip(["", *words], words, strict=False):
        key, equals, value = word.partition("=")
        bare = key.lstrip("+")
        if word.startswith("-") or before in HYDRA_TAKES_VALUE:
            if before in ("-cd", "--config-dir"):
                _check_groups(Path(word))
            options.append(word)
        elif not equals and word.endswith(SETTINGS):
            path = Path(word)
            options += ["--config-dir", str(path.parent), "--config-name", path.stem]
        elif files and (not equals or os.path.exists(os.path.expanduser(word))):
            named.append(word)
        elif not equals:
            raise ConfigError(
                f"{word} is no setting: those are key=value; see --help. Nothing can "
                "be taken out."
            )
        elif key in plural:
            keys += several(key, value, plural[key])
        elif bare == "member" and program in TOLD["member."]:
            raise ConfigError(
                "Members have names: give each as member.NAME=..., as "
                "member.big=clip=bigG."
            )
        elif (conf_dir() / bare).is_dir() and (value == "null" or value[:1] == "_"):
            if word != "experiment=null":  # it has none of itself
                raise ConfigError(f"{word} is no option: see --help for those.")
        elif (conf_dir() / bare).is_dir() and NUMBER.fullmatch(value):
            keys.append(f"{bare}={quoted(value)}")  # Hydra takes no number for a name
        elif key == "sweep":
            if not sweeps:
                raise ConfigError("sweep=NAME names a sweep: add -m, or leave it out.")
            folder_name("sweep", value, "outputs/sweeps/")
            keys.append(readable(f"hydra.sweep.dir=outputs/sweeps/{value}"))
        elif key == "resume" and program == "config":
            if sweeps:
                raise ConfigError("resume=FOLDER is of one run: leave -m out.")
            told_before = _told_before(value)
        else:
            keys.append(setting(key, value, sweeps, program))
    last = {one.partition("=")[0]: one.lstrip("+") for one in keys}
    for key, counts in last.items():
        if (times := sum(one.startswith(f"{key}=") for one in keys)) > 1:
            told = f"{key.lstrip('+')} is given {times} times: {counts} counts."
            print(told, flush=True)
    if named:
        if any(key.startswith("files=") for key in keys):
            raise ConfigError(
                "Files are given with files= and without: give all alike."
            )
        keys.append(f"files=[{','.join(quoted(name) for name in named)}]")
    own = {key.lstrip("+") for key in last}
    kept = [x for x in told_before if x.lstrip("+").partition("=")[0] not in own]
    return options + kept + keys  # which Hydra takes in this order alone


def _told_before(folder: str) -> list[str]:
    """What the run in a folder was told, as Hydra got it, and that folder."""
    path = Path(folder).expanduser() / ".hydra"
    try:
        kept = yaml.safe_load((path / "overrides.yaml").read_text(encoding="utf-8"))
        hydra = yaml.safe_load((path / "hydra.yaml").read_text(encoding="utf-8"))
        how = hydra["hydra"]["mode"], hydra["hydra"]["job"]["config_name"]
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        kept, how = None, ()
    if not isinstance(kept, list) or how != ("RUN", "config"):
        raise ConfigError(
            f"resume={folder} is not the folder of a run that was started alone: give "
            "one, as outputs/TASK/NAME. A sweep, or a run of a settings file, goes on "
            "with the same command and hydra.sweep.dir or hydra.run.dir."
        )
    return [*map(str, kept), f"hydra.run.dir={quoted(str(path.parent))}"]


def setting(key: str, value: str, sweeps: bool, program: str = "") -> str:
    """Hydra's override of one setting; `sweeps`: there are several jobs."""
    bare = key.lstrip("+")
    if bare in SENTENCES:
        return f"{bare}={sentences(bare, value, sweeps)}"
    if any(bare.startswith(of) and program in TOLD[of] for of in TOLD):
        check_name(*bare.split(".", 1))
        return f"++{bare}={sentences(bare, value, sweeps)}"
    if bare.startswith(OPEN) and program in ("", "config", "bench"):
        return "++" + readable(f"{bare}={value}")
    if bare.startswith(("hydra", *OPEN)):
        return readable(f"{key}={value}")
    return readable(f"{bare}={value}")  # it is there, or is told as unknown


def wording(kind: str, number: int | None = None, *, _root_: Any) -> Any:
    """The sentences of some kind for the configured task, or one of them."""
    task = _root_.task.name
    path = Path(__file__).parent / "studies" / "sentences" / f"{task}.yaml"
    if not path.is_file():
        raise ConfigError(
            f"There are no other wordings of task={task}: give prompt=... instead."
        )
    found = yaml.safe_load(path.read_text(encoding="utf-8"))[kind]
    return found if number is None else found[number]


def check_name(kind: str, name: str) -> None:
    """Refuse a name of a judge or a member that is no word, with a ConfigError."""
    if not re.fullmatch(r"[\w-]+", name, re.ASCII):
        raise ConfigError(
            f"A {kind} is named {name!r}, which is no word: give one of letters, "
            "digits, - and _."
        )


def _text(word: str) -> str:
    """A word of a terminal whose letters Python did not know, in UTF-8."""
    try:
        return os.fsencode(word).decode() if "=" in word else word
    except UnicodeDecodeError:
        raise ConfigError(
            f"{word.partition('=')[0]} is no text in UTF-8: set the terminal to it."
        ) from None


def _read_settings(path: Path, sweeps: bool) -> bool:
    """Whether a settings file asks for several jobs; refuses what Hydra would drop."""
    if not path.is_file():
        raise ConfigError(f"There is no settings file {path}.")
    if path.suffix != ".yaml":
        raise ConfigError(f"{path} must end in .yaml for Hydra: rename it.")
    if (conf_dir() / path.name).exists() or path.stem.endswith("schema"):
        raise ConfigError(
            f"{path} has the name of a file of the program's own: give a settings file "
            "of another name, or the folder of a run."
        )
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())
        raise ConfigError(f"{path} is no YAML in UTF-8 ({why}): mend it.") from error
    if not isinstance(settings, dict) or not settings.get("defaults"):
        raise ConfigError(
            f"{path} does not say what it changes: begin it as the files in sweeps/ "
            "do, for a training run with defaults: [config, _self_]."
        )
    for group in settings:
        if (conf_dir() / str(group)).is_dir() and isinstance(
            settings[group], str | list
        ):
            raise ConfigError(
                f"{path} has {group}: {settings[group]}, which Hydra does not take: "
                f"write - override {group}: {settings[group]} under defaults."
            )
    _check_groups(path.parent)
    hydra = settings.get("hydra")
    hydra = hydra if isinstance(hydra, dict) else {}
    swept = hydra.get("mode") == "MULTIRUN"
    sweeper = hydra.get("sweeper")
    if isinstance(sweeper, dict) and sweeper.get("params") and not (swept or sweeps):
        raise ConfigError(
            f"{path} has hydra.sweeper.params, but asks for one job: add -m, or "
            "mode: MULTIRUN under hydra."
        )
    return swept


def _check_groups(folder: Path) -> None:
    """Refuse options of one's own that Hydra would pass over."""
    for own in folder.glob("*/*.yaml"):
        if (conf_dir() / own.relative_to(folder)).exists():
            raise ConfigError(
                f"{own} has the name of an option of the program's own, which would be "
                "taken instead: rename it."
            )


def swept(key: str, value: object, program: str = "") -> str:
    """Hydra's override for what a sweep file says of one setting."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        raise ConfigError(
            f"{key} is a list under hydra.sweeper.params: write its values as on the "
            f'command line, as {key}: "0,1", or for sentences "choice(a car, a flag)".'
        )
    return setting(key, str(value), True, program)


def several(key: str, value: str, plural: str) -> list[str]:
    """One or several values of a group, such as models: a list, and the first one."""
    if value == "null":
        return [f"{plural}=null"]
    parts = _whole_list(value.strip()) or _whole_list(f"[{value}]") or [value]
    names = (conf_dir() / key).is_dir()
    texts = [
        quoted(part)
        if (names and NUMBER.fullmatch(part)) or not _reads(f"x={part}")
        else part
        for part in parts
    ]
    # Other keys may be of the first option.
    own = [f"{key}={texts[0]}"] if re.fullmatch(r"\w[\w.]*", parts[0]) else []
    return [f"{plural}=[{','.join(texts)}]", *own]


def sentences(key: str, value: str, sweeps: bool) -> str:
    """Hydra's text of one sentence, a list of them, or one for each job of a sweep."""
    text, depth = value.strip(), SENTENCES.get(key, 1)
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
    unclosed = text.startswith("[") and not _whole_list(text)
    if unclosed and text.count("[") != text.count("]"):
        raise ConfigError(
            f"{key} has a bracket that is not closed: close it, or put a sentence "
            f"with brackets in quotes, as {key}='\"...\"'."
        )
    if sweeps and len(parts) > 1:
        print(
            f"{key} is one sentence, with its commas; for several jobs write "
            f"{key}='choice(a car, a flag)'.",
            flush=True,
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

    Where commas, quotes or brackets leave that unclear, it is refused.
    """
    key, _, value = word.partition("=")
    as_text = f"{key}={quoted(value)}"
    if key == "name" and re.fullmatch(r"[\w.+-]+", value):
        return as_text  # not a number or truth: 1e3 would become 1000.0
    if _reads(word):
        return word
    if re.search(r"""[,'"]|^\s*[\[{]|\$\{""", value) or not _reads(as_text):
        raise ConfigError(
            f"{key} cannot be read from {value!r}: close its quotes and brackets, or "
            f"put a text in quotes, as {key}='\"...\"'."
        )
    return as_text
