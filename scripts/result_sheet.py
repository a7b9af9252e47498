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

import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from goal_sheet import IMAGES, INK, ROOT, save
from PIL import Image, ImageDraw, ImageFont

from vlmrm_exp import figures
from vlmrm_exp.config import ConfigError
from vlmrm_exp.envs.goals import GOALS
from vlmrm_exp.files import natural
from vlmrm_exp.measures import wilson_interval
from vlmrm_exp.run_folder import load_run_config
from vlmrm_exp.studies.pictures import find_files, read_pictures

STILLS = 5
RATE = "perf/env_steps_per_s"
SMOOTH = 5  # rollouts that a point of a curve averages
SIZE = 120  # px, of one view
LEFT = 130  # px, for what is written beside a line


@dataclass(frozen=True)
class Outcome:
    """A run and how its kept policy fared."""

    folder: Path
    task: str
    seed: int
    planned_steps: int
    alike: dict[str, Any]
    """What the runs of a table must have in common."""
    env_steps: int
    kept_at: int
    """Env steps of the policy that was evaluated."""
    train_wall_s: float
    env_steps_per_s: float | None
    evaluation: dict[str, Any]
    """Of summary.json or evaluation.json: success, buckets, reward."""
    reports: list[dict[str, Any]]
    """Lines of metrics.jsonl."""
    episode_length: int
    video: Path
    versions: dict[str, Any]

    @property
    def successes(self) -> int:
        """How many of the episodes succeeded."""
        return round(
            self.evaluation["eval/success_rate"] * self.evaluation["eval/episodes"]
        )

    @property
    def machine(self) -> str:
        """What trained it."""
        return "one CPU core" if self.versions["device"] == "cpu" else "GPU"


def outcome(folder: Path) -> Outcome:
    """Read a run's folder."""
    config = load_run_config(folder)
    if config.task.name not in GOALS:
        raise ConfigError(f"{folder} is a run of {config.task.name}, no humanoid's.")
    later = sorted(folder.glob("evaluation.json")) + sorted(
        folder.glob("evaluation-[0-9]*.json"), key=lambda path: natural(path.stem)
    )
    newest = later[-1] if later else folder / "summary.json"
    video = folder / "videos" / f"{newest.stem if later else 'eval'}.mp4"
    versions = folder / "versions.json"
    for path in (newest, video, versions):
        if not path.is_file():
            raise ConfigError(f"There is no {path}: finish or `evaluate` the run.")
    recorded = json.loads(versions.read_text())
    evaluation = json.loads(newest.read_text())
    reports = read_reports(folder)
    if (folder / "summary.json").is_file():
        summary = json.loads((folder / "summary.json").read_text())
    else:
        summary = {
            "env_steps": reports[-1]["env_steps"],
            "best_env_steps": evaluation["policy_env_steps"],
            "train_wall_s": sum(
                seconds
                for report in reports
                for key, seconds in report.items()
                if key.startswith("perf/") and key.endswith("_s") and key != RATE
            ),
            RATE: reports[-1].get(RATE),
        }
    encoder = recorded.get("encoder", {})  # none with the predicate as reward
    assert config.task.episode_length is not None  # filled in by load_run_config
    return Outcome(
        folder=folder,
        task=config.task.name,
        seed=config.seed,
        planned_steps=config.env_steps,
        alike={
            "reward": config.reward.name,
            "alpha": config.alpha,
            "camera": config.task.camera,
            "textures": config.task.textures,
            "weights": encoder.get("weights_sha256"),
        },
        env_steps=summary["env_steps"],
        kept_at=summary["best_env_steps"],
        train_wall_s=summary["train_wall_s"],
        env_steps_per_s=summary[RATE],
        evaluation=evaluation,
        reports=reports,
        episode_length=config.task.episode_length,
        video=video,
        versions=recorded,
    )


def read_reports(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    if not lines:
        raise ConfigError(f"{path} has no report yet: leave this run out.")
    return [json.loads(line) for line in lines]


def outcomes_of(folders: Iterable[str]) -> list[Outcome]:
    """Read all runs; refuse those that do not belong in one table."""
    found = [outcome(Path(folder)) for folder in folders]
    if not found:
        raise ConfigError("Give the folders of runs.")
    for one in found:
        if one.alike != found[0].alike:
            raise ConfigError(
                f"{one.folder} has {one.alike}, but {found[0].folder} "
                f"{found[0].alike}: make a table of each."
            )
    for runs in groups(found):
        seeds = [one.seed for one in runs]
        if len(set(seeds)) < len(seeds):
            names = ", ".join(str(one.folder) for one in runs)
            raise ConfigError(f"Two of {names} are of one seed: give one of them.")
    return found


def groups(outcomes: Iterable[Outcome]) -> list[list[Outcome]]:
    """Runs by task, machine, planned length and folder, in the tasks' order."""
    found: dict[tuple[int, bool, int, Path], list[Outcome]] = {}
    for one in outcomes:
        on_gpu = one.machine == "GPU"
        sweep = one.folder.resolve().parent
        key = GOALS.index(one.task), on_gpu, one.planned_steps, sweep
        found.setdefault(key, []).append(one)
    return [sorted(found[key], key=lambda one: one.seed) for key in sorted(found)]


def table(outcomes: Iterable[Outcome]) -> str:
    """Markdown, a row for each group."""

    def each(values: Iterable[object]) -> str:
        values = [str(value) for value in values]
        return values[0] if len(set(values)) == 1 else ", ".join(values)

    lines = [
        "| task | env steps, thousands | seeds | success, each | all (95 %) "
        "| episodes by share of steps: 0 / 25 / 50 / 75 / 100 % | reward a step "
        "| kept at step, thousands | minutes of training |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for runs in groups(outcomes):
        episodes = sum(run.evaluation["eval/episodes"] for run in runs)
        successes = sum(run.successes for run in runs)
        low, high = wilson_interval(successes, episodes)
        buckets = np.average(
            [run.evaluation["eval/buckets"] for run in runs],
            axis=0,
            weights=[run.evaluation["eval/episodes"] for run in runs],
        )
        cells = (
            runs[0].task,
            each(round(run.env_steps / 1000) for run in runs),
            ", ".join(str(run.seed) for run in runs),
            ", ".join(f"{run.evaluation['eval/success_rate']:.2f}" for run in runs),
            f"{successes / episodes:.2f} ({low:.2f} to {high:.2f})",
            " / ".join(f"{100 * share:.0f}" for share in buckets),
            ", ".join(f"{run.evaluation['eval/reward_mean']:.2f}" for run in runs),
            each(round(run.kept_at / 1000) for run in runs),
            ", ".join(f"{run.train_wall_s / 60:.0f}" for run in runs)
            + (" (GPU)" if runs[0].machine == "GPU" else ""),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write_csv(outcomes: Iterable[Outcome], path: Path) -> None:
    """One line a run."""
    rows = [
        {
            "run": f"{one.folder.parent.name}/{one.folder.name}",
            "task": one.task,
            "seed": one.seed,
            **one.alike,
            "env_steps": one.env_steps,
            "planned_env_steps": one.planned_steps,
            "kept_at_env_steps": one.kept_at,
            "episodes": one.evaluation["eval/episodes"],
            "successes": one.successes,
            "buckets": one.evaluation["eval/buckets"],
            "reward_per_step": one.evaluation["eval/reward_mean"],
            "return": one.evaluation["eval/return_mean"],
            "train_wall_s": one.train_wall_s,
            "env_steps_per_s": one.env_steps_per_s,
            "cpu": one.versions["cpu"],
            "gpu": one.versions["gpu"],
            "drawn_by": one.versions.get("drawn_by"),
            "commit": one.versions["commit"],
            # Without where its files went, which is known to that machine alone.
            "command": re.sub(r" hydra\.run\.dir=\S+", "", one.versions["command"]),
        }
        for runs in groups(outcomes)
        for one in runs
    ]
    pd.DataFrame(rows).to_csv(path, index=False)


def line(one: Outcome) -> Image.Image:
    """A run's first episode, with its task and success written beside it."""
    (file,) = find_files([str(one.video)])
    frames = [picture.pixels for picture in read_pictures(file)]
    frames = frames[: one.episode_length]
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
    success = one.evaluation["eval/success_rate"]
    for row, text in enumerate((one.task, f"success {success:.2f}")):
        font = ImageFont.load_default(15 if row == 0 else 13)
        pen.text((4, SIZE // 2 - 22 + 22 * row), text, INK, font)
    return out


def curves(outcomes: Iterable[Outcome], path: Path) -> None:
    """Plot reward and success of training episodes against env steps."""
    runs: dict[str, list[tuple[list[dict], float]]] = {}
    for one in outcomes:
        strength = 0.4 if one.machine == "GPU" else 1.0
        runs.setdefault(one.task, []).append((one.reports, strength))
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
                    width = min(SMOOTH, len(values))
                    smooth = np.convolve(values, np.ones(width) / width, "valid")
                    ax.plot(steps[width - 1 :], smooth, color=color, alpha=strength)
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
            key=lambda one: (one.successes, one.evaluation["eval/reward_mean"]),
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
