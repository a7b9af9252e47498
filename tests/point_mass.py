"""A real little world for tests of learning: a point on a line, to be brought to 0."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from vlmrm_exp.config import (
    AlgoConfig,
    ClipConfig,
    ComputeConfig,
    Config,
    EvaluationConfig,
    LogConfig,
    TaskConfig,
)
from vlmrm_exp.envs import Step
from vlmrm_exp.log import RunLog
from vlmrm_exp.rl import Run


class PointMassEnvs:
    """x += 0.2 velocity, within -1..1; observation (x,), state row (x, steps)."""

    def __init__(self, num_envs: int, episode_length: int, discrete: bool = False):
        self.num_envs = num_envs
        self.episode_length = episode_length
        self.discrete = discrete
        self.observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
        self.action_space = (
            gym.spaces.Discrete(3)
            if discrete
            else gym.spaces.Box(np.float32([-0.5]), np.float32([1.5]))
        )
        self.env_reward_scale = 1.0
        self.rng = np.random.default_rng(0)

    def reset(self, seed: int | None = None) -> np.ndarray:
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.x = self.rng.uniform(-1, 1, self.num_envs)
        self.steps = 0
        return self._observe()

    def step(self, action: np.ndarray) -> Step:
        velocity = action - 1.0 if self.discrete else action[:, 0]
        self.x = np.clip(self.x + 0.2 * velocity, -1, 1)
        self.steps += 1
        env_reward = (-self.env_reward_scale * np.abs(self.x)).astype(np.float32)
        return Step(self._observe(), env_reward, np.abs(self.x) < 0.1)

    def state_rows(self) -> np.ndarray:
        return np.stack([self.x, np.full(self.num_envs, float(self.steps))], axis=1)

    def episode_success(self, goal: np.ndarray) -> np.ndarray:
        return goal[-1]

    def state_dict(self) -> dict[str, Any]:
        return {"x": self.x.tolist(), "rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.x = np.array(state["x"])
        self.rng.bit_generator.state = state["rng"]

    def close(self) -> None:
        pass

    def _observe(self) -> np.ndarray:
        return self.x[:, None].astype(np.float32)


class DistanceScorer:
    """Rewards -|x|, computed when asked for, as by another process."""

    def __init__(self):
        self.waiting: dict[int, np.ndarray] = {}
        self.tickets = 0

    def submit(self, rows: np.ndarray) -> int:
        self.tickets += 1
        self.waiting[self.tickets] = rows
        return self.tickets

    def result(self, ticket: int) -> np.ndarray:
        return -np.abs(self.waiting.pop(ticket)[:, 0]).astype(np.float32)


def point_mass_config(algo: AlgoConfig, overlap: bool = True, **changes: Any) -> Config:
    """A run of a few hundred steps on the point mass, without a video."""
    values = {"prompt": "a point", "baseline": "", "alpha": 0.0, "env_steps": 800}
    return Config(
        task=TaskConfig(name="point", env="gym", env_id="Point-v0"),
        clip=ClipConfig(name="none", model="none"),
        algo=algo,
        compute=ComputeConfig(name="cpu", overlap=overlap),
        evaluation=EvaluationConfig(
            every=320, episodes=4, final_episodes=10, video_episodes=0
        ),
        log=LogConfig(name="none", mode="none"),
        name="test",
        **{**values, **changes},
    )


@contextlib.contextmanager
def point_mass_run(
    folder: Path, algo: AlgoConfig, run_class: type[Run] = Run, **changes: Any
) -> Iterator[Run]:
    """A run of 8 envs with episodes of 20 steps, scored by their distance."""
    config = point_mass_config(algo, **changes)
    discrete = algo.name == "dqn"
    envs, eval_envs = (PointMassEnvs(n, 20, discrete) for n in (8, 4))
    scorer = DistanceScorer() if config.reward == "clip" else None
    log = RunLog(folder, config)
    try:
        yield run_class(
            config, folder, envs, eval_envs, scorer, log, torch.device("cpu")
        )
    finally:
        log.close()


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Lines of metrics.jsonl without what may differ between runs of one seed."""
    text = (folder / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in x.items() if not k.startswith("perf/")} for x in lines]
