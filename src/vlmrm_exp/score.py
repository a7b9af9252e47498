"""Score pictures of one's own: python -m vlmrm_exp.score PICTURES prompt="..." ...

Rewards images, videos and folders of them as a training run would, and writes a table
(scores.csv) and figures (strip.png, curve.png).
"""

import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vlmrm_exp import app
from vlmrm_exp.checks import at_least
from vlmrm_exp.composition import Composed
from vlmrm_exp.config import Config, ConfigError
from vlmrm_exp.device import choose_device
from vlmrm_exp.files import table, write_json, written_whole
from vlmrm_exp.log.progress import progress_bar
from vlmrm_exp.log.versions import versions
from vlmrm_exp.scorer import PLURAL, jobs_of, rewards_of
from vlmrm_exp.studies import strip
from vlmrm_exp.studies.pictures import PictureFile, find_files, left_out, read_pictures
from vlmrm_exp.studies.settings import check_out
from vlmrm_exp.studies.strip import Column, Scores
from vlmrm_exp.vlm import tell_embedded

BATCH = 64  # pictures that wait to be embedded, at most,
BATCH_BYTES = 256_000_000  # and their bytes: photographs are large
LISTED = 5
"""Pictures at either end of each column's printed list."""


@dataclass(frozen=True)
class Asked:
    """What is to be scored; all of it is known to be possible."""

    files: list[PictureFile]
    columns: list[Column]
    jobs: list[Config]
    """What a training run would be told, for each column."""
    every: int
    pictures: int
    folder: Path
    """Of the results."""
    left_out: str = ""
    """What folders hold besides, for people."""


def check(composed: Composed) -> Asked:
    """Resolve the settings and open the files; a ConfigError if they are impossible."""
    cfg = composed.cfg
    if not cfg.files:
        raise ConfigError("No pictures are given: name images, videos, or folders.")
    for name in ("every", "pictures"):
        at_least(name, cfg[name], 1)
    folder = check_out(composed)
    jobs = jobs_of(composed)
    columns = columns_of(jobs)
    if Path(cfg.out).resolve() in {Path(f).expanduser().resolve() for f in cfg.files}:
        raise ConfigError(
            f"out={cfg.out} is a folder whose pictures are scored, and strip.png would "
            "be one of them the next time: give another one."
        )
    asked = cfg.every, cfg.pictures, folder, left_out(cfg.files)
    return Asked(find_files(cfg.files), columns, jobs, *asked)


def columns_of(jobs: Sequence[Config]) -> list[Column]:
    """A column of the table for each job; a ConfigError if two have the same name."""
    several = len({job.alpha for job in jobs}) > 1
    columns = []
    for job in jobs:
        prompt = name = " / ".join(job.prompts)
        if several:
            name += f" (alpha={job.alpha:g})"
        baseline = " / ".join(job.baselines) if job.alpha > 0 else None
        columns.append(Column(name, prompt, baseline, job.alpha))
    names = ["file", "frame", "time_s", *(column.name for column in columns)]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f'There would be two columns "{name}": leave one out.')
    return columns


def score(asked: Asked) -> dict[str, Any]:
    """Score, print, plot, write and return what score.json holds.

    Raises:
        ConfigError: the model or all pictures cannot be had; or, when the others are
            written, that some are damaged.
        FloatingPointError: a reward is not a finite number.
    """
    from vlmrm_exp.vlm.encoder import load_encoder  # here, as --help is immediate

    clip = asked.jobs[0].clip
    tell_embedded([clip])
    if asked.left_out:
        print(asked.left_out)
    device = choose_device(asked.jobs[0].compute.device)
    encoder = load_encoder(clip, device)
    rewards = rewards_of(encoder, asked.jobs)
    encoder.drop_text_tower()  # the sentences do not change any more
    scores = score_pictures(asked, rewards)
    check_finite(scores, clip.name)
    result = {
        "files": len(scores.files),
        "frames": len(scores.file),
        "every": asked.every,
        "clip": clip.name,
        "columns": [
            {
                **vars(column),
                "mean": reward.mean(dtype=np.float64),
                "lowest": reward.min(),
                "highest": reward.max(),
            }
            for column, reward in zip(scores.columns, scores.reward.T, strict=True)
        ],
        "versions": versions({"device": str(device), "encoder": encoder.facts}),
    }
    folder = asked.folder
    write_csv(folder / "scores.csv", scores)
    write_json(folder / "score.json", result)
    print(report(scores))
    shown = strip.choose_shown(np.bincount(scores.file), asked.pictures)
    pictures = strip.read_again(scores, shown, asked.every)
    strip.plot_strip(folder / "strip", scores, shown, pictures)
    figures = f"strip.png ({len(shown)} of {len(scores.file):,} pictures)"
    moving = [i for i, file in enumerate(scores.files) if file.moves]
    if moving:
        alphas = len({column.alpha for column in scores.columns})
        plotted = moving[: max(asked.pictures // alphas, 1)]
        strip.plot_curves(folder / "curve", scores, plotted, asked.pictures)
        figures += f", curve.png ({len(plotted)} of {len(moving)} videos)"
    print(f"\nsaved {folder}/scores.csv, score.json, {figures}")
    if left := len(asked.files) - len(scores.files):
        raise ConfigError(
            f"{left} of {len(asked.files)} files could not be read, as told above: "
            "the others are scored."
        )
    return result


def score_pictures(asked: Asked, rewards: Callable[[np.ndarray], np.ndarray]) -> Scores:
    """Reward all pictures of all files, holding one batch of them at a time.

    A batch has pictures of one size, and fewer if they are large. `rewards` takes
    (B, H, W, 3) uint8, and gives (B, C) float32. A damaged file is told of and left
    out, also where some of a video can be read; a ConfigError if no other is left.
    """
    places: list[tuple[int, int, float]] = []
    found: list[np.ndarray] = []
    damaged: dict[int, ConfigError] = {}

    def pictures() -> Iterator[np.ndarray]:
        for number, file in enumerate(asked.files):
            try:
                for frame, time_s, pixels in read_pictures(file, asked.every):
                    places.append((number, frame, np.nan if time_s is None else time_s))
                    yield pixels
            except ConfigError as error:
                damaged[number] = error

    still = all(file.kind == "image" for file in asked.files)
    total = len(asked.files) if still else None
    with progress_bar(total, "picture", "scoring") as bar:
        for shape, alike in itertools.groupby(pictures(), np.shape):
            most = min(BATCH, max(1, BATCH_BYTES // math.prod(shape)))
            while batch := list(itertools.islice(alike, most)):
                found.append(rewards(np.stack(batch)))
                bar.update(len(batch))
    if len(damaged) == len(asked.files):
        raise damaged[0]
    for error in damaged.values():
        print(error, file=sys.stderr)
    file, *when = (np.array(column) for column in zip(*places, strict=True))
    whole = ~np.isin(file, list(damaged))
    _, file = np.unique(file[whole], return_inverse=True)
    files = [one for i, one in enumerate(asked.files) if i not in damaged]
    when = (column[whole] for column in when)
    reward = np.concatenate(found)[whole]
    return Scores(files, asked.columns, file, *when, reward=reward)


def check_finite(scores: Scores, clip: str) -> None:
    """Raise FloatingPointError if a reward is no number."""
    bad = np.argwhere(~np.isfinite(scores.reward))
    if len(bad):
        row, column = bad[0]
        raise FloatingPointError(
            f'The reward of {_place(scores, row)} for "{scores.columns[column].name}" '
            f"is {scores.reward[row, column]}, not a finite number: the weights of "
            f"clip={clip} are damaged, or too large for their precision; try "
            "compute=cpu."
        )


def write_csv(path: Path, scores: Scores) -> None:
    """Write the rewards, a picture a line."""
    about = {
        "file": [str(scores.files[number].path) for number in scores.file],
        "frame": scores.frame,
        "time_s": scores.time_s,
    }
    names = [column.name for column in scores.columns]
    rewards = dict(zip(names, scores.reward.T, strict=True))
    with written_whole(path) as part:
        # Nine digits give back the same float32; names of files may be no valid text.
        pd.DataFrame(about | rewards).to_csv(
            part, index=False, float_format="%.9g", errors="surrogateescape"
        )


def report(scores: Scores) -> str:
    """The highest and the lowest rewards of each column, for people."""
    count, files = len(scores.file), len(scores.files)
    parts = [
        f"{count:,} picture{'s' * (count != 1)} in {files:,} file{'s' * (files != 1)}"
    ]
    for column, rewards in zip(scores.columns, scores.reward.T, strict=True):
        title = f'"{column.prompt}", alpha {column.alpha:g}'
        if column.baseline:
            title += f', baseline "{column.baseline}"'
        low, mean, high = rewards.min(), rewards.mean(), rewards.max()
        title += f"\n  mean {mean:.4f}, from {low:.4f} to {high:.4f}"
        order = np.argsort(-rewards, kind="stable")
        lines = [[_place(scores, row), f"{rewards[row]:.4f}"] for row in order]
        if count > 2 * LISTED:
            lines[LISTED:-LISTED] = [[f"... {count - 2 * LISTED:,} more", ""]]
        parts.append(f"{title}\n{table(['picture', 'reward'], lines)}")
    return "\n\n".join(parts)


def _place(scores: Scores, row: int) -> str:
    """Which picture of which file."""
    return f"{scores.files[scores.file[row]].path}  {scores.when(row)}".rstrip()


if __name__ == "__main__":
    app.start(
        lambda composed: score(check(composed)), "score", check, PLURAL, files=True
    )
