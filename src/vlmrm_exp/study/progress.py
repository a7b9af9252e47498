"""How far long work is: a bar on a terminal, a line now and then elsewhere."""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


def progress_bar(total: int | None, unit: str, desc: str | None = None) -> "tqdm[Any]":
    """A tqdm bar on stderr; work of less than two seconds shows none.

    Args:
        total: how many units there are; None: not known.
        unit: what is counted.
        desc: what is done.
    """
    from tqdm import tqdm  # here so that --help and refusals are immediate

    # Left to itself, tqdm writes thousands of lines into a log file.
    pause = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(
        total=total, unit=unit, desc=desc, mininterval=pause, delay=2, leave=False
    )
