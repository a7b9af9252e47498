"""States of the three worlds and their pictures, drawn at random.

What the embedded models learn from: every pose, position and appearance. Letters: B
states, S numbers in a state, H pixels of a picture's side.
"""

import hashlib
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap

from vlmrm_exp.config import TaskConfig
from vlmrm_exp.envs import world_of
from vlmrm_exp.envs.poses import PoseLibrary
from vlmrm_exp.files import written_whole
from vlmrm_exp.log.progress import progress_bar

WORLDS = ("humanoid", "cartpole", "mountaincar")
APPEARANCES: dict[str, list[tuple[TaskConfig, float]]] = {
    "humanoid": [
        (TaskConfig("humanoid", "humanoid", textures=textures, camera=camera), share)
        for textures, shares in (
            ("realistic", (0.35, 0.25, 0.1)),
            ("plain", (0.1,) * 3),
        )
        for camera, share in zip(("fixed", "side", "track"), shares, strict=True)
    ],
    "cartpole": [(TaskConfig("cartpole", "cartpole"), 1.0)],
    "mountaincar": [
        (TaskConfig("mountaincar", "mountain_car", textures=textures), 0.5)
        for textures in ("realistic", "plain")
    ],
}
"""How states are seen, the default first, and the share of the pictures: a default run
sees the humanoid realistic, in front and aside."""
STATES_SEED = 0  # of what models learn from: the same states for all their seeds
# States are drawn in parts, whose number does not depend on that of the processes.
MOST_PARTS, SMALLEST_PART = 16, 500
Part = tuple[int, np.random.SeedSequence]
"""How many states, and what decides them."""


@dataclass(frozen=True)
class Drawing:
    """Which states of a world to draw, and how."""

    world: str  # one of WORLDS
    count: int
    frame_height: int  # px of the picture as a run would draw it
    image_size: int  # px of the square that the model is shown
    visited: float = 0.0  # share of the humanoid's states that agents visited


def draw_states(
    world: str, count: int, rng: np.random.Generator, visited: float = 0.0
) -> np.ndarray:
    """Varied states (count, S) of a world, a share of them visited by agents."""
    if world == "humanoid":
        library = PoseLibrary()
        draws = library.sample, library.visited
        return np.stack([draws[rng.random() < visited](rng) for _ in range(count)])
    if world == "cartpole":
        small, large = (rng.uniform(-most, most, count) for most in (0.35, 3.14))
        states = np.zeros((count, 4))
        states[:, 0] = rng.uniform(-2.4, 2.4, count)
        states[:, 2] = np.where(rng.random(count) < 0.5, small, large)
        return states
    states = np.zeros((count, 2))
    states[:, 0] = rng.uniform(-1.2, 0.6, count)
    return states


def draw_seen(
    world: str, part: Part, visited: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """States (B, S), and how each is seen: (B,) int, index into APPEARANCES[world]."""
    count, seed = part
    rng = np.random.default_rng(seed)
    states = draw_states(world, count, rng, visited)
    shares = [share for _, share in APPEARANCES[world]]
    return states, rng.choice(len(shares), count, p=shares)


def parts_of(world: str, count: int, seed: int) -> list[Part]:
    """What can be drawn apart, by whichever process."""
    parts = min(MOST_PARTS, 1 + count // SMALLEST_PART)
    seeds = np.random.SeedSequence([seed, WORLDS.index(world)]).spawn(parts)
    sizes = [len(part) for part in np.array_split(np.arange(count), parts)]
    return list(zip(sizes, seeds, strict=True))


def drawn_before(
    folder: Path, drawings: Sequence[Drawing], processes: int
) -> dict[str, np.ndarray]:
    """Draw and render states, or find them in `folder`, drawn earlier.

    By world an array (B,) with the fields states (S,), appearance () and frames (H, H,
    3) uint8, mapped from a file of about 28 kB a state.
    """
    for left in folder.glob(".*.part.npy"):  # by a process that was killed
        if not Path("/proc", left.name.split(".")[-3]).exists():
            left.unlink(missing_ok=True)
    paths = {drawing.world: folder / _name(drawing) for drawing in drawings}
    todo = [drawing for drawing in drawings if not paths[drawing.world].exists()]
    with _map_in(processes if todo else 1) as mapped:
        for drawing in todo:
            world, count = drawing.world, drawing.count
            done, draw = 0, partial(_draw_part, drawing)
            with (
                written_whole(paths[world]) as path,
                progress_bar(count, "state", f"drawing {world}") as bar,
            ):
                # One file for all parts, which need not fit into memory.
                drawn = open_memmap(path, "w+", _fields(drawing), (count,))
                # Else a full disk would be found while drawing, and kill Python.
                with path.open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
                for part in mapped(draw, parts_of(world, count, STATES_SEED)):
                    drawn[done : done + len(part)] = part
                    done += len(part)
                    bar.update(len(part))
                drawn.flush()
    return {world: np.load(path, mmap_mode="r") for world, path in paths.items()}


@contextmanager
def _map_in(processes: int) -> Iterator[Callable[..., Iterable[np.ndarray]]]:
    """A `map` that works in so many processes."""
    if processes == 1:
        yield map
        return
    context = multiprocessing.get_context("spawn")
    count = min(processes, MOST_PARTS)
    with context.Pool(count, torch.set_num_threads, (1,)) as pool:
        yield pool.imap


def _fields(drawing: Drawing) -> np.dtype:
    """Of one state in an array of them."""
    size = world_of(APPEARANCES[drawing.world][0][0]).state_size
    picture = (drawing.image_size, drawing.image_size, 3)
    fields = [("states", np.float64, (size,)), ("appearance", np.int64)]
    return np.dtype([*fields, ("frames", np.uint8, picture)], align=True)


def _draw_part(drawing: Drawing, part: Part) -> np.ndarray:
    """One process's share of a drawing."""
    world, size = drawing.world, (drawing.image_size,) * 2
    drawn = np.empty(part[0], _fields(drawing))
    states, appearance = draw_seen(world, part, drawing.visited)
    drawn["states"], drawn["appearance"] = states, appearance
    for i, (task, _) in enumerate(APPEARANCES[world]):
        renderer = world_of(task).make_renderer(task, drawing.frame_height, False)
        seen = np.flatnonzero(appearance == i)
        for chunk in np.array_split(seen, 1 + len(states) // 256):
            frames = torch.from_numpy(renderer.render(states[chunk]))
            square = torch.nn.functional.interpolate(
                frames.permute(0, 3, 1, 2).float(), size, mode="bicubic", antialias=True
            )
            square = square.round().clamp(0, 255).byte().permute(0, 2, 3, 1)
            drawn["frames"][chunk] = square.numpy()
        renderer.close()
    return drawn


def _name(drawing: Drawing) -> str:
    """Of a drawing's file: another one if it would be drawn differently."""
    world = drawing.world
    # A change of poses, colours, libraries or driver shows in a sample drawn anew.
    states = draw_states(world, 200, np.random.default_rng(0), drawing.visited)
    few = _draw_part(drawing, (16, np.random.SeedSequence(0)))
    how = (drawing, STATES_SEED, MOST_PARTS, SMALLEST_PART, APPEARANCES[world])
    sample = repr(how).encode() + states.tobytes() + few["frames"].tobytes()
    key = hashlib.sha256(sample).hexdigest()[:12]
    return f"{world}-{drawing.count}-{key}.npy"
