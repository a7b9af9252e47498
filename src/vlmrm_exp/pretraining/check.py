"""How well an embedded model does on states and sentences that were held out.

Its rewards are those of a run: rendered, embedded and made by `reward/clip.py`.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlmrm_exp.config import ClipConfig, Config, TaskConfig
from vlmrm_exp.envs import world_of
from vlmrm_exp.envs.goals import GOALS
from vlmrm_exp.files import table
from vlmrm_exp.measures import auroc, epic, pearson
from vlmrm_exp.pretraining.captions import BASELINES, HELD_OUT
from vlmrm_exp.pretraining.drawing import APPEARANCES, WORLDS, draw_seen, parts_of
from vlmrm_exp.reward.clip import Appearance, Sentence
from vlmrm_exp.vlm.encoder import Encoder, load_encoder

ALPHAS = (0.0, 0.5, 1.0)
MEASURES = ("pearson", "epic", "auroc")
HELD_OUT_SEED = 1_000_000  # of states that training never saw


def examine(folder: Path, clip: ClipConfig, count: int) -> list[dict[str, Any]]:
    """Examine the finished model in a folder on `count` states of each world.

    For each task, appearance and alpha: Pearson correlation and EPIC distance (paper
    Lemma 1) of reward and truth, and AUROC of goal states, for the paper's prompt and
    on average over all held-out sentences. The truth is graded where the world knows
    how (the toys), else the task's predicate (1 or 0).
    """
    clip = replace(clip, model=f"local-dir:{folder}")
    encoder = load_encoder(clip, torch.device("cpu"))
    found = []
    for world in WORLDS:
        parts = [draw_seen(world, p) for p in parts_of(world, count, HELD_OUT_SEED)]
        states, appearance = map(np.concatenate, zip(*parts, strict=True))
        for i, (task, _) in enumerate(APPEARANCES[world]):
            seen = states[appearance == i]
            embeddings = _embed(encoder, Config(task=task, clip=clip), seen)
            for goal in GOALS if world == "humanoid" else ("",):
                aim = replace(task, name=goal or task.name, goal=goal)
                found += _judge(encoder, aim, BASELINES[world], seen, embeddings)
    return found


def _embed(encoder: Encoder, config: Config, states: np.ndarray) -> torch.Tensor:
    """States (B, S), as a run of the configured task sees them: (B, 1, D)."""
    appearance = Appearance(config, encoder.batch_size, encoder.embed_frames)
    with contextlib.closing(appearance):
        return appearance.see(states)


def _judge(
    encoder: Encoder,
    task: TaskConfig,
    baseline: str,
    states: np.ndarray,
    embeddings: torch.Tensor,
) -> Iterator[dict[str, Any]]:
    """Compare the rewards of a task with its truth, for each alpha."""
    world = world_of(task)
    predicate = world.predicate(task)
    assert predicate is not None
    goal = predicate(states)
    truth = goal if world.graded is None else world.graded(states)
    for alpha in ALPHAS:
        scores = []
        for prompt in HELD_OUT[task.name]:
            said = Config(prompt=prompt, baseline=baseline, alpha=alpha)
            reward = Sentence(encoder, said)(embeddings).numpy()
            correlation = pearson(reward, truth)
            scores.append([correlation, epic(correlation), auroc(reward, goal)])
        means = np.mean(scores, axis=0)
        yield {
            "task": task.name,
            "alpha": alpha,
            "textures": task.textures,
            "camera": task.camera,
            "goal_states": goal.sum(),
            "states": len(states),
            **dict(zip(MEASURES, scores[0], strict=True)),
            **{f"{key}_mean": m for key, m in zip(MEASURES, means, strict=True)},
        }


def print_table(found: list[dict[str, Any]]) -> None:
    """What a default run sees from in front, at alpha 0; report.json has the rest."""
    lines = [
        [row["task"], f"{row['goal_states']}/{row['states']}"]
        + [f"{row[key]:.3f} ({row[f'{key}_mean']:.3f})" for key in MEASURES]
        for row in found
        if row["alpha"] == 0
        and row["camera"] == "fixed"
        and (row["textures"] == "realistic" or row["task"] == "cartpole")
    ]
    print("The paper's prompt (mean over held-out sentences):")
    print(table(["task", "goal states", "Pearson", "EPIC", "AUROC"], lines))
