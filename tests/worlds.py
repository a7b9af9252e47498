"""Configurations, simulators and renderers, as the program makes them."""

from vlmrm_exp import app
from vlmrm_exp.config import Config, TaskConfig, to_config
from vlmrm_exp.envs import Renderer, VectorEnv, world_of
from vlmrm_exp.words import to_keys


def make_envs(task: TaskConfig, num_envs: int, threads: int = 1) -> VectorEnv:
    return world_of(task).make_envs(task, num_envs, threads)


def make_renderer(task: TaskConfig, frame_height: int, effects: bool) -> Renderer:
    return world_of(task).make_renderer(task, frame_height, effects)


def composed(*words: str) -> Config:
    """What `python -m vlmrm_exp WORDS` would train."""
    keys = to_keys(list(words), {})
    return to_config(app.compose("config", *keys, "name=test").cfg)
