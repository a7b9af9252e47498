"""One page, which needs no network, that shows the results of runs and studies."""

import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from vlmrm_exp import app
from vlmrm_exp.checks import number_from_0
from vlmrm_exp.composition import Composed
from vlmrm_exp.config import ConfigError
from vlmrm_exp.files import unusable
from vlmrm_exp.reporting.groups import count_statuses
from vlmrm_exp.reporting.page import write_page
from vlmrm_exp.reporting.run_folders import names_of, walk


@dataclass
class ReportConfig:
    """See conf/report.yaml."""

    files: list[str]
    out: str | None = None
    videos: bool = True
    max_mb: float = 60.0


def report(asked: ReportConfig) -> Path:
    """Make the page and return where it is, or a ConfigError."""
    hint = "give the folder of a sweep or of runs, as outputs/sweeps/NAME."
    if not asked.files:
        raise ConfigError(f"Which runs? Please {hint}")
    number_from_0("max_mb", asked.max_mb)
    runs, results, unread = {}, {}, {}  # by their places, so that each counts once
    folders = [Path(folder).expanduser() for folder in asked.files]
    names = names_of(folders)
    for folder, name in zip(folders, names, strict=True):
        if not folder.is_dir():
            is_file = f"{folder} is a file" if folder.exists() else ""
            raise ConfigError(f"{is_file or f'There is no folder {folder}'}: {hint}")
        of_folder, studies, told = walk(folder, name)
        if not of_folder and not studies:
            kinds = "epic, label, landscape, peak or prompts"
            none = f"holds no run and no result of {kinds}"
            raise ConfigError(" ".join(told) or f"{folder} {none}: {hint}")
        runs |= {run.folder.resolve(): run for run in of_folder}
        results |= {path.resolve(): path for path in studies}
        unread |= dict.fromkeys(told)
    out = Path(asked.out).expanduser() if asked.out else folders[0] / "report"
    title = ", ".join(names)
    found = [*runs.values()], [*results.values()], [*unread]
    try:
        out.mkdir(parents=True, exist_ok=True)
        # All is there before anything of an older report is replaced.
        with tempfile.TemporaryDirectory(prefix=".", dir=out) as part:
            max_mb = asked.max_mb if asked.videos else None
            write_page(Path(part), title, *found, max_mb)
            for path in sorted(Path(part).iterdir()):
                path.replace(out / path.name)
    except OSError as error:
        raise ConfigError(
            f"{unusable(error, out)}; out=FOLDER chooses where the report is written."
        ) from error
    finally:
        with contextlib.suppress(OSError):  # it is not empty, or not there
            out.rmdir()
    page, counts = out / "report.html", count_statuses(found[0])
    print(f"{len(runs)} runs ({counts}), {len(results)} results of studies")
    print(f"  page  {page}", *unread, sep="\n")
    return page


ConfigStore.instance().store(name="report_schema", node=ReportConfig)


def check(composed: Composed) -> ReportConfig:
    """What is asked."""
    asked: Any = OmegaConf.to_object(composed.cfg)
    return asked


if __name__ == "__main__":
    app.start(lambda composed: report(check(composed)), "report", check, files=True)
