"""Studies as they are typed on a command line, in this process."""

import copy
import functools
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType
from typing import NoReturn
from unittest import mock

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from vlmrm_exp import __main__ as training
from vlmrm_exp import app
from vlmrm_exp.config import Config
from vlmrm_exp.studies.settings import StatesConfig, Study
from vlmrm_exp.words import to_keys

OWN = {field.name for field in fields(StatesConfig)} - {f.name for f in fields(Config)}
"""Settings of a study that change nothing else in a composition."""

compose_anew = app.compose
compose_once = functools.cache(compose_anew)


def compose(config_name: str, *keys: str) -> app.Composed:
    """As `app.compose`; Hydra takes most of a small study's time, so it is asked once.

    What only the study reads is set afterwards.
    """
    own = [key for key in keys if key.partition("=")[0] in OWN]
    composed = compose_once(config_name, *(key for key in keys if key not in own))
    cfg = copy.deepcopy(composed.cfg)
    try:
        for override in OverridesParser.create().parse_overrides(own):
            cfg[override.key_or_group] = override.value()
    except (HydraException, OmegaConfBaseException):  # let Hydra say it
        return compose_anew(config_name, *keys)
    return app.Composed(cfg, keys, config_name)


def asked(verb: ModuleType, *words: str) -> Study:
    """What `python -m vlmrm_exp.VERB WORDS` would do."""
    keys = to_keys(list(words), verb.PLURAL)
    with mock.patch.object(app, "compose", compose):
        return verb.check(app.compose(verb.__name__.rpartition(".")[2], *keys))


def run_config(*words: str) -> Config:
    """What `python -m vlmrm_exp WORDS` would do, as the fixture `compose` has it."""
    keys = to_keys(list(words), {})
    return training.check(app.compose("config", *keys, "name=test"))


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


def forbidden(*arguments: object) -> NoReturn:
    raise AssertionError("something was done that is forbidden here")


def forbid(monkeypatch: pytest.MonkeyPatch, module: ModuleType, *names: str) -> None:
    """Let a world's functions fail, such as `make_renderer`."""
    world = replace(module.WORLD, **dict.fromkeys(names, forbidden))
    monkeypatch.setattr(module, "WORLD", world)
