"""How far long work is, on stderr."""

import sys
from typing import IO, Any

from tqdm import tqdm

SHOWN_AFTER_S = 2.0
"""Seconds of work that show no progress."""
LOG_EVERY_S = 10.0
"""Seconds between lines of progress where there is no terminal, as in a log file."""


class _Lines:
    """A log file in place of a terminal: each state of a bar on a line of its own."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self.flush = file.flush

    def write(self, text: str) -> None:
        """Write what tqdm would write over the line before."""
        if text := text.strip("\r\n "):
            self._file.write(f"{text}\n")


def progress_bar(total: int | None, unit: str, desc: str) -> "tqdm[Any]":
    """How far long work is, on stderr: a bar on a terminal, else a line now and then.

    `total` is how many units there are; None: not known.
    """
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        unit=unit,
        desc=desc,
        unit_scale=True,
        delay=SHOWN_AFTER_S,
        leave=False,
        file=sys.stderr if terminal else _Lines(sys.stderr),
        mininterval=0.1 if terminal else LOG_EVERY_S,
        ncols=None if terminal else 100,
    )
