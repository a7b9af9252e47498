"""How good a reward is a sentence? python -m vlmrm_exp.epic task=... clip=...

Compares the rewards of states with the truth, by EPIC distance, Pearson correlation and
AUROC, for each task, model and alpha. Nothing is trained.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlmrm_exp import app, figures
from vlmrm_exp.files import short_count, table
from vlmrm_exp.measures import mean_over_tasks
from vlmrm_exp.studies import examine
from vlmrm_exp.studies.examine import check
from vlmrm_exp.studies.settings import PLURAL, Study

SEEDS = 3  # models of one size, from which on an interval over them is given
MEASURES = {
    "epic": "EPIC distance to the goal (0 best, 0.71 unrelated, 1 opposite)",
    "pearson": "Pearson correlation with the goal (1 best)",
    "auroc": "AUROC of goal against other states (1 best, 0.5 chance)",
    "epic_graded": "EPIC distance to {graded_by}",
    "pearson_graded": "Pearson correlation with {graded_by}",
}


def measure(study: Study) -> dict[str, Any]:
    """Measure, print, plot, write and return what epic.json holds.

    A ConfigError if a model, states or labels cannot be had, or mean nothing.
    """
    result = examine.measure(study, lambda task: [({}, task)])
    result["sizes"] = over_models(result["rows"])
    study.save("epic", result, report(result), lambda path: plot(result, path))
    return result


def over_models(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean EPIC of models of one size, such as pretraining seeds, if there are three.

    Its 95 % interval (Student's t) is for the mean over all models of the kind. A row
    for each task (and for their mean), alpha and size, equal to three digits.
    """
    from scipy import stats  # here, as --help is immediate

    rows = [row for row in rows if row["parameters"] is not None]
    rows = [*rows, *mean_over_tasks(rows)]
    groups: dict[tuple[str, float, str], list[float]] = {}
    for row in rows:
        key = row["task"], row["alpha"], short_count(row["parameters"])
        groups.setdefault(key, []).append(row["epic"])
    found = []
    for (task, alpha, size), values in groups.items():
        if (count := len(values)) >= SEEDS:
            mean = float(np.mean(values))
            half = float(stats.t.ppf(0.975, count - 1) * stats.sem(values))
            about = {"task": task, "alpha": alpha, "size": size, "models": count}
            ends = {"epic_low": mean - half, "epic_high": mean + half}
            found.append(about | {"epic": mean} | ends)
    return found


def report(result: dict[str, Any]) -> str:
    """Tables for people: models down, alphas across."""
    alphas = result["settings"]["alphas"]
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
            lines = []
            for name in result["models"]:
                count = rows[name, alphas[0]]["parameters"]
                size = "-" if count is None else short_count(count)
                cells = (_cell(rows[name, alpha], key) for alpha in alphas)
                lines.append([name, size, *cells])
            parts.append(f"{title.format(**about)}\n{table(head, lines)}")
    if sizes := result["sizes"]:
        title = "EPIC distance, models of one size together: mean and 95 % interval"
        head = ["task", "parameters", "models", "alpha", "EPIC"]
        lines = []
        for row in sizes:
            group = row["task"], row["size"], str(row["models"]), f"{row['alpha']:g}"
            lines.append([*group, _cell(row, "epic")])
        parts.append(f"{title}\n{table(head, lines)}")
    return "\n\n".join(parts)


def _cell(row: dict[str, Any], key: str) -> str:
    """0.517 [.491, .543]: the value with its interval."""
    value = f"{row[key]:.3f}"
    if f"{key}_low" in row:
        ends = (f"{row[f'{key}_{end}']:.3f}" for end in ("low", "high"))
        value += f" [{', '.join(end.replace('0.', '.', 1) for end in ends)}]"
    return value


def plot(result: dict[str, Any], path: Path) -> None:
    """Plot EPIC against size for each alpha, and against alpha for each model.

    Panels for each task, and for their mean if there are several; against what has
    but one value nothing is plotted.
    """
    import pandas as pd  # here, as --help is immediate

    rows: Any = pd.DataFrame([*result["rows"], *mean_over_tasks(result["rows"])])
    plots = {"alpha": _against_size, "clip": _against_alpha}  # by what colours mean
    if rows["parameters"].isna().any():
        del plots["alpha"]  # no model that embeds
    elif len(result["settings"]["alphas"]) == 1:
        del plots["clip"]
    elif len(result["models"]) == 1:
        del plots["alpha"]
    panels = [(title, kind) for title in rows["task"].unique() for kind in plots]
    lines = -(-len(panels) // 2)
    with figures.figure(8, 0.6 + 3.2 * lines) as made:
        axes = made.subplots(lines, 2, squeeze=False)
        for ax in axes.flat[len(panels) :]:
            ax.set_visible(False)
        for ax, (title, kind) in zip(axes.flat, panels, strict=False):
            plots[kind](ax, rows[rows["task"] == title])
            ax.set_title(title, loc="left")
            ax.set_ylabel("EPIC distance to the goal")
        # Once for all rows, above them: anywhere inside they would hide intervals.
        place = {"loc": "lower left", "bbox_to_anchor": (0, 1.1), "fontsize": 8}
        for ax, kind in zip(axes.flat, plots, strict=False):
            ax.legend(title=kind, ncols=5, columnspacing=1, **place)
        note = ""
        if "epic_low" in rows:
            note = "bars: 95 % intervals over states, those of one episode together"
        if result["sizes"]:
            note += "\n" * bool(note) + "broad: over models of one size"
        if note:
            made.supxlabel(note, fontsize=8, color="#666666")
        figures.save(made, path)


def _against_size(ax: Any, rows: Any) -> None:
    """Models of one size to three digits, such as seeds, are joined at their mean."""
    colors = figures.ladder(rows["alpha"])
    rows = rows.assign(size=rows["parameters"].map(short_count))
    ticks = dict(zip(rows["size"], rows["parameters"], strict=True))
    of_alphas = rows.sort_values("parameters", kind="stable").groupby("alpha")
    for i, (alpha, mine) in enumerate(of_alphas):
        # Beside each other, as intervals would hide one another.
        shift = 1.04 ** (i - (len(colors) - 1) / 2)
        style = {"fmt": "o", "ms": 4, "color": colors[alpha], "lw": 1}
        ax.errorbar(mine["parameters"] * shift, mine["epic"], _whiskers(mine), **style)
        means = mine.groupby("size", sort=False)[["parameters", "epic"]].mean()
        style = {"color": colors[alpha], "label": f"{alpha:g}"}
        ax.plot(means["parameters"] * shift, means["epic"], **style)
        for one in over_models(mine.to_dict("records")):
            place = means.loc[one["size"], "parameters"] * shift
            ends = one["epic_low"], one["epic_high"]
            ax.plot([place, place], ends, color=colors[alpha], lw=6, alpha=0.3)
    ax.set(xscale="log", xlabel="parameters")
    ax.set_xlim(min(ticks.values()) / 1.6, max(ticks.values()) * 1.6)
    ax.minorticks_off()
    ax.set_xticks(list(ticks.values()), list(ticks), rotation=30)


def _against_alpha(ax: Any, rows: Any) -> None:
    """A line for each model."""
    count, several = rows["clip"].nunique(), len(figures.COLORS)
    of_models = rows.sort_values("alpha", kind="stable").groupby("clip", sort=False)
    for i, (name, mine) in enumerate(of_models):
        marker = figures.MARKERS[(i + i // several) % len(figures.MARKERS)]
        style = {"color": figures.COLORS[i % several], "marker": marker, "ms": 4}
        x = mine["alpha"] + 0.012 * (i - (count - 1) / 2)
        bars = _whiskers(mine)
        ax.errorbar(x, mine["epic"], bars, elinewidth=1, label=name, **style)
    ax.set(xlabel="alpha", xticks=sorted(set(rows["alpha"])))


def _whiskers(rows: Any) -> np.ndarray | None:
    """Lengths (2, R) down and up to the interval's ends, if there are intervals."""
    if "epic_low" not in rows or rows["epic_low"].isna().any():
        return None
    values, low, high = rows[["epic", "epic_low", "epic_high"]].to_numpy().T
    # Never negative: with few goals an interval of percentiles can miss the value.
    return np.maximum([values - low, high - values], 0)


if __name__ == "__main__":
    app.start(lambda composed: measure(check(composed)), "epic", check, PLURAL)
