"""Gymnasium's Humanoid without termination, and its pictures from state rows.

Physics, observation and reward are those of Gymnasium's Humanoid-v5 (or v4) with
`terminate_when_unhealthy=False` and the same `frame_skip`; a test compares them step
by step. The model is Gymnasium's own `humanoid.xml`; only its looks are changed, in
memory.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.envs.mujoco import mujoco_env

from vlmrm_exp.config import TaskConfig
from vlmrm_exp.envs import Step
from vlmrm_exp.envs.looks import dress

RESET_NOISE = 0.01  # uniform, on every coordinate and velocity (Gymnasium)
NUM_QPOS, NUM_QVEL = 24, 23
STATE_ROW = NUM_QPOS + NUM_QVEL  # (qpos, qvel)
FLOOR_SQUARE = 1.0  # m, as drawn; Gymnasium's 0.125 costs more than all the rest


def humanoid_spec() -> mujoco.MjSpec:
    """Gymnasium's humanoid.xml, editable."""
    assets = Path(mujoco_env.__file__).parent / "assets"
    return mujoco.MjSpec.from_file(str(assets / "humanoid.xml"))


class HumanoidEnvs:
    """N humanoids; a state row is (qpos, qvel), (47,) float64."""

    def __init__(self, task: TaskConfig, num_envs: int) -> None:
        from vlmrm_exp.envs.goals import HumanoidGoal  # it needs this module's model

        assert task.episode_length is not None
        self.num_envs = num_envs
        self.episode_length = task.episode_length
        self._version = task.version
        self._frame_skip = task.frame_skip
        self._joints_alone = task.observation == "joints"
        self._goal = HumanoidGoal(task.goal) if task.goal else None
        self._model = humanoid_spec().compile()
        self._datas = [mujoco.MjData(self._model) for _ in range(num_envs)]
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
            seeds = np.random.SeedSequence(seed).spawn(self.num_envs)
            self._rngs = [np.random.default_rng(s) for s in seeds]
        for data, rng in zip(self._datas, self._rngs, strict=True):
            mujoco.mj_resetData(self._model, data)
            noise = rng.uniform(-RESET_NOISE, RESET_NOISE, STATE_ROW)
            data.qpos += noise[:NUM_QPOS]
            data.qvel += noise[NUM_QPOS:]
            mujoco.mj_forward(self._model, data)
        self._centers_x[:] = [self._mass_center_x(data) for data in self._datas]
        return self._observations()

    def step(self, action: np.ndarray) -> Step:
        """Advance `frame_skip` physics steps: action (N, 17), torque by gear, ±0.4."""
        rewards = np.empty(self.num_envs, np.float32)
        for i, data in enumerate(self._datas):
            before = self._centers_x[i]
            data.ctrl[:] = action[i]
            mujoco.mj_step(self._model, data, nstep=self._frame_skip)
            # External forces (cfrc_ext) are not part of mj_step.
            mujoco.mj_rnePostConstraint(self._model, data)
            self._centers_x[i] = self._mass_center_x(data)
            velocity = (self._centers_x[i] - before) / (
                self._frame_skip * self._model.opt.timestep
            )
            rewards[i] = self._reward(data, velocity)
        goal = None if self._goal is None else self._goal(self.state_rows())
        return Step(self._observations(), rewards, goal)

    def state_rows(self) -> np.ndarray:
        """(N, 47) float64."""
        return np.stack([np.concatenate((d.qpos, d.qvel)) for d in self._datas])

    def episode_success(self, goal: np.ndarray) -> np.ndarray:
        """The goal state held for at least half of the steps (paper section 4.3)."""
        return goal.mean(axis=0) >= 0.5

    def state_dict(self) -> dict[str, Any]:
        """Full physics state, warm start included, and the random streams."""
        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        physics = np.empty(
            (self.num_envs, mujoco.mj_stateSize(self._model, kind)), np.float64
        )
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
        self._centers_x[:] = state["centers_x"]
        for rng, rng_state in zip(self._rngs, state["rngs"], strict=True):
            rng.bit_generator.state = rng_state

    def close(self) -> None:
        """Nothing is open: no drawing context is made here."""

    def _mass_center_x(self, data: mujoco.MjData) -> float:
        mass = self._model.body_mass
        return float(mass @ data.xipos[:, 0] / mass.sum())

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


def fixed_camera() -> mujoco.MjvCamera:
    """The paper's viewpoint (section 4.3): in front, slightly from above."""
    return _camera_at(180)


def side_camera() -> mujoco.MjvCamera:
    """The same from the body's right, where the sunlight falls too."""
    return _camera_at(90)


def _camera_at(azimuth: float) -> mujoco.MjvCamera:
    """Look at a standing body from 3.5 m, along a direction in degrees; 0 is +x."""
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE
    camera.lookat[:] = (0, 0, 1)
    camera.distance, camera.elevation, camera.azimuth = 3.5, -10, azimuth
    return camera


class HumanoidRenderer:
    """Draws humanoid state rows in one OpenGL context of the calling process."""

    def __init__(self, task: TaskConfig, frame_height: int, effects: bool) -> None:
        spec = humanoid_spec()
        dress(spec, task.textures)
        # MuJoCo cuts the floor into squares of its third size, 80,000 triangles as
        # Gymnasium has it, to light their corners. A coarser cut is drawn in a quarter
        # of the time in software; the picture differs by 0.01 of 255 on average.
        spec.geom("floor").size[2] = FLOOR_SQUARE
        spec.visual.global_.offwidth = spec.visual.global_.offheight = frame_height
        if not effects:
            quality = spec.visual.quality
            quality.offsamples = 0
            # Coarser capsules, a quarter faster in software; 0.1 of 255 on average.
            quality.numslices, quality.numstacks, quality.numquads = 16, 8, 1
        self._model = spec.compile()
        self._data = mujoco.MjData(self._model)
        self._renderer = mujoco.Renderer(self._model, frame_height, frame_height)
        self.drawn_by = f"MuJoCo {mujoco.__version__}, {_opengl_renderer()}"
        if not effects:
            flags = self._renderer.scene.flags
            flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
            flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        cameras = {"fixed": fixed_camera(), "side": side_camera(), "track": "track"}
        self._cameras = [cameras[view] for view in task.views]

    def render(self, rows: np.ndarray) -> np.ndarray:
        """State rows (B, 47) -> frames (B, H, V H, 3) uint8, V views side by side."""
        size = self._renderer.height
        frames = np.empty((len(rows), len(self._cameras), size, size, 3), np.uint8)
        for row, views in zip(rows, frames, strict=True):
            self._data.qpos[:] = row[:NUM_QPOS]
            # A picture needs positions, their centre (tracking camera) and the light.
            mujoco.mj_kinematics(self._model, self._data)
            mujoco.mj_comPos(self._model, self._data)
            mujoco.mj_camlight(self._model, self._data)
            for camera, view in zip(self._cameras, views, strict=True):
                self._renderer.update_scene(self._data, camera)
                self._renderer.render(out=view)
        return np.concatenate(list(frames.swapaxes(0, 1)), axis=2)

    def close(self) -> None:
        """Free the OpenGL context."""
        self._renderer.close()


def _opengl_renderer() -> str:
    """Name of the OpenGL renderer whose context is current."""
    from OpenGL import GL

    name = GL.glGetString(GL.GL_RENDERER)
    return "unknown" if name is None else name.decode()
