"""Configurations, simulators and renderers, as the program makes them."""

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from vlmrm_exp import composition
from vlmrm_exp.checks import to_config
from vlmrm_exp.composition import Composed
from vlmrm_exp.config import Config, TaskConfig, conf_dir
from vlmrm_exp.envs import Renderer, VectorEnv, world_of
from vlmrm_exp.words import to_keys

real_compose = composition.compose


def compose(config_name: str, *keys: str) -> Composed:
    """What tests have in place of `composition.compose`: options are composed once.

    It is the function by which a program does so.
    """
    if GlobalHydra.instance().is_initialized():
        return real_compose(config_name, *keys)
    try:
        with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            cfg = composition.compose_values(loader, config_name, keys, "tests")
    except (HydraException, OmegaConfBaseException):
        return real_compose(config_name, *keys)  # it says what is wrong
    return Composed(cfg, keys, config_name)


def make_envs(task: TaskConfig, num_envs: int, threads: int = 1) -> VectorEnv:
    return world_of(task).make_envs(task, num_envs, threads)


def make_renderer(task: TaskConfig, frame_height: int, effects: bool) -> Renderer:
    return world_of(task).make_renderer(task, frame_height, effects)


def composed(*words: str) -> Config:
    """What `python -m vlmrm_exp WORDS` would train."""
    keys = to_keys(list(words), {})
    return to_config(compose("config", *keys, "name=test").cfg)
