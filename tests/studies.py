"""Studies as they are typed on a command line, in this process."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest
from safetensors.torch import load_file, save_file

from vlmrm_exp import __main__ as training
from vlmrm_exp import composition
from vlmrm_exp.config import Config
from vlmrm_exp.studies.settings import Study
from vlmrm_exp.vlm.source import EMBEDDED
from vlmrm_exp.words import to_keys


def asked(verb: ModuleType, *words: str) -> Study:
    """What `python -m vlmrm_exp.VERB WORDS` would do."""
    keys = to_keys(list(words), verb.PLURAL)
    return verb.check(composition.compose(verb.__name__.rpartition(".")[2], *keys))


def run_config(*words: str) -> Config:
    """What `python -m vlmrm_exp WORDS` would do, as the fixture `compose` has it."""
    keys = to_keys(list(words), {})
    return training.check(composition.compose("config", *keys, "name=test"))


class Folders:
    """One cache, and for each use another folder of results: out, out-2, ..."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.uses = 0

    def __iter__(self) -> Iterator[str]:
        self.uses += 1
        yield from (f"cache={self.path}/cache", f"out={self.out}")

    @property
    def out(self) -> Path:
        """The latest folder of results."""
        return self.path / ("out" if self.uses == 1 else f"out-{self.uses}")


def damaged_model(folder: Path) -> str:
    """A clip: a copy of nano whose picture tower is no numbers any more."""
    shutil.copytree(EMBEDDED / "nano", folder)
    file = folder / "open_clip_model.safetensors"
    weights = load_file(file)
    for name, value in weights.items():
        if name.startswith("visual.") and value.is_floating_point():
            value.fill_(float("nan"))
    save_file(weights, file)
    return f"local-dir:{folder}"


def forbidden(*arguments: object) -> NoReturn:
    raise AssertionError("something was done that is forbidden here")


def forbid(monkeypatch: pytest.MonkeyPatch, module: ModuleType, *names: str) -> None:
    """Let a world's functions fail, such as `make_renderer`."""
    world = replace(module.WORLD, **dict.fromkeys(names, forbidden))
    monkeypatch.setattr(module, "WORLD", world)
