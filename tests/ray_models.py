"""Reward models that tell where they are and take their time, for tests of Ray."""

import os
import time
from pathlib import Path

import numpy as np

from point_mass import Distance
from vlmrm_exp.config import Config, ConfigError
from vlmrm_exp.reward import Episodes


class Slow(Distance):
    """-|x| after `seconds` of each call; leaves a file, PID-NODE-CALL, when it begins.

    It writes into what it is given, as it may.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.options = config.reward.options

    def rewards(self, episodes: Episodes) -> np.ndarray:
        import ray

        node = ray.get_runtime_context().get_node_id()
        name = f"{os.getpid()}-{node}-{len(self.asked)}"
        Path(self.options["folder"], name).touch()
        time.sleep(self.options["seconds"][len(self.asked)])
        reward = super().rewards(episodes)
        episodes.states[:] = np.nan
        return reward


class Told(Distance):
    """Tells its process's environment."""

    def about(self):
        names = ("CUDA_VISIBLE_DEVICES", "MUJOCO_EGL_DEVICE_ID", "MUJOCO_GL")
        return {name: os.environ.get(name) for name in names} | {"cwd": os.getcwd()}


class Refuses(Distance):
    """Cannot be made."""

    def __init__(self, config: Config) -> None:
        raise ConfigError("There are no such weights: give others.")
