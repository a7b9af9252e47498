"""Find and read what runs left in their folders, whatever state they are in.

Nothing here refuses: a run that failed, was killed or is still being written is read as
far as it goes, and what could not be read is told in its notes.
"""

import contextlib
import functools
import json
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

FINISHED, INTERRUPTED, FAILED, UNFINISHED = (
    "finished",
    "interrupted",
    "failed",
    "unfinished",
)
STATUSES = (FINISHED, INTERRUPTED, FAILED, UNFINISHED)

RESULTS = ("epic.json", "landscape.json", "peak.json", "prompts.json")
"""What other verbs write, each with a picture of the same name beside it."""
CONFIGS = ("config.yaml", ".hydra/config.yaml")
"""A run's settings: resolved, or, if it failed early, as Hydra composed them."""
TRACES = ("error.txt", "metrics.jsonl", "summary.json")
SKIPPED = {"wandb", "checkpoints", "videos", "node_modules", "__pycache__"}


@dataclass
class Run:
    """One run's folder."""

    folder: Path
    name: str
    """The folder, from the one on where the search began."""
    status: str
    """One of `STATUSES`."""
    reason: str = ""
    """Why it is not finished."""
    notes: list[str] = field(default_factory=list)
    """What could not be read, or is odd."""
    error: str = ""
    """error.txt."""
    config: dict[str, Any] = field(default_factory=dict)
    """Its settings, dotted: {"task.name": "kneeling", ...}; empty: unreadable."""
    summary: dict[str, Any] = field(default_factory=dict)
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What `python -m vlmrm_exp.evaluate` wrote, by file name without .json."""
    reports: list[dict[str, Any]] = field(default_factory=list)
    """Lines of metrics.jsonl."""
    versions: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    """Repeats this run alone; empty: not recorded. If a later start changed Hydra's
    record, it is the command as typed, which may be a sweep's."""
    videos: list[Path] = field(default_factory=list)
    written: float = 0.0
    """When its summary was written, in seconds since 1970; 0: it has none."""
    repeats: str = ""
    """Name of a newer finished run with the same settings and seed, which counts in
    its place; empty: none."""

    @functools.cached_property
    def env_steps(self) -> int:
        """Labelled env steps so far."""
        steps, _ = self.curve("env_steps")
        last = int(steps[-1]) if len(steps) else 0
        return int(number(self.summary.get("env_steps")) or last)

    def curve(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """A metric over env steps: (P,), rising, and (P,), without missing values.

        Of two reports of one step the later one counts.
        """
        points: dict[float, float] = {}
        for report in self.reports:
            step, value = number(report.get("env_steps")), number(report.get(key))
            if step is not None and value is not None:
                points[step] = value
        steps = sorted(points)
        return np.array(steps), np.array([points[step] for step in steps])


def walk(top: Path) -> tuple[list[Run], list[Path]]:
    """Find all runs and other verbs' results in a folder and below.

    A run is a folder with the settings of a training run, or with one of `TRACES`. It
    is searched too: such a file may lie astray in a folder of runs.

    Returns:
        Runs, and the paths of the result files, each in the order of names.
    """
    runs: list[Run] = []
    results: list[Path] = []
    for name, inner, files in os.walk(top):
        folder = Path(name)
        if run := read_run(folder, top):
            runs.append(run)
        searched = (i for i in inner if i not in SKIPPED and i[0] != ".")
        inner[:] = sorted(searched, key=natural)
        results += [folder / result for result in sorted(set(files) & set(RESULTS))]
    return runs, results


def natural(text: str) -> list[tuple[int, str]]:
    """A sort key that puts job 2 before job 10."""
    return [(int(t or 0), "") if t.isdigit() else (0, t)
            for t in re.split(r"(\d+)", text)]  # fmt: skip


def read_run(folder: Path, top: Path) -> Run | None:
    """Read one folder; None when it is not that of a training run."""
    notes: list[str] = []
    configs = [folder / name for name in CONFIGS if (folder / name).is_file()]
    config: dict[str, Any] = {}
    for path in configs:
        if config := _read(path, yaml.safe_load, notes):
            break
    has_traces = any((folder / name).is_file() for name in TRACES)
    if config and not isinstance(config.get("task"), dict):
        return None  # pretraining, or something that is not ours
    if not configs and not has_traces:
        return None
    if not config:
        notes.append("its settings are not known")
    run = Run(
        folder=folder,
        name=str(Path(top.resolve().name, folder.relative_to(top))),
        status=UNFINISHED,
        notes=notes,
        config=dict(_flat(config)),
        summary=_read(folder / "summary.json", json.loads, notes),
        evaluations={
            path.stem: _read(path, json.loads, notes)
            for path in sorted(folder.glob("evaluation*.json"), key=lambda p: p.stem)
        },
        versions=_read(folder / "versions.json", json.loads, notes),
        reports=_read_lines(folder / "metrics.jsonl", notes),
        command=_command(folder, notes),
        videos=sorted((folder / "videos").glob("[!.]*.mp4")),
        error=_text(folder / "error.txt", notes),
    )
    if run.versions.get("command") and not _is_hydras(folder, run.config):
        run.command = str(run.versions["command"])
    rate = number(run.summary.get("eval/success_rate"))
    if rate is not None and not 0 <= rate <= 1:
        notes.append(f"its success rate is {rate:g}, which is no share: not counted")
    last_words = last_error(run.error)
    if run.summary and not run.summary.get("interrupted"):
        run.status = FINISHED
        with contextlib.suppress(OSError):
            run.written = (folder / "summary.json").stat().st_mtime
        if run.error:  # a later start in the same folder was refused, say
            run.notes.append(f"error.txt says: {last_words}")
    elif run.summary:
        run.status = INTERRUPTED
        run.reason = f"interrupted after {run.env_steps:,} env steps"
    elif run.error:
        run.status, run.reason = FAILED, last_words
    else:
        latest = max(path.lstat().st_mtime for path in folder.iterdir())
        when = datetime.fromtimestamp(latest).isoformat(" ", "minutes")
        run.reason = f"no summary: still running or killed; last written {when}"
    return run


def last_error(traceback: str) -> str:
    """The line of a traceback that names the exception, without its module."""
    lines = [line for line in traceback.splitlines() if line.strip()]
    # What an exception says further is indented, or no name followed by a colon.
    named = [
        line for line in lines if re.match(r"(?!Traceback)[A-Za-z_][\w.]*(:|$)", line)
    ]
    last = (named or lines or ["error.txt is empty"])[-1].strip()
    return re.sub(r"^(?:\w+\.)+(\w+)(?=:|$)", r"\1", last)


def number(value: Any) -> float | None:
    """The value if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if np.isfinite(value) else None


def read_json(path: Path, notes: list[str]) -> Any:
    """A JSON file's value; None, and a note, when it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        notes.append(f"{path.name} cannot be read ({_reason(error)})")
        return None


def _read(path: Path, load: Callable[[str], Any], notes: list[str]) -> dict[str, Any]:
    """A file's mapping; empty when there is none, with a note when it is unreadable."""
    if not path.is_file():
        return {}
    try:
        value = load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        notes.append(f"{path.name} cannot be read ({_reason(error)})")
        return {}
    if not isinstance(value, dict):
        notes.append(f"{path.name} cannot be read (it holds no settings)")
        return {}
    return value


def _text(path: Path, notes: list[str]) -> str:
    """A file's text; empty when there is none, with a note when it is unreadable."""
    if not path.is_file():
        return ""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        notes.append(f"{path.name} cannot be read ({_reason(error)})")
        return ""


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _read_lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    reports, bad = [], 0
    for line in _text(path, notes).splitlines():
        try:
            report = json.loads(line)
        except ValueError:
            report = None
        if isinstance(report, dict):
            reports.append(report)
        elif line.strip():
            bad += 1
    if bad:
        lines = "1 line is" if bad == 1 else f"{bad} lines are"
        notes.append(f"{lines} unreadable in metrics.jsonl and left out")
    return reports


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _is_hydras(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether Hydra's record is of the start that made this run.

    Hydra writes it before a second start in the same folder is refused.
    """
    composed = dict(_flat(_read(folder / CONFIGS[1], yaml.safe_load, [])))
    fixed = {key for key, value in composed.items() if "${" not in str(value)}
    return bool(composed) and all(config.get(k) == composed[k] for k in fixed)


def _command(folder: Path, notes: list[str]) -> str:
    """The command line of this run alone, from what Hydra recorded."""
    record = _read(folder / ".hydra" / "hydra.yaml", yaml.safe_load, notes)
    try:
        hydra = record["hydra"]
        overrides = list(hydra["overrides"]["task"])
        job, runtime = hydra["job"], hydra["runtime"]
        words = ["python", "-m", "vlmrm_exp"]
        given = [s["path"] for s in runtime["config_sources"]
                 if s["provider"] == "command-line"]  # fmt: skip
        if given:
            inside = os.path.relpath(given[0], runtime["cwd"])
            words += ["--config-dir", given[0] if inside[:2] == ".." else inside]
        if job["config_name"] != "config":  # a sweep's file asks for all its jobs
            words += ["--config-name", job["config_name"], "hydra.mode=RUN"]
    except (KeyError, TypeError):
        return ""
    return " ".join(quoted(str(word)) for word in [*words, *overrides])


def quoted(word: str) -> str:
    """A word for the shell, in double quotes where these do, which read better."""
    plain = shlex.quote(word)
    return plain if plain == word or set(word) & set('"$`\\!') else f'"{word}"'
