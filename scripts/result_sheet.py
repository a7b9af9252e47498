"""Make what docs/results.md shows of runs: its table, two pictures, results/runs.csv.

    python scripts/result_sheet.py [--docs] FOLDER [FOLDER ...]

They go to outputs/results/, or with --docs to where docs/results.md shows them.
Each folder is a humanoid's run; they differ in task, seed, length and machine alone.
Success is that of the kept policy in the newest `evaluate` (evaluation.json, -2, ...),
or else in the run's own last evaluation. A run without a summary (killed, or still
running) counts as far as its metrics.jsonl goes, once its policy is evaluated. The
table is printed, a row for each task, length, machine and folder that runs lie in. A
line of results.png shows the first episode of each task's best run, from beginning to
end, with its views side by side, as the run or `evaluate` drew it. results_curves.png
has a panel for each task with the training curves of all its runs, those on a GPU in a
light colour.
"""

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from goal_sheet import IMAGES, INK, ROOT, markdown, save
from PIL import Image, ImageDraw, ImageFont

from vlmrm_exp import figures
from vlmrm_exp.config import Config, ConfigError
from vlmrm_exp.envs.goals import GOALS
from vlmrm_exp.files import natural
from vlmrm_exp.reporting.run_folders import Run, read_run, success_of
from vlmrm_exp.reporting.statistics import Success, pooled
from vlmrm_exp.run_folder import load_run_config
from vlmrm_exp.studies.pictures import find_files, read_pictures

STILLS = 5
RATE = "perf/env_steps_per_s"
MACHINE = ("cpu", "gpu", "drawn_by", "commit")  # of versions.json
CURVES = dict(zip(("reward_mean", "success_rate"), figures.COLORS, strict=False))
SMOOTH = 5  # rollouts that a point of a curve averages
SIZE = 120  # px, of one view
LEFT = 130  # px, for what is written beside a line


@dataclass(frozen=True)
class Outcome:
    """A run and how its kept policy fared."""

    run: Run
    config: Config
    alike: dict[str, Any]
    """What the runs of a table must have in common."""
    evaluation: dict[str, Any]
    """Of summary.json or evaluation.json: success, buckets, reward."""
    video: Path
    kept_at: int
    """Env steps of the policy that was evaluated."""
    train_wall_s: float
    env_steps_per_s: float | None

    @property
    def task(self) -> str:
        """The task's name."""
        return self.config.task.name

    @property
    def success(self) -> Success:
        """Of the evaluation's episodes."""
        found = success_of(self.evaluation)
        assert found is not None
        return found

    @property
    def on_gpu(self) -> bool:
        """Whether it was trained on one."""
        return self.run.versions["device"] != "cpu"


def outcome(folder: Path) -> Outcome:
    """Read a run's folder."""
    config = load_run_config(folder)
    if config.task.name not in GOALS:
        raise ConfigError(f"{folder} is a run of {config.task.name}, no humanoid's.")
    run = read_run(folder, folder)
    assert run is not None  # it has a configuration
    later = [
        name for name in run.evaluations if re.fullmatch(r"evaluation(-\d+)?", name)
    ]
    newest = max(later, key=natural, default="summary")
    video = folder / "videos" / f"{newest if later else 'eval'}.mp4"
    for path in (folder / f"{newest}.json", video, folder / "versions.json"):
        if not path.is_file():
            raise ConfigError(f"There is no {path}: finish or `evaluate` the run.")
    if run.reports.empty:
        raise ConfigError(
            f"{folder / 'metrics.jsonl'} has no report yet: leave this run out."
        )
    evaluation = run.evaluations.get(newest, run.summary)
    summary = run.summary
    if not summary:
        laps = run.reports.filter(regex="^perf/.*_s$").drop(columns=RATE)
        summary = {
            "best_env_steps": evaluation["policy_env_steps"],
            "train_wall_s": float(laps.sum().sum()),
            RATE: run.reports[RATE].iloc[-1],
        }
    return Outcome(
        run=run,
        config=config,
        alike={
            "reward": config.reward.name,
            "alpha": config.alpha,
            "camera": config.task.camera,
            "textures": config.task.textures,
            "weights": run.encoder.get("weights_sha256"),  # none of the predicate
        },
        evaluation=evaluation,
        video=video,
        kept_at=summary["best_env_steps"],
        train_wall_s=summary["train_wall_s"],
        env_steps_per_s=summary[RATE],
    )


def outcomes_of(folders: Iterable[str]) -> list[Outcome]:
    """Read all runs; refuse those that do not belong in one table."""
    found = [outcome(Path(folder)) for folder in folders]
    if not found:
        raise ConfigError("Give the folders of runs.")
    for one in found:
        if one.alike != found[0].alike:
            raise ConfigError(
                f"{one.run.folder} has {one.alike}, but {found[0].run.folder} "
                f"{found[0].alike}: make a table of each."
            )
    for runs in groups(found):
        if len({one.config.seed for one in runs}) < len(runs):
            names = ", ".join(str(one.run.folder) for one in runs)
            raise ConfigError(f"Two of {names} are of one seed: give one of them.")
    return found


def groups(outcomes: Iterable[Outcome]) -> list[list[Outcome]]:
    """Runs by task, machine, planned length and folder, in the tasks' order."""
    found: dict[tuple[int, bool, int, Path], list[Outcome]] = {}
    for one in outcomes:
        sweep = one.run.folder.resolve().parent
        key = GOALS.index(one.task), one.on_gpu, one.config.env_steps, sweep
        found.setdefault(key, []).append(one)
    return [
        sorted(found[key], key=lambda one: one.config.seed) for key in sorted(found)
    ]


def table(outcomes: Iterable[Outcome]) -> str:
    """Markdown, a row for each group."""

    def each(values: Iterable[object]) -> str:
        values = [str(value) for value in values]
        return values[0] if len(set(values)) == 1 else ", ".join(values)

    head = [
        *("task", "env steps, thousands", "seeds", "success, each", "all (95 %)"),
        "episodes by share of steps: 0 / 25 / 50 / 75 / 100 %",
        *("reward a step", "kept at step, thousands", "minutes of training"),
    ]
    lines = []
    for runs in groups(outcomes):
        successes = [one.success for one in runs]
        buckets = np.average(
            [one.evaluation["eval/buckets"] for one in runs],
            axis=0,
            weights=[success.episodes for success in successes],
        )
        on_gpu = " (GPU)" if runs[0].on_gpu else ""
        lines.append(
            [
                runs[0].task,
                each(round(one.run.env_steps / 1000) for one in runs),
                ", ".join(one.run.seed for one in runs),
                ", ".join(f"{success.rate:.2f}" for success in successes),
                str(pooled(successes)).rpartition(",")[0],  # without the counts
                " / ".join(f"{100 * share:.0f}" for share in buckets),
                ", ".join(f"{one.evaluation['eval/reward_mean']:.2f}" for one in runs),
                each(round(one.kept_at / 1000) for one in runs),
                ", ".join(f"{one.train_wall_s / 60:.0f}" for one in runs) + on_gpu,
            ]
        )
    return markdown(head, lines)


def write_csv(outcomes: Iterable[Outcome], path: Path) -> None:
    """One line a run."""
    rows = [
        {
            "run": f"{one.run.folder.parent.name}/{one.run.folder.name}",
            "task": one.task,
            "seed": one.run.seed,
            **one.alike,
            "env_steps": one.run.env_steps,
            "planned_env_steps": one.config.env_steps,
            "kept_at_env_steps": one.kept_at,
            "episodes": one.success.episodes,
            "successes": one.success.successes,
            "buckets": one.evaluation["eval/buckets"],
            "reward_per_step": one.evaluation["eval/reward_mean"],
            "return": one.evaluation["eval/return_mean"],
            "train_wall_s": one.train_wall_s,
            "env_steps_per_s": one.env_steps_per_s,
            **{key: one.run.versions.get(key) for key in MACHINE},
            # Without where its files went, which is known to that machine alone.
            "command": re.sub(r" hydra\.run\.dir=\S+", "", one.run.typed),
        }
        for runs in groups(outcomes)
        for one in runs
    ]
    pd.DataFrame(rows).to_csv(path, index=False)


def line(one: Outcome) -> Image.Image:
    """A run's first episode, with its task and success written beside it."""
    (file,) = find_files([str(one.video)])
    frames = [picture.pixels for picture in read_pictures(file)]
    frames = frames[: one.config.task.episode_length]
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
    for row, text in enumerate((one.task, f"success {one.success.rate:.2f}")):
        font = ImageFont.load_default(15 if row == 0 else 13)
        pen.text((4, SIZE // 2 - 22 + 22 * row), text, INK, font)
    return out


def curves(outcomes: Iterable[Outcome], path: Path) -> None:
    """Plot reward and success of training episodes against env steps."""
    runs: dict[str, list[Outcome]] = {}
    for one in outcomes:
        runs.setdefault(one.task, []).append(one)
    with figures.figure(9, 1.9 * -(-len(runs) // 4)) as made:
        axes = made.subplots(-(-len(runs) // 4), 4, squeeze=False, sharex=True)
        for ax, (task, of_task) in zip(axes.flat, runs.items(), strict=False):
            for one in of_task:
                reports = one.run.reports
                width = min(SMOOTH, len(reports))
                for key, color in CURVES.items():
                    smooth = reports[f"train/{key}"].rolling(width).mean()
                    style = {"color": color, "alpha": 0.4 if one.on_gpu else 1.0}
                    ax.plot(reports["env_steps"] / 1000, smooth, **style)
            ax.set_title(task, loc="left")
            ax.set_ylim(-0.03, 1.03)
        for ax in axes[-1]:
            ax.set_xlabel("env steps, thousands")
        for key, color in CURVES.items():
            axes[-1, -1].plot([], [], color=color, label=key.partition("_")[0])
        axes[-1, -1].legend(loc="upper left")
        figures.save(made, path)
    path.with_name(f"{path.name}.svg").unlink()


def main() -> None:
    """Print the table; write the pictures and the CSV."""
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    images = numbers = ROOT / "outputs" / "results"
    if "--docs" in arguments:
        images, numbers = IMAGES, ROOT / "docs" / "results"
        arguments.remove("--docs")
    try:
        outcomes = outcomes_of(arguments)
    except ConfigError as error:
        sys.exit(f"result_sheet: {error}")
    print(table(outcomes))
    numbers.mkdir(parents=True, exist_ok=True)
    write_csv(outcomes, numbers / "runs.csv")
    print(numbers.relative_to(ROOT) / "runs.csv")
    shown = {
        task: max(
            (one for one in outcomes if one.task == task),
            key=lambda one: (
                one.success.successes,
                one.evaluation["eval/reward_mean"],
            ),
        )
        for task in GOALS
        if any(one.task == task for one in outcomes)
    }
    lines = [line(one) for one in shown.values()]
    width = max(one.width for one in lines)
    sheet = Image.new("RGB", (width, SIZE * len(lines)), "white")
    for number, picture in enumerate(lines):
        sheet.paste(picture, (0, number * SIZE))
    save(sheet, "results.png", images)
    ordered = [one for runs in groups(outcomes) for one in runs]
    curves(ordered, images / "results_curves")


if __name__ == "__main__":
    main()
