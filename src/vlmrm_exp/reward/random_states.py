"""States that random actions lead to: what is usual, before anything is learned."""

import gymnasium as gym
import numpy as np

from vlmrm_exp.config import Config
from vlmrm_exp.envs.in_order import make_envs


def random_states(config: Config, episodes: int) -> np.ndarray:
    """All states of some episodes of random actions, which the seed decides.

    Actions are held as long as a run's own random ones.

    Returns:
        (episodes * T, S) float64, or frames.
    """
    envs = make_envs(config.task, episodes, config.compute.num_physics_threads)
    rng, repeat = np.random.default_rng(config.seed), 1
    if config.algo.name == "sac":
        repeat = config.algo.random_action_repeat
    try:
        envs.reset(config.seed)
        states, action = [], np.empty(0)
        for t in range(envs.episode_length):
            if t % repeat == 0:
                action = _random_action(envs.action_space, episodes, rng)
            envs.step(action)
            states.append(envs.states())
    finally:
        envs.close()
    return np.concatenate(states)


def _random_action(
    space: gym.spaces.Box | gym.spaces.Discrete, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Uniform: (count, A) float32, or (count,) int64."""
    if isinstance(space, gym.spaces.Discrete):
        return rng.integers(space.n, size=count)
    size = (count, *space.shape)
    return rng.uniform(space.low, space.high, size).astype(np.float32)
