"""A real little world for tests of learning: a point on a line, to be brought to 0.

It and its rewards are plugged in as users plug in their own: by module:NAME.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

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
    RewardConfig,
    TaskConfig,
)
from vlmrm_exp.envs import Step, World, world_of
from vlmrm_exp.log import RunLog
from vlmrm_exp.reward import Episodes, RewardModel
from vlmrm_exp.reward.pool import Pool
from vlmrm_exp.reward.workers import make_pool
from vlmrm_exp.rl import dqn, sac
from vlmrm_exp.rl.state import State


class PointMassEnvs:
    """x += 0.2 velocity, within -1..1; observation (x,), state (x, steps)."""

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
        self.reset()

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

    def states(self) -> np.ndarray:
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


WORLD = World(
    make_envs=lambda task, num_envs, threads: PointMassEnvs(
        num_envs, task.episode_length, task.options.get("discrete", False)
    ),
    make_renderer=lambda task, frame_height, effects: None,
    algorithms=("sac", "dqn"),
    state_size=2,
    predicate=lambda task: lambda states: np.abs(states[..., 0]) < 0.1,
)


class Distance(RewardModel):
    """-|x|, of each state by itself."""

    def __init__(self, config: Config) -> None:
        self.asked: list[int] = []

    def rewards(self, episodes: Episodes) -> np.ndarray:
        self.asked.append(episodes.shape[0] * episodes.shape[1])
        return -np.abs(episodes.states[..., 0]).astype(np.float32)


class Progress(RewardModel):
    """How much nearer a step came: it sees two states in a row, and no picture."""

    window = 2

    def __init__(self, config: Config) -> None:
        pass

    def rewards(self, episodes: Episodes) -> np.ndarray:
        distance = np.abs(episodes.states[..., 0])
        nearer = -np.diff(distance, axis=0, prepend=distance[:1])
        return nearer.astype(np.float32)


class Learned(RewardModel):
    """-weight |x|, whose weight is learned from all old states: their number."""

    remembers = True

    def __init__(self, config: Config) -> None:
        self.weight = 1.0

    def rewards(self, episodes: Episodes) -> np.ndarray:
        first = episodes.states.reshape(*episodes.shape, -1)[..., 0]
        return -np.float32(self.weight) * np.abs(first, dtype="f4")

    def update(self, episodes: Episodes) -> dict[str, float]:
        self.weight = float(np.prod(episodes.shape))
        self.version += 1
        return {"reward/weight": self.weight}

    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.weight}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.weight = state["weight"]


class Gone(RewardModel):
    """How far it went in two steps; an episode of one step is none to it."""

    window = 3

    def rewards(self, episodes: Episodes) -> np.ndarray:
        first = episodes.states[..., 0]
        before = np.concatenate([first[:1], first[:1], first[:-2]])
        return (first - before).astype(np.float32)


class Rare(Learned):
    """Its number of changes, of which there is one in three updates; or minus that."""

    def __init__(self, config: Config) -> None:
        self.sign, self.updates = config.reward.options.get("sign", 1), 0

    def rewards(self, episodes: Episodes) -> np.ndarray:
        return np.full(episodes.shape, self.sign * self.version, np.float32)

    def update(self, episodes: Episodes) -> dict[str, float]:
        self.updates += 1
        self.version = self.updates // 3
        return {"reward/changes": self.version}

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.updates = state["updates"]
        self.version = self.updates // 3


def point_mass_config(name: str = "sac", **changes: Any) -> Config:
    """A run of a few hundred steps on the point mass, without a video.

    Settings of a group are given as algo={...}, compute={...} and so on.
    """
    small = {"gradient_steps": 5, "batch_size": 32, "hidden": [16]}
    evaluation = {"every": 320, "episodes": 4, "final_episodes": 10}
    return Config(
        task=TaskConfig(
            name="point",
            env="point_mass:WORLD",
            episode_length=20,
            options={"discrete": name == "dqn"},
        ),
        clip=ClipConfig(name="none", model="none"),
        algo=AlgoConfig(name=name, **small | changes.pop("algo", {})),
        reward=RewardConfig(
            **{"name": "distance", "model": "point_mass:Distance"}
            | changes.pop("reward", {})
        ),
        compute=ComputeConfig(
            **{"name": "cpu", "workers": 0} | changes.pop("compute", {})
        ),
        evaluation=EvaluationConfig(
            **evaluation | {"video_episodes": 0} | changes.pop("evaluation", {})
        ),
        log=LogConfig(name="none", mode="none"),
        name="test",
        **{"prompt": "a point", "baseline": "", "alpha": 0.0, "env_steps": 800}
        | changes,
    )


class Parts(NamedTuple):
    """What a training loop works with: 8 environments, episodes of 20 steps."""

    config: Config
    envs: PointMassEnvs
    eval_envs: PointMassEnvs
    pool: Pool
    log: RunLog

    def train(
        self, saved: Mapping[str, Any] | None = None, save=lambda state: None
    ) -> State:
        algorithm = {"sac": sac, "dqn": dqn}[self.config.algo.name]
        return algorithm.train(*self, torch.device("cpu"), saved, save)


@contextlib.contextmanager
def point_mass(
    folder: Path, name: str = "sac", saved: Any = None, **changes: Any
) -> Iterator[Parts]:
    """The parts of a run on the point mass, opened; `saved`: of its log."""
    config = point_mass_config(name, **changes)
    make_envs = world_of(config.task).make_envs
    envs = make_envs(config.task, config.algo.num_envs, 1)
    eval_envs = make_envs(config.task, config.evaluation.episodes, 1)
    own = np.zeros((1, config.algo.num_envs), np.float32)
    pool = make_pool(config, Episodes(states=envs.states()[None], env_reward=own))
    log = RunLog(folder, config, saved)
    try:
        yield Parts(config, envs, eval_envs, pool, log)
    finally:
        log.close()
        pool.close()


def trained(folder: Path, name: str = "sac", **changes: Any) -> State:
    """Train on the point mass."""
    with point_mass(folder, name, **changes) as parts:
        return parts.train()


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Lines of metrics.jsonl without what may differ between runs of one seed."""
    text = (folder / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in x.items() if not k.startswith("perf/")} for x in lines]
