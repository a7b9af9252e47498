"""States of the three worlds with their pictures and captions, drawn at random.

What the embedded models learn from and are examined on: every pose, position and look.
"""

import hashlib
import logging
import multiprocessing
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np

from vlmrm_exp import captions
from vlmrm_exp.config import TaskConfig
from vlmrm_exp.envs import make_renderer
from vlmrm_exp.envs.poses import PoseLibrary

WORLDS = ("humanoid", "cartpole", "mountaincar")
logger = logging.getLogger(__name__)

# A world is drawn in parts, whose number does not depend on that of the processes.
MOST_PARTS, SMALLEST_PART = 16, 500


@dataclass
class World:
    """States of one world with their pictures and what captions are drawn from."""

    name: str
    rows: np.ndarray
    """(B, S) float64."""
    frames: np.ndarray
    """(B, H, H, 3) uint8, squashed to the model's square."""
    looks: np.ndarray
    """(B,) index into LOOKS[name]."""
    poses: tuple[np.ndarray, np.ndarray] | None = None
    """Humanoid: squared distances to leg poses (B, L) and arm poses (B, A)."""


LOOKS: dict[str, tuple[TaskConfig, ...]] = {
    "humanoid": tuple(
        TaskConfig("", "humanoid", episode_length=100, textures=t, camera=c)
        for t in ("realistic", "plain")
        for c in ("fixed", "side", "track")
    ),
    "cartpole": (TaskConfig("", "cartpole", episode_length=200),),
    "mountaincar": tuple(
        TaskConfig("", "mountain_car", episode_length=200, textures=t)
        for t in ("realistic", "plain")
    ),
}


LOOK_SHARES = {
    "humanoid": (0.35, 0.25, 0.1, 0.1, 0.1, 0.1),
    "cartpole": (1.0,),
    "mountaincar": (0.5, 0.5),
}
"""Of the pictures: a default run sees the humanoid realistic, in front and aside."""


def draw_rows(
    world: str, count: int, rng: np.random.Generator, visited: float = 0.0
) -> np.ndarray:
    """Varied state rows (count, S) of a world, a share of them visited by agents."""
    match world:
        case "humanoid":
            library = PoseLibrary()
            return np.stack(
                [
                    library.visited(rng)
                    if rng.random() < visited
                    else library.sample(rng)
                    for _ in range(count)
                ]
            )
        case "cartpole":
            small, large = (
                rng.uniform(-0.35, 0.35, count),
                rng.uniform(-3.14, 3.14, count),
            )
            rows = np.zeros((count, 4))
            rows[:, 0] = rng.uniform(-2.4, 2.4, count)
            rows[:, 2] = np.where(rng.random(count) < 0.5, small, large)
            return rows
        case "mountaincar":
            rows = np.zeros((count, 2))
            rows[:, 0] = rng.uniform(-1.2, 0.6, count)
            return rows
    raise ValueError(world)


@dataclass(frozen=True)
class Drawing:
    """Which states of a world to draw, and how."""

    name: str
    """One of WORLDS."""
    count: int
    """States."""
    seed: int
    """Decides them, together with the name."""
    frame_height: int
    """Px of the picture as a run would draw it."""
    image_size: int
    """Px of the square that the model is shown."""
    visited: float = 0.0
    """Share of the humanoid's states that agents visited."""


def _draw_part(job: tuple[Drawing, int, np.random.SeedSequence]) -> World:
    """One process's share of a world; at module level so that it can be sent."""
    import torch

    drawing, count, seed = job
    name, size = drawing.name, drawing.image_size
    rng = np.random.default_rng(seed)
    rows = draw_rows(name, count, rng, drawing.visited)
    looks = rng.choice(len(LOOKS[name]), count, p=LOOK_SHARES[name])
    frames = np.empty((count, size, size, 3), np.uint8)
    for look, task in enumerate(LOOKS[name]):
        renderer = make_renderer(task, drawing.frame_height, effects=False)
        for chunk in np.array_split(np.flatnonzero(looks == look), 1 + count // 256):
            drawn = torch.from_numpy(renderer.render(rows[chunk])).permute(0, 3, 1, 2)
            square = torch.nn.functional.interpolate(
                drawn.float(), (size, size), mode="bicubic", antialias=True
            )
            frames[chunk] = square.round().clamp(0, 255).byte().permute(0, 2, 3, 1)
        renderer.close()
    world = World(name, rows, frames, looks)
    if name == "humanoid":
        library = PoseLibrary()
        world.poses = library.leg_distances(rows), library.arm_distances(rows)
    return world


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _draw_world(drawing: Drawing, pool: Pool) -> World:
    name, count = drawing.name, drawing.count
    parts = min(MOST_PARTS, 1 + count // SMALLEST_PART)
    seeds = np.random.SeedSequence([drawing.seed, WORLDS.index(name)]).spawn(parts)
    sizes = [len(part) for part in np.array_split(np.arange(count), parts)]
    jobs = [(drawing, n, seed) for n, seed in zip(sizes, seeds, strict=True)]
    worlds = []
    for world in pool.imap(_draw_part, jobs):
        worlds.append(world)
        drawn = sum(len(part.rows) for part in worlds)
        logger.info("drew %d of %d states of %s", drawn, count, name)
    poses = None
    if name == "humanoid":
        pairs = [w.poses for w in worlds if w.poses is not None]
        poses = tuple(np.concatenate(p) for p in zip(*pairs, strict=True))
    return World(
        name,
        np.concatenate([w.rows for w in worlds]),
        np.concatenate([w.frames for w in worlds]),
        np.concatenate([w.looks for w in worlds]),
        poses,  # pyright: ignore[reportArgumentType]
    )


def drawn_before(
    folder: Path, drawings: Sequence[Drawing], processes: int
) -> list[World]:
    """Draw and render worlds, or find them drawn by an earlier pretraining.

    Args:
        folder: of such worlds; each is one more folder in it, about 28 kB a state.
        drawings: which.
        processes: how many draw at the same time what has to be drawn; has no
            influence on the result.

    Returns:
        The worlds, with their frames mapped from the files.
    """
    places = [folder / _place(drawing) for drawing in drawings]
    todo = [x for x in zip(places, drawings, strict=True) if not x[0].exists()]
    if todo:
        context = multiprocessing.get_context("spawn")
        with context.Pool(min(processes, MOST_PARTS), _one_thread) as pool:
            for place, drawing in todo:
                _keep(_draw_world(drawing, pool), place)
    return [_load(d.name, place) for d, place in zip(drawings, places, strict=True)]


def _place(drawing: Drawing) -> str:
    """Name of the folder of a drawing: another one if it would be drawn differently."""
    name = drawing.name
    # A change of poses, colours, libraries or driver shows in a sample drawn anew.
    rows = draw_rows(name, 200, np.random.default_rng(0), drawing.visited)
    few = _draw_part((drawing, 16, np.random.SeedSequence(0)))
    sample = repr((drawing, MOST_PARTS, SMALLEST_PART, LOOK_SHARES[name])).encode()
    sample += rows.tobytes() + few.frames.tobytes()
    sample += b"".join(distances.tobytes() for distances in few.poses or ())
    key = hashlib.sha256(sample).hexdigest()[:12]
    return f"{name}-{drawing.count}-s{drawing.seed}-{key}"


def _keep(world: World, place: Path) -> None:
    part = place.parent / f".{place.name}.{os.getpid()}.part"
    part.mkdir(parents=True, exist_ok=True)
    legs, arms = world.poses or (np.empty((0, 0)), np.empty((0, 0)))
    arrays = (world.rows, world.frames, world.looks, legs, arms)
    for file, array in zip(_FILES, arrays, strict=True):
        np.save(part / f"{file}.npy", array)
    try:
        part.rename(place)
    except OSError:  # another process drew the same, and was faster
        if not place.exists():
            raise
        shutil.rmtree(part)


def _load(name: str, place: Path) -> World:
    rows, looks, legs, arms = (
        np.load(place / f"{file}.npy") for file in _FILES if file != "frames"
    )
    frames = np.load(place / "frames.npy", mmap_mode="r")
    return World(name, rows, frames, looks, (legs, arms) if legs.size else None)


_FILES = ("rows", "frames", "looks", "legs", "arms")


class Captioner:
    """Draws captions for the states of a world, anew for each batch."""

    def __init__(self, world: World) -> None:
        self._name = world.name
        match world.name:
            case "humanoid":
                assert world.poses is not None
                self._facts = captions.humanoid_facts(*world.poses)
            case "cartpole":
                self._facts = captions.cartpole_facts(world.rows)
            case _:
                self._facts = captions.mountain_car_facts(world.rows)
        self._mean = captions.joint_mean(self._facts)

    def __len__(self) -> int:
        """States."""
        return len(self._facts[0])

    def draw(
        self, index: np.ndarray, rng: np.random.Generator
    ) -> tuple[list[str], np.ndarray]:
        """Caption the states with these indices.

        Returns:
            C = B sentences, and how much more probable each is in each of the states
            than in general: (B, C).
        """
        facts = tuple(kind[index] for kind in self._facts)
        drawn = [
            self._one(*(_draw(kind[i], rng) for kind in facts), rng=rng)
            for i in range(len(index))
        ]
        ratios = captions.likelihood_ratios(facts, self._mean, drawn)
        return [caption.text for caption in drawn], ratios

    def _one(self, *fact: int, rng: np.random.Generator) -> captions.Caption:
        say = {
            "humanoid": captions.humanoid_caption,
            "cartpole": captions.cartpole_caption,
            "mountaincar": captions.mountain_car_caption,
        }[self._name]
        while not captions.allowed(caption := say(*fact, rng=rng)):
            pass
        return caption


def _draw(probabilities: np.ndarray, rng: np.random.Generator) -> int:
    """An index with these probabilities (K,)."""
    cumulated = np.cumsum(probabilities)
    return int(np.searchsorted(cumulated, rng.random() * cumulated[-1], side="right"))
