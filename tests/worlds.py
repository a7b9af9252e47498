"""Configurations, simulators and renderers, as the program makes them."""

import copy
import functools

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from vlmrm_exp import app
from vlmrm_exp.checks import to_config
from vlmrm_exp.config import Config, TaskConfig, conf_dir
from vlmrm_exp.envs import Renderer, VectorEnv, world_of
from vlmrm_exp.words import to_keys

compose_anew = app.compose
compose_once = functools.cache(compose_anew)


def compose(config_name: str, *keys: str) -> app.Composed:
    """As `app.compose`, which takes most of a small test's time.

    So Hydra composes each choice of options once. Values are set afterwards, by the
    function that Hydra sets them with after it has composed.
    """
    try:
        overrides = OverridesParser.create().parse_overrides(list(keys))
        values = [one for one in overrides if is_value(one.key_or_group)]
        if any(one.is_sweep_override() for one in overrides):
            return compose_anew(config_name, *keys)
        lines = {one.input_line for one in values}
        options = (key for key in keys if key not in lines)
        cfg = copy.deepcopy(compose_once(config_name, *options).cfg)
        ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
    except (HydraException, OmegaConfBaseException):  # let Hydra say it
        return compose_anew(config_name, *keys)
    return app.Composed(cfg, keys, config_name)


def is_value(key: str) -> bool:
    """Whether a key is no choice of an option, and not Hydra's own."""
    return key.split(".")[0] != "hydra" and not (conf_dir() / key).is_dir()


def make_envs(task: TaskConfig, num_envs: int, threads: int = 1) -> VectorEnv:
    return world_of(task).make_envs(task, num_envs, threads)


def make_renderer(task: TaskConfig, frame_height: int, effects: bool) -> Renderer:
    return world_of(task).make_renderer(task, frame_height, effects)


def composed(*words: str) -> Config:
    """What `python -m vlmrm_exp WORDS` would train."""
    keys = to_keys(list(words), {})
    return to_config(compose("config", *keys, "name=test").cfg)
