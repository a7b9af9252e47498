"""Gymnasium's Humanoid without termination.

Physics, observation and reward are those of Gymnasium's Humanoid-v5 (or v4) with
`terminate_when_unhealthy=False` and the same `frame_skip`; a test compares them step
by step.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np

from vlmrm_exp.config import TaskConfig
from vlmrm_exp.envs import (
    Samples,
    Step,
    VectorEnv,
    World,
    humanoid_model,
    humanoid_renderer,
    poses,
)
from vlmrm_exp.envs.goals import GOALS, HumanoidGoal
from vlmrm_exp.envs.humanoid_model import NUM_QPOS, STATE_SIZE, humanoid_spec
from vlmrm_exp.envs.humanoid_renderer import CAMERAS, HumanoidRenderer, renders_with
from vlmrm_exp.envs.poses import PoseLibrary

RESET_NOISE = 0.01  # uniform, on every coordinate and velocity (Gymnasium)
SHARES = {"tasks": 0.4, "poses": 0.3, "falls": 0.1, "random": 0.2}
"""The humanoid's states for studies, by where they come from."""
STEPS_KEPT = 25  # states of an episode that is played for studies, on average


class HumanoidEnvs:
    """N humanoids; a state is (qpos, qvel), (47,) float64.

    Their physics can be shared out to threads, and is the same with any number of them.
    """

    def __init__(self, task: TaskConfig, num_envs: int, threads: int = 1) -> None:
        assert task.episode_length is not None
        self.num_envs = num_envs
        self.episode_length = task.episode_length
        self._version = task.version
        self._frame_skip = task.frame_skip
        self._joints_alone = task.observation == "joints"
        self._goal = HumanoidGoal(task.goal) if task.goal else None
        self._model = humanoid_spec().compile()
        self._datas = [mujoco.MjData(self._model) for _ in range(num_envs)]
        threads = min(threads, num_envs)
        # MuJoCo lets go of Python's lock while it computes.
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self._shares = [slice(first, None, threads) for first in range(threads)]
        self._rngs = [np.random.default_rng(i) for i in range(num_envs)]
        # Kept, as a loaded state has no body positions before its first step.
        self._centers_x = np.zeros(num_envs)
        size = len(self._observation(self._datas[0]))
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (size,), np.float32)
        low, high = self._model.actuator_ctrlrange.T.astype(np.float32)
        self.action_space = gym.spaces.Box(low, high, dtype=np.float32)

    def reset(self, seed: int | None = None) -> np.ndarray:
        """Stand up straight, with a little noise; (N, O) float32."""
        if seed is not None:
            self._rngs = np.random.default_rng(seed).spawn(self.num_envs)
        for data, rng in zip(self._datas, self._rngs, strict=True):
            mujoco.mj_resetData(self._model, data)
            noise = rng.uniform(-RESET_NOISE, RESET_NOISE, STATE_SIZE)
            data.qpos += noise[:NUM_QPOS]
            data.qvel += noise[NUM_QPOS:]
            mujoco.mj_forward(self._model, data)
        self._centers_x = self._mass_centers_x()
        return self._observations()

    def step(self, action: np.ndarray) -> Step:
        """Advance `frame_skip` physics steps: action (N, 17), torque by gear, ±0.4."""
        for data, torque in zip(self._datas, action, strict=True):
            data.ctrl[:] = torque
        if self._pool is None:
            self._advance(slice(None))
        else:
            shares = [self._pool.submit(self._advance, s) for s in self._shares]
            try:
                for share in shares:
                    share.result()
            finally:  # Ctrl-C ends no thread, and what it writes is used again
                wait(shares)
        before, self._centers_x = self._centers_x, self._mass_centers_x()
        seconds = self._frame_skip * self._model.opt.timestep
        velocity = (self._centers_x - before) / seconds
        rewards = np.fromiter(map(self._reward, self._datas, velocity), np.float32)
        goal = None if self._goal is None else self._goal(self.states())
        return Step(self._observations(), rewards, goal)

    def states(self) -> np.ndarray:
        """(N, 47) float64."""
        return np.stack([np.concatenate((d.qpos, d.qvel)) for d in self._datas])

    def episode_success(self, goal: np.ndarray) -> np.ndarray:
        """The goal state held for at least half of the steps (paper section 4.3)."""
        return goal.mean(axis=0) >= 0.5

    def state_dict(self) -> dict[str, Any]:
        """Full physics state, warm start included, and the random streams."""
        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        size = mujoco.mj_stateSize(self._model, kind)
        physics = np.empty((self.num_envs, size), np.float64)
        for row, data in zip(physics, self._datas, strict=True):
            mujoco.mj_getState(self._model, data, row, kind)
        return {
            "physics": physics.tolist(),  # plain numbers load without unpickling
            "centers_x": self._centers_x.tolist(),
            "rngs": [r.bit_generator.state for r in self._rngs],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        for row, data in zip(state["physics"], self._datas, strict=True):
            mujoco.mj_setState(self._model, data, np.array(row), kind)
        self._centers_x = np.array(state["centers_x"])
        for rng, rng_state in zip(self._rngs, state["rngs"], strict=True):
            rng.bit_generator.state = rng_state

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def _advance(self, which: slice) -> None:
        for data in self._datas[which]:
            mujoco.mj_step(self._model, data, nstep=self._frame_skip)
            # External forces (cfrc_ext) are not part of mj_step.
            mujoco.mj_rnePostConstraint(self._model, data)

    def _mass_centers_x(self) -> np.ndarray:
        mass = self._model.body_mass
        return np.array([mass @ d.xipos[:, 0] / mass.sum() for d in self._datas])

    def _reward(self, data: mujoco.MjData, velocity: float) -> float:
        """Gymnasium's own: run forward, stay up, spend little (weights are its)."""
        healthy = 5.0 * (1.0 < data.qpos[2] < 2.0)
        reward = 1.25 * velocity + healthy - 0.1 * np.sum(np.square(data.ctrl))
        if self._version == "v5":
            reward -= min(5e-7 * np.sum(np.square(data.cfrc_ext)), 10.0)
        return float(reward)

    def _observations(self) -> np.ndarray:
        return np.stack([self._observation(d) for d in self._datas]).astype(np.float32)

    def _observation(self, data: mujoco.MjData) -> np.ndarray:
        if self._joints_alone:
            return np.concatenate((data.qpos[2:], data.qvel))
        # v4 also lists the world body and the root's generalised forces: all zero.
        body, dof = (1, 6) if self._version == "v5" else (0, 0)
        return np.concatenate(
            (
                data.qpos[2:],
                data.qvel,
                data.cinert[body:].ravel(),
                data.cvel[body:].ravel(),
                data.qfrc_actuator[dof:],
                data.cfrc_ext[body:].ravel(),
            )
        )


def sample_states(task: TaskConfig, count: int, seed: int) -> Samples:
    """A seeded mixture: at and near the goals, other poses, falls, random actions.

    The paper pools what a run's checkpoints visit; the mixture stands in for early
    ones.
    """
    # Differences of a rounded running sum, so that they add up.
    ends = np.round(np.cumsum([0, *SHARES.values()]) * count).astype(int)
    parts = dict(zip(SHARES, np.diff(ends).tolist(), strict=True))
    rng = np.random.default_rng([seed, len(SHARES)])
    library = PoseLibrary()
    sample = {
        "tasks": lambda i: library.near_goal(i, rng),
        "poses": lambda i: library.sample(rng),
        "falls": lambda i: library.fall(rng),
    }
    states = [one(i) for name, one in sample.items() for i in range(parts[name])]
    num_envs = episodes_for(task, parts["random"])
    envs = HumanoidEnvs(replace(task, goal=""), num_envs)
    low, high = envs.action_space.low, envs.action_space.high

    def act(observation: np.ndarray) -> np.ndarray:
        size = (len(observation), *low.shape)
        return rng.uniform(low, high, size).astype(np.float32)

    random, episode = visited(envs, act, parts["random"], rng)
    source = np.repeat(list(parts), list(parts.values()))
    return Samples(
        np.concatenate((states, random)),
        source,
        np.concatenate((np.arange(len(states)), len(states) + episode)),
    )


def episodes_for(task: TaskConfig, count: int) -> int:
    """How many episodes `visited` needs for so many states."""
    assert task.episode_length is not None
    return max(1, -(-count // min(STEPS_KEPT, task.episode_length)))


def visited(
    envs: VectorEnv,
    act: Callable[[np.ndarray], np.ndarray],
    count: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Some states of one episode of each environment, each at most once.

    Returns states (count, S), and the number of each one's episode, (count,) int. The
    starts and the choice are drawn from `rng`; the environments are closed.
    """
    observation = envs.reset(int(rng.integers(2**31)))
    states = []
    for _ in range(envs.episode_length):
        observation = envs.step(act(observation)).observation
        states.append(envs.states())
    envs.close()
    flat = np.concatenate(states)  # T arrays (N, S) -> (T * N, S)
    chosen = rng.choice(len(flat), count, replace=False)
    return flat[chosen], chosen % envs.num_envs


WORLD = World(
    make_envs=HumanoidEnvs,
    make_renderer=HumanoidRenderer,
    algorithms=("sac",),
    state_size=STATE_SIZE,
    textures=("plain", "realistic"),
    cameras=CAMERAS,
    reads=("version", "observation", "frame_skip"),
    goals=GOALS,
    predicate=lambda task: HumanoidGoal(task.goal) if task.goal else None,
    sample_states=sample_states,
    renders_with=renders_with,
    sources=(
        __file__,
        humanoid_model.__file__,
        humanoid_renderer.__file__,
        poses.__file__,
        str(poses.POSES_FILE),
    ),
)
