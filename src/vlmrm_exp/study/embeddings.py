"""Embeds state sets, each picture once, and rewards them under any sentence.

Embeddings are kept on disk under a key of all that changes them: the model's weights
and how it is fed, the states, the world's look, and what draws and computes it. Asking
again with other sentences or another alpha draws nothing.
"""

import contextlib
import functools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmrm_exp.config import ClipConfig, ConfigError, TaskConfig
from vlmrm_exp.study import cache
from vlmrm_exp.study.pictures import to_rgb
from vlmrm_exp.study.progress import progress_bar
from vlmrm_exp.study.state_sets import StateSet

if TYPE_CHECKING:
    import torch

    from vlmrm_exp.envs import Renderer

PART = 256
"""States in one kept file: what an interruption loses at most."""

_DRAWN_BY_FILES = {
    "cartpole": ("envs/cartpole.py", "envs/canvas.py"),
    "mountain_car": (
        "envs/mountain_car.py",
        "envs/mountain_scene.py",
        "envs/canvas.py",
    ),
    "humanoid": ("envs/humanoid.py", "envs/looks.py"),
}
_EMBEDDED_BY_FILES = ("vlm/encoder.py", "vlm/preprocess.py")
_DRAWING = ("gymnasium", "mujoco", "numpy", "pygame-ce")
_EMBEDDING = ("open_clip_torch", "pillow", "timm", "torch", "torchvision")


class Embedder:
    """One vision-language model, with the embeddings it has made so far on disk."""

    def __init__(self, clip: ClipConfig, device: "torch.device", kept: Path) -> None:
        """Load the model.

        Args:
            clip: which.
            device: where it computes.
            kept: folder of embeddings.

        Raises:
            ConfigError: as `load_encoder`.
        """
        from vlmrm_exp.vlm.encoder import load_encoder

        self._clip = clip
        self._device = device
        self._kept = kept
        self._encoder = load_encoder(clip, device)
        self._sentences = functools.cache(self._encoder.embed_prompts)
        self.facts = self._encoder.facts
        self._identity = _identity(clip, self.facts)
        self.drawn_by: set[str] = set()
        """What drew the pictures embedded so far, now or at an earlier time."""

    def embed(self, states: StateSet, task: TaskConfig) -> np.ndarray:
        """Embed the pictures of states.

        Args:
            states: rows, or files of pictures.
            task: how rows look: its world, textures and camera.

        Returns:
            (B, V, D) float32 of unit length, of V views of each state.

        Raises:
            ConfigError: a file is not a picture.
        """
        views = task.views if states.rows is not None else [task.camera]
        # Each has its own place on disk: another choice of views draws what is new.
        embedded = [
            self._embed_view(states, replace(task, camera=view)) for view in views
        ]
        return np.stack(embedded, axis=1)

    def _embed_view(self, states: StateSet, task: TaskConfig) -> np.ndarray:
        """As `embed`, of a task with one view: (B, D)."""
        look = self._look(states, task)
        renderer: Renderer | None = None
        parts = []
        try:
            said = f"{self._clip.name} sees {task.env}"
            with progress_bar(len(states), "state", said) as progress:
                for start in range(0, len(states), PART):
                    what = slice(start, start + PART)
                    file = self._kept / f"{self._key(look, states, what)}.npz"
                    held = cache.load(file)
                    if held is None:
                        if renderer is None and states.rows is not None:
                            renderer = self._renderer(task)
                        about = look | {"model": self.facts}
                        held = {
                            "embeddings": self._see(states, what, renderer, progress),
                            "about": np.array(json.dumps(about)),
                        }
                        cache.store(file, **held)
                    else:
                        progress.update(len(held["embeddings"]))
                    parts.append(held["embeddings"])
        finally:
            if renderer is not None:
                renderer.close()
        if look["drawn_by"]:
            self.drawn_by.add(look["drawn_by"])
        return np.concatenate(parts)

    def reward(
        self,
        embeddings: np.ndarray,
        prompts: Sequence[str],
        baselines: Sequence[str],
        alpha: float,
    ) -> np.ndarray:
        """Rewards (B,) float32 of embeddings (B, V, D), as a run would give them.

        Raises:
            ConfigError: prompt and baseline mean the same to the model, and alpha > 0.
        """
        import torch

        from vlmrm_exp.vlm.reward import goal_baseline_reward, mean_embedding

        goal, baseline = (
            mean_embedding(self._sentences(tuple(texts))).cpu()
            for texts in (prompts, baselines)
        )
        try:
            of_views = goal_baseline_reward(
                torch.from_numpy(embeddings).flatten(0, 1), goal, baseline, alpha
            )
        except ValueError as error:
            raise ConfigError(str(error)) from None
        return of_views.reshape(embeddings.shape[:2]).mean(dim=1).numpy()

    def _renderer(self, task: TaskConfig) -> "Renderer":
        from vlmrm_exp import envs

        height = self._clip.frame_height or task.frame_height
        with _told_of_opengl(task.env):
            return envs.make_renderer(task, height, self._clip.render_effects)

    def _see(
        self,
        states: StateSet,
        what: slice,
        renderer: "Renderer | None",
        progress: Any,
    ) -> np.ndarray:
        """Embed some states, a batch at a time: (B, D) float32."""
        embedded = []
        for frames in _frames(states, what, self._clip.batch_size, renderer):
            embedded.append(self._encoder.embed_frames(frames).cpu().numpy())
            progress.update(len(frames))
        return np.concatenate(embedded)

    def _look(self, states: StateSet, task: TaskConfig) -> dict[str, Any]:
        """What decides the picture of a state row."""
        if states.files:
            sources = cache.sources(("study/pictures.py",))
            return {"drawn_by": None, "sources": sources}
        return {
            "env": task.env,
            "textures": task.textures,
            "camera": task.camera,
            "frame_height": self._clip.frame_height or task.frame_height,
            "effects": self._clip.render_effects,
            "drawn_by": drawn_by(task.env),
            "libraries": cache.libraries(_DRAWING),
            "sources": cache.sources(_DRAWN_BY_FILES[task.env]),
        }

    def _key(self, look: dict[str, Any], states: StateSet, what: slice) -> str:
        about = {
            "look": look,
            "model": self._identity,
            "device": self._device.type,
            "libraries": cache.libraries(_EMBEDDING),
            "sources": cache.sources(_EMBEDDED_BY_FILES),
        }
        if states.rows is None:
            return cache.key_of(about, *(f.read_bytes() for f in states.files[what]))
        rows = np.ascontiguousarray(states.rows[what])
        return cache.key_of({**about, "shape": rows.shape}, rows.tobytes())


def _identity(clip: ClipConfig, facts: dict[str, Any]) -> dict[str, Any]:
    """What makes the model what it is, wherever it lies and whatever it is called."""
    from vlmrm_exp.vlm.source import CONFIG_FILE, find

    identity = {k: v for k, v in facts.items() if k not in ("name", "weights")}
    if folder := find(clip).folder:
        identity["model"] = json.loads((folder / CONFIG_FILE).read_text())["model_cfg"]
    file = Path(str(facts["weights"]))
    if facts["weights_sha256"] is None and file.is_file():
        # Too large to be hashed each time.
        identity["file"] = [str(file), file.stat().st_size, file.stat().st_mtime_ns]
    return identity


@functools.cache
def drawn_by(env: str) -> str:
    """The drawing library of a world, and the OpenGL driver behind it.

    The driver says its name and version in a drawing context of one pixel, which costs
    a hundredth of a second once the driver is loaded.

    Raises:
        ConfigError: no such context can be had.
    """
    if env != "humanoid":
        from vlmrm_exp.envs.canvas import DRAWN_BY

        return DRAWN_BY
    with _told_of_opengl(env):
        from vlmrm_exp.envs import humanoid  # sets what MuJoCo draws with

        context = humanoid.mujoco.GLContext(1, 1)
        try:
            context.make_current()
            from OpenGL import GL

            names = (GL.glGetString(name) for name in (GL.GL_RENDERER, GL.GL_VERSION))
            said = ["unknown" if name is None else name.decode() for name in names]
        finally:
            context.free()
    return ", ".join((f"MuJoCo {humanoid.mujoco.__version__}", *said))


@contextlib.contextmanager
def _told_of_opengl(env: str) -> Iterator[None]:
    """Say in one sentence that a world cannot be drawn here.

    Raises:
        ConfigError: opening the humanoid's drawing context fails.
    """
    try:
        yield
    except Exception as error:  # libraries raise nearly anything where one is missing
        if env != "humanoid" or isinstance(error, (ConfigError, AssertionError)):
            raise
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise ConfigError(
            f"The humanoid cannot be drawn with MUJOCO_GL={os.environ['MUJOCO_GL']} "
            f"({reason[0].rstrip('.')}): install that OpenGL library (make setup), or "
            "set MUJOCO_GL to another of egl, osmesa, glfw."
        ) from error


def _frames(
    states: StateSet, what: slice, batch_size: int, renderer: "Renderer | None"
) -> Iterator[np.ndarray]:
    """Pictures (b, H, W, 3) uint8 of some states, in batches."""
    if states.rows is not None:
        assert renderer is not None
        rows = states.rows[what]
        for start in range(0, len(rows), batch_size):
            yield renderer.render(rows[start : start + batch_size])
        return
    for file in states.files[what]:  # one by one, as they may differ in size
        yield _picture(file)[None]


def _picture(file: Path) -> np.ndarray:
    """As `score` reads it, upright and on white; of an animation, the first picture."""
    from PIL import Image

    try:
        with Image.open(file) as opened:
            return to_rgb(opened)
    except Exception as error:  # a damaged file can raise nearly anything
        reason = str(error).splitlines()[:1] or ["no reason given"]
        raise ConfigError(
            f"{file} cannot be read as a picture ({reason[0].rstrip('.')}): mend it, "
            "or take it and its label out."
        ) from error
