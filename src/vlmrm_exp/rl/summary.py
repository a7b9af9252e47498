"""The end of a run: the kept policy is judged, shown and summed up."""

import contextlib
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlmrm_exp.config import Config
from vlmrm_exp.envs import VectorEnv
from vlmrm_exp.files import short_count
from vlmrm_exp.log import RunLog
from vlmrm_exp.rl import make_seeds
from vlmrm_exp.rl.checkpoint import save_policy, save_reward
from vlmrm_exp.rl.evaluation import (
    Played,
    judge,
    passed_text,
    play,
    write_beside,
    write_video,
)
from vlmrm_exp.rl.policy import Policy
from vlmrm_exp.rl.state import State

SIDES = {"judged": "Left, judged best", "alarm": "Right, at the alarm"}
"""Of an alarm's video."""


def finish(
    config: Config,
    state: State,
    eval_envs: VectorEnv,
    log: RunLog,
    device: torch.device,
) -> dict[str, Any]:
    """Judge the kept policy, show it in a video, and write the summary: returns that.

    Of an interrupted run fewer episodes are played, so that it is over soon.

    Raises:
        KeyboardInterrupt: it was stopped, and says what is there.
    """
    train_wall_s = log.wall_s()
    log.close_progress()
    evaluation, episodes = config.evaluation, config.evaluation.final_episodes
    checkpoints = log.folder / "checkpoints"
    last = state.checkpoint()
    stale = state.best_version != state.pool.version
    best = last if state.best is None or stale else state.best
    try:
        save_reward(log.folder, state.pool)  # first, as after each evaluation
        save_policy(checkpoints / "last.pt", last)
        save_policy(checkpoints / "best.pt", best)
        if state.interrupted:
            print("\nInterrupted: writing checkpoint, summary and video.", flush=True)
            episodes = min(episodes, evaluation.episodes)
        played = play(
            eval_envs,
            Policy(best, device).act,
            episodes,
            make_seeds(config.seed).final,
            state.pool,
            evaluation.reward_episodes,
            min(evaluation.video_episodes, episodes),
        )
        judged = judge(played)
        if played.states:
            video = log.folder / "videos" / "eval.mp4"
            write_video(video, config, played)
            log.video(state.learned_steps, "eval/video", video, caption(config, judged))
        log.table(state.learned_steps, "eval/table", episodes_table(played))
        _show_alarms(config, state, eval_envs, log, device)
    except KeyboardInterrupt:
        print(
            "Stopped at once, without a summary and a video: the policies kept so far, "
            f"if any, are in {checkpoints}.",
            flush=True,
        )
        raise
    estimator = state.pool.estimator
    summary = {
        "task": config.task.name,
        "clip": config.clip.name,
        "reward": config.reward.name,
        "algo": config.algo.name,
        "prompt": config.prompts,
        "baseline": config.baselines,
        "alpha": config.alpha,
        "seed": config.seed,
        "interrupted": bool(state.interrupted),
        "env_steps": state.learned_steps,
        "gradient_steps": state.gradient_steps,
        "perf/env_steps_per_s": log.env_steps_per_s(),
        **judged,
        **(estimator.metrics() if estimator else {}),
        **({"alarms": state.alarms.raised} if state.pool.judges else {}),
        "best_env_steps": best["env_steps"],
        "train_wall_s": train_wall_s,
        "wall_s": log.wall_s(),
        "ended": time.time(),
        "perf/peak_memory_gb": peak_memory_gb(),
        "perf/disk_gb": disk_gb(log.folder),
    }
    log.summary(summary)
    log.policies([checkpoints / f"{name}.pt" for name in ("best", "last")], summary)
    print(summary_text(summary, log.folder))
    return summary


def _show_alarms(
    config: Config,
    state: State,
    eval_envs: VectorEnv,
    log: RunLog,
    device: torch.device,
) -> None:
    """Keep the policies of each alarm, and show them side by side."""
    checkpoints = log.folder / "checkpoints"
    for name in state.alarms.raised:
        shown, texts = [], []
        for kind, policy in state.alarms.policies(name).items():
            save_policy(checkpoints / f"{kind}-{name}.pt", policy)
            act = Policy(policy, device).act
            seed = make_seeds(config.seed).final
            one = play(eval_envs, act, 1, seed, state.pool, 1, keep_states=1)
            metrics = judge(one)
            shown.append(one)
            texts.append(
                f"{SIDES[kind]} (env step {policy['env_steps']:,}): reward "
                f"{metrics['eval/reward_mean']:.3g}, {name} "
                f"{metrics[f'judge/{name}']:.3g}"
            )
        if all(one.states for one in shown):
            video = log.folder / "videos" / f"alarm-{name}.mp4"
            text = ". ".join(texts)
            write_beside(video, config, shown, text)
            log.video(state.learned_steps, f"judge/{name}_alarm", video, text)


def caption(config: Config, judged: dict[str, Any]) -> str:
    """What stands below the video: the sentence, and what the policy reached."""
    rate = judged["eval/success_rate"]
    success = "" if rate is None else f"; success {rate:.2f}"
    reward = f"reward {judged['eval/reward_mean']:.4g} per step"
    return f"{' / '.join(config.prompts)} ({reward}{success})"


def episodes_table(played: Played) -> dict[str, list[Any]]:
    """Columns over the N episodes; None where an episode was not judged so."""
    episodes = played.env_reward.shape[1]
    columns = {
        "reward_mean": played.reward.mean(0, dtype=np.float64),
        "return": played.env_reward.sum(0, dtype=np.float64),
        "success": played.success,
        "goal_share": played.goal_share,
        **{f"judge/{name}": said.mean(0) for name, said in played.judged.items()},
    }
    held = {k: [] if v is None else v.tolist() for k, v in columns.items()}
    padded = {k: v + [None] * (episodes - len(v)) for k, v in held.items()}
    return {"episode": list(range(episodes)), **padded}


def peak_memory_gb() -> float:
    """Peak resident memory of this process and its children, in GB (1e9 bytes).

    The sum of each running process's own peak: what it holds now, pages that several
    processes share counted once among them (Linux's Pss), and what it held more at its
    peak (VmHWM - VmRSS). The peaks need not coincide, in a multirun this process may
    have peaked in an earlier job, and what other programs share counts in part.
    """
    parents = {}
    for path in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError, KeyError):  # it may just have ended
            parents[path.parent] = Path("/proc", _fields(path)["PPid"])
    family = {Path("/proc", str(os.getpid()))}
    while more := {p for p, parent in parents.items() if parent in family} - family:
        family |= more
    kb = 0
    for process in family:
        with contextlib.suppress(OSError, KeyError):  # one that ended holds nothing
            status = _fields(process / "status")
            held = status["VmRSS"]
            with contextlib.suppress(OSError):  # some systems do not tell
                held = _fields(process / "smaps_rollup")["Pss"]
            kb += int(held) + int(status["VmHWM"]) - int(status["VmRSS"])
    return kb * 1024 / 1e9


def disk_gb(folder: Path) -> float:
    """What a run's files take, in GB (1e9 bytes), with both of its saved states.

    While a state is saved, that file is there once more; a finished run has none.
    """
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # W&B may just have removed it
            size += path.lstat().st_size if path.is_file() else 0
    return size / 1e9


def _fields(path: Path) -> dict[str, str]:
    """What Linux says of a process, by name: the first word, without units."""
    lines = [line.split() for line in path.read_text().splitlines()]
    return {line[0].removesuffix(":"): line[1] for line in lines if len(line) > 1}


def summary_text(summary: dict[str, Any], folder: Path) -> str:
    """Say in a few lines what came of a run."""
    lines = [f"{summary['task']}: {' / '.join(summary['prompt'])}"]
    rate = summary["eval/success_rate"]
    if rate is not None:
        low, high = summary["eval/success_low"], summary["eval/success_high"]
        lines.append(
            f"  success {rate:.2f} (95 % interval {low:.2f} to {high:.2f}, "
            f"{summary['eval/episodes']} episodes)"
        )
    lines += [
        f"  reward  {summary['eval/reward_mean']:.4g} per step; the environment's "
        f"own return {summary['eval/return_mean']:.4g} per episode",
        f"  trained {summary['env_steps']:,} env steps in "
        f"{summary['train_wall_s']:.0f} s; kept the policy of step "
        f"{summary['best_env_steps']:,}",
    ]
    if "reward/queries" in summary:
        error = summary.get("reward/error")
        lines.append(
            f"  looked at {summary['reward/queries']:,} of these states; error of the "
            f"others' rewards {'not measured' if error is None else f'{error:.2f}'}"
        )
    lines += passed_text(summary)
    for key, value in summary.items():
        if key.startswith("judge/"):
            name = key.removeprefix("judge/")
            raised = summary["alarms"].get(name)
            told = f"; alarm at {raised['env_steps']:,}" if raised else ""
            mean = f"{value:.4g} per step" if math.isfinite(value) else "not finite"
            lines.append(f"  judge   {name} {mean}{told}")
    memory = short_count(1e9 * summary["perf/peak_memory_gb"])
    disk = short_count(1e9 * summary["perf/disk_gb"])
    lines.append(f"  used    {memory}B of memory at its peak, {disk}B of disk")
    lines.append(f"  folder  {folder}")
    video = folder / "videos" / "eval.mp4"
    if video.is_file():
        lines.append(f"  video   {video}")
    return "\n".join(lines)
