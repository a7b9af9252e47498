"""Humanoid states for studies: near the goals, and what policies visit."""

from collections.abc import Callable

import numpy as np

from vlmrm_exp.config import TaskConfig
from vlmrm_exp.envs import VectorEnv
from vlmrm_exp.envs.poses import GOAL_POSES, PoseLibrary, quaternion

STEPS_KEPT = 25  # states of an episode, on average


def around_a_goal(library: PoseLibrary, i: int, rng: np.random.Generator) -> np.ndarray:
    """A state at or near the goal of the i-th of the eight tasks, in turns.

    Those that miss it are kept: near misses are what a reward has to tell apart.
    """
    poses = list(GOAL_POSES.values())[i % len(GOAL_POSES)]
    pose = poses[rng.integers(len(poses))]
    angles = library.angles(pose)
    angles += rng.normal(0, rng.choice([0.01, 0.03, 0.06, 0.15]), len(angles))
    yaw = rng.normal(0, 15) if rng.random() < 0.7 else rng.uniform(-180, 180)
    tilt = rng.normal(0, rng.choice([1, 4]), 2)
    state = library.place(
        angles, quaternion(yaw, pose.pitch + tilt[0], pose.roll + tilt[1])
    )
    state[:2] += rng.normal(0, 0.25, 2).clip(-0.7, 0.7)
    if rng.random() < 0.3:
        torque = rng.normal(0, 0.1, len(angles)).clip(-0.4, 0.4)
        state = library.settle(state, torque, int(rng.integers(1, 20)))
    return state


def episodes_for(task: TaskConfig, count: int) -> int:
    """How many episodes `visited` needs for so many states."""
    assert task.episode_length is not None
    return max(1, -(-count // min(STEPS_KEPT, task.episode_length)))


def visited(
    envs: VectorEnv,
    act: Callable[[np.ndarray], np.ndarray],
    count: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Some states of one episode of each environment, each at most once.

    Args:
        envs: are closed afterwards.
        act: observations (N, O) -> actions (N, A).
        count: how many states.
        rng: of the starts and of the choice.

    Returns:
        States (count, S), and the number of each one's episode, (count,) int.
    """
    observation = envs.reset(int(rng.integers(2**31)))
    states = []
    for _ in range(envs.episode_length):
        observation = envs.step(act(observation)).observation
        states.append(envs.states())
    envs.close()
    flat = np.concatenate(states)  # T arrays (N, S) -> (T * N, S)
    chosen = rng.choice(len(flat), count, replace=False)
    return flat[chosen], chosen % envs.num_envs
