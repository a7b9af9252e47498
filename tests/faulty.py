"""A reward model and a world that do one thing wrong, as those of users may."""

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

import point_mass
from vlmrm_exp.config import Config, TaskConfig
from vlmrm_exp.envs import Step
from vlmrm_exp.reward import Episodes, RewardModel


class Reward(RewardModel):
    """`reward.options.fault` says what goes wrong, from the second call on."""

    remembers = True

    def __init__(self, config: Config) -> None:
        self.fault = config.reward.options["fault"]
        self.folder = config.reward.options.get("folder", "")
        self.calls = 0
        self.buffer = np.zeros((20, 8), np.float32)
        if self.fault == "make":
            raise OSError(2, "No such file", "/nowhere/model.bin")

    def rewards(self, episodes: Episodes) -> np.ndarray:
        self.calls += 1
        right = -np.abs(episodes.states[..., 0]).astype(np.float32)
        if self.fault == "buffer" and right.shape == self.buffer.shape:
            self.buffer[:] = right
            return self.buffer
        if self.fault == "die at first" and self.first("died"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.calls < 2:
            return right
        if self.fault == "hang" and self.first("hung"):
            time.sleep(1000)
        if self.fault == "die" or (self.fault == "die once" and self.first("died")):
            os.kill(os.getpid(), signal.SIGKILL)
        match self.fault:
            case "raise":
                raise KeyError("weight")
            case "connection":
                raise ConnectionResetError("the server went away")
            case "pipe":
                raise BrokenPipeError("the server went away")
            case "exit":
                sys.exit(0)
            case "none":
                return None
            case "complex":
                return right + 1j
            case "shape":
                return right.ravel()
            case "huge":
                return right.astype(np.float64) - 1e300
        return right

    def first(self, name: str) -> bool:
        """Whether no process asked before; the folder is the test's own."""
        path = Path(self.folder, name)
        before = path.exists()
        path.touch()
        return not before

    def update(self, episodes: Episodes) -> dict[str, float]:
        self.version += 1
        match self.fault:
            case "metric":
                return {"env_steps": 5.0}
            case "update":
                raise ValueError("nothing to learn")
        return {}

    def state_dict(self):
        match self.fault:
            case "empty":
                return {}
            case "lambda":
                return {"f": lambda: None}
        return {"version": self.version}

    def load_state_dict(self, state) -> None:
        if self.fault == "load":
            raise KeyError("weight")

    def about(self):
        return {"about": object()} if self.fault == "about" else {}

    def close(self) -> None:
        if self.fault == "close":
            raise OSError("already closed")


class Envs(point_mass.PointMassEnvs):
    """`task.options.fault` says what goes wrong, in the third step or where asked."""

    def __init__(self, task: TaskConfig, num_envs: int) -> None:
        self.fault, self.t = task.options.get("fault"), 0
        if self.fault == "make_envs":
            raise OSError("no simulator")
        super().__init__(num_envs, task.episode_length)

    def reset(self, seed=None):
        self.t = 0
        if self.fault == "reset" and seed is not None:
            raise RuntimeError("no start")
        observation = super().reset(seed)
        return observation[:1] if self.fault == "start" else observation

    def step(self, action):
        self.t += 1
        step = super().step(action)
        observation, reward, goal = step[:3]
        if self.fault == "buffer":
            self.kept = getattr(self, "kept", np.zeros_like(observation))
            self.kept[:] = observation
            return Step(self.kept, reward, goal)
        if self.t < 3:
            return step
        match self.fault:
            case "raise":
                raise RuntimeError("out of range")
            case "goal":
                return Step(observation, reward, goal[:1])
            case "kind":
                return Step(observation, reward, goal.astype(int))
            case "nan":
                return Step(observation, reward * np.nan, goal)
            case "shape":
                return Step(observation[:, :0], reward, goal)
        return step

    def states(self):
        states = super().states()
        match self.fault if self.t >= 3 else None:
            case "states":
                return states * np.nan
            case "grow":
                return np.concatenate([states, states], axis=1)
        return states.tolist() if self.fault == "list" else states

    def episode_success(self, goal):
        match self.fault:
            case "share":
                return goal.mean(0)
            case "column":
                return goal.any(0)[:, None]
            case "one":
                return goal.any()
            case "success":
                raise KeyError("goal")
        return super().episode_success(goal)

    def state_dict(self):
        if self.fault == "state_dict":
            raise NotImplementedError
        return super().state_dict()

    def load_state_dict(self, state):
        if self.fault == "load_state_dict":
            raise KeyError("x")
        super().load_state_dict(state)

    def close(self):
        if self.fault == "close":
            raise OSError("already closed")


def predicate(task: TaskConfig):
    if task.options.get("fault") == "predicate":
        raise KeyError("near")
    meets = point_mass.WORLD.predicate(task)
    as_list = task.options.get("fault") == "its predicate"
    return lambda states: meets(states).tolist() if as_list else meets(states)


def make_renderer(task: TaskConfig, frame_height: int, effects: bool):
    raise OSError("no display")


WORLD = replace(
    point_mass.WORLD,
    make_envs=lambda task, count, threads: Envs(task, count),
    make_renderer=make_renderer,
    predicate=predicate,
    goals=("left", "right"),
)
