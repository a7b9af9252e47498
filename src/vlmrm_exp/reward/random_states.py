"""States that random actions lead to: what is usual, before anything is learned."""

import contextlib
from collections.abc import Iterator

import gymnasium as gym
import numpy as np

from vlmrm_exp.config import Config
from vlmrm_exp.envs.in_order import make_envs


def random_states(
    config: Config, episodes: int, at_once: int = 1
) -> Iterator[np.ndarray]:
    """The states of some episodes of random actions, which the seed decides.

    Actions are held as long as a run's own random ones.

    Yields:
        (B, S) float64, or frames: of whole steps, B at least `at_once` but in the last
        part. Frames of all steps would be gigabytes.
    """
    envs = make_envs(config.task, episodes, config.compute.num_physics_threads)
    rng, space = np.random.default_rng(config.seed), envs.action_space
    repeat = config.algo.random_action_repeat if config.algo.name == "sac" else 1
    with contextlib.closing(envs):
        envs.reset(config.seed)
        states, action = [], np.empty(0)
        for t in range(envs.episode_length):
            if t % repeat == 0:
                if isinstance(space, gym.spaces.Discrete):
                    action = rng.integers(space.n, size=episodes)
                else:
                    size = (episodes, *space.shape)
                    action = rng.uniform(space.low, space.high, size).astype(np.float32)
            envs.step(action)
            states.append(envs.states())
            if len(states) * episodes >= at_once or t == envs.episode_length - 1:
                yield np.concatenate(states)
                states = []
