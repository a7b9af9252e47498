"""What a run tells: metrics.jsonl always, W&B or TensorBoard when asked, and progress.

The same keys go to all, over `env_steps`: train/, loss/, eval/, reward/ and perf/.
Only perf/ may differ between two runs of one seed.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vlmrm_exp.config import Config, ConfigError
from vlmrm_exp.files import lock, plain, write_json
from vlmrm_exp.log.progress import progress_bar
from vlmrm_exp.signals import INTERRUPTED

SHOWN = ("train/reward_mean", "train/return_mean", "train/success_rate")
"""Metrics beside the progress bar."""


class RunLog:
    """The records of one run, in its folder, and its progress on stderr."""

    def __init__(
        self,
        folder: Path,
        config: Config,
        saved: Mapping[str, Any] | None = None,
        about: Mapping[str, Any] | None = None,
        started: float | None = None,
    ) -> None:
        """Open metrics.jsonl, and what else `log.mode` says.

        Args:
            folder: of the run.
            config: the run's.
            saved: a `state_dict` to go on from; what was written later is cut off.
            about: for versions.json; W&B gets the commit and the model of it.
            started: when the run began, by time.perf_counter; None: now.

        Raises:
            ConfigError: another process writes this run; W&B cannot be reached, or
                does not know who is logging.
        """
        saved = saved or {"metrics_bytes": 0, "env_steps": 0, "wall_s": 0.0}
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._metrics = (folder / "metrics.jsonl").open("a", encoding="utf-8")
        try:
            lock(self._metrics)
            for left in folder.rglob(".*.[0-9]*.part*"):  # by a killed process
                left.unlink()
            (folder / "error.txt").unlink(missing_ok=True)  # of a start that failed
            kept = saved["metrics_bytes"]
            if (folder / "metrics.jsonl").stat().st_size < kept:
                raise ConfigError(
                    f"{folder / 'metrics.jsonl'} is shorter than when the run's state "
                    "was saved: bring it back, or start anew under another name."
                )
            self._metrics.truncate(kept)
            if about is not None:
                write_json(folder / "versions.json", about)
            self._wandb = self._tensorboard = None
            if config.log.mode == "tensorboard":
                from vlmrm_exp.log.tensorboard import EventFiles

                self._tensorboard = EventFiles(folder)
            elif config.log.mode != "none":
                from vlmrm_exp.log.wandb import WandbRun

                run_id = saved.get("wandb_id")
                self._wandb = WandbRun(folder, config, run_id, about or {})
        except BaseException:
            self._metrics.close()
            raise
        # By which a later run can go on in it; None without W&B.
        self.wandb_id: str | None = self._wandb.id if self._wandb else None
        self._progress = progress_bar(config.env_steps, "step", "training")
        self._laps: dict[str, float] = {}
        self._lap_started = time.perf_counter()
        # As if the earlier pieces had ended when this one began.
        self._started = (started or self._lap_started) - saved["wall_s"]
        self._first: tuple[float, int] | None = None  # report: when, and env steps
        self._last_steps = saved["env_steps"]
        self._progress.update(self._last_steps)

    def lap(self, key: str) -> None:
        """Time what was done since the last lap, for the next report, in s."""
        now = time.perf_counter()
        self._laps[key] = self._laps.get(key, 0.0) + now - self._lap_started
        self._lap_started = now

    def metrics(
        self,
        env_steps: int,
        values: Mapping[str, float],
        spreads: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Report numbers: one line of metrics.jsonl, written through at once.

        Args:
            env_steps: the x-axis, summed over environments.
            values: one number per key; what is not finite becomes null. Laps are
                added, and the rate of env steps.
            spreads: arrays of finite numbers, for W&B alone, as histograms.
        """
        line: dict[str, Any] = {"env_steps": env_steps, **values, **self._laps}
        step, self._last_steps = env_steps - self._last_steps, env_steps
        if (rate := self.env_steps_per_s()) is not None:
            line["perf/env_steps_per_s"] = rate
        self._first = self._first or (time.perf_counter(), env_steps)
        self._laps = {}
        line = plain(line)
        self._metrics.write(json.dumps(line, allow_nan=False) + "\n")
        self._metrics.flush()
        if self._wandb:
            self._wandb.metrics(line, spreads)
        if self._tensorboard:
            self._tensorboard.metrics(line)
        shown = {k.split("/")[1].split("_")[0]: f"{values[k]:.3g}"
                 for k in SHOWN if k in values}  # fmt: skip
        self._progress.set_postfix(shown, refresh=False)
        self._progress.update(step)

    def state_dict(self) -> dict[str, Any]:
        """Where the records stand; the lines up to there are on disk."""
        os.fsync(self._metrics.fileno())  # or a state could outlive them
        return {
            "metrics_bytes": self._metrics.tell(),
            "env_steps": self._last_steps,
            "wandb_id": self.wandb_id,
            "wall_s": self.wall_s(),
        }

    def wall_s(self) -> float:
        """Seconds since the run began, earlier pieces of it included."""
        return time.perf_counter() - self._started

    def env_steps_per_s(self) -> float | None:
        """The rate since the first report, all included; None before the second."""
        if self._first is None or self._last_steps == self._first[1]:
            return None
        seconds = time.perf_counter() - self._first[0]
        return (self._last_steps - self._first[1]) / seconds

    def video(self, env_steps: int, key: str, path: Path, caption: str) -> None:
        """Report to W&B an mp4 that lies in the run's folder."""
        if self._wandb:
            self._wandb.video(env_steps, key, path, caption)

    def table(self, env_steps: int, key: str, columns: Mapping[str, Sequence]) -> None:
        """Report a table to W&B: columns of one length, by their names."""
        if self._wandb:
            self._wandb.table(env_steps, key, columns)

    def policies(self, paths: Sequence[Path], facts: Mapping[str, Any]) -> None:
        """Make the policies an artifact of W&B's, which the run has as its output."""
        if self._wandb:
            self._wandb.policies(paths, facts)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Write summary.json whole, and the same values to W&B's summary."""
        write_json(self.folder / "summary.json", values)
        if self._wandb:
            self._wandb.summary(values)

    def close_progress(self) -> None:
        """Leave the terminal in order: training is over."""
        self._progress.close()

    def __enter__(self) -> "RunLog":
        """Be closed at the end of a block."""
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        """Close, as failed if the block did not get to its end."""
        match error:
            case None:
                self.close(0)
            case SystemExit(code=int(code)):
                self.close(code)
            case KeyboardInterrupt():
                self.close(INTERRUPTED)
            case _:
                self.close(1)

    def close(self, exit_code: int = 0) -> None:
        """Release the file and the W&B run; a second call does nothing.

        W&B marks the run as failed where the exit code is not 0.
        """
        self._metrics.close()
        self.close_progress()
        if self._tensorboard:
            self._tensorboard.close()
        wandb, self._wandb = self._wandb, None
        if wandb:
            wandb.close(exit_code)
