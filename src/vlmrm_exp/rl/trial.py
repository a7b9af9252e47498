"""Try a policy without exploration, judge its episodes and draw them.

Used while training, at the end of a run, and by `python -m vlmrm_exp.evaluate`.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmrm_exp.config import ClipConfig, TaskConfig
from vlmrm_exp.envs import VectorEnv, make_renderer
from vlmrm_exp.rl.rollout import Act, play, receive, submit
from vlmrm_exp.video import write_episodes

if TYPE_CHECKING:
    from vlmrm_exp.vlm.scorer import Scorer

VIDEO_FPS = 30
"""Frames per second, one per env step: a humanoid's 30 ms at nearly its own speed."""

EVAL_KEYS = (
    "eval/success_rate",
    "eval/success_low",
    "eval/success_high",
    "eval/buckets",
    "eval/reward_mean",
    "eval/return_mean",
    "eval/episodes",
)
"""What `judge` tells."""

BUCKETS = (0, 25, 50, 75, 100)
"""Percent of an episode's steps in the goal state; the paper's rater put each of 100
episodes into one of these (Table 2), so here the nearest counts. An episode of 38 to
49 percent is in bucket 50, but is no success: that takes half of the steps."""


@dataclass
class Trial:
    """Episodes that a policy played, with what they scored."""

    reward: np.ndarray
    """(T, N) float32: the reward that is learned from."""
    env_reward: np.ndarray
    """(T, N) float32: the environment's own."""
    success: np.ndarray | None
    """(N,) bool; None: the task has no predicate."""
    goal_share: np.ndarray | None
    """(N,) share of each episode's steps in the goal state; None: no predicate."""
    rows: list[np.ndarray]
    """States after each step of the first episodes: (T, S) float64, or frames
    (T, H, W, 3) uint8."""


def try_policy(
    envs: VectorEnv,
    act: Act,
    scorer: "Scorer | None",
    episodes: int,
    seed: int,
    keep_rows: int = 0,
) -> Trial:
    """Play and score episodes; the same seed gives the same start states.

    Args:
        envs: not those of training, whose random stream would be disturbed.
        act: a policy's, as `Policy.act`.
        scorer: None: the reward is the environment's own.
        episodes: how many.
        seed: of the start states.
        keep_rows: of how many episodes the states are kept, for a video.

    Raises:
        FloatingPointError: a reward is not a finite number.
    """
    rewards, env_rewards, successes, shares, rows = [], [], [], [], []
    waiting = None
    for rollout in play(
        envs, act, episodes, seed, keep_rows=scorer is not None or keep_rows > 0
    ):
        ticket = submit(scorer, rollout)
        if waiting is not None:  # scored while this rollout was played
            rewards.append(receive(scorer, *waiting))
        waiting = ticket, rollout
        env_rewards.append(rollout.env_reward)
        if rollout.goal is not None:
            successes.append(envs.episode_success(rollout.goal))
            shares.append(rollout.goal.mean(axis=0))
        if rollout.rows is not None:
            kept = rollout.rows[:, : max(keep_rows - len(rows), 0)]
            # Copies, so that the rest of the rollout can be given up.
            rows += [kept[:, n].copy() for n in range(kept.shape[1])]
    if waiting is not None:
        rewards.append(receive(scorer, *waiting))
    return Trial(
        reward=np.concatenate(rewards, axis=1),
        env_reward=np.concatenate(env_rewards, axis=1),
        success=np.concatenate(successes) if successes else None,
        goal_share=np.concatenate(shares) if shares else None,
        rows=rows,
    )


def judge(trial: Trial) -> dict[str, Any]:
    """The eval/ metrics of a trial; success is None where there is no predicate.

    eval/buckets lists the shares of episodes in each of `BUCKETS`.
    """
    rate = low = high = buckets = None
    episodes = trial.reward.shape[1]
    if trial.goal_share is not None:
        # Halfway between two buckets, the upper one: half of the steps is a success.
        nearest = np.floor(trial.goal_share * 4 + 0.5).astype(int)
        buckets = (np.bincount(nearest, minlength=len(BUCKETS)) / episodes).tolist()
    if trial.success is not None:
        successes = int(trial.success.sum())
        rate = successes / episodes
        low, high = wilson_interval(successes, episodes)
    reward_mean = float(trial.reward.mean(dtype=np.float64))
    return_mean = float(trial.env_reward.sum(0, dtype=np.float64).mean())
    values = rate, low, high, buckets, reward_mean, return_mean, episodes
    return dict(zip(EVAL_KEYS, values, strict=True))


def wilson_interval(successes: int, episodes: int) -> tuple[float, float]:
    """95 % interval of a success rate.

    E. B. Wilson, Probable inference, the law of succession, and statistical inference,
    JASA 22 (1927): unlike the normal approximation it stays within 0..1 and keeps a
    width when all or none succeed.
    """
    z2 = 1.959964**2  # the normal distribution's 97.5 % quantile, squared
    rate = successes / episodes
    centre = rate + z2 / (2 * episodes)
    spread = math.sqrt(z2 * (rate * (1 - rate) + z2 / (4 * episodes)) / episodes)
    scale = 1 + z2 / episodes
    return max((centre - spread) / scale, 0.0), min((centre + spread) / scale, 1.0)


def write_video(
    path: Path, task: TaskConfig, clip: ClipConfig, trial: Trial, title: str
) -> None:
    """Draw the episodes whose states a trial kept, at the task's own frame height.

    Args:
        path: of the mp4; its folder is made.
        task: which world, with its textures and camera.
        clip: tells whether to draw shadows and reflections.
        trial: with the rows of at least one episode.
        title: written into the picture.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    renderer = make_renderer(task, task.frame_height, clip.render_effects)
    try:
        episodes = [
            (renderer.render(rows), trial.reward[:, n])
            for n, rows in enumerate(trial.rows)
        ]
    finally:
        renderer.close()
    write_episodes(path, episodes, VIDEO_FPS, title)
