"""What a program that failed leaves in its folder."""

import contextlib
import shutil
import traceback
from pathlib import Path

from vlmrm_exp.config import ConfigError, FolderTakenError

HYDRAS = tuple(".hydra config.yaml versions.json error.txt wandb tensorboard".split())
"""What lies in a folder before anything has come of a run."""


class Before:
    """A folder as it was before a program began; without one, nothing was there."""

    def __init__(self, folder: Path | None = None) -> None:
        above = (folder, *folder.parents) if folder else ()
        self.names = _names_in(folder) if folder else set()
        self.missing = [path for path in above if not path.exists()]  # innermost first

    def leave(self, folder: Path, error: BaseException, alone: bool) -> None:
        """Leave nothing of a run that was refused, and error.txt of one that failed.

        `error` is what ended it; a sweep, whose jobs are not `alone`, is read later.
        """
        # That run is not to blame, nor is this one where nobody reads along any more.
        if isinstance(error, (FolderTakenError, BrokenPipeError)):
            return
        new = _names_in(folder) - self.names
        metrics = folder / "metrics.jsonl"
        if "metrics.jsonl" in new and metrics.stat().st_size == 0:
            metrics.unlink()
            new.remove("metrics.jsonl")
        if alone and isinstance(error, ConfigError) and new <= set(HYDRAS):
            for path in (folder / name for name in new):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            with contextlib.suppress(OSError):  # something else was put there
                for path in self.missing:
                    path.rmdir()
            return
        with contextlib.suppress(OSError):  # a full disk
            text = "".join(traceback.format_exception(error))
            (folder / "error.txt").write_text(text, encoding="utf-8")


def _names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()
