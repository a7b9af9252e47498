"""The figures of a report, written as PNG and SVG to a path without suffix."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import EngFormatter, MaxNLocator

from vlmrm_exp import figures
from vlmrm_exp.reporting.groups import Group, labels
from vlmrm_exp.reporting.run_folders import FINISHED, Run
from vlmrm_exp.reporting.statistics import (
    align,
    best_of_n,
    interquartile_mean,
    log_linear_fit,
    stratified_bootstrap,
)

WIDTH = 4.6
"""Inches: a phone shows it at three quarters of its size, so letters stay readable."""
SUCCESS = "share of successful episodes"
REWARD = "eval/reward_mean"
EPIC = ["epic", "epic_low", "epic_high"]
SHARES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1)  # marks on their axis
COUNTS = (1, 2, 3, 10, 30, 100, 300, 1000, 3000, 10_000)  # marks on the axis of n
FEW_POINTS = 12  # curves with no more points show them
RUNS_FOR_BAND = 3
RUNS_FOR_BOOTSTRAP = 5
"""With fewer runs a bootstrap's interval is about as wide as from the lowest to the
highest run, and yet is no 95 % interval. So the band shows lowest and highest."""


def success(groups: Sequence[Group], path: Path) -> None:
    """Plot each group's pooled success with its interval, and that of each run."""
    names = [figures.wrap(name, 30, 6) for name in labels(groups)]
    lines = np.array([name.count("\n") + 1 for name in names])
    places = lines.cumsum() - lines / 2
    with figures.figure(WIDTH, 0.9 + 0.2 * lines.sum()) as figure:
        axes = figure.add_subplot()
        for place, group in zip(places, groups, strict=True):
            rates = group.rates
            axes.plot(rates, [place] * len(rates), "|", color="#888888", markersize=11)
        rates, bars = _rates(groups)
        style: Any = {"fmt": "o", "color": figures.COLORS[0], "clip_on": False}
        axes.errorbar(rates, places, xerr=bars, capsize=3, **style)
        axes.set_yticks(places, names)
        axes.set(xlim=(-0.02, 1.02), ylim=(lines.sum(), 0), xlabel=SUCCESS)
        figures.save(figure, path)


def curves_of(runs: Sequence[Run], key: str) -> dict[Run, pd.Series]:
    """The runs that reported a metric, with its values over env steps."""
    return {run: curve for run in runs if len(curve := run.curve(key))}


def curves(groups: Sequence[Group], key: str, axis: str, path: Path) -> str:
    """Plot a metric over env steps; returns a note that names means that end early.

    Solid: interquartile mean over finished runs with a band, or, if these are too few
    for a band, the runs themselves. Dashed: runs that did not finish.
    """
    groups = [group for group in groups if curves_of(group.counted, key)]
    names = labels(groups, known=("task.name",))
    notes = []
    with figures.figure(WIDTH, 3) as figure:
        axes = figure.add_subplot()
        for group, name, color in zip(groups, names, _colors(groups), strict=True):
            finished = curves_of(group.finished, key)
            others = curves_of([r for r in group.runs if r.status != FINISHED], key)
            lines = [(curve, "-", 1.0) for curve in finished.values()]
            label = f"{len(finished)} run{'' if len(finished) == 1 else 's'}"
            is_mean = len(finished) >= RUNS_FOR_BAND
            common = align([*finished.values()]) if is_mean else pd.DataFrame()
            if len(common):
                values, band = common.to_numpy().T, "lowest to highest run"
                low, high = values.min(axis=0), values.max(axis=0)
                if len(finished) >= RUNS_FOR_BOOTSTRAP:
                    band = "95 % stratified bootstrap"
                    low, high = stratified_bootstrap([values])
                axes.fill_between(common.index, low, high, color=color, alpha=0.2, lw=0)
                mean = pd.Series(interquartile_mean(values), common.index)
                lines = [(mean, "-", 1.6)]
                label += f", band: {band}"
                ends = {curve.index[-1]: run.name for run, curve in finished.items()}
                if len(ends) > 1:
                    run = ends[min(ends)]
                    notes.append(f"{name} ends where the shortest record ends: {run}. ")
            if others:
                label += f" + {len(others)} not finished"
                lines += [(curve, (0, (3, 2)), 1.0) for curve in others.values()]
            label = figures.wrap(f"{name} ({label})", 58)
            for curve, style, width in lines:
                thin = align([curve])[0]
                line: Any = {"ls": style, "lw": width, "color": color, "label": label}
                axes.plot(thin.index, thin, marker=_marker(thin), **line)
                label = None
        axes.set_ylabel(axis)
        _env_steps_axis(axes, 5)
        if "success" in key:
            axes.set_ylim(-0.03, 1.03)
        _legend_below(figure)
        figures.save(figure, path)
    return "".join(notes)


def judges(group: Group, path: Path) -> None:
    """Plot the reward and what judges say of the same episodes, one below the other.

    Left over env steps, a line for each run, and a triangle where a judge's alarm was
    raised; right for the policy with the highest reward among n of these evaluations.
    """
    runs = [run for run in group.finished if run.judges]
    colors = dict(zip(runs, figures.cycle(len(runs)), strict=True))
    shown = {"reward": ("", runs)} | group.judges
    most = 1
    with figures.figure(WIDTH, 0.6 + 1.05 * len(shown)) as figure:
        rows = figure.subplots(len(shown), 2, sharex="col", sharey="row")
        for (over, best), (label, (name, told)) in zip(
            rows, shown.items(), strict=True
        ):
            key = f"judge/{name}" if name else REWARD
            for run in told:
                curve, style = run.curve(key), {"color": colors[run]}
                over.plot(curve.index, curve, marker=_marker(curve), lw=1.2, **style)
                step = run.alarms.get(name, {}).get("env_steps")
                if step in curve.index:
                    over.plot(step, curve[step], "v", ms=8, **style)
            pooled: Any = pd.concat([run.reports for run in told])
            pooled = pooled.reindex(columns=[REWARD, key]).dropna()
            values = best_of_n(*pooled.to_numpy().T)
            style: Any = {"marker": _marker(values), "lw": 1.2, "color": "black"}
            best.plot(np.arange(1, len(values) + 1), values, **style)
            most = max(most, len(values))
            over.set_ylabel(figures.wrap(label, 14))
        over, best = rows[-1]
        _env_steps_axis(over, 4)
        best.set(xlabel="highest reward of n", xscale="log")
        best.set_xticks([n for n in COUNTS if n <= most])
        best.xaxis.set_major_formatter(lambda n, _: f"{n:g}")
        best.minorticks_off()
        figure.align_ylabels()
        figures.save(figure, path)


def success_over(
    series: Sequence[Sequence[Group]],
    keys: tuple[str, ...],
    x: Callable[[Group], Any],
    path: Path,
) -> None:
    """Plot success over `x`, a line for each of `series_over`.

    It is alpha, the share of states looked at, or the model's parameters.
    """
    names = labels([groups[0] for groups in series], known=keys)
    colors, markers = figures.cycle(len(series)), itertools.cycle(figures.MARKERS)
    places = sorted({x(group) for groups in series for group in groups})
    sizes: dict[str, float] = {}
    with figures.figure(WIDTH, 3) as figure:
        axes = figure.add_subplot()
        for groups, name, color in zip(series, names, colors, strict=True):
            rates, bars = _rates(groups)
            style: Any = {"color": color, "marker": next(markers), "clip_on": False}
            style |= {"capsize": 3, "label": figures.wrap(name, 58)}
            axes.errorbar([x(group) for group in groups], rates, bars, **style)
            for group in groups:
                sizes[str(group.settings.get("clip.name", "?"))] = x(group)
                for rate in group.rates:
                    axes.plot(x(group), rate, "_", color=color, ms=9, alpha=0.6)
        if keys == ("alpha",):
            axes.set(xlabel="alpha", xticks=places)
        elif "reward.query_share" in keys:
            axes.set_xlabel("share of training's states that the model looked at")
            axes.set_xscale("log")
            left = places[0] / 1.2
            axes.set_xticks([share for share in SHARES if share > left])
            axes.set_xlim(left, 1.1)
            axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
            axes.minorticks_off()
        else:
            figures.size_axis(axes, sizes)
        axes.set(ylim=(-0.03, 1.03), ylabel=SUCCESS)
        _legend_below(figure)
        figures.save(figure, path)


def epic_over_size(rows: Any, path: Path) -> dict[float, Any]:
    """Plot EPIC distance against parameters; returns log-linear fits, by alpha.

    Rows are of one task, with clip, parameters, alpha and `EPIC`; its ends may be NaN.
    """
    colors, markers = figures.ladder(rows["alpha"]), itertools.cycle(figures.MARKERS)
    fits = {}
    with figures.figure(WIDTH, 3.0) as figure:
        axes = figure.add_subplot()
        for alpha, chosen in rows.sort_values("parameters").groupby("alpha"):
            sizes, *values = chosen[["parameters", *EPIC]].to_numpy().T
            style: Any = {"fmt": next(markers), "ms": 5, "lw": 1, "capsize": 2}
            style |= {"color": colors[alpha], "label": f"alpha {alpha:g}"}
            axes.errorbar(sizes, values[0], _bars(*values), **style)
            if fit := log_linear_fit(sizes, values[0]):
                fits[alpha] = fit
                line = fit.intercept + fit.slope * np.log10(sizes)
                axes.plot(sizes, line, color=colors[alpha], lw=1.2, ls="--")
        axes.set_ylabel("EPIC distance (0: the truth)")
        figures.size_axis(axes, rows.set_index("clip")["parameters"].to_dict())
        figure.legend(loc="outside lower left", ncols=3, fontsize=8)
        figures.save(figure, path)
    return fits


def _marker(curve: Any) -> str:
    return "." if len(curve) <= FEW_POINTS else ""


def _env_steps_axis(axes: Any, ticks: int) -> None:
    axes.set(xlabel="env steps", xlim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(ticks))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _legend_below(figure: Any) -> None:
    """Add a legend, and make the figure higher by its lines."""
    legend = figure.legend(loc="outside lower left", fontsize=8)
    lines = sum(text.get_text().count("\n") + 1 for text in legend.get_texts())
    figure.set_size_inches(WIDTH, 2.6 + 0.17 * lines)


def _colors(groups: Sequence[Group]) -> list[Any]:
    """A colour for each group; a ladder of them if alpha alone tells groups apart."""
    known = [group.alpha for group in groups if group.alpha is not None]
    if len(groups) < 3 or len(set(known)) < len(groups):
        return figures.cycle(len(groups))
    ladder = figures.ladder(known)
    return [ladder[alpha] for alpha in known]


def _rates(groups: Sequence[Group]) -> tuple[np.ndarray, np.ndarray]:
    """Success of groups, and the lengths of bars below and above it, (2, groups)."""
    found = [group.success for group in groups if group.success]
    rates = np.array([(success.rate, *success.interval) for success in found]).T
    return rates[0], _bars(*rates)


def _bars(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The lengths below and above; rounding makes some -1e-17, and NaN is none."""
    return np.nan_to_num([values - low, high - values]).clip(0)
