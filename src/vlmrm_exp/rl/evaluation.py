"""Play a policy without exploration and judge its episodes.

Used while training, at the end of a run, and by `python -m vlmrm_exp.evaluate`.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vlmrm_exp.config import Config
from vlmrm_exp.envs import VectorEnv, frames_of, world_of
from vlmrm_exp.foreign import blaming, close
from vlmrm_exp.log.progress import progress_bar
from vlmrm_exp.measures import wilson_interval
from vlmrm_exp.reward import rewards_of
from vlmrm_exp.reward.pool import Pool
from vlmrm_exp.rl import make_seeds
from vlmrm_exp.rl.checkpoint import save_policy, save_reward
from vlmrm_exp.rl.rollout import Act, Rollout, collect
from vlmrm_exp.rl.state import State
from vlmrm_exp.video import write_episodes

VIDEO_FPS = 30
"""Frames per second, one per env step: a humanoid's 30 ms at nearly its own speed."""

LOGGED = (
    *("eval/success_rate", "eval/reward_mean", "eval/return_mean", "judge/"),
    *("eval/stage_", "eval/goal_"),
)
"""How metrics of a run begin, of what `judge` gives."""

BUCKETS = (0, 25, 50, 75, 100)
"""Percent of an episode's steps in the goal state; the paper's rater put each of 100
episodes into one of these (Table 2), so here the nearest counts. An episode of 38 to
49 percent is in bucket 50, but is no success: that takes half of the steps."""


@dataclass
class Played:
    """Episodes that a policy played."""

    reward: np.ndarray
    """(T, R): the reward that is learned from, of the first R episodes."""
    env_reward: np.ndarray
    """(T, N) float32: the environment's own."""
    success: np.ndarray | None
    """(N,) bool; None: the task has no predicate."""
    goal_share: np.ndarray | None
    """(N,) share of each episode's steps in the goal state; None: no predicate."""
    states: list[np.ndarray]
    """Of the first episodes: (T, S) float64, or frames (T, H, W, 3) uint8."""
    judged: dict[str, np.ndarray] = field(default_factory=dict)
    """(T, R) of each second opinion, at most of as many episodes as were asked for."""
    passed: Mapping[str, np.ndarray] = field(default_factory=dict)
    """(N, K) bool: which goals and stages were passed, of a task that has some."""


def first(rollout: Rollout, episodes: int) -> Rollout:
    """The first `episodes` of them (views)."""
    cut: dict[str, Any] = {
        name: None if array is None else array[:, :episodes]
        for name, array in vars(rollout).items()
        if name != "passed"
    }
    passed = {name: parts[:episodes] for name, parts in rollout.passed.items()}
    return Rollout(**cut, passed=passed)


def play(
    envs: VectorEnv,
    act: Act,
    episodes: int,
    seed: int,
    pool: Pool,
    rewarded: int | None = None,
    keep_states: int = 0,
) -> Played:
    """Play episodes, and reward the first ones; a seed gives the same start states.

    Success is judged on states, which cost little; rewards may need pictures.

    Args:
        envs: not those of training, whose random stream would be disturbed.
        act: a policy's, without exploration.
        episodes: how many.
        seed: of the start states.
        pool: gives the rewards, and has the judges.
        rewarded: how many of the episodes; None: all. All, if it costs nothing.
        keep_states: of how many rewarded episodes the states are kept, for a video.

    Raises:
        FloatingPointError: a reward is not a finite number.
    """
    judged = episodes if rewarded is None else min(rewarded, episodes)
    rewarded = episodes if pool.cheap else judged
    judges_need_states = any(judge.needs_states for judge in pool.judges.values())
    rollouts, rewards, states = [], [], []
    said: dict[str, list[np.ndarray]] = {name: [] for name in pool.judges}
    waiting = None
    total = -(-episodes // envs.num_envs) * envs.episode_length * envs.num_envs
    with progress_bar(total, "step", "evaluating") as progress:

        def counted(observation: np.ndarray) -> np.ndarray:
            progress.update(len(observation))
            return act(observation)

        left, start = episodes, seed
        while left > 0:
            done = episodes - left
            looked_at = max(rewarded - done, 0)
            # Rendering environments give frames for states: only where looked at.
            keep = (
                looked_at > 0 and (pool.needs_states or keep_states > len(states))
            ) or (judges_need_states and done < judged)
            rollout = first(collect(envs, counted, start, keep), left)
            left, start = left - rollout.shape[1], None
            if waiting is not None:  # rewarded while this rollout was played
                rewards.append(waiting())
                waiting = None
            if looked_at > 0:
                seen = first(rollout, looked_at)
                waiting = pool.submit(seen)
                if done < judged:
                    for name, judge in pool.judges.items():
                        given = rewards_of(judge, first(seen, judged - done))
                        said[name].append(given)
                if seen.states is not None:
                    kept = seen.states[:, : max(keep_states - len(states), 0)]
                    # Copies, so that the rest of the rollout can be given up.
                    states += [kept[:, n].copy() for n in range(kept.shape[1])]
            rollout.states = None
            rollouts.append(rollout)
        if waiting is not None:
            rewards.append(waiting())
    goal = None
    if any(r.goal is not None for r in rollouts):  # an environment may tell of it late
        goals = [
            np.zeros(r.shape, bool) if r.goal is None else r.goal for r in rollouts
        ]
        goal = np.concatenate(goals, axis=1)
    judged_by = {name: np.concatenate(each, axis=1) for name, each in said.items()}
    for name, given in judged_by.items():
        # Nothing is learned from it, so the run goes on.
        if bad := int((~np.isfinite(given)).sum()):
            print(
                f"judge.{name}: {bad} of its {given.size} rewards are not finite, so "
                f"judge/{name} is null for this evaluation.",
                file=sys.stderr,
            )
    return Played(
        reward=np.concatenate(rewards, axis=1),
        env_reward=np.concatenate([r.env_reward for r in rollouts], axis=1),
        success=None if goal is None else success_of(envs, goal),
        goal_share=None if goal is None else goal.mean(axis=0),
        states=states,
        judged=judged_by,
        passed={
            name: np.concatenate([rollout.passed[name] for rollout in rollouts])
            for name in rollouts[0].passed
        },
    )


def success_of(envs: VectorEnv, goal: np.ndarray) -> np.ndarray:
    """Ask a world about whole episodes: goal flags (T, N) bool -> (N,) bool.

    Raises:
        ForeignError: one's own failed, or gave something else.
    """
    with blaming(envs, "in episode_success"):
        success = envs.episode_success(goal)
        if not isinstance(success, np.ndarray) or success.dtype != bool:
            kind = getattr(success, "dtype", None) or type(success).__name__
            raise TypeError(f"it gave {kind}, not an array of bool")
        if success.shape != goal.shape[1:]:
            raise ValueError(f"it gave {success.shape}, not {goal.shape[1:]}")
    return success


def judge(played: Played) -> dict[str, Any]:
    """The eval/ metrics of episodes; success is None where there is no predicate.

    eval/buckets lists the shares of episodes in each of `BUCKETS`; judge/NAME is the
    mean of what a judge says.
    """
    episodes = played.env_reward.shape[1]
    rate = low = high = buckets = None
    if played.goal_share is not None:
        # Halfway between two buckets, the upper one: half of the steps is a success.
        nearest = np.floor(played.goal_share * 4 + 0.5).astype(int)
        buckets = (np.bincount(nearest, minlength=len(BUCKETS)) / episodes).tolist()
    if played.success is not None:
        successes = int(played.success.sum())
        rate = successes / episodes
        low, high = wilson_interval(successes, episodes)
    return {
        "eval/success_rate": rate,
        "eval/success_low": low,
        "eval/success_high": high,
        "eval/buckets": buckets,
        "eval/reward_mean": float(played.reward.mean(dtype=np.float64)),
        "eval/return_mean": float(played.env_reward.sum(0, dtype=np.float64).mean()),
        "eval/episodes": episodes,
        "eval/reward_episodes": played.reward.shape[1],
        **{
            f"judge/{name}": float(said.mean(dtype=np.float64))
            for name, said in played.judged.items()
        },
        **_passed("eval", played.passed),
    }


def _passed(kind: str, passed: Mapping[str, np.ndarray]) -> dict[str, float]:
    """How many goals or stages are passed, and the share of episodes for each."""
    found = {}
    for name, parts in passed.items():
        found[f"{kind}/{name}_mean"] = float(parts.sum(1).mean())
        shares = parts.mean(0).tolist()
        found |= {f"{kind}/{name}_{k}": share for k, share in enumerate(shares, 1)}
    return found


def passed_text(judged: Mapping[str, Any]) -> list[str]:
    """A line for people of goals and one of stages, if there are some."""
    lines = []
    for name, by in (("goal", "predicates"), ("stage", "the reward")):
        parts = [key for key in judged if re.fullmatch(f"eval/{name}_[0-9]+", key)]
        if parts:
            shares = ", ".join(f"{judged[key]:.2f}" for key in parts)
            lines.append(f"  {name + 's':8} passed in {shares} of episodes, by {by}")
    return lines


def evaluate(
    config: Config, state: State, envs: VectorEnv, folder: Path
) -> dict[str, float]:
    """Try the present policy while training, keep it, and set when this is due next.

    `folder` is the run's. Returns the metrics of the run among what `judge` gives.
    """
    act, seed = state.agent.act_greedily, make_seeds(config.seed).evaluation
    judged = judge(play(envs, act, config.evaluation.episodes, seed, state.pool))
    # First: if the run is killed in between, no policy has an older reward beside it.
    save_reward(folder, state.pool)
    keep(state, judged, folder / "checkpoints")
    every = config.evaluation.every
    state.next_evaluation = (state.learned_steps // every + 1) * every
    return {
        key: value
        for key, value in judged.items()
        if key.startswith(LOGGED) and value is not None
    }


def keep(state: State, judged: Mapping[str, Any], folder: Path) -> None:
    """Save the present policy, also as the best if none had a higher reward.

    Of equals the latest: where all rewards are the same, the most trained one. Rewards
    of a model that has learned since cannot be compared: then it is the best too. A
    line tells of each judge whose `judge/NAME` in `judged` now disagrees.
    """
    checkpoint, reward = state.checkpoint(), judged["eval/reward_mean"]
    save_policy(folder / "last.pt", checkpoint)
    for name in state.alarms.add(reward, judged, checkpoint):
        does = state.alarms.raised[name]["judge"]
        print(
            f"Alarm at env step {state.learned_steps:,}: the reward rises, but "
            f"judge/{name} {does}.",
            file=sys.stderr,
        )
    if reward >= state.best_reward or state.pool.version != state.best_version:
        state.best, state.best_reward = checkpoint, reward
        state.best_version = state.pool.version
        save_policy(folder / "best.pt", checkpoint)


def rollout_metrics(
    rollout: Rollout, reward: np.ndarray, envs: VectorEnv
) -> dict[str, float]:
    """The train/ metrics of a rollout with its rewards (T, N)."""
    assert rollout.env_reward is not None
    metrics = {
        "train/reward_mean": float(reward.mean(dtype=np.float64)),
        "train/return_mean": float(rollout.env_reward.sum(0).mean()),
    }
    if rollout.goal is not None:
        success = success_of(envs, rollout.goal)
        metrics["train/success_rate"] = float(success.mean())
    return metrics | _passed("train", rollout.passed)


def write_video(path: Path, config: Config, played: Played) -> None:
    """Show the episodes whose states were kept, one after another."""
    episodes = [
        (frames, played.reward[:, n])
        for n, frames in enumerate(_frames(config, played.states))
    ]
    write_episodes(path, episodes, VIDEO_FPS, " / ".join(config.prompts))


def write_beside(
    path: Path, config: Config, played: Sequence[Played], title: str
) -> None:
    """Show the first kept episode of several policies side by side."""
    frames = _frames(config, [one.states[0] for one in played])
    write_episodes(path, [(np.concatenate(frames, axis=2), None)], VIDEO_FPS, title)


def _frames(config: Config, episodes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Render episodes of states, at the task's own frame height: (T, H, W, 3) each."""
    task = config.task
    renderer = world_of(task).make_renderer(
        task, task.frame_height, config.clip.render_effects
    )
    try:
        return [frames_of(renderer, states) for states in episodes]
    finally:
        close(renderer)
