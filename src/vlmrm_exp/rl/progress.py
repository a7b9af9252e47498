"""Tell how a run is getting on: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

LINE_EVERY_S = 10.0
"""Seconds between lines where there is no terminal, as in a log file."""


class Progress:
    """Env steps done, their rate, the time left and the newest figures, on stderr."""

    def __init__(self, total: int) -> None:
        """Start the clock.

        Args:
            total: env steps to be done.
        """
        self._total = total
        self._done = 0
        self._started = self._printed = time.perf_counter()
        # tqdm would be silent, or write thousands of lines, into a file.
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, unit="step", unit_scale=True, smoothing=0.1)

    def update(self, env_steps: int, figures: Mapping[str, float]) -> None:
        """Show where the run stands.

        Args:
            env_steps: done so far.
            figures: by the name to be shown.
        """
        shown = {name: f"{value:.3g}" for name, value in figures.items()}
        step, self._done = env_steps - self._done, env_steps
        if self._bar is not None:
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(step)
            return
        now = time.perf_counter()
        if now - self._printed < LINE_EVERY_S and env_steps < self._total:
            return
        self._printed = now
        rate = env_steps / (now - self._started)
        left = max(self._total - env_steps, 0) / rate
        words = ", ".join(f"{name} {value}" for name, value in shown.items())
        print(
            f"{env_steps:,}/{self._total:,} env steps, {rate:.0f}/s, "
            f"{tqdm.format_interval(left)} left, {words}",
            file=sys.stderr,
            flush=True,
        )

    def close(self) -> None:
        """Leave the terminal in order."""
        if self._bar is not None:
            self._bar.close()
