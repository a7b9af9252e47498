"""The file of a run's state, from which the same command goes on.

It holds tensors and primitives alone, so that reading it runs no code. The one
before the newest is kept: it is read where the newest is damaged.
"""

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlmrm_exp.config import ConfigError, ForeignError
from vlmrm_exp.files import written_whole
from vlmrm_exp.log import RunLog
from vlmrm_exp.reward.pool import Pool
from vlmrm_exp.rl.state import State

FORMAT = 4
"""Of the file; another one is refused."""
MOST_TIME = 0.02
"""Share of a run's time that saving takes at most."""
ARRAY = "numpy.ndarray"
"""Marks an array in the file, where it is a tensor."""
NAMES = ("state.pt", "state-before.pt")
"""In the folder checkpoints/: the newest, and the one before."""
REWARD = "reward.pt"
"""There too, of a reward that learns: what it had learned when a policy was kept."""


def save_policy(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Write a checkpoint: tensors and primitives, so that reading it runs no code."""
    with written_whole(path) as part, part.open("wb") as file:
        torch.save(dict(checkpoint), file)


def save_reward(folder: Path, pool: Pool) -> None:
    """Keep what a run's reward model has learned, for later evaluations."""
    if pool.remembers and not pool.estimator:
        save_policy(folder / "checkpoints" / REWARD, _packed(pool.state_dict()))


def load_reward(folder: Path, pool: Pool) -> None:
    """Give a pool what the run's reward model has learned.

    Raises:
        ConfigError: it is not there, or damaged.
    """
    if not pool.remembers or pool.estimator:
        return
    path = folder / "checkpoints" / REWARD
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
        pool.load_state_dict(_unpacked(kept))
    except Exception as error:  # a damaged file can raise nearly anything
        raise ConfigError(
            f"This run's reward learns, but {path}, what it has learned, cannot be "
            f"read ({type(error).__name__}): it is damaged, so copy it anew, or train "
            "again."
        ) from error


class Checkpoint:
    """Saves a run's state, as often as `compute.checkpoint_s` says."""

    def __init__(self, log: RunLog, every_s: float) -> None:
        self._log = log
        self._every_s = every_s
        self._cost_s = 0.0
        self._saved_at = -math.inf  # the first rollout is saved at once

    def save_when_due(self, state: State) -> None:
        """Save if enough time has passed since the last one ended."""
        due = self._every_s and max(self._every_s, self._cost_s / MOST_TIME)
        if time.monotonic() - self._saved_at >= due:
            self.save(state)

    def save(self, state: State) -> None:
        """Write the state whole; waits for rewards in flight."""
        started = time.monotonic()
        newest, before = (self._log.folder / "checkpoints" / name for name in NAMES)
        kept = {
            "format": FORMAT,
            "state": _packed(state.state_dict()),
            "log": self._log.state_dict(),
        }
        with written_whole(newest) as part:
            with part.open("wb") as file:
                torch.save(kept, file)
                file.flush()
                os.fsync(file.fileno())
            if newest.exists():
                os.replace(newest, before)
        self._saved_at = time.monotonic()
        self._cost_s = self._saved_at - started

    def remove(self) -> None:
        """The run is finished: nothing goes on from here."""
        for name in NAMES:
            (self._log.folder / "checkpoints" / name).unlink(missing_ok=True)


def load_if_any(folder: Path, env_steps: int) -> dict[str, Any]:
    """What to go on from: `state` and `log`, both None if nothing has begun.

    Raises:
        ConfigError: as `load`, or that run has had more than `env_steps` already.
    """
    if not any((folder / "checkpoints" / name).exists() for name in NAMES):
        return {"state": None, "log": None}
    saved = load(folder)
    steps = saved["state"]["learned_steps"]
    if env_steps < steps:
        raise ConfigError(
            f"{folder} has had {steps:,} env steps already, more than "
            f"env_steps={env_steps:,}: give that many at least."
        )
    print(f"Going on with {folder} from env step {steps:,}.")
    return saved


def load(folder: Path) -> dict[str, Any]:
    """Read the newest state of a run that is not damaged: `state` and `log`.

    Raises:
        ConfigError: there is none, or it is of another version.
    """
    told = []
    for name in NAMES:
        path = folder / "checkpoints" / name
        try:
            kept = torch.load(path, map_location="cpu", weights_only=True)
            found = kept["format"]
        except Exception as error:  # a damaged file can raise nearly anything
            # Not with the reason: PyTorch's tells how to run what is in a file.
            kind = type(error).__name__
            told.append(f"{path} is damaged or no state of a run ({kind})")
            continue
        if found == 3 and not kept["state"]["pool"]:
            # Where no reward learns, nothing else has changed since.
            kept["state"]["pool"] = {"learned": {}, "version": 0, "asked": []}
            found = FORMAT
        if found != FORMAT:
            raise ConfigError(
                f"{path} has format {found}, but this version reads {FORMAT}: go on "
                "with the version that wrote it (versions.json), or start anew."
            )
        if told:
            print(f"{told[0]}: going on from the state before it.")
        return _unpacked(kept)
    raise ConfigError(f"{'; '.join(told)}: give another name=... to start anew.")


def _packed(value: Any) -> Any:
    """Arrays as tensors, which torch reads without running code."""
    match value:
        case np.ndarray():
            return {ARRAY: torch.from_numpy(np.array(value, order="C"))}
        case torch.Tensor():
            # A view would be written with all of the memory behind it.
            whole = value.untyped_storage().nbytes() == value.nbytes
            return value.detach() if whole else value.detach().clone()
        case Mapping():
            return {key: _packed(item) for key, item in value.items()}
        case list() | tuple():
            packed = [_packed(item) for item in value]
            return tuple(packed) if isinstance(value, tuple) else packed
        case np.generic():
            return value.item()
        case None | bool() | int() | float() | str() | bytes():
            return value
    raise ForeignError(
        f"A state holds a {type(value).__name__}, which cannot be saved: a reward "
        "model or world of one's own must give tensors, arrays and primitives."
    )


def _unpacked(value: Any) -> Any:
    match value:
        case dict() if ARRAY in value:
            return value[ARRAY].numpy()
        case dict():
            return {key: _unpacked(item) for key, item in value.items()}
        case list() | tuple():
            unpacked = [_unpacked(item) for item in value]
            return tuple(unpacked) if isinstance(value, tuple) else unpacked
    return value
