"""Environment of every test, set before anything heavy is imported.

A test that wants W&B or a hub asks for it: with `monkeypatch.setenv` and a child
process, or with arguments that override these.
"""

import os
import signal
from pathlib import Path

os.environ.setdefault("MUJOCO_GL", "egl")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"
# One thread per process: the reference machine has two cores, and sums repeat.
os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import settings

import wandb_server
import worlds
from vlmrm_exp import __main__ as training
from vlmrm_exp import app, composition
from vlmrm_exp.config import Config
from vlmrm_exp.words import to_keys

# No limit of time, for a test machine may be slow, and no folder of found cases.
settings.register_profile("here", deadline=None, database=None)
settings.load_profile("here")

# Composing takes most of a small test's time.
composition.compose = worlds.compose

# A shell's background job ignores Ctrl-C, and so would the programs that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def compose() -> Callable[..., Config]:
    """The real configuration as typed on a command line: typed, checked values."""

    def composed(*words: str) -> Config:
        keys = to_keys(list(words), {}, program="config")
        return training.check(composition.compose("config", *keys, "name=test"))

    return composed


class Ended(NamedTuple):
    """How a program ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    """`app.start` on a command line, in this process, which has imported torch."""

    def run(words: Sequence[str], *arguments: Any, **options: Any) -> Ended:
        monkeypatch.setattr("sys.argv", ["vlmrm_exp", *words])
        os.environ.pop("HYDRA_FULL_ERROR", None)
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.getsignal(number) for number in numbers]
        code = 0
        try:
            app.start(*arguments, **options)
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            os.environ.pop(
                "HYDRA_FULL_ERROR", None
            )  # set by start; monkeypatch keeps it
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)
        return Ended(code, *capsys.readouterr())

    return run


@pytest.fixture
def program(start: Callable[..., Ended]) -> Callable[..., Ended]:
    """`python -m vlmrm_exp WORDS`."""
    return lambda *words: start(
        words, training.train, check=training.check, goes_on=True
    )


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Humanoid pictures that are the same to the bit anywhere in a batch.

    As always in software; on a GPU their place in a sheet changes them by rounding.
    """
    monkeypatch.setattr("vlmrm_exp.envs.humanoid_renderer.SHEET_COLUMNS", 1)


@pytest.fixture
def wandb_online(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[wandb_server.WandbServer]:
    """A W&B server of the test's own, which clients find and are let in."""
    with wandb_server.wandb_server() as server:
        monkeypatch.delenv("WANDB_MODE")
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))  # where W&B keeps logs
        yield server
    assert server.unknown == []
