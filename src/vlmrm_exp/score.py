"""Score pictures of one's own: python -m vlmrm_exp.score PICTURES prompt="..." ...

Reads images, videos and folders of them, embeds each picture and each prompt, and
writes the rewards as a table (scores.csv) and as pictures (strip.png, curve.png).
"""

import contextlib
import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmrm_exp import cli
from vlmrm_exp.config import ClipConfig, ConfigError
from vlmrm_exp.study.folder import result_folder
from vlmrm_exp.study.pictures import Picture, PictureFile, find_files, read_pictures
from vlmrm_exp.study.progress import progress_bar
from vlmrm_exp.study.settings import (
    ModelsConfig,
    check_alphas,
    resolve_models,
    tell_embedded,
)
from vlmrm_exp.study.strip import (
    Column,
    Scores,
    draw_curves,
    draw_strip,
    when,
    written_whole,
)

if TYPE_CHECKING:
    import torch

COMPUTE = ("auto", "cpu", "gpu")
BATCH_BYTES = 256e6
"""Of pictures that wait to be embedded: photographs are large."""
LISTED = 5
"""Pictures at either end of each prompt's printed list."""

HELP = """\
Says how well pictures match sentences: the reward that a training run would get.

  python -m vlmrm_exp.score photo.jpg frames/ video.mp4 prompt="a robot kneeling"
  python -m vlmrm_exp.score frames/ prompt='[a robot kneeling, a robot on its knees]'
  python -m vlmrm_exp.score video.mp4 task=kneeling alpha=0,0.5 every=5 clip=vitl14

Settings:
  PICTURES          images (what Pillow opens), videos (what ffmpeg opens: mp4, webm,
                    mov, avi, mkv, ...), or folders: the images and videos that lie in
                    them, in natural order, without subfolders
  prompt=SENTENCE   or a list, '[one, another]': each is scored by itself, not averaged
  baseline=SENTENCE the scene without the goal; or a list, one for each prompt; is not
                    needed at alpha 0
  alpha=0           0..1, strength of goal-baseline regularisation, or several: 0,0.5
  task=null         prompt, baseline and alpha are this task's unless given
  clip=base         one of conf/clip, or local-dir:/path of a model's folder
  every=1           of a video, each second frame for 2, and so on
  pictures=12       in strip.png at most, evenly chosen from the files
  out=outputs/score/DATE_TIME    the folder that is written into
  compute=auto      auto, cpu or gpu

Writes scores.csv (file, frame, time_s, and the reward for each prompt), strip.png (the
pictures with their rewards), curve.png (videos' rewards over time), and score.json
(settings, model, versions). Transparent pictures are laid on white. A run's own videos
carry a title and a curve, which the model would see too.
"""


@dataclass
class ScoreConfig:
    """What to score; see HELP."""

    files: list[str] = field(default_factory=list)
    prompt: list[str] | None = None
    baseline: list[str] | None = None
    alpha: list[float] | None = None
    task: str | None = None
    clip: str = "base"
    every: int = 1
    pictures: int = 12
    out: str | None = None
    compute: str = "auto"


def parse(arguments: Sequence[str]) -> ScoreConfig:
    """Turn arguments into checked values, with the task's in place of missing ones.

    Raises:
        ConfigError: one sentence says what is wrong.
    """
    text = ("files", "prompt", "baseline", "task", "clip", "out")
    asked = cli.parse(ScoreConfig, arguments, positional="files", text=text)
    for name in ("prompt", "baseline", "task", "out"):  # texts are taken as typed
        if getattr(asked, name) in ("null", ["null"]):
            setattr(asked, name, None)
    if not asked.files:
        raise ConfigError(
            "No pictures are given: name images, videos, or folders of them."
        )
    if asked.compute not in COMPUTE:
        raise ConfigError(
            f"compute is {asked.compute!r}, but must be one of {', '.join(COMPUTE)}."
        )
    if re.search(r"[,\[\]]", asked.clip) and not asked.clip.startswith("local-dir:"):
        raise ConfigError(
            f"clip is {asked.clip!r}: give one model, and score once for each."
        )
    for name in ("every", "pictures"):
        if getattr(asked, name) < 1:
            raise ConfigError(f"{name} is {getattr(asked, name)}: give at least 1.")
    if asked.task is not None:
        if not re.fullmatch(r"\w+", asked.task):
            raise ConfigError(
                f"task is {asked.task!r}: give the name of one, as kneeling."
            )
        if asked.task == "gym":
            raise ConfigError(
                "task=gym has no sentences of its own: leave it out, and give prompt."
            )
        config = cli.composed(f"task={asked.task}")
        asked.prompt = asked.prompt or config.prompts
        asked.baseline = asked.baseline or config.baselines
        asked.alpha = asked.alpha or [config.alpha]
    asked.alpha = asked.alpha or [0.0]
    return asked


def columns_of(asked: ScoreConfig) -> list[Column]:
    """Each prompt with its baseline, at each alpha.

    Raises:
        ConfigError: a sentence is missing, empty or there twice, counts do not match,
            or an alpha lies outside 0..1 or is there twice.
    """
    prompts, baselines, alphas = asked.prompt, asked.baseline, asked.alpha or []
    if not prompts:
        raise ConfigError(
            'No prompt is given: say what to look for, as prompt="a robot kneeling", '
            "or take a task's, as task=kneeling."
        )
    for name, sentences in (("prompt", prompts), ("baseline", baselines or [])):
        if not all(sentence.strip() for sentence in sentences):
            raise ConfigError(f"{name} is empty: say in words what to look for.")
    check_alphas(alphas)
    if baselines and len(baselines) not in (1, len(prompts)):
        raise ConfigError(
            f"There are {len(baselines)} baselines for {len(prompts)} prompts: give "
            "one for all, or one for each."
        )
    if not baselines and max(alphas) > 0:
        raise ConfigError(
            f"alpha is {max(alphas):g}, which needs a baseline: give it, as "
            'baseline="a robot", or set alpha=0.'
        )
    of_each = (baselines or [None]) * (len(prompts) if len(baselines or []) < 2 else 1)
    columns = [
        Column(
            prompt if len(alphas) == 1 else f"{prompt} (alpha={alpha:g})",
            prompt,
            baseline if alpha > 0 else None,
            alpha,
        )
        for prompt, baseline in zip(prompts, of_each, strict=True)
        for alpha in alphas
    ]
    names = ["file", "frame", "time_s", *(column.name for column in columns)]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f'The table would have two columns "{name}": leave one out.'
            )
    return columns


def score(asked: ScoreConfig) -> dict[str, Any]:
    """Score, write, print, and return what score.json holds.

    Raises:
        ConfigError: the pictures, the model or the sentences cannot be used.
        FloatingPointError: a reward is not a finite number.
    """
    columns = columns_of(asked)
    place = ModelsConfig(clip=[asked.clip], out=asked.out)
    (clip,) = resolve_models(place)
    files = find_files(asked.files)
    with result_folder(place, "score") as out:
        return _score(asked, columns, clip, files, out)


def _score(
    asked: ScoreConfig,
    columns: Sequence[Column],
    clip: ClipConfig,
    files: Sequence[PictureFile],
    out: Path,
) -> dict[str, Any]:
    """As `score`, of what is known to be possible."""
    # Imported here so that --help and refusals are immediate.
    from vlmrm_exp.log import versions, write_json
    from vlmrm_exp.vlm.encoder import check_prompts, load_encoder
    from vlmrm_exp.vlm.scorer import choose_device

    device = choose_device(asked.compute)
    sentences = [text for c in columns for text in (c.prompt, c.baseline) if text]
    check_prompts(clip, sentences)
    tell_embedded([clip])
    encoder = load_encoder(clip, device)
    reward = _reward_function(columns, encoder.embed_prompts)
    encoder.drop_text_tower()  # the sentences do not change any more
    scores = score_pictures(
        files,
        lambda frames: reward(encoder.embed_frames(frames)),
        asked.every,
        clip.batch_size,
    )
    _check_finite(scores, files, columns, clip.name)
    shown = choose_shown(np.bincount(scores.file), asked.pictures)
    pictures = read_again(files, scores, shown, asked.every)
    result = {
        "files": len(files),
        "frames": len(scores.file),
        "every": asked.every,
        "clip": clip.name,
        "columns": [
            {
                "name": column.name,
                "prompt": column.prompt,
                "baseline": column.baseline,
                "alpha": column.alpha,
                "mean": rewards.mean(dtype=np.float64),
                "lowest": rewards.min(),
                "highest": rewards.max(),
            }
            for column, rewards in zip(columns, scores.reward.T, strict=True)
        ],
        "versions": versions({"device": str(device), "encoder": encoder.facts}),
    }
    write_csv(out / "scores.csv", files, scores, columns)
    draw_strip(out / "strip.png", files, scores, columns, shown, pictures)
    moving = [i for i, file in enumerate(files) if file.kind != "image"]
    if moving:
        draw_curves(out / "curve.png", files, scores, columns, moving[: asked.pictures])
    write_json(out / "score.json", result)
    print(table(files, scores, columns))
    print(f"  saved    {out / 'scores.csv'}, score.json")
    print(f"  pictures {out / 'strip.png'}: {len(shown)} of {len(scores.file)}")
    if moving:
        print(
            f"  curves   {out / 'curve.png'}: {min(len(moving), asked.pictures)} of "
            f"{len(moving)} videos"
        )
    return result


def score_pictures(
    files: Sequence[PictureFile],
    reward: Callable[[np.ndarray], np.ndarray],
    every: int,
    batch_size: int,
) -> Scores:
    """Reward all pictures of all files, in batches of one size.

    Args:
        files: to be read one after another; only a batch of pictures is held.
        reward: (B, H, W, 3) uint8 -> (B, C) float32.
        every: of videos, each frame whose place divides by this.
        batch_size: pictures at once, fewer if they are large.

    Raises:
        ConfigError: a damaged file.
    """
    places: list[tuple[int, int, float]] = []
    rewards: list[np.ndarray] = []
    waiting: list[np.ndarray] = []

    def flush() -> None:
        if waiting:
            rewards.append(reward(np.stack(waiting)))
            bar.update(len(waiting))
            waiting.clear()

    still = all(file.kind == "image" for file in files)
    total = len(files) if still else None
    with progress_bar(total, "picture") as bar:
        for number, file in enumerate(files):
            for frame, time_s, pixels in read_pictures(file, every):
                full = min(batch_size, BATCH_BYTES // pixels.nbytes)
                if waiting and (
                    len(waiting) >= full or waiting[0].shape != pixels.shape
                ):
                    flush()
                waiting.append(pixels)
                places.append((number, frame, np.nan if time_s is None else time_s))
        flush()
    file, frame, time_s = (np.array(column) for column in zip(*places, strict=True))
    return Scores(file, frame, time_s, np.concatenate(rewards))


def choose_shown(counts: Sequence[int] | np.ndarray, most: int) -> np.ndarray:
    """Choose evenly which of the rows to show.

    With fewer files than `most`, each has one place, and the places left go one by one
    to the file with the most rows to a place. With more files, one of each in so many,
    evenly chosen.

    Args:
        counts: rows of each file, which stand one file after another.
        most: rows to choose at most.

    Returns:
        Row numbers, rising.
    """
    counts = np.asarray(counts)
    places = np.zeros(len(counts), int)
    places[_spread(len(counts), most)] = 1
    while len(counts) < most and places.sum() < min(most, counts.sum()):
        places[np.argmax(np.where(places < counts, counts / places, 0))] += 1
    starts = np.cumsum(counts) - counts
    return np.concatenate(
        [
            start + _spread(n, k)
            for start, n, k in zip(starts, counts, places, strict=True)
        ]
    )


def _spread(total: int, most: int) -> np.ndarray:
    """At most `most` of 0..total-1, both ends among them; the middle for one."""
    if most == 0:
        return np.zeros(0, int)
    if most == 1:
        return np.array([total // 2])
    return np.linspace(0, total - 1, min(total, most)).round().astype(int)


def write_csv(
    path: Path, files: Sequence[PictureFile], scores: Scores, columns: Sequence[Column]
) -> None:
    """Write the rewards as RFC 4180 has it, UTF-8, a picture a line."""
    with (
        written_whole(path) as temporary,
        temporary.open(
            "w", newline="", encoding="utf-8", errors="surrogateescape"
        ) as opened,
    ):
        writer = csv.writer(opened)
        writer.writerow(["file", "frame", "time_s", *(c.name for c in columns)])
        for i, rewards in enumerate(scores.reward):
            time_s = scores.time_s[i]
            place = "" if np.isnan(time_s) else f"{time_s:.6g}"
            name = str(files[scores.file[i]].path)
            # Nine figures give back the very float32.
            values = (f"{value:.9g}" for value in rewards)
            writer.writerow([name, int(scores.frame[i]), place, *values])


def table(
    files: Sequence[PictureFile], scores: Scores, columns: Sequence[Column]
) -> str:
    """The highest and the lowest rewards for each prompt, to be printed."""
    count = len(scores.file)
    noun = "picture" if count == 1 else "pictures"
    lines = [f"{count:,} {noun} in {len(files):,} file{'s' * (len(files) != 1)}"]
    for column, rewards in zip(columns, scores.reward.T, strict=True):
        regularised = f', baseline "{column.baseline}"' if column.baseline else ""
        lines.append(f'"{column.prompt}", alpha {column.alpha:g}{regularised}')
        lines.append(
            f"  mean {rewards.mean():.4f}, from {rewards.min():.4f} to "
            f"{rewards.max():.4f}"
        )
        order = np.argsort(-rewards, kind="stable")
        for rank, i in enumerate(order):
            if LISTED <= rank < count - LISTED:
                if rank == LISTED:
                    lines.append(f"     ... {count - 2 * LISTED:,} more")
                continue
            lines.append(f"  {rewards[i]:8.4f}  {_place(files, scores, i)}")
    return "\n".join(lines)


def _place(files: Sequence[PictureFile], scores: Scores, row: int) -> str:
    return f"{files[scores.file[row]].path}  {when(files, scores, row)}".rstrip()


def _reward_function(
    columns: Sequence[Column], embed: "Callable[[list[str]], torch.Tensor]"
) -> "Callable[[torch.Tensor], np.ndarray]":
    """The columns' rewards: (B, D) unit embeddings -> (B, C) float32.

    Raises:
        ConfigError: a prompt and its baseline mean the same to the model.
    """
    import torch

    from vlmrm_exp.vlm.reward import goal_baseline_reward

    goals = embed([column.prompt for column in columns])
    # The baseline is not read at alpha 0.
    baselines = embed([column.baseline or column.prompt for column in columns])

    def reward(states: torch.Tensor) -> np.ndarray:
        each = [
            goal_baseline_reward(states, goal, baseline, column.alpha)
            for column, goal, baseline in zip(columns, goals, baselines, strict=True)
        ]
        return torch.stack(each, dim=1).cpu().numpy()

    try:
        reward(goals)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return reward


def _check_finite(
    scores: Scores, files: Sequence[PictureFile], columns: Sequence[Column], clip: str
) -> None:
    bad = np.argwhere(~np.isfinite(scores.reward))
    if len(bad):
        row, column = bad[0]
        raise FloatingPointError(
            f"The reward of {_place(files, scores, row)} for "
            f'"{columns[column].name}" is {scores.reward[row, column]}, not a finite '
            f"number: the weights of clip={clip} are damaged, or too large for their "
            "precision; try compute=cpu."
        )


def read_again(
    files: Sequence[PictureFile],
    scores: Scores,
    shown: np.ndarray,
    every: int,
) -> list[np.ndarray]:
    """The pictures of some rows; only they are held at once."""
    pictures = []
    for number in np.unique(scores.file[shown]):
        wanted = set(scores.frame[shown][scores.file[shown] == number].tolist())
        with contextlib.closing(read_pictures(files[number], every)) as reading:
            for picture in reading:
                if picture.frame in wanted:
                    pictures.append(_reduce(picture))
                    wanted.remove(picture.frame)
                if not wanted:
                    break
    return pictures


def _reduce(picture: Picture) -> np.ndarray:
    """At most 480 pixels a side, for the strip."""
    from PIL import Image

    image = Image.fromarray(picture.pixels)
    image.thumbnail((480, 480))
    return np.asarray(image)


def main() -> None:
    """Score as the command line says; bad input ends in one sentence."""
    cli.run_verb("score", HELP, lambda arguments: score(parse(arguments)))


if __name__ == "__main__":
    main()
