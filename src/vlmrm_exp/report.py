"""Show what runs came to: `python -m vlmrm_exp.report FOLDER [FOLDER ...]`.

One page that needs neither network nor server, with its figures as files beside it.
Nothing is hidden: runs that failed or did not end are listed with the reason.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vlmrm_exp import cli
from vlmrm_exp.config import ConfigError

HELP = """\
Makes one page of runs and results, with figures, tables and videos.

  python -m vlmrm_exp.report outputs/sweeps/tasks-2026-01-31_12-00-00
  python -m vlmrm_exp.report outputs/sweeps/tasks-* outputs/epic out=outputs/report
  python -m vlmrm_exp.report outputs/kneeling videos=false

Settings:
  FOLDER ...        searched, with all folders inside, for runs and for epic.json,
                    landscape.json, peak.json and prompts.json
  out=null          folder to write into; null: report/ in the first FOLDER
  videos=true       put the runs' videos into the page
  max_mb=60         of videos in the page, in MB; what is left out is listed

Writes report.html, which opens from disk without a network, and beside it the figures
as PNG and SVG, groups.csv and runs.csv.
"""


@dataclass
class ReportConfig:
    """What to report on; see HELP."""

    folders: list[str] = field(default_factory=list)
    out: str | None = None
    videos: bool = True
    max_mb: float = 60.0


def parse(arguments: Sequence[str]) -> ReportConfig:
    """Turn the command line's arguments into checked values.

    Raises:
        ConfigError: one sentence says what is wrong.
    """
    asked = cli.parse(
        ReportConfig, arguments, positional="folders", text=("folders", "out")
    )
    if not asked.folders:
        raise ConfigError(
            "Which runs? Give the folder of a sweep or of runs, as outputs/sweeps/NAME."
        )
    if asked.out == "null":  # texts are taken as typed
        asked.out = None
    if not (math.isfinite(asked.max_mb) and asked.max_mb >= 0):
        raise ConfigError(f"max_mb is {asked.max_mb}: give a number of MB from 0 up.")
    if asked.out and Path(asked.out).expanduser().is_file():
        raise ConfigError(f"out={asked.out} is a file: give a folder to write into.")
    for folder in asked.folders:
        if not (path := Path(folder).expanduser()).is_dir():
            told = f"There is no folder {folder}"
            if path.exists():
                told = f"{folder} is a file"
            raise ConfigError(f"{told}: give the folder of a sweep or of runs.")
    return asked


def report(asked: ReportConfig) -> Path:
    """Make the page; returns where it is.

    Raises:
        ConfigError: a folder holds nothing to report on, or cannot be written into.
    """
    from vlmrm_exp.reporting.run_folders import walk

    folders = [Path(folder).expanduser() for folder in asked.folders]
    runs, results = {}, {}  # by their places, so that each counts once
    for folder in folders:
        found = walk(folder)
        if not any(found):
            raise ConfigError(
                f"{folder} holds no run and no result of epic, landscape, "
                "peak or prompts: give the folder of a sweep or of runs, as "
                "outputs/sweeps/NAME."
            )
        runs |= {run.folder.resolve(): run for run in found[0]}
        results |= {path.resolve(): path for path in found[1]}

    # Imported here so that --help and refusals are immediate.
    from vlmrm_exp.reporting.groups import count_statuses
    from vlmrm_exp.reporting.page import write_page

    out = Path(asked.out).expanduser() if asked.out else folders[0] / "report"
    title = ", ".join(folder.resolve().name for folder in folders)
    every, other = list(runs.values()), list(results.values())
    try:
        out.mkdir(parents=True, exist_ok=True)
        page = write_page(
            out, title, every, other, asked.max_mb if asked.videos else None
        )
    except OSError as error:
        raise ConfigError(
            f"{cli.unusable(error, out)}; out=FOLDER chooses where the report is "
            "written."
        ) from error
    told = f"{len(runs)} run{'' if len(runs) == 1 else 's'} ({count_statuses(every)})"
    print(f"{told}, {len(results)} other result{'' if len(results) == 1 else 's'}")
    print(f"  page  {page}")
    return page


def main() -> None:
    """Report as the command line says; bad input ends in one sentence."""
    cli.run_verb("report", HELP, lambda arguments: report(parse(arguments)))


if __name__ == "__main__":
    main()
