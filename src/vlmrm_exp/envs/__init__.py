"""Simulate and render: the first two stages of the flow.

    action -> [simulate] -> state row -> [render] -> frame

Letters: N environments, T steps, B rows, S numbers in a state row, O in an observation.
"""

import logging
import os
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np

from vlmrm_exp.config import ConfigError, TaskConfig

# MuJoCo reads this when envs/humanoid.py imports it, later. Its own first
# choice, GLFW, needs a screen.
os.environ.setdefault("MUJOCO_GL", "egl")
# PyOpenGL tells of a missing optional accelerator at every start.
logging.getLogger("OpenGL").setLevel(logging.WARNING)


class Step(NamedTuple):
    """What one step of all environments gives."""

    observation: np.ndarray
    """(N, O) float32."""
    env_reward: np.ndarray
    """(N,) float32: the environment's own reward, for comparison only."""
    goal: np.ndarray | None
    """(N,) bool: whether the state meets the task's goal; None: no predicate."""


class VectorEnv(Protocol):
    """N environments with episodes of one fixed length, reset together.

    Nothing terminates: an early end would tell the agent about the task (paper C.1).
    After `episode_length` steps the caller resets; that is a truncation.
    """

    num_envs: int
    episode_length: int

    @property
    def observation_space(self) -> gym.spaces.Box:
        """Of one environment: (O,) float32."""
        ...

    @property
    def action_space(self) -> gym.spaces.Box | gym.spaces.Discrete:
        """Of one environment."""
        ...

    def reset(self, seed: int | None = None) -> np.ndarray:
        """Start new episodes; (N, O) float32. A seed restarts the random stream."""
        ...

    def step(self, action: np.ndarray) -> Step:
        """Advance all environments: action (N, A) float32, or (N,) int64."""
        ...

    def state_rows(self) -> np.ndarray:
        """The present states: (N, S) float64, or frames (N, H, W, 3) uint8."""
        ...

    def episode_success(self, goal: np.ndarray) -> np.ndarray:
        """Judge whole episodes: goal flags (T, N) bool -> (N,) bool."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on from here, random generators included."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        ...

    def close(self) -> None:
        """Release simulators."""
        ...


class Renderer(Protocol):
    """Draws state rows, wherever they came from."""

    drawn_by: str
    """The drawing library and, for MuJoCo, the OpenGL renderer; goes on record."""

    def render(self, rows: np.ndarray) -> np.ndarray:
        """State rows (B, S) float64 -> frames (B, H, W, 3) uint8.

        Several views of a state (`TaskConfig.views`) are side by side in its frame. On
        a GPU a humanoid's frame differs with its place in the batch, by rounding.
        """
        ...

    def close(self) -> None:
        """Release the drawing context."""
        ...


def make_envs(task: TaskConfig, num_envs: int, threads: int = 1) -> VectorEnv:
    """Build the simulators of a task; opens no drawing context.

    Args:
        task: which world.
        num_envs: how many.
        threads: what the humanoid's physics may use; other worlds use one.

    Raises:
        ConfigError: an unknown or unsuitable Gymnasium id.
    """
    match task.env:
        case "cartpole":
            from vlmrm_exp.envs.cartpole import CartPoleEnvs

            return CartPoleEnvs(task, num_envs)
        case "mountain_car":
            from vlmrm_exp.envs.mountain_car import MountainCarEnvs

            return MountainCarEnvs(task, num_envs)
        case "humanoid":
            from vlmrm_exp.envs.humanoid import HumanoidEnvs

            return HumanoidEnvs(task, num_envs, threads)
        case "gym":
            from vlmrm_exp.envs.any_gym import GymEnvs

            return GymEnvs(task, num_envs)
    raise ValueError(task.env)


def make_renderer(task: TaskConfig, frame_height: int, effects: bool) -> Renderer:
    """Build what draws a task's states, in the process that will draw.

    Args:
        task: which world, with its textures and camera.
        frame_height: pixels; the width follows from the task's aspect ratio and the
            number of its views.
        effects: shadows, reflections and multisampling, where the world has them.
    """
    match task.env:
        case "cartpole":
            from vlmrm_exp.envs.cartpole import CartPoleRenderer

            return CartPoleRenderer(task, frame_height)
        case "mountain_car":
            from vlmrm_exp.envs.mountain_car import MountainCarRenderer

            return MountainCarRenderer(task, frame_height)
        case "humanoid":
            from vlmrm_exp.envs.humanoid import HumanoidRenderer

            return HumanoidRenderer(task, frame_height, effects)
        case "gym":
            from vlmrm_exp.envs.any_gym import FrameRenderer

            return FrameRenderer()
    raise ValueError(task.env)


def check_algo(
    action_space: gym.Space, algo_name: str, env_id: str = "the environment"
) -> None:
    """Refuse an algorithm that cannot choose such actions.

    Args:
        action_space: of one environment.
        algo_name: sac or dqn.
        env_id: what to call the environment in the message.

    Raises:
        ConfigError: DQN and continuous actions, or SAC and discrete ones.
    """
    kind, needed = "continuous", "sac"
    if isinstance(action_space, gym.spaces.Discrete):
        kind, needed = "discrete", "dqn"
    if algo_name != needed:
        other = {"continuous": "discrete", "discrete": "continuous"}[kind]
        raise ConfigError(
            f"{algo_name.upper()} needs {other} actions, but {env_id}'s are {kind}: "
            f"use algo={needed}."
        )
