"""Environment of every test, set before anything heavy is imported.

A test that wants W&B or a hub asks for it: with `monkeypatch.setenv` and a child
process, or with arguments that override these.
"""

import os
import signal

os.environ.setdefault("MUJOCO_GL", "egl")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"
# One thread per process: the reference machine has two cores, and sums repeat.
os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Callable, Iterator

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir

from vlmrm_exp.cli import quote_sentence
from vlmrm_exp.config import Config, conf_dir, to_config

# A shell's background job ignores Ctrl-C, and so would the programs that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def compose() -> Iterator[Callable[..., Config]]:
    """The real configuration with overrides, as typed, checked values."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):

        def composed(*overrides: str) -> Config:
            quoted = [quote_sentence(o) for o in overrides]
            cfg = hydra_compose("config", [*quoted, "name=test"])
            return to_config(cfg)

        yield composed


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Humanoid pictures that are the same to the bit anywhere in a batch.

    As always in software; on a GPU their place in a sheet changes them by rounding.
    """
    monkeypatch.setattr("vlmrm_exp.envs.humanoid.SHEET_COLUMNS", 1)
