"""The folder that a verb writes its results into."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from vlmrm_exp.config import ConfigError
from vlmrm_exp.study.settings import ModelsConfig

RESULTS = ("epic.json", "peak.json", "prompts.json", "landscape.json", "scores.csv")
"""One of these is in a folder of results; files of two would be taken for one study."""


@contextlib.contextmanager
def result_folder(asked: ModelsConfig, verb: str) -> Iterator[Path]:
    """Where results go: what `out` says, or a folder named by the time.

    It is made before any work, so that none is done in vain, and is this process's
    alone; if nothing was written into it, it goes again.

    Args:
        asked: says where.
        verb: of whose results.

    Raises:
        ConfigError: there are results already, or another process is about to write.
        OSError: it cannot be written into.
    """
    if asked.out:
        folder = Path(asked.out).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
    else:
        folder = _new_folder(
            Path("outputs") / verb / time.strftime("%Y-%m-%d_%H-%M-%S")
        )
    with contextlib.ExitStack() as opened:
        lock = os.open(folder, os.O_RDONLY)
        opened.callback(os.close, lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"Another command is writing into {folder}: choose another out=..."
            ) from error
        for name in RESULTS:
            if (folder / name).exists():
                raise ConfigError(
                    f"{folder} holds {name} already: choose another out=..., or remove "
                    "it."
                )
        if not os.access(folder, os.W_OK):
            raise ConfigError(
                f"{folder} cannot be written into: choose another out=..."
            )
        opened.callback(_remove_if_empty, folder)
        yield folder


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _new_folder(folder: Path) -> Path:
    """Make a folder that was not there, with a number if its name is taken."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return path
