"""Draw runs for docs/results.md: docs/images/NAME.png and NAME_curves.png.

    python scripts/result_sheet.py NAME FOLDER [FOLDER ...]

Each folder is a run; a line of the first picture shows the first episode of its kept
policy, from beginning to end, with its views side by side, as the run itself drew it
(videos/eval.mp4). The second has a panel for each task with the training curves of all
its runs, those with one camera in a light colour.
"""

import json
import sys
from pathlib import Path

import numpy as np
from goal_sheet import IMAGES, INK, save
from PIL import Image, ImageDraw, ImageFont

from vlmrm_exp import figures
from vlmrm_exp.cli import load_run_config
from vlmrm_exp.study.pictures import find_files, read_pictures

STILLS = 5
SMOOTH = 5  # rollouts that a point of a curve averages
SIZE = 120  # px, of one view
LEFT = 130  # px, for what is written beside a line


def line(folder: Path) -> Image.Image:
    """One run's first episode, with its task and success written beside it."""
    summary = json.loads((folder / "summary.json").read_text())
    (file,) = find_files([str(folder / "videos" / "eval.mp4")])
    frames = [picture.pixels for picture in read_pictures(file)]
    frames = frames[: len(frames) // 2]  # of two episodes
    # The picture stands between title and curve, whose ground is dark.
    bright = np.flatnonzero(frames[0][:, 2].mean(axis=-1) > 60)
    height = bright[-1] + 1 - bright[0]
    views = round(frames[0].shape[1] / height)
    out = Image.new("RGB", (LEFT + STILLS * views * SIZE, SIZE), "white")
    chosen = np.linspace(0, len(frames) - 1, STILLS).round().astype(int)
    for column, number in enumerate(chosen):
        picture = frames[number][bright[0] : bright[-1] + 1]
        for view, pixels in enumerate(np.split(picture, views, axis=1)):
            # The body is in the middle: sky and floor around it are cut off.
            box = (height * 0.12, height * 0.14, height * 0.88, height * 0.9)
            still = Image.fromarray(pixels).resize(
                (SIZE - 1, SIZE - 3), Image.Resampling.LANCZOS, box
            )
            # Views of one moment touch.
            shift = 0 if view else 1
            out.paste(still, (LEFT + (column * views + view) * SIZE + shift, 0))
    pen = ImageDraw.Draw(out)
    success = summary["eval/success_rate"]
    for row, text in enumerate((summary["task"], f"success {success:.2f}")):
        font = ImageFont.load_default(15 if row == 0 else 13)
        pen.text((4, SIZE // 2 - 22 + 22 * row), text, INK, font)
    return out


def curves(folders: list[Path], path: Path) -> None:
    """Draw reward and success of training episodes against env steps."""
    runs: dict[str, list[tuple[list[dict], float]]] = {}
    for folder in folders:
        task = json.loads((folder / "summary.json").read_text())["task"]
        text = (folder / "metrics.jsonl").read_text()
        rows = [json.loads(row) for row in text.splitlines()]
        views = load_run_config(folder).task.views
        runs.setdefault(task, []).append((rows, 0.35 if len(views) == 1 else 1.0))
    with figures.figure(9, 1.9 * -(-len(runs) // 4)) as made:
        axes = made.subplots(-(-len(runs) // 4), 4, squeeze=False, sharex=True)
        for ax, (task, of_task) in zip(axes.flat, runs.items(), strict=False):
            for rows, strength in of_task:
                steps = np.array([row["env_steps"] for row in rows]) / 1000
                for key, color in (
                    ("train/reward_mean", figures.COLORS[0]),
                    ("train/success_rate", figures.COLORS[1]),
                ):
                    values = np.array([row[key] for row in rows])
                    smooth = np.convolve(values, np.ones(SMOOTH) / SMOOTH, "valid")
                    ax.plot(steps[SMOOTH - 1 :], smooth, color=color, alpha=strength)
            ax.set_title(task, loc="left")
            ax.set_ylim(-0.03, 1.03)
        for ax in axes[-1]:
            ax.set_xlabel("env steps, thousands")
        for name, color in zip(("reward", "success"), figures.COLORS, strict=False):
            axes[-1, -1].plot([], [], color=color, label=name)
        axes[-1, -1].legend(loc="upper left")
        figures.save(made, path)
    path.with_name(f"{path.name}.svg").unlink()


def main() -> None:
    """Draw both pictures."""
    name, *folders = sys.argv[1:]
    lines = [line(Path(folder)) for folder in folders]
    width = max(one.width for one in lines)
    sheet = Image.new("RGB", (width, SIZE * len(lines)), "white")
    for number, one in enumerate(lines):
        sheet.paste(one, (0, number * SIZE))
    save(sheet, f"{name}.png")
    curves([Path(folder) for folder in folders], IMAGES / f"{name}_curves")


if __name__ == "__main__":
    main()
