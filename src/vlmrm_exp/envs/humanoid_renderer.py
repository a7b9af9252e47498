"""Pictures of humanoid states, by MuJoCo in an OpenGL context."""

import functools

import mujoco
import numpy as np

from vlmrm_exp.config import TaskConfig
from vlmrm_exp.envs import opengl
from vlmrm_exp.envs.humanoid_model import NUM_QPOS, dress, humanoid_spec

MAX_GEOMS = 1_000  # of a scene; the humanoid has 18
SHEET_SIZE = 2048  # px; every GPU has such a buffer
SHEET_COLUMNS = 8  # 64 pictures, as many as are embedded at once (clip.batch_size)
SOFTWARE_OPENGL = ("llvmpipe", "softpipe", "software", "swrast", "swiftshader")
"""In the renderers' names, in small letters."""
FLOOR_SQUARE = 1.0  # m, as drawn; Gymnasium's 0.125 costs more than all the rest
SOFTWARE_SHADOWS = 1024  # px of the shadow map's side; MuJoCo's 4096 take twice as long
CAMERAS = ("fixed", "track", "side")


def camera_of(view: str, model: mujoco.MjModel) -> mujoco.MjvCamera:
    """The camera of a view, one of `CAMERAS`.

    fixed: the paper's viewpoint (section 4.3), in front of a standing body and slightly
    above; side: the same from the body's right, where the sunlight falls too; track:
    Gymnasium's own, which follows the body.
    """
    camera = mujoco.MjvCamera()
    if view == "track":
        camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        camera.fixedcamid = model.camera("track").id
        return camera
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE
    camera.lookat[:] = (0, 0, 1)
    camera.distance, camera.elevation = 3.5, -10  # m, degrees
    camera.azimuth = 180 if view == "fixed" else 90  # it looks along; 0 is +x
    return camera


class HumanoidRenderer:
    """Draws humanoid states in one OpenGL context of the calling process.

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
        self._opengl = open_opengl(frame_height)
        name, _ = opengl_names()
        self.drawn_by = f"MuJoCo {mujoco.__version__}, {name}"
        in_software = any(kind in name.lower() for kind in SOFTWARE_OPENGL)
        spec = humanoid_spec()
        dress(spec, task.textures)
        # MuJoCo cuts the floor into squares of its third size, 80,000 triangles as
        # Gymnasium has it, to light their corners. A coarser cut is drawn in a quarter
        # of the time in software; the picture differs by 0.01 of 255 on average.
        spec.geom("floor").size[2] = FLOOR_SQUARE
        spec.visual.global_.offwidth = spec.visual.global_.offheight = frame_height
        quality = spec.visual.quality
        if in_software:
            # Shadows' edges are coarser, 0.04 of 255 on average.
            quality.shadowsize = SOFTWARE_SHADOWS
        if not effects:
            quality.offsamples = 0
            # Coarser capsules, a quarter faster in software; 0.1 of 255 on average.
            quality.numslices, quality.numstacks, quality.numquads = 16, 8, 1
        self._model = spec.compile()
        self._data = mujoco.MjData(self._model)
        self._size = frame_height
        if columns is None:
            reflects = effects and bool((self._model.mat_reflectance > 0).any())
            fit = max(1, min(SHEET_SIZE // frame_height, SHEET_COLUMNS))
            columns = 1 if in_software or reflects else fit
        self._columns = columns
        font = mujoco.mjtFontScale.mjFONTSCALE_100  # nothing is written
        with opengl():
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
        self._cameras = [camera_of(view, self._model) for view in task.views]

    def render(self, states: np.ndarray) -> np.ndarray:
        """States (B, 47) -> frames (B, H, V H, 3) uint8, V views side by side."""
        if self._context is None:
            raise RuntimeError("The renderer is closed.")
        self._opengl.make_current()
        views, size = len(self._cameras), self._size
        pictures = np.empty((len(states) * views, size, size, 3), np.uint8)
        drawn = read = 0
        for state in states:
            self._pose(state)
            for camera in self._cameras:
                line, column = divmod(drawn - read, self._columns)  # from the bottom
                self._draw(camera, column * size, line * size)
                drawn += 1
                if drawn - read == self._columns**2 or drawn == len(pictures):
                    self._read(pictures[read:drawn])
                    read = drawn
        frames = pictures.reshape(len(states), views, size, size, 3)
        return np.concatenate(list(frames.swapaxes(0, 1)), axis=2)

    def close(self) -> None:
        """Free the OpenGL context."""
        if self._context is not None:
            self._opengl.make_current()  # what is freed is the current one's
            self._context.free()
            self._opengl.free()
            self._context = None

    def _pose(self, state: np.ndarray) -> None:
        self._data.qpos[:] = state[:NUM_QPOS]
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
        place = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_readPixels(sheet, None, place, self._context)
        cut = sheet.reshape(lines, size, columns, size, 3).swapaxes(1, 2)
        cut = cut.reshape(lines * columns, size, size, 3)[: len(pictures)]
        pictures[:] = cut[:, ::-1]  # OpenGL's first line is the lowest


def opengl_names() -> tuple[str, str]:
    """Name and version of the OpenGL renderer whose context is current."""
    from OpenGL import GL

    names = (GL.glGetString(name) for name in (GL.GL_RENDERER, GL.GL_VERSION))
    renderer, version = ("unknown" if n is None else n.decode() for n in names)
    return renderer, version


@functools.cache
def renders_with() -> str:
    """MuJoCo and the OpenGL driver behind it, asked in a context of one pixel."""
    context = open_opengl(1)
    try:
        names = opengl_names()
    finally:
        context.free()
    return ", ".join((f"MuJoCo {mujoco.__version__}", *names))


def open_opengl(size: int) -> mujoco.GLContext:
    """A drawing context of so many px a side, made current; or a ConfigError."""
    with opengl():
        context = mujoco.GLContext(size, size)
        context.make_current()
        opengl_names()
    return context
