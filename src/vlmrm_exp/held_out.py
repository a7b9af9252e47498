"""How well an embedded model does on states and sentences that were held out."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlmrm_exp.captions import BASELINES, HELD_OUT
from vlmrm_exp.config import ClipConfig
from vlmrm_exp.envs.goals import GOALS, HumanoidGoal
from vlmrm_exp.study.metrics import auroc, epic, pearson
from vlmrm_exp.worlds import LOOKS, World

ALPHAS = (0.0, 0.5, 1.0)


def examine(
    folder: Path, clip: ClipConfig, worlds: Sequence[World]
) -> list[dict[str, Any]]:
    """Examine the finished model on held-out states and the held-out sentences.

    For each task, look and alpha: Pearson correlation and EPIC distance (paper Lemma 1)
    between reward and truth, and the share of pairs of a goal and a non-goal state that
    the reward ranks rightly (AUROC), for the paper's prompt and on average over all
    held-out sentences. The truth is -|pole angle|, the car's position, and for the
    humanoid the task's predicate (1 or 0).
    """
    from vlmrm_exp.vlm.encoder import load_encoder
    from vlmrm_exp.vlm.reward import goal_baseline_reward

    encoder = load_encoder(
        replace(clip, model=f"local-dir:{folder}"), torch.device("cpu")
    )
    rows = []
    for world in worlds:
        name = world.name
        embeddings = encoder.embed_frames(world.frames)
        tasks = GOALS if name == "humanoid" else (name,)
        for task, alpha in itertools.product(tasks, ALPHAS):
            truth, goal = truths(task, world)
            prompts = encoder.embed_prompts(HELD_OUT[task])
            baseline = encoder.embed_prompts([BASELINES[name]])[0]
            for look, appearance in enumerate(LOOKS[name]):
                seen = world.looks == look
                scores = []
                for prompt in prompts:
                    reward = goal_baseline_reward(
                        embeddings[seen], prompt, baseline, alpha
                    ).numpy()
                    correlation = float(pearson(reward, truth[seen]))
                    distance = float(epic(correlation))
                    ranked = float(auroc(reward, goal[seen]))
                    scores.append((correlation, distance, ranked))
                keys = ("pearson", "epic", "auroc")
                rows.append(
                    {
                        "task": task,
                        "alpha": alpha,
                        "textures": appearance.textures,
                        "camera": appearance.camera,
                        "goal_states": int(goal[seen].sum()),
                        "states": int(seen.sum()),
                        **dict(zip(keys, scores[0], strict=True)),
                        **{
                            f"{key}_mean": float(np.mean(values))
                            for key, values in zip(keys, zip(*scores, strict=True),
                                                   strict=True)
                        },
                    }
                )  # fmt: skip
    return rows


def truths(task: str, world: World) -> tuple[np.ndarray, np.ndarray]:
    """What the reward should order states by (B,), and which are the goal (B,) bool."""
    if task == "cartpole":
        angle = np.abs((world.rows[:, 2] + np.pi) % (2 * np.pi) - np.pi)
        return -angle, angle < np.deg2rad(12)  # Gymnasium's limit
    if task == "mountaincar":
        return world.rows[:, 0], world.rows[:, 0] >= 0.45  # Gymnasium's goal
    goal = HumanoidGoal(task)(world.rows)
    return goal.astype(float), goal


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """The realistic look from one camera, at alpha 0; report.json has the rest."""
    print(f"{'task':<14} {'goal states':>12} {'Pearson':>8} {'EPIC':>6} {'AUROC':>6}"
          "   paper's prompt (mean over held-out sentences)")  # fmt: skip
    for row in rows:
        default = row["task"] == "cartpole" or row["textures"] == "realistic"
        if row["alpha"] == 0 and row["camera"] == "fixed" and default:
            print(
                f"{row['task']:<14} {row['goal_states']:>5}/{row['states']:<6} "
                f"{row['pearson']:8.2f} {row['epic']:6.2f} {row['auroc']:6.3f}   "
                f"({row['pearson_mean']:.2f} {row['epic_mean']:.2f} "
                f"{row['auroc_mean']:.3f})"
            )
