"""How good a reward is a sentence? python -m vlmrm_exp.epic task=... clip=...

Compares the rewards of states with the truth, by EPIC distance, Pearson correlation and
AUROC, for each task, model and alpha. Nothing is trained.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmrm_exp import cli, figures
from vlmrm_exp.config import ClipConfig, Config
from vlmrm_exp.reporting.means import MEAN, mean_over_tasks
from vlmrm_exp.study.folder import result_folder
from vlmrm_exp.study.settings import (
    MODELS_HELP,
    STATES_HELP,
    TEXT,
    Examined,
    StatesConfig,
    check_alphas,
    check_one_task,
    check_states,
    embedders,
    examine,
    parameters,
    resolve_models,
    resolve_tasks,
    save_state_sets,
    short_count,
    table,
    tell_embedded,
    with_settings_files,
    worded,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SEEDS = 3  # models of one size, from which on an interval over them is given
MEASURES = {
    "epic": "EPIC distance to the goal (0 best, 0.71 unrelated, 1 opposite)",
    "pearson": "Pearson correlation with the goal (1 best)",
    "auroc": "AUROC of goal against other states (1 best, 0.5 chance)",
    "epic_graded": "EPIC distance to {graded_by}",
    "pearson_graded": "Pearson correlation with {graded_by}",
}

HELP = f"""\
Measures how well rewards agree with the truth, before anything is trained.

  python -m vlmrm_exp.epic task=kneeling clip=nano,tiny,small,base alpha=[0,0.5,1]
  python -m vlmrm_exp.epic task=kneeling prompt="a robot on its knees" clip=bigG
  python -m vlmrm_exp.epic task=kneeling frames=FOLDER labels=labels.csv
  python -m vlmrm_exp.epic sweeps/epic_embedded.yaml out=FOLDER

The truth is whether a state meets the task's goal; for cartpole and mountaincar also
the pole's angle and the car's position. 95 % intervals resample states, those of one
episode together; a grid (cartpole, mountaincar) is no sample and has none; pictures
of frames= count as independent. These may show anything: any task's name will do then,
with prompt and baseline of your own.

Settings:
  task=kneeling     or several, as [kneeling,lotus]
  alpha=[0,0.25,0.5,0.75,1]
  prompt=null       of the goal; null: the task's own; several are averaged: [...]
  baseline=null     null: the task's own
{MODELS_HELP}{STATES_HELP}
Prints a table; writes epic.json, epic.png, epic.svg and the states into a folder.
"""


@dataclass
class EpicConfig(StatesConfig):
    """What to measure; see HELP."""

    task: list[str] = field(default_factory=lambda: ["kneeling"])
    alpha: list[float] = field(default_factory=lambda: [0, 0.25, 0.5, 0.75, 1])
    prompt: list[str] | None = None
    baseline: list[str] | None = None


def parse(arguments: Sequence[str]) -> EpicConfig:
    """Turn key=value arguments and settings files into checked values.

    Raises:
        ConfigError: one sentence says what is wrong.
    """
    asked = cli.parse(
        EpicConfig,
        with_settings_files(arguments),
        text=(*TEXT, "prompt", "baseline"),
    )
    check_alphas(asked.alpha)
    check_one_task(asked)
    return asked


def measure(asked: EpicConfig) -> dict[str, Any]:
    """Measure, print, draw, write and return what epic.json holds.

    Raises:
        ConfigError: a model, states or labels cannot be had, or mean nothing.
    """
    models = resolve_models(asked)
    configs = worded(resolve_tasks(asked.task, asked), asked)
    check_states(configs, asked)
    with result_folder(asked, "epic") as folder:
        return _measure(asked, models, configs, folder)


def _measure(
    asked: EpicConfig,
    models: Sequence[ClipConfig],
    configs: Sequence[Config],
    folder: Path,
) -> dict[str, Any]:
    """As `measure`, of what is known to be possible."""
    if asked.frames:
        tell_embedded(models)
    said = [s for c in configs for s in (*c.prompts, *c.baselines)]
    loading = embedders(models, asked, said)
    examined = examine(configs, asked)

    # Imported here so that --help and refusals are immediate.
    from vlmrm_exp.log import versions, write_json

    rows, facts, drawn_by = [], {}, set()
    for embedder in loading:
        facts[embedder.facts["name"]] = embedder.facts
        for one in examined:
            rows += _of_model(embedder, one, asked)
        drawn_by |= embedder.drawn_by
        del embedder
    result = {
        "settings": asdict(asked),
        "tasks": {one.config.task.name: one.about() for one in examined},
        "models": facts,
        "rows": rows,
        "sizes": over_models(rows),
        "versions": versions({"drawn_by": "; ".join(sorted(drawn_by))}),
    }
    print(report(result))
    save_state_sets(folder, examined)
    write_json(folder / "epic.json", result)
    draw(result, folder / "epic")
    print(f"\nsaved {folder}/epic.json, epic.png, epic.svg")
    return result


def _of_model(embedder: Any, one: Examined, asked: EpicConfig) -> list[dict[str, Any]]:
    """The measures of one model on one task, for each alpha."""
    config = one.config
    embeddings = embedder.embed(one.states, config.task)
    rows = []
    for alpha in asked.alpha:
        reward = embedder.reward(embeddings, config.prompts, config.baselines, alpha)
        about = {
            "task": config.task.name,
            "clip": embedder.facts["name"],
            "parameters": parameters(embedder.facts),
            "alpha": alpha,
        }
        rows.append(about | one.agreement(reward, asked))
    return rows


def over_models(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean EPIC of models of one size, such as pretraining seeds, if there are three.

    Its 95 % interval (Student's t) is for the mean over all models of the kind.

    Args:
        rows: of all tasks, models and alphas; sizes are equal to three digits.

    Returns:
        A row for each task (and for their mean), alpha and size.
    """
    from scipy.stats import t as student

    rows = [*rows, *mean_over_tasks(rows)]
    groups: dict[tuple[str, float, str], list[float]] = {}
    for row in rows:
        key = row["task"], row["alpha"], short_count(row["parameters"])
        groups.setdefault(key, []).append(row["epic"])
    found = []
    for (task, alpha, size), values in groups.items():
        if len(values) < SEEDS:
            continue
        mean = float(np.mean(values))
        error = np.std(values, ddof=1) / np.sqrt(len(values))
        half = float(student.ppf(0.975, len(values) - 1) * error)
        about = {"task": task, "alpha": alpha, "size": size, "models": len(values)}
        found.append(
            about | {"epic": mean, "epic_low": mean - half, "epic_high": mean + half}
        )
    return found


def report(result: dict[str, Any]) -> str:
    """Tables for people: models down, alphas across."""
    alphas = result["settings"]["alpha"]
    parts = []
    for task, about in result["tasks"].items():
        look = ", ".join(filter(None, (about["textures"], about["camera"])))
        parts.append(
            f"{task}: {' / '.join(about['prompt'])}\n"
            f"  baseline {' / '.join(about['baseline'])}\n"
            f"  {about['states']} states, {about['goal_states']} of them goals "
            f"({about['goal_share']:.1%}, by {about['labelled_by']})"
            + (f"; {look}" if look else "")
        )
        rows = {(r["clip"], r["alpha"]): r for r in result["rows"]
                if r["task"] == task}  # fmt: skip
        for key, title in MEASURES.items():
            if key not in next(iter(rows.values())):
                continue
            head = ["model", "parameters", *(f"alpha {a:g}" for a in alphas)]
            lines = [
                [
                    name,
                    short_count(parameters(facts)),
                    *(_cell(rows[name, alpha], key) for alpha in alphas),
                ]
                for name, facts in result["models"].items()
            ]
            parts.append(f"{title.format(**about)}\n{table(head, lines)}")
    if sizes := result["sizes"]:
        title = "EPIC distance, models of one size together: mean and 95 % interval"
        head = ["task", "parameters", "models", "alpha", "EPIC"]
        lines = [
            [
                row["task"],
                row["size"],
                str(row["models"]),
                f"{row['alpha']:g}",
                _cell(row, "epic"),
            ]
            for row in sizes
        ]
        parts.append(f"{title}\n{table(head, lines)}")
    return "\n\n".join(parts)


def _cell(row: dict[str, Any], key: str) -> str:
    """0.517 [.491, .543]: the value with its interval."""
    value = f"{row[key]:.3f}"
    if f"{key}_low" in row:
        ends = (f"{row[f'{key}_{end}']:.3f}" for end in ("low", "high"))
        value += f" [{', '.join(end.replace('0.', '.', 1) for end in ends)}]"
    return value


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw EPIC against size for each alpha, and against alpha for each model.

    Panels for each task, and for their mean if there are several; against what has
    but one value nothing is drawn.
    """
    tasks = list(result["tasks"])
    titles = [*tasks, MEAN] if len(tasks) > 1 else tasks
    drawers = {"alpha": _against_size, "clip": _against_alpha}  # by what colours mean
    if len(result["settings"]["alpha"]) == 1:
        del drawers["clip"]
    elif len(result["models"]) == 1:
        del drawers["alpha"]
    panels = [(title, kind) for title in titles for kind in drawers]
    lines = -(-len(panels) // 2)
    with figures.figure(8, 0.6 + 3.2 * lines) as made:
        axes = made.subplots(lines, 2, squeeze=False)
        for ax in axes.flat[len(panels) :]:
            ax.set_visible(False)
        for ax, (title, kind) in zip(axes.flat, panels, strict=False):
            rows = [r for r in result["rows"] if r["task"] == title]
            if title not in tasks:
                rows = mean_over_tasks(result["rows"])
            drawers[kind](ax, rows)
            ax.set_title(title, loc="left")
            ax.set_ylabel("EPIC distance to the goal")
        # Once for all rows, above them: anywhere inside they would hide intervals.
        place: Any = {"loc": "lower left", "bbox_to_anchor": (0, 1.1), "fontsize": 8}
        for ax, kind in zip(axes.flat, drawers, strict=False):
            ax.legend(title=kind, ncols=5, columnspacing=1, **place)
        note = ""
        if any("epic_low" in row for row in result["rows"]):
            note = "bars: 95 % intervals over states, those of one episode together"
        if result["sizes"]:
            note += "\n" * bool(note) + "broad: over models of one size"
        if note:
            made.supxlabel(note, fontsize=8, color="#666666")
        figures.save(made, path)


def _against_size(ax: "Axes", rows: Sequence[dict[str, Any]]) -> None:
    """Models of one size to three digits, such as seeds, are joined at their mean."""
    colors = figures.ladder([row["alpha"] for row in rows])
    for i, (alpha, color) in enumerate(colors.items()):
        mine = sorted(
            (row for row in rows if row["alpha"] == alpha),
            key=lambda row: row["parameters"],
        )
        # Beside each other, as intervals would hide one another.
        shift = 1.04 ** (i - (len(colors) - 1) / 2)
        sizes = np.array([row["parameters"] for row in mine])
        values = np.array([row["epic"] for row in mine])
        ax.errorbar(
            sizes * shift, values, _whiskers(mine), fmt="o", ms=4, color=color, lw=1
        )
        named = np.array([short_count(size) for size in sizes])
        groups = [named == name for name in dict.fromkeys(named)]
        means = [(sizes[g].mean() * shift, values[g].mean()) for g in groups]
        ax.plot(*np.transpose(means), color=color, label=f"{alpha:g}")
        for one in over_models(mine):
            place = sizes[named == one["size"]].mean() * shift
            ends = one["epic_low"], one["epic_high"]
            ax.plot([place, place], ends, color=color, lw=6, alpha=0.3)
    ax.set_xscale("log")
    ax.set_xlabel("parameters")
    ticks = {short_count(row["parameters"]): row["parameters"] for row in rows}
    ax.set_xlim(min(ticks.values()) / 1.6, max(ticks.values()) * 1.6)
    ax.minorticks_off()
    ax.set_xticks(list(ticks.values()), list(ticks), rotation=30)


def _against_alpha(ax: "Axes", rows: Sequence[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(row["clip"] for row in rows))
    for i, name in enumerate(names):
        mine = sorted(
            (row for row in rows if row["clip"] == name), key=lambda row: row["alpha"]
        )
        shift = 0.012 * (i - (len(names) - 1) / 2)
        ax.errorbar(
            [row["alpha"] + shift for row in mine],
            [row["epic"] for row in mine],
            _whiskers(mine),
            color=figures.COLORS[i % len(figures.COLORS)],
            marker=figures.MARKERS[
                (i + i // len(figures.COLORS)) % len(figures.MARKERS)
            ],
            ms=4,
            elinewidth=1,
            label=name,
        )
    ax.set_xlabel("alpha")
    ax.set_xticks(sorted({row["alpha"] for row in rows}))


def _whiskers(rows: Sequence[dict[str, Any]]) -> np.ndarray | None:
    """Lengths (2, R) down and up to the interval's ends, if there are intervals."""
    if any("epic_low" not in row for row in rows):
        return None
    ends = np.array([(row["epic_low"], row["epic_high"]) for row in rows]).T
    values = np.array([row["epic"] for row in rows])
    # Never negative: with few goals an interval of percentiles can miss the value.
    return np.maximum([values - ends[0], ends[1] - values], 0)


def main() -> None:
    """Measure as the command line says; bad input ends in one sentence."""
    cli.run_verb("epic", HELP, lambda arguments: measure(parse(arguments)))


if __name__ == "__main__":
    main()
