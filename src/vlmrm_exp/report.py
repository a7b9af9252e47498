"""One page that shows what runs and studies came to, with its figures as files.

It needs neither network nor server. Runs that failed or did not end are listed with the
reason.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from vlmrm_exp.config import ConfigError
from vlmrm_exp.files import unusable
from vlmrm_exp.reporting.groups import count_statuses
from vlmrm_exp.reporting.page import write_page
from vlmrm_exp.reporting.run_folders import walk


@dataclass
class ReportConfig:
    """What to report on."""

    files: list[str]
    """Folders of sweeps, runs or studies, which are searched with all folders inside."""
    out: str | None = None
    """Folder to write into; None: report/ in the first of `files`."""
    videos: bool = True
    """Put the runs' videos into the page."""
    max_mb: float = 60.0
    """Of videos in the page, in MB; those left out are listed."""


def report(asked: ReportConfig) -> Path:
    """Make the page; returns where it is.

    Raises:
        ConfigError: one sentence says what is wrong.
    """
    if not asked.files:
        raise ConfigError(
            "Which runs? Give the folder of a sweep or of runs, as outputs/sweeps/NAME."
        )
    if not (math.isfinite(asked.max_mb) and asked.max_mb >= 0):
        raise ConfigError(f"max_mb is {asked.max_mb}: give a number of MB from 0 up.")
    folders = [Path(folder).expanduser() for folder in asked.files]
    out = Path(asked.out).expanduser() if asked.out else folders[0] / "report"
    if out.is_file():
        raise ConfigError(f"out={out} is a file: give a folder to write into.")
    runs, results = {}, {}  # by their places, so that each counts once
    for folder in folders:
        if not folder.is_dir():
            problem = f"There is no folder {folder}"
            if folder.exists():
                problem = f"{folder} is a file"
            raise ConfigError(f"{problem}: give the folder of a sweep or of runs.")
        found = walk(folder)
        if not any(found):
            raise ConfigError(
                f"{folder} holds no run and no result of epic, landscape, peak or "
                "prompts: give the folder of a sweep or of runs, as "
                "outputs/sweeps/NAME."
            )
        runs |= {run.folder.resolve(): run for run in found[0]}
        results |= {path.resolve(): path for path in found[1]}
    title = ", ".join(folder.resolve().name for folder in folders)
    max_mb = asked.max_mb if asked.videos else None
    every, studies = list(runs.values()), list(results.values())
    try:
        out.mkdir(parents=True, exist_ok=True)
        page = write_page(out, title, every, studies, max_mb)
    except OSError as error:
        raise ConfigError(
            f"{unusable(error, out)}; out=FOLDER chooses where the report is written."
        ) from error
    counts = f"{len(runs)} run{'' if len(runs) == 1 else 's'} ({count_statuses(every)})"
    print(f"{counts}, {len(results)} other result{'' if len(results) == 1 else 's'}")
    print(f"  page  {page}")
    return page
