"""Gymnasium's Humanoid without termination, and its pictures from state rows.

Physics, observation and reward are those of Gymnasium's Humanoid-v5 (or v4) with
`terminate_when_unhealthy=False` and the same `frame_skip`; a test compares them step
by step. The model is Gymnasium's own `humanoid.xml`; only its looks are changed, in
memory.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
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
MAX_GEOMS = 1_000  # of a scene; the humanoid has 18
SHEET_SIZE = 2048  # px; every GPU has such a buffer
SHEET_COLUMNS = 8  # 64 pictures, as many as are embedded at once (clip.batch_size)
SOFTWARE_OPENGL = ("llvmpipe", "softpipe", "software", "swrast", "swiftshader")
"""In the renderers' names, in small letters."""
FLOOR_SQUARE = 1.0  # m, as drawn; Gymnasium's 0.125 costs more than all the rest


def humanoid_spec() -> mujoco.MjSpec:
    """Gymnasium's humanoid.xml, editable."""
    assets = Path(mujoco_env.__file__).parent / "assets"
    return mujoco.MjSpec.from_file(str(assets / "humanoid.xml"))


class HumanoidEnvs:
    """N humanoids; a state row is (qpos, qvel), (47,) float64.

    Their physics can be shared out to threads, and is the same with any number of them.
    """

    def __init__(self, task: TaskConfig, num_envs: int, threads: int = 1) -> None:
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
        rewards = np.empty(self.num_envs, np.float32)
        for i, data in enumerate(self._datas):
            before = self._centers_x[i]
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
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def _advance(self, which: slice) -> None:
        for data in self._datas[which]:
            mujoco.mj_step(self._model, data, nstep=self._frame_skip)
            # External forces (cfrc_ext) are not part of mj_step.
            mujoco.mj_rnePostConstraint(self._model, data)

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


def tracking_camera(model: mujoco.MjModel) -> mujoco.MjvCamera:
    """Gymnasium's own, which follows the body."""
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
    camera.fixedcamid = model.camera("track").id
    return camera


def _camera_at(azimuth: float) -> mujoco.MjvCamera:
    """Look at a standing body from 3.5 m, along a direction in degrees; 0 is +x."""
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE
    camera.lookat[:] = (0, 0, 1)
    camera.distance, camera.elevation, camera.azimuth = 3.5, -10, azimuth
    return camera


class HumanoidRenderer:
    """Draws humanoid state rows in one OpenGL context of the calling process.

    On a GPU many pictures are drawn side by side and read at once: each reading waits
    until the GPU is done, and where other processes use it too, until it is this one's
    turn (docs/decisions/0016). Where a picture stands in that sheet can change one
    pixel in thousands, by rounding. Software reads its own memory: one by one.
    """

    def __init__(
        self,
        task: TaskConfig,
        frame_height: int,
        effects: bool,
        columns: int | None = None,
    ) -> None:
        """Open the context.

        Args:
            task: its textures and views.
            frame_height: pixels, and the width of a view.
            effects: shadows, reflections and multisampling.
            columns: pictures in a row, and rows, of the sheet; None: by the hardware.
                MuJoCo draws reflections wrongly anywhere but at the bottom.
        """
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
        self._size = frame_height
        self._opengl = mujoco.GLContext(frame_height, frame_height)
        self._opengl.make_current()
        name = _opengl_renderer()
        self.drawn_by = f"MuJoCo {mujoco.__version__}, {name}"
        if columns is None:
            in_software = any(kind in name.lower() for kind in SOFTWARE_OPENGL)
            reflects = effects and bool((self._model.mat_reflectance > 0).any())
            fit = max(1, min(SHEET_SIZE // frame_height, SHEET_COLUMNS))
            columns = 1 if in_software or reflects else fit
        self._columns = columns
        font = mujoco.mjtFontScale.mjFONTSCALE_100  # nothing is written
        context = mujoco.MjrContext(self._model, font)
        self._context: mujoco.MjrContext | None = context
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)
        if columns > 1:
            side = columns * frame_height
            mujoco.mjr_resizeOffscreen(side, side, context)
        self._scene = mujoco.MjvScene(self._model, maxgeom=MAX_GEOMS)
        self._options = mujoco.MjvOption()
        if not effects:
            self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
            self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        cameras = {
            "fixed": fixed_camera(),
            "side": side_camera(),
            "track": tracking_camera(self._model),
        }
        self._cameras = [cameras[view] for view in task.views]

    def render(self, rows: np.ndarray) -> np.ndarray:
        """State rows (B, 47) -> frames (B, H, V H, 3) uint8, V views side by side."""
        if self._context is None:
            raise RuntimeError("The renderer is closed.")
        self._opengl.make_current()
        views, size = len(self._cameras), self._size
        pictures = np.empty((len(rows) * views, size, size, 3), np.uint8)
        drawn = read = 0
        for row in rows:
            self._pose(row)
            for camera in self._cameras:
                line, column = divmod(drawn - read, self._columns)  # from the bottom
                self._draw(camera, column * size, line * size)
                drawn += 1
                if drawn - read == self._columns**2 or drawn == len(pictures):
                    self._read(pictures[read:drawn])
                    read = drawn
        frames = pictures.reshape(len(rows), views, size, size, 3)
        return np.concatenate(list(frames.swapaxes(0, 1)), axis=2)

    def close(self) -> None:
        """Free the OpenGL context."""
        if self._context is not None:
            self._opengl.make_current()  # what is freed is the current one's
            self._context.free()
            self._opengl.free()
            self._context = None

    def _pose(self, row: np.ndarray) -> None:
        self._data.qpos[:] = row[:NUM_QPOS]
        # A picture needs positions, their centre (tracking camera) and the light.
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_comPos(self._model, self._data)
        mujoco.mj_camlight(self._model, self._data)

    def _draw(self, camera: mujoco.MjvCamera, left: int, bottom: int) -> None:
        mujoco.mjv_updateScene(
            self._model,
            self._data,
            self._options,
            None,
            camera,
            mujoco.mjtCatBit.mjCAT_ALL,
            self._scene,
        )
        place = mujoco.MjrRect(left, bottom, self._size, self._size)
        mujoco.mjr_render(place, self._scene, self._context)

    def _read(self, pictures: np.ndarray) -> None:
        """Cut the sheet's first pictures out of it: (B, H, H, 3) uint8."""
        size, columns = self._size, self._columns
        lines = -(-len(pictures) // columns)
        width, height = columns * size, lines * size
        sheet = np.empty((height, width, 3), np.uint8)
        mujoco.mjr_readPixels(
            sheet, None, mujoco.MjrRect(0, 0, width, height), self._context
        )
        cut = sheet.reshape(lines, size, columns, size, 3).swapaxes(1, 2)
        cut = cut.reshape(lines * columns, size, size, 3)[: len(pictures)]
        pictures[:] = cut[:, ::-1]  # OpenGL's first line is the lowest


def _opengl_renderer() -> str:
    """Name of the OpenGL renderer whose context is current."""
    from OpenGL import GL

    name = GL.glGetString(GL.GL_RENDERER)
    return "unknown" if name is None else name.decode()
