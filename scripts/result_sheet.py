"""Draw stills of a sweep's evaluation videos: docs/images/NAME.png.

    python scripts/result_sheet.py NAME FOLDER [FOLDER ...]

Each folder is a run; a line shows the first episode of its kept policy, from its
beginning to its end, as the run itself drew it (videos/eval.mp4).
"""

import json
import sys
from pathlib import Path

import numpy as np
from goal_sheet import INK, save
from PIL import Image, ImageDraw, ImageFont

from vlmrm_exp.study.pictures import find_files, read_pictures

STILLS = 6
SIZE = 150  # px
LEFT = 130  # px, for what is written beside a line
BARS = (41, 521)  # rows of the video that the picture takes, between title and curve


def line(folder: Path) -> Image.Image:
    """One run's first episode, with its task and success written beside it."""
    summary = json.loads((folder / "summary.json").read_text())
    (file,) = find_files([str(folder / "videos" / "eval.mp4")])
    frames = [picture.pixels for picture in read_pictures(file)]
    frames = frames[: len(frames) // 2]  # of two episodes
    out = Image.new("RGB", (LEFT + STILLS * SIZE, SIZE), "white")
    chosen = np.linspace(0, len(frames) - 1, STILLS).round().astype(int)
    for column, number in enumerate(chosen):
        still = Image.fromarray(frames[number][slice(*BARS)])
        # The body is in the middle: sky and floor around it are cut off.
        height = still.height
        box = (height * 0.16, height * 0.22, height * 0.84, height * 0.9)
        still = still.resize((SIZE - 3, SIZE - 3), Image.Resampling.LANCZOS, box)
        out.paste(still, (LEFT + column * SIZE, 0))
    pen = ImageDraw.Draw(out)
    success = summary["eval/success_rate"]
    for row, text in enumerate((summary["task"], f"success {success:.2f}")):
        font = ImageFont.load_default(15 if row == 0 else 13)
        pen.text((4, SIZE // 2 - 22 + 22 * row), text, INK, font)
    return out


def main() -> None:
    """Draw the sheet."""
    name, *folders = sys.argv[1:]
    lines = [line(Path(folder)) for folder in folders]
    sheet = Image.new("RGB", (lines[0].width, SIZE * len(lines)), "white")
    for number, one in enumerate(lines):
        sheet.paste(one, (0, number * SIZE))
    save(sheet, f"{name}.png")


if __name__ == "__main__":
    main()
