"""Find and read what runs left in their folders, whatever state they are in.

Nothing here raises, whatever the files hold: a run that failed, was killed or is still
being written is read as far as possible, and its notes say what could not be read.
"""

import json
import math
import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from vlmrm_exp.files import natural, reason, unusable
from vlmrm_exp.reporting.statistics import Success

STATUSES = ("finished", "interrupted", "failed", "unfinished")
FINISHED, INTERRUPTED, FAILED, UNFINISHED = STATUSES

RESULTS = ("epic.json", "label.json", "landscape.json", "peak.json", "prompts.json")
"""What studies write, each with a picture of the same name beside it."""
CONFIGS = ("config.yaml", ".hydra/config.yaml")  # resolved, or if it failed early
TRACES = ("error.txt", "metrics.jsonl", "summary.json")
SKIPPED = {"wandb", "checkpoints", "videos", "node_modules", "__pycache__"}


class Run:
    """What one run's folder holds."""

    def __init__(
        self, folder: Path, name: str, config: dict[str, Any], notes: list[str]
    ) -> None:
        def content(file: str) -> dict[str, Any]:
            return read(folder / file, json.loads, {}, notes)

        self.folder = folder
        self.name = name  # the folder, from the one on where the search began
        self.notes = notes  # what could not be read, or is unusual
        self.config = config  # {"task.name": "kneeling", ...}; empty: unreadable
        self.seed = str(config.get("seed", "?"))
        self.summary = content("summary.json")
        self.success = success_of(self.summary)  # of the kept policy
        self.reward = number(self.summary.get("eval/reward_mean"))  # a step
        self.reports = _reports(folder / "metrics.jsonl", notes)
        self.judges = [
            key.removeprefix("judge/")
            for key in self.reports
            if key[:6] == "judge/" and len(self.curve(key))
        ]
        self.alarms = {
            name: alarm
            for name, alarm in mapping(self.summary.get("alarms")).items()
            if number(mapping(alarm).get("env_steps")) is not None
            and isinstance(alarm.get("judge"), str)
        }
        steps = [0, *self.curve("env_steps")]
        self.env_steps = int(number(self.summary.get("env_steps")) or steps[-1])
        found = sorted(folder.glob("evaluation*.json"), key=lambda path: path.stem)
        self.evaluations = {path.stem: content(path.name) for path in found}
        self.versions = content("versions.json")
        self.encoder = mapping(self.versions.get("encoder"))  # of the reward
        image, text = (
            number(self.encoder.get(f"parameters_{of}")) for of in ("image", "text")
        )
        self.parameters = None if image is None or text is None else image + text
        self.environment = environment_text(
            self.versions, {str(self.encoder.get("name")): self.encoder}
        )
        self.typed = str(self.versions.get("command") or "")  # it may be a sweep's
        self.command = _command(folder, config, self.typed, notes)  # of this run alone
        self.videos = sorted((folder / "videos").glob("[!.]*.mp4"))
        self.error = read(folder / "error.txt", str, "", notes)
        self.status, self.reason = self._state()
        self.written = 0.0  # when it ended; of older runs, as far as a copy keeps it
        if self.status == FINISHED:
            written = (folder / "summary.json").stat().st_mtime
            self.written = number(self.summary.get("ended")) or written
        self.repeats = ""  # a finished run of the same settings that counts instead
        rate = number(self.summary.get("eval/success_rate"))
        if rate is not None and not 0 <= rate <= 1:
            notes.append(
                f"its success rate is {rate:g}, which is no share: not counted"
            )

    def _state(self) -> tuple[str, str]:
        """One of `STATUSES`, and why it is not finished."""
        if self.summary.get("interrupted"):
            return INTERRUPTED, f"interrupted after {self.env_steps:,} env steps"
        if self.summary:
            if self.error:  # for example, a later start in the same folder was refused
                self.notes.append(f"error.txt says: {last_error(self.error)}")
            return FINISHED, ""
        if self.error:
            return FAILED, last_error(self.error)
        latest = max(path.lstat().st_mtime for path in self.folder.iterdir())
        when = datetime.fromtimestamp(latest).isoformat(" ", "minutes")
        return UNFINISHED, f"no summary: still running or killed; last written {when}"

    def curve(self, key: str) -> pd.Series:
        """A metric over env steps, in order; of two reports of one step the later."""
        if not {"env_steps", key} <= set(self.reports):
            return pd.Series(dtype=float)
        points: Any = self.reports.dropna(subset=["env_steps", key])
        points = points.drop_duplicates("env_steps", keep="last")
        return points.set_index("env_steps", drop=False)[key].sort_index()


def names_of(tops: Sequence[Path]) -> list[str]:
    """Their names; of several with one name, the paths from where all of them part."""
    paths = [top.resolve() for top in tops]
    names = Counter(path.name for path in {*paths})
    common = os.path.commonpath([path.parent for path in paths]) if paths else ""
    return [
        os.path.relpath(path, common) if names[path.name] > 1 else path.name
        for path in paths
    ]


def walk(top: Path, name: str = "") -> tuple[list[Run], list[Path], list[str]]:
    """The runs and studies' files in a folder and below, and what cannot be read there.

    Names of runs begin with `name`, or else with the folder's own.
    A run is a folder with the settings of a training run, or with one of `TRACES`. The
    folders in it are searched too: such a file may lie in a folder of runs by mistake.
    """
    runs: list[Run] = []
    results: list[Path] = []
    unread: list[str] = []

    def told(error: OSError) -> None:
        unread.append(f"{unusable(error)}.")

    for place, inner, files in os.walk(top, onerror=told):
        folder = Path(place)
        try:
            if run := read_run(folder, top, name):
                runs.append(run)
        except Exception as error:  # such files may hold anything
            unread.append(f"{folder} cannot be read ({reason(error, named=True)}).")
        searched = (i for i in inner if i not in SKIPPED and i[0] != ".")
        inner[:] = sorted(searched, key=natural)
        results += [folder / result for result in sorted(set(files) & set(RESULTS))]
    return runs, results, unread


def read_run(folder: Path, top: Path, name: str = "") -> Run | None:
    """Read one folder; None if it is not that of a training run."""
    notes: list[str] = []
    if not any((folder / name).is_file() for name in (*CONFIGS, *TRACES)):
        return None
    readable = (read(folder / name, yaml.safe_load, {}, notes) for name in CONFIGS)
    config = next(filter(None, readable), {})
    if config and (not isinstance(config.get("task"), dict) or "out" in config):
        return None  # pretraining, a study, or something that is not ours
    if not config:
        notes.append("its settings are not known")
    name = str(Path(name or top.resolve().name, folder.relative_to(top)))
    return Run(folder, name, _flat(config), notes)


def environment_text(versions: dict[str, Any], models: dict[Any, Any]) -> str:
    """Commit, packages, machine and models' weights, from versions.json."""
    if not versions:
        return "not recorded"
    commit = str(versions.get("commit") or "not recorded")
    if versions.get("commit_is_dirty"):
        commit += " with changes that are in no commit"
    named = {"commit": commit, "Python": versions.get("python")}
    named |= mapping(versions.get("packages")) | {"drawn by": versions.get("drawn_by")}
    named |= {key: versions.get(key) for key in ("device", "gpu", "cpu")}
    for name, model in models.items():
        named[f"weights of {name}"] = str(model.get("weights_sha256") or "")[:12]
    return ", ".join(f"{name} {value}" for name, value in named.items() if value)


def last_error(traceback: str) -> str:
    """The line of a traceback that names the exception, without its module."""
    lines = [line for line in traceback.splitlines() if line.strip()]
    # Further lines of an exception's text are indented, or do not begin with "name:".
    is_named = re.compile(r"(?!Traceback)[A-Za-z_][\w.]*(:|$)").match
    last = ([*filter(is_named, lines)] or lines or ["error.txt is empty"])[-1].strip()
    return re.sub(r"^(?:\w+\.)+(\w+)(?=:|$)", r"\1", last)


def number(value: Any) -> float | None:
    """The value if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) <= sys.float_info.max else None


def mapping(value: Any) -> dict[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def success_of(values: Mapping[str, Any]) -> Success | None:
    """The success in summary.json or evaluation.json; None: no share of any episode."""
    rate = number(values.get("eval/success_rate"))
    episodes = number(values.get("eval/episodes"))
    if rate is None or episodes is None or not 0 <= rate <= 1 or episodes < 1:
        return None
    return Success(round(rate * episodes), int(episodes))


def value_text(value: Any) -> str:
    """A value of a JSON or YAML file for people."""
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return "-" if math.isnan(value) else f"{value:.4g}"
    return "-" if value is None else str(value)


def read(path: Path, load: Callable[[str], Any], empty: Any, notes: list[str]) -> Any:
    """What a file holds; `empty` if it is not there, or, with a note, is damaged."""
    if not path.is_file():
        return empty
    try:
        value = load(path.read_text(encoding="utf-8", errors="replace"))
        if isinstance(value, type(empty)):
            return value
        why = "it holds something else"
    except Exception as error:  # 10,000 brackets are a RecursionError
        why = reason(error)
    notes.append(f"{path.name} cannot be read ({why})")
    return empty


def _reports(path: Path, notes: list[str]) -> pd.DataFrame:
    reports, bad = [], 0
    for line in filter(str.strip, read(path, str, "", notes).splitlines()):
        try:
            report = json.loads(line)
            reports.append({key: number(value) for key, value in report.items()})
        except (ValueError, AttributeError, RecursionError):
            bad += 1
    if bad:
        lines = "1 line is" if bad == 1 else f"{bad} lines are"
        notes.append(f"{lines} unreadable in metrics.jsonl and left out")
    return pd.DataFrame(reports, dtype=float)


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """Nested settings by their dotted names; what is no number of them is a text."""
    plain = json.loads(json.dumps(config, default=str, skipkeys=True))
    flat = pd.json_normalize(plain).to_dict("records")
    return {
        key: str(value) if isinstance(value, float) and number(value) is None else value
        for key, value in (flat[0] if flat else {}).items()
    }


def _command(folder: Path, config: dict[str, Any], typed: str, notes: list[str]) -> str:
    """The command line of this run alone, from what Hydra recorded.

    A record of other settings is of a second start that was refused; then only the
    command as typed is known.
    """
    composed = _flat(read(folder / CONFIGS[1], yaml.safe_load, {}, []))
    fixed = {key: value for key, value in composed.items() if "${" not in str(value)}
    if typed and not (composed and fixed.items() <= config.items()):
        return typed
    record = read(folder / ".hydra" / "hydra.yaml", yaml.safe_load, {}, notes)
    words = ["python", "-m", "vlmrm_exp"]
    try:
        hydra = record["hydra"]
        overrides = list(hydra["overrides"]["task"])
        job, runtime = hydra["job"], hydra["runtime"]
        for source in runtime["config_sources"]:
            if source["provider"] == "command-line":
                place = os.path.relpath(source["path"], runtime["cwd"])
                words += ["--config-dir", place]
        if job["config_name"] != "config":  # a sweep's file asks for all its jobs
            words += ["--config-name", job["config_name"], "hydra.mode=RUN"]
    except (KeyError, TypeError):
        return "not recorded"
    return " ".join(_quoted(str(word)) for word in [*words, *overrides])


def _quoted(word: str) -> str:
    """A word for the shell, in double quotes where these suffice: they read better."""
    plain = shlex.quote(word)
    return plain if plain == word or set(word) & set('"$`\\!') else f'"{word}"'
