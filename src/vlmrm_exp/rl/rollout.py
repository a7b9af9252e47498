"""Simulate whole episodes, and have them labelled with rewards.

A rollout is one episode of each environment. Frames never pass here: a rollout carries
the state rows, which a scorer renders, embeds and turns into rewards.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vlmrm_exp.envs import VectorEnv

if TYPE_CHECKING:
    from vlmrm_exp.vlm.scorer import Scorer

Act = Callable[[np.ndarray], np.ndarray]
"""Observations (N, O) float32 -> actions (N, A) float32, or (N,) int64."""


@dataclass
class Rollout:
    """N whole episodes of T steps."""

    observation: np.ndarray
    """(T + 1, N, O) float32: before each step, and after the last one."""
    action: np.ndarray
    """(T, N, A) float32, or (T, N) int64."""
    env_reward: np.ndarray
    """(T, N) float32: the environment's own reward."""
    goal: np.ndarray | None
    """(T, N) bool: whether the state after each step meets the goal."""
    rows: np.ndarray | None
    """(T, N, S) float64, or frames (T, N, H, W, 3) uint8: the state after each step,
    so that rows[T - 1] still belongs to the episode that ends. None: not kept."""

    @property
    def episodes(self) -> int:
        """N, the number of episodes."""
        return self.env_reward.shape[1]

    @property
    def env_steps(self) -> int:
        """T x N, the number of transitions."""
        return self.env_reward.size

    def first(self, episodes: int) -> "Rollout":
        """The first `episodes` of them (views)."""
        return Rollout(
            observation=self.observation[:, :episodes],
            action=self.action[:, :episodes],
            env_reward=self.env_reward[:, :episodes],
            goal=None if self.goal is None else self.goal[:, :episodes],
            rows=None if self.rows is None else self.rows[:, :episodes],
        )


def network_input(observation: np.ndarray, squash: bool) -> np.ndarray:
    """What networks are shown of observations (..., O): squashed, or as they are."""
    if squash:
        return np.sign(observation) * np.log1p(np.abs(observation))
    return observation


def collect(
    envs: VectorEnv, act: Act, seed: int | None = None, keep_rows: bool = True
) -> Rollout:
    """Play one episode in each environment.

    Args:
        envs: reset here, so that every rollout is of whole episodes.
        act: chooses the actions.
        seed: restarts the environments' random stream; None goes on with it.
        keep_rows: False where nobody will score or draw the states.
    """
    observation = envs.reset(seed)
    observations, actions, env_rewards, goals = [observation], [], [], []
    rows: np.ndarray | None = None
    for t in range(envs.episode_length):
        action = act(observation)
        step = envs.step(action)
        observation = step.observation
        observations.append(observation)
        actions.append(action)
        env_rewards.append(step.env_reward)
        goals.append(step.goal)
        if keep_rows:
            row = envs.state_rows()
            if rows is None:
                # One array from the start: stacking a list would hold frames twice.
                rows = np.empty((envs.episode_length, *row.shape), row.dtype)
            rows[t] = row
    return Rollout(
        observation=np.stack(observations).astype(np.float32, copy=False),
        action=np.stack(actions),
        env_reward=np.stack(env_rewards).astype(np.float32, copy=False),
        goal=None if goals[0] is None else np.stack(goals),
        rows=rows,
    )


def play(
    envs: VectorEnv,
    act: Act,
    episodes: int,
    seed: int | None = None,
    keep_rows: bool = True,
) -> Iterator[Rollout]:
    """Play exactly `episodes` episodes, given out as rollouts.

    Rollouts come one by one because a Gymnasium environment's rows are frames, of
    which a hundred episodes would not fit in memory. The last one is cut to size.

    Args:
        envs: as for `collect`.
        act: as for `collect`.
        episodes: how many in all.
        seed: of the first reset; the following ones go on with its stream, so a seed
            fixes all start states.
        keep_rows: as for `collect`.
    """
    while episodes > 0:
        rollout = collect(envs, act, seed, keep_rows).first(episodes)
        yield rollout
        episodes -= rollout.episodes
        seed = None


def scored_steps(steps: int, every: int) -> np.ndarray:
    """Which steps (K,) of an episode are scored: each `every`-th, and the last one."""
    return np.arange(steps - 1, -1, -every)[::-1]


def submit(scorer: "Scorer | None", rollout: Rollout, every: int = 1) -> int | None:
    """Send a rollout's states to be scored; the ticket is for `receive`.

    Args:
        scorer: None where no pictures are scored.
        rollout: with its rows, if there is a scorer.
        every: score each `every`-th state of an episode.
    """
    if scorer is None:
        return None
    assert rollout.rows is not None
    rows = rollout.rows
    if every > 1:
        rows = rows[scored_steps(len(rows), every)]
    # (K, N, ...) -> (K * N, ...)
    return scorer.submit(rows.reshape(-1, *rows.shape[2:]))


def receive(
    scorer: "Scorer | None", ticket: int | None, rollout: Rollout, every: int = 1
) -> np.ndarray:
    """Wait for a rollout's rewards: (T, N) float32.

    Steps that were not scored get the linear interpolation of their neighbours; those
    before the first scored step get its reward.

    Raises:
        FloatingPointError: a reward is not a finite number.
    """
    if scorer is None or ticket is None:
        reward, source = rollout.env_reward, "the environment"
    else:
        steps, episodes = rollout.env_reward.shape
        reward = scorer.result(ticket).reshape(-1, episodes)
        if every > 1:
            reward = _between(reward, scored_steps(steps, every), steps)
        source = "the scorer"
    bad = ~np.isfinite(reward)
    if bad.any():
        t, n = np.argwhere(bad)[0]
        raise FloatingPointError(
            f"The reward from {source} is {reward[t, n]} at step {t + 1} of episode "
            f"{n + 1} of a rollout, and {int(bad.sum())} of {bad.size} are not finite: "
            "nothing can be learned from it; check the weights and clip.precision."
        )
    return reward


def _between(reward: np.ndarray, at: np.ndarray, steps: int) -> np.ndarray:
    """Rewards (K, N) at steps `at` (K,) -> (T, N) float32 at all steps."""
    every = np.arange(steps)
    columns = [np.interp(every, at, of_episode) for of_episode in reward.T]
    return np.stack(columns, axis=1).astype(np.float32)
