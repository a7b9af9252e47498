"""A world from outside the package: Gymnasium's Reacher, by Gymnasium's own pictures.

All that a new world takes: this module, and the task file that TASK is.
"""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from PIL import Image

from vlmrm_exp.config import TaskConfig
from vlmrm_exp.envs import Samples, Step, World

TASK = """
# @package _global_
defaults:
  - override /algo: sac
task:
  name: reacher
  env: reacher:WORLD
  episode_length: 50 # env steps
  frame_height: 64 # px
  options:
    near: 0.05 # m from the target
prompt: an arm that touches the red ball
baseline: an arm
alpha: 0.0
env_steps: 1000
"""


class ReacherEnvs:
    """N arms; a state is (two angles, target x and y, their velocities)."""

    def __init__(self, task: TaskConfig, num_envs: int, threads: int) -> None:
        self.num_envs, self.episode_length = num_envs, task.episode_length
        self._goal = predicate(task)
        self._envs = [gym.make("Reacher-v5").unwrapped for _ in range(num_envs)]
        size = self._envs[0].observation_space.shape
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, size, np.float32)
        self.action_space = self._envs[0].action_space
        self.reset(0)

    def reset(self, seed: int | None = None) -> np.ndarray:
        seeds = [
            None if seed is None else 1000 * seed + i for i in range(self.num_envs)
        ]
        pairs = zip(self._envs, seeds, strict=True)
        return np.stack([e.reset(seed=s)[0] for e, s in pairs]).astype(np.float32)

    def step(self, action: np.ndarray) -> Step:
        results = [e.step(a) for e, a in zip(self._envs, action, strict=True)]
        observation, reward, *_ = zip(*results, strict=True)
        return Step(
            np.stack(observation).astype(np.float32),
            np.array(reward, np.float32),
            self._goal(self.states()),
        )

    def states(self) -> np.ndarray:
        return np.stack([np.r_[e.data.qpos, e.data.qvel] for e in self._envs])

    def episode_success(self, goal: np.ndarray) -> np.ndarray:
        return goal[-1]

    def state_dict(self) -> dict[str, Any]:
        return {"states": self.states().tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for env, row in zip(self._envs, np.array(state["states"]), strict=True):
            env.set_state(row[:4], row[4:])

    def close(self) -> None:
        for env in self._envs:
            env.close()


class ReacherRenderer:
    """Gymnasium's picture of a state, from above."""

    drawn_by = f"gymnasium {gym.__version__}"

    def __init__(self, task: TaskConfig, frame_height: int, effects: bool) -> None:
        self._env = gym.make("Reacher-v5", render_mode="rgb_array").unwrapped
        self._env.reset(seed=0)
        self._size = frame_height

    def render(self, states: np.ndarray) -> np.ndarray:
        frames = []
        for state in states:
            self._env.set_state(state[:4], state[4:])
            picture = Image.fromarray(self._env.render())
            frames.append(np.asarray(picture.resize((self._size, self._size))))
        return np.stack(frames)

    def close(self) -> None:
        self._env.close()


def distance(states: np.ndarray) -> np.ndarray:
    """From the fingertip to the target, in m: (B, 8) -> (B,)."""
    first, second = states[:, 0], states[:, 0] + states[:, 1]
    x = 0.1 * np.cos(first) + 0.11 * np.cos(second)
    y = 0.1 * np.sin(first) + 0.11 * np.sin(second)
    return np.hypot(x - states[:, 2], y - states[:, 3])


def predicate(task: TaskConfig):
    return lambda states: distance(states) < task.options["near"]


def sample_states(task: TaskConfig, count: int, seed: int) -> Samples:
    rng = np.random.default_rng(seed)
    states = np.zeros((count, 8))
    states[:, :2] = rng.uniform((-3.1, -2.9), (3.1, 2.9), (count, 2))
    states[:, 2] = 0.1
    return Samples(states, np.full(count, "uniform"), np.arange(count))


WORLD = World(
    make_envs=ReacherEnvs,
    make_renderer=ReacherRenderer,
    algorithms=("sac",),
    state_size=8,
    predicate=predicate,
    graded=lambda states: -distance(states),
    graded_by="minus the distance to the target",
    sample_states=sample_states,
    renders_with=lambda: ReacherRenderer.drawn_by,
    sources=(__file__,),
)
