"""Folders as training runs leave them, made by hand, with known numbers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ENV_STEPS = 40_000


def write_run(
    folder: Path,
    *,
    task: str = "kneeling",
    clip: str = "base",
    seed: int = 0,
    alpha: float = 0.0,
    success: float | None = 0.9,
    episodes: int = 100,
    reward: float = 0.3,
    parameters: int = 4_000_000,
    rewards: Sequence[float] | None = None,
    textures: str = "realistic",
    camera: str = "fixed",
    prompt: str = "a humanoid robot kneeling",
    summary: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
) -> Path:
    """Write a finished run; what a test wants otherwise it changes afterwards.

    A quarter of the model's `parameters` are for the text. `rewards` are
    train/reward_mean of each report; None: twelve, rising to `reward`, that of the kept
    policy. `summary` and `settings` are added to their files.
    """
    config = {
        "task": {"name": task, "textures": textures, "camera": camera},
        "clip": {"name": clip, "model": "embedded", "batch_size": 64},
        "algo": {"name": "sac", "learning_rate": 6e-4, "hidden": [256, 256]},
        "compute": {"name": "auto", "device": "auto", "overlap": True},
        "evaluation": {"every": 8000},
        "log": {"name": "none"},
        "prompt": prompt,
        "baseline": "a humanoid robot",
        "alpha": alpha,
        "reward": {"name": "clip", "model": "clip", "every": 1, "options": {}},
        "seed": seed,
        "name": folder.name,
        "env_steps": ENV_STEPS,
        **(settings or {}),
    }
    overrides = [f"task={task}", f"clip={clip}", f"seed={seed}", f"prompt='{prompt}'"]
    hydra = {
        "overrides": {"hydra": ["hydra.mode=MULTIRUN"], "task": overrides},
        "job": {"config_name": "tasks_embedded"},
        "runtime": {
            "cwd": "/home/me/vlmrm_exp",
            "config_sources": [
                {"path": "/home/me/vlmrm_exp/conf", "provider": "main"},
                {"path": "/home/me/vlmrm_exp/sweeps", "provider": "command-line"},
            ],
        },
    }
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump({"hydra": hydra}))
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    versions = {
        "command": "python -m vlmrm_exp --config-dir sweeps --config-name tasks",
        "python": "3.11.7",
        "packages": {"torch": "2.13.0", "mujoco": "3.17.0"},
        "commit": COMMIT,
        "commit_is_dirty": False,
        "device": "cpu",
        "encoder": {
            "name": clip,
            "weights_sha256": f"{parameters:x}",
            "parameters_image": parameters - parameters // 4,
            "parameters_text": parameters // 4,
        },
    }
    (folder / "versions.json").write_text(json.dumps(versions))
    values = {
        "task": task,
        "clip": clip,
        "seed": seed,
        "interrupted": False,
        "env_steps": ENV_STEPS,
        "eval/success_rate": success,
        "eval/reward_mean": reward,
        "eval/episodes": episodes,
        "wall_s": 600.0,
        **(summary or {}),
    }
    (folder / "summary.json").write_text(json.dumps(values))
    if rewards is None:
        rewards = reward * (1 - np.exp(-np.arange(1, 13) / 4))
    lines = []
    for number, value in enumerate(rewards, 1):
        steps = number * ENV_STEPS // len(rewards)
        report = {"env_steps": steps, "train/reward_mean": float(value)}
        if success is not None and number % 3 == 0:
            report["eval/success_rate"] = success * number / len(rewards)
        lines.append(json.dumps(report))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder
