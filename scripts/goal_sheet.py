"""Draw the states of tests/goal_states.py with their verdicts: docs/images/goals_*.png.

    python scripts/goal_sheet.py

Each state is drawn from the front and from its left side, in a green frame if the
predicate says that the goal is met, else in a red one; a wrong verdict is crossed out.
The body is turned by the view, so its own yaw and place are left out of the picture.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from goal_states import AGAINST, FOR  # noqa: E402
from vlmrm_exp.config import TaskConfig  # noqa: E402
from vlmrm_exp.envs import Renderer, world_of  # noqa: E402
from vlmrm_exp.envs.goals import HumanoidGoal  # noqa: E402
from vlmrm_exp.envs.poses import PoseLibrary  # noqa: E402

IMAGES = ROOT / "docs" / "images"
# Tasks of a sheet, and where its pictures are cut out of the frames: their upper edge.
SHEETS = {
    "low": (("kneeling", "lotus", "splits"), 64),
    "standing": (("standing_up", "one_leg"), 48),
    "arms": (("arms_raised", "hands_on_hips", "arms_crossed"), 36),
}
COLUMNS = 8
FRAME = 224  # pixels a frame is drawn with; the body fills half of it
# What is cut out of a frame: its left edge and width from the front and the side.
FRONT, SIDE, CUT = (38, 148), (66, 102), 154
CAPTION, HEADER, EDGE, GAP = 15, 24, 3, 4
WIDTH, HEIGHT = FRONT[1] + SIDE[1] + 2 * EDGE, CUT + CAPTION + 2 * EDGE
GREEN, RED, MAGENTA, INK = (40, 150, 70), (205, 60, 50), (255, 0, 255), (25, 25, 25)


def renderer() -> Renderer:
    """Draws humanoids as the paper sees them."""
    task = TaskConfig("", "humanoid", episode_length=100, textures="realistic")
    return world_of(task).make_renderer(task, FRAME, False)


def two_views(draw: Renderer, state: np.ndarray, top: int) -> Image.Image:
    """A state (47,) from the front and from its left side.

    Args:
        draw: of frames of FRAME pixels.
        state: drawn in the middle of the world, wherever the body stands.
        top: upper edge of what is cut out of the frames.
    """
    state = state.copy()
    state[:2] = 0
    side = state.copy()
    w, x, y, z = state[3:7]
    # Turned to the right by 90 degrees: the quaternion (c, 0, 0, -c) times the state's.
    c = np.sqrt(0.5)
    side[3:7] = c * np.array([w + z, x + y, y - x, z - w])
    frames = draw.render(np.stack((state, side)))
    parts = [
        frame[top : top + CUT, left : left + width]
        for frame, (left, width) in zip(frames, (FRONT, SIDE), strict=True)
    ]
    return Image.fromarray(np.hstack(parts))


def cell(views: Image.Image, caption: str, met: bool, expected: bool) -> Image.Image:
    """Two views with a caption, framed by the verdict."""
    out = Image.new("RGB", (WIDTH, HEIGHT), GREEN if met else RED)
    pen = ImageDraw.Draw(out)
    out.paste(views, (EDGE, EDGE))
    bottom, right = HEIGHT - EDGE - 1, WIDTH - EDGE - 1
    pen.rectangle((EDGE, EDGE + CUT, right, bottom), "white")
    pen.text((EDGE + 3, EDGE + CUT), caption, INK, ImageFont.load_default(12))
    if met != expected:
        pen.line((0, 0, WIDTH, HEIGHT), MAGENTA, 5)
        pen.line((0, HEIGHT, WIDTH, 0), MAGENTA, 5)
    return out


def stack(blocks: list[tuple[str, list[Image.Image]]]) -> Image.Image:
    """Titled blocks of cells below each other, COLUMNS in a line."""
    lines = sum(-(-len(cells) // COLUMNS) for _, cells in blocks)
    size = (
        COLUMNS * (WIDTH + GAP) - GAP,
        lines * (HEIGHT + GAP) + len(blocks) * HEADER,
    )
    out = Image.new("RGB", size, "white")
    pen, top = ImageDraw.Draw(out), 0
    for title, cells in blocks:
        pen.text((2, top + 3), title, INK, ImageFont.load_default(15))
        top += HEADER
        for start in range(0, len(cells), COLUMNS):
            for i, image in enumerate(cells[start : start + COLUMNS]):
                out.paste(image, (i * (WIDTH + GAP), top))
            top += HEIGHT + GAP
    return out


def save(image: Image.Image, name: str, folder: Path = IMAGES) -> None:
    """Write a picture of few colours, to keep it small; `folder` is in the project."""
    path = folder / name
    image.quantize(96, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}  {path.stat().st_size / 1000:.0f} kB")


def markdown(head: list[str], lines: list[list[str]]) -> str:
    """A table."""
    rule = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *lines])


def main() -> None:
    """Draw every sheet."""
    library, draw = PoseLibrary(), renderer()
    for sheet, (tasks, top) in SHEETS.items():
        blocks = []
        for task in tasks:
            goal = HumanoidGoal(task)
            for word, examples in (("for", FOR[task]), ("against", AGAINST[task])):
                cells = []
                for example in examples:
                    met = bool(goal(example.state(library)[None])[0])
                    facing = replace(example, yaw=0).state(library)
                    views = two_views(draw, facing, top)
                    cells.append(cell(views, example.caption, met, word == "for"))
                blocks.append((f"{task}: states {word}", cells))
        save(stack(blocks), f"goals_{sheet}.png")
    draw.close()


if __name__ == "__main__":
    main()
