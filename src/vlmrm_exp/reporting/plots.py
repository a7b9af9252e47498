"""The figures of a report: each function draws one and writes it as PNG and SVG."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmrm_exp import figures
from vlmrm_exp.reporting.curves import (
    Fit,
    Success,
    align,
    interquartile_mean,
    log_linear_fit,
    stratified_bootstrap,
)
from vlmrm_exp.reporting.groups import Group, Series, labels
from vlmrm_exp.reporting.run_folders import FINISHED, Run, number

WIDTH = 4.6
"""Inches: a phone shows it at three quarters of its size, so letters stay readable."""
FEW_POINTS = 12
"""Curves with at most so many points show them."""
BOOTSTRAP, LOWEST_TO_HIGHEST = "95 % stratified bootstrap", "lowest to highest run"
"""What a band shows."""
RUNS_FOR_BAND = 3
RUNS_FOR_BOOTSTRAP = 5
"""With fewer, a bootstrap's 95 % reach from the lowest to the highest run, or nearly,
and promise more than they hold; so the band says that it is just that."""


def draw_success(groups: Sequence[Group], names: Sequence[str], path: Path) -> None:
    """Draw each group's pooled success with its interval, and that of each run.

    Args:
        groups: with success.
        names: of the groups.
        path: without suffix.
    """
    wrapped = [_wrap(name, 30) for name in names]
    lines = [name.count("\n") + 1 for name in wrapped]
    places = [sum(lines[:row]) + lines[row] / 2 for row in range(len(groups))]
    with figures.figure(WIDTH, 0.9 + 0.2 * sum(lines)) as figure:
        axes = figure.add_subplot()
        for place, group in zip(places, groups, strict=True):
            success = group.success()
            assert success is not None
            rates = [rate for _, rate, _ in group.trials()]
            axes.plot(rates, [place] * len(rates), "|", color="#888888", markersize=11)
            axes.errorbar(
                success.rate,
                place,
                xerr=_error([success]),
                fmt="o",
                color=figures.COLORS[0],
                capsize=3,
                clip_on=False,
            )
        axes.set_yticks(places, wrapped)
        axes.set_ylim(sum(lines), 0)
        axes.set_xlim(-0.02, 1.02)
        axes.set_xlabel("share of successful episodes")
        figures.save(figure, path)


def has_curve(runs: Sequence[Run], key: str) -> bool:
    """Whether any run reported a metric."""
    return any(len(run.curve(key)[0]) for run in runs)


def draw_curves(groups: Sequence[Group], key: str, axis: str, path: Path) -> str:
    """Draw a metric over env steps, one colour for each group.

    Solid: interquartile mean over finished runs with a band, which is a 95 % bootstrap
    interval or, of fewer than five runs, from the lowest to the highest; or, where
    there are too few for a band, the runs themselves. Dashed: every other run.

    Args:
        groups: of one task, some with a run that reported the metric.
        key: of metrics.jsonl.
        axis: what to write at the vertical axis.
        path: without suffix.

    Returns:
        What a reader has to know of how it was drawn.
    """
    groups = [group for group in groups if has_curve(group.runs, key)]
    names = labels(groups, known=["task.name"])
    colors = _colors(groups)
    drawn_singly: list[str] = []
    bands: set[str] = set()
    cut: list[str] = []
    with figures.figure(WIDTH, 2.7 + 0.2 * len(groups)) as figure:
        axes = figure.add_subplot()
        for group, name, color in zip(groups, names, colors, strict=True):
            measured = [(run, curve) for run in group.finished
                        if len((curve := run.curve(key))[0])]  # fmt: skip
            finished = [curve for _, curve in measured]
            others = [c for r in group.runs if r.status != FINISHED
                      and len((c := r.curve(key))[0])]  # fmt: skip
            steps, values = align(finished)
            counted = f"{len(finished)} run{'' if len(finished) == 1 else 's'}"
            enough = len(finished) >= RUNS_FOR_BOOTSTRAP
            has_band = len(finished) >= RUNS_FOR_BAND and len(steps) > 0
            if has_band:
                bands.add(band := BOOTSTRAP if enough else LOWEST_TO_HIGHEST)
                counted += f", band: {band}"
            if others:
                counted += f" + {len(others)} not finished"
            label = _wrap(f"{name} ({counted})", 58)
            if has_band:
                low, high = (
                    stratified_bootstrap([values])
                    if enough
                    else (values.min(axis=0), values.max(axis=0))
                )
                ends = {run.name: curve[0][-1] for run, curve in measured}
                if min(ends.values()) < max(ends.values()):
                    shortest = min(ends, key=lambda run: ends[run])
                    cut.append(
                        f"{name} ends where the shortest record ends: {shortest}"
                    )
                middle = interquartile_mean(values)
                axes.fill_between(steps, low, high, color=color, alpha=0.2, lw=0)
                marker = "." if len(steps) <= FEW_POINTS else ""
                axes.plot(steps, middle, color=color, marker=marker, label=label)
            else:
                if finished:
                    drawn_singly.append(name)
                for curve in finished:
                    _plot_run(axes, [curve], color, "-", label)
                    label = None
            for curve in others:
                _plot_run(axes, [curve], color, (0, (3, 2)), label)
                label = None
        axes.set_xlabel("env steps")
        axes.set_ylabel(axis)
        _steps_axis(axes)
        if "success" in key:
            axes.set_ylim(-0.03, 1.03)
        figure.legend(loc="outside lower left", fontsize=8)
        figures.save(figure, path)
    return _curve_note(groups, drawn_singly, bands, cut, key)


def _curve_note(
    groups: Sequence[Group],
    singly: Sequence[str],
    bands: Collection[str],
    cut: Sequence[str],
    key: str,
) -> str:
    """Say how the curves of `draw_curves` are to be read."""
    sentences = []
    if bands:
        which = [BOOTSTRAP] * (BOOTSTRAP in bands)
        which += [f"{LOWEST_TO_HIGHEST} where there are fewer than five"] * (
            LOWEST_TO_HIGHEST in bands
        )
        sentences.append(
            "Line: interquartile mean over the finished runs (of three, their mean). "
            f"Band: {'; '.join(which)}."
        )
        sentences += [f"{text}." for text in cut]
    if singly:
        which = f" ({'; '.join(singly)})" if bands else ""
        sentences.append(f"Fewer than three finished runs{which}: drawn as they are.")
    unfinished = [run for group in groups for run in group.runs
                  if run.status != FINISHED and len(run.curve(key)[0])]  # fmt: skip
    if unfinished:
        sentences.append("Dashed: runs that did not finish, in no mean.")
    return " ".join(sentences)


def _plot_run(
    axes: Any, curves: Sequence[Any], color: Any, style: Any, label: str | None
) -> None:
    steps, values = align(curves)
    marker = "." if len(steps) <= FEW_POINTS else ""
    axes.plot(steps, values[0], color=color, lw=1, ls=style, marker=marker, label=label)


def draw_success_over_alpha(series: Sequence[Series], path: Path) -> None:
    """Draw success against alpha, one line for each series, intervals over episodes."""
    with figures.figure(WIDTH, 2.7 + 0.2 * len(series)) as figure:
        axes = figure.add_subplot()
        _lines(axes, series, [each.x for each in series], known="alpha")
        axes.set_xlabel("alpha")
        axes.set_xticks(sorted({x for each in series for x in each.x}))
        figure.legend(loc="outside lower left", fontsize=8)
        figures.save(figure, path)


def draw_success_over_size(series: Sequence[Series], path: Path) -> None:
    """Draw success against the model's parameters, one line for each series."""
    sizes = {
        str(group.settings.get("clip.name", "?")): float(x)
        for each in series
        for group, x in zip(each.groups, each.x, strict=True)
    }
    with figures.figure(WIDTH, 2.9 + 0.2 * len(series)) as figure:
        axes = figure.add_subplot()
        _lines(axes, series, [each.x for each in series], known="clip.name")
        _sizes_axis(axes, sizes)
        figure.legend(loc="outside lower left", fontsize=8)
        figures.save(figure, path)


def _lines(
    axes: Any, series: Sequence[Series], xs: Sequence[Sequence[float]], known: str
) -> None:
    names = labels([each.groups[0] for each in series], known=[known])
    colors = _cycle(len(series))
    for i, (each, x, name) in enumerate(zip(series, xs, names, strict=True)):
        found = [s for group in each.groups if (s := group.success()) is not None]
        axes.errorbar(
            x,
            [success.rate for success in found],
            yerr=_error(found),
            color=colors[i],
            marker=figures.MARKERS[i % len(figures.MARKERS)],
            capsize=3,
            clip_on=False,
            label=_wrap(name, 58),
        )
        for place, group in zip(x, each.groups, strict=True):
            rates = [rate for _, rate, _ in group.trials()]
            axes.plot(
                [place] * len(rates), rates, "_", color=colors[i], ms=9, alpha=0.6
            )
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel("share of successful episodes")


def draw_epic_over_size(
    rows: Sequence[Mapping[str, Any]], path: Path
) -> dict[float, Fit]:
    """Draw EPIC distance against parameters with a log-linear fit for each alpha.

    Args:
        rows: of one task, with parameters (above 0), epic, alpha, clip and, where
            known, epic_low and epic_high.
        path: without suffix.

    Returns:
        The fit of each alpha, in their order; none with fewer than three sizes.
    """
    alphas = sorted({float(row["alpha"]) for row in rows})
    colors = figures.ladder(alphas)
    fits = {}
    with figures.figure(WIDTH, 3.0) as figure:
        axes = figure.add_subplot()
        for i, alpha in enumerate(alphas):
            chosen = [row for row in rows if float(row["alpha"]) == alpha]
            chosen.sort(key=lambda row: row["parameters"])
            x = [float(row["parameters"]) for row in chosen]
            y = [float(row["epic"]) for row in chosen]
            axes.errorbar(
                x,
                y,
                yerr=epic_errors(chosen),
                fmt=figures.MARKERS[i % len(figures.MARKERS)],
                color=colors[alpha],
                markersize=5,
                capsize=2,
                lw=1,
                label=f"alpha {alpha:g}",
            )
            if fit := log_linear_fit(x, y):
                fits[alpha] = fit
                ends = [min(x), max(x)]
                line = [fit.at(size) for size in ends]
                axes.plot(ends, line, color=colors[alpha], lw=1.2, ls="--")
        axes.set_ylabel("EPIC distance (0: the truth)")
        _sizes_axis(axes, {str(r["clip"]): float(r["parameters"]) for r in rows})
        figure.legend(loc="outside lower left", ncols=3, fontsize=8)
        figures.save(figure, path)
    return fits


def epic_errors(rows: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Lengths of the bars below and above each row's epic; 0 where none is known."""
    sides = []
    for key, sign in (("epic_low", -1), ("epic_high", 1)):
        ends = [number(row.get(key)) for row in rows]
        sides.append(
            [0.0 if end is None else max(sign * (end - float(row["epic"])), 0.0)
             for end, row in zip(ends, rows, strict=True)]
        )  # fmt: skip
    return sides


def _colors(groups: Sequence[Group]) -> list[Any]:
    """A colour for each group: from a ladder where they are many or ordered."""
    alphas = [number(group.settings.get("alpha")) for group in groups]
    if None not in alphas and len(set(alphas)) == len(groups) > 2:
        ladder = figures.ladder([float(alpha or 0) for alpha in alphas])
        return [ladder[float(alpha or 0)] for alpha in alphas]
    return _cycle(len(groups))


def _cycle(count: int) -> list[Any]:
    if count <= len(figures.COLORS):
        return list(figures.COLORS[:count])
    return list(figures.ladder(range(count)).values())


def _error(found: Sequence[Success]) -> list[list[float]]:
    return [
        [success.rate - success.low for success in found],
        [success.high - success.rate for success in found],
    ]


def _steps_axis(axes: Any) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _sizes_axis(axes: Any, sizes: Mapping[str, float]) -> None:
    """A logarithmic axis with a tick for each model."""
    from matplotlib.ticker import EngFormatter, NullLocator

    written = EngFormatter(sep="", places=None)
    by_size: dict[float, list[str]] = {}
    for name, size in sizes.items():
        by_size.setdefault(size, []).append(name)
    axes.set_xscale("log")
    axes.set_xticks(
        list(by_size),
        [f"{_wrap(', '.join(names), 14)}\n{written(float(f'{size:.2g}'))}"
         for size, names in by_size.items()],
    )  # fmt: skip
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.12)
    axes.set_xlabel("model, and its parameters")


def _wrap(text: str, width: int) -> str:
    import textwrap

    # A dollar sign would begin a formula.
    lines = textwrap.wrap(text.replace("$", r"\$"), width, break_on_hyphens=False)
    return "\n".join(lines[:4]) + (" ..." if len(lines) > 4 else "")
