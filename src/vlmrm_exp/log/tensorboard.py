"""A run's metrics for TensorBoard, over `env_steps`."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter


class EventFiles:
    """TensorBoard's files in a run's folder."""

    def __init__(self, folder: Path) -> None:
        """Write them anew from metrics.jsonl, which was cut to where a run goes on.

        So no point is there twice, and a run may change to TensorBoard later.
        """
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        self._writer = SummaryWriter(str(folder / "tensorboard"))
        with (folder / "metrics.jsonl").open(encoding="utf-8") as lines:
            for line in lines:
                self.metrics(json.loads(line))

    def metrics(self, line: Mapping[str, float | None]) -> None:
        """Add a line of metrics.jsonl."""
        for key, value in line.items():
            if key != "env_steps" and value is not None:
                self._writer.add_scalar(key, value, line["env_steps"])
        self._writer.flush()

    def close(self) -> None:
        """Release the files."""
        self._writer.close()
