"""Requests to stop: Ctrl-C, and what job schedulers send."""

import contextlib
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from vlmrm_exp.words import quoted

INTERRUPTED = 130
"""Exit code after Ctrl-C, the shell's."""
REQUEUE_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Schedulers send one of these some time before they kill a job."""
REQUEUE = os.EX_TEMPFAIL
"""Exit code (75): the same command, started again, goes on."""
PATIENCE_S = 12
"""Seconds after such a signal within which a rollout must be over."""


class TooLate(BaseException):
    """A rollout was not over when a scheduler's patience was; holds the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Interrupts:
    """Within it, signals are a request to stop after this rollout.

    Else they could strike halfway through a gradient step, or a message to a worker. A
    second Ctrl-C ends the block at once, without an exception. A scheduler waits half a
    minute at most: if the rollout is not over soon, the last saved state has to do.
    """

    number = 0
    """Of the signal; 0: none came."""
    midway = False
    """Whether the block was ended within a rollout."""

    def __enter__(self) -> "Interrupts":
        """Take over the signals; in another thread than the main one, nothing."""
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *REQUEUE_SIGNALS):
                self._before[number] = signal.signal(number, self._on_signal)
            self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._too_late)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        """Give the signals back."""
        signal.alarm(0)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind is KeyboardInterrupt:
            self.number, self.midway = self.number or signal.SIGINT, True
        return kind is KeyboardInterrupt

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.number == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number
        # Not print: the signal may have come in the middle of one.
        if number == signal.SIGINT:
            text = b"\nStopping after this rollout; Ctrl-C again stops at once.\n"
            os.write(2, text)
        else:
            signal.alarm(PATIENCE_S)

    def _too_late(self, number: int, frame: FrameType | None) -> None:
        raise TooLate(self.number)


def requeue(number: int, folder: Path) -> NoReturn:
    """End the program, which signal `number` stopped; it goes on in its folder."""
    swept = (folder.parent / "multirun.yaml").exists()
    key, path = "hydra.run.dir", str(folder)
    if swept:
        key, path = "hydra.sweep.dir", str(folder.parent)
    word = f"{key}={path}"
    if not re.fullmatch(r"[\w./+-]*", path, re.ASCII):  # for Hydra, and for the shell
        word = shlex.quote(f"{key}={quoted(path)}")
    print(f"Stopped by a signal: the same command with {word} goes on from here.")
    waits = signal.getsignal(number)
    if getattr(waits, "__module__", "").startswith("submitit"):
        signal.raise_signal(number)  # it starts this job again
    sys.exit(REQUEUE)


@contextlib.contextmanager
def interrupts_at_the_end() -> Iterator[None]:
    """Hold Ctrl-C back: some packages cannot be interrupted while they are imported."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held:
        raise KeyboardInterrupt
