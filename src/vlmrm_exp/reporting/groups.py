"""Pool runs that differ in nothing but the seed, and say what tells groups apart."""

import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmrm_exp.reporting.curves import Success, pooled_success
from vlmrm_exp.reporting.run_folders import FINISHED, STATUSES, Run, natural, number

COLUMNS = {
    "task.name": "task",
    "clip.name": "clip",
    "reward": "reward",
    "alpha": "alpha",
    "task.textures": "textures",
    "task.camera": "camera",
    "algo.name": "algorithm",
}
"""What usually tells runs apart, with the names that readers see."""
IGNORED = (
    "seed",
    "name",
    "log.",
    "evaluation.final_episodes",
    "evaluation.video_episodes",
    "clip.batch_size",
    "clip.download_gb",
)
"""What does not change which policy is kept; so of compute all but the overlap. The
evaluations while training do: they choose it."""
UNUSED_WITHOUT_CLIP = (
    *("clip.", "alpha", "prompt", "baseline", "renormalise", "reward_every"),
    *("task.textures", "task.camera", "task.frame_height"),
)


@dataclass
class Group:
    """Runs with the same settings and any seeds."""

    settings: dict[str, Any]
    runs: list[Run]
    other: dict[str, Any]
    """Settings beside `COLUMNS` in which it differs from groups of the same task."""

    @property
    def task(self) -> str:
        """The task's name."""
        return str(self.settings.get("task.name", "?"))

    @property
    def finished(self) -> list[Run]:
        """The runs that the group's numbers come from: of each seed one, in order."""
        counted = [r for r in self.runs if r.status == FINISHED and not r.repeats]
        return sorted(counted, key=lambda run: natural(_seed(run)))

    @property
    def seeds(self) -> str:
        """The seeds of all its runs, each once and in order."""
        return ", ".join(sorted({_seed(run) for run in self.runs}, key=natural))

    @property
    def parameters(self) -> float | None:
        """Parameters of the model that gave the reward; None: not recorded."""
        for run in self.runs:
            encoder = run.versions.get("encoder")
            if isinstance(encoder, dict):
                parts = [number(encoder.get(f"parameters_{part}"))
                         for part in ("image", "text")]  # fmt: skip
                if None not in parts:
                    # None for 0 too, which has no place on a logarithmic axis.
                    return sum(part for part in parts if part is not None) or None
        return None

    @property
    def embedded(self) -> bool:
        """Whether the reward came from one of this project's own small models."""
        return self.settings.get("clip.model") == "embedded"

    def trials(self) -> list[tuple[Run, float, int]]:
        """Finished runs that measured success, with its rate and episodes.

        What is no share, or of no episode, is not counted.
        """
        found = []
        for run in self.finished:
            if trial := _trial(run.summary):
                found.append((run, *trial))
        return found

    def random_success(self) -> Success | None:
        """Success of random actions, where `evaluate` played them for these runs.

        Of several evaluations of one run, which may share episodes, the longest.
        """
        longest = []
        for run in self.finished:
            played = [
                trial
                for name, values in run.evaluations.items()
                if name.startswith("evaluation-random") and (trial := _trial(values))
            ]
            longest += [max(played, key=lambda trial: trial[1])] if played else []
        return pooled_success(longest)

    def success(self) -> Success | None:
        """Success over the pooled episodes of the finished runs."""
        return pooled_success([(rate, count) for _, rate, count in self.trials()])

    def best_by_reward(self) -> tuple[Run, float, int] | None:
        """The trial of the finished run with the highest reward: paper Table 1's."""
        key = "eval/reward_mean"
        trials = [t for t in self.trials() if number(t[0].summary.get(key)) is not None]
        return max(trials, key=lambda trial: trial[0].summary[key], default=None)

    def values(self, key: str) -> list[float]:
        """A number of the finished runs' summaries, where they have it."""
        found = [number(run.summary.get(key)) for run in self.finished]
        return [value for value in found if value is not None]

    def buckets(self) -> list[float] | None:
        """Shares of pooled episodes by how long they were in the goal state."""
        total = [0.0] * 5
        episodes = 0
        for run, _, count in self.trials():
            listed = run.summary.get("eval/buckets")
            listed = listed if isinstance(listed, list) else []
            shares = [s for each in listed if (s := number(each)) is not None]
            if len(shares) == len(listed) == len(total):
                episodes += count
                total = [t + count * s for t, s in zip(total, shares, strict=True)]
        return [t / episodes for t in total] if episodes else None

    def mixed(self) -> list[str]:
        """What its runs ought to share and do not: sources, weights or precision."""
        commits = {str(run.versions["commit"]) for run in self.runs
                   if "commit" in run.versions}  # fmt: skip
        encoders = [
            encoder
            for run in self.runs
            if isinstance(encoder := run.versions.get("encoder"), dict)
        ]
        counts = {
            "commits": len(commits),
            "model weights": len({str(e.get("weights_sha256")) for e in encoders}),
            "precisions": len({str(e.get("precision")) for e in encoders}),
        }
        return [f"{n} different {what}" for what, n in counts.items() if n > 1]


def _seed(run: Run) -> str:
    return str(run.config.get("seed", "?"))


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Pool runs; those whose settings could not be read are left out.

    A run that is there twice, as a copy or in two sweeps, is no second piece of
    evidence: of finished runs with the same settings and seed the newest counts, and
    `Run.repeats` and a note of the others tell so.
    """
    pooled: dict[str, list[Run]] = defaultdict(list)
    settings: dict[str, dict[str, Any]] = {}
    for run in runs:
        if run.config:
            relevant = _relevant(run.config)
            key = json.dumps(relevant, sort_keys=True, default=str)
            settings[key] = relevant
            pooled[key].append(run)
    for members in pooled.values():
        _mark_repeats(members)
    every = list(settings.values())
    groups = [
        Group(mine, pooled[key], _other(mine, every)) for key, mine in settings.items()
    ]
    return sorted(groups, key=_order)


def _trial(values: Mapping[str, Any]) -> tuple[float, int] | None:
    """Success rate and episodes; None: not measured, or no share of anything."""
    rate = number(values.get("eval/success_rate"))
    episodes = number(values.get("eval/episodes"))
    if rate is None or episodes is None or not 0 <= rate <= 1 or episodes < 1:
        return None
    return rate, int(episodes)


def _mark_repeats(members: Sequence[Run]) -> None:
    """Let one finished run of each seed count: the newest, of equals the first.

    Copies of one run are as new as each other, whenever they were copied: of these the
    one that was evaluated most often.
    On another device one seed draws other numbers, and encoders have another precision.
    """
    of_seed: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in members:
        if run.status == FINISHED and "seed" in run.config:
            device = str(run.versions.get("device"))
            of_seed[str(run.config["seed"]), device].append(run)
    for alike in of_seed.values():
        newest = max(alike, key=lambda run: run.written)
        copies = [run for run in alike if run.summary == newest.summary]
        counted = max(copies, key=lambda run: (len(run.evaluations), -run.written))
        for run in alike:
            if run is not counted and not run.repeats:
                run.repeats = counted.name
                run.notes.append(
                    f"same settings and seed as {counted.name}: not counted"
                )


def _relevant(config: dict[str, Any]) -> dict[str, Any]:
    left_out = IGNORED
    if config.get("reward") == "ground_truth":
        left_out += UNUSED_WITHOUT_CLIP
    relevant = {
        key: value
        for key, value in config.items()
        if not key.startswith(left_out)
        and (not key.startswith("compute.") or key == "compute.overlap")
    }
    if isinstance(views := relevant.get("task.camera"), str):
        relevant["task.camera"] = "+".join(sorted(views.split("+")))
    return relevant


def _other(mine: dict[str, Any], every: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Settings beside `COLUMNS` in which some group of the same task differs.

    A model's own settings count only against groups with the model of that name. From
    a group of older runs, which differs in nothing but has no such setting yet, the
    setting itself tells.
    """
    found: set[str] = set()
    for peer in every:
        if peer.get("task.name") != mine.get("task.name"):
            continue
        same_model = peer.get("clip.name") == mine.get("clip.name")
        keys = [key for key in mine if same_model or not key.startswith("clip.")]
        differs = {key for key in keys if key in peer and peer[key] != mine[key]}
        found |= differs or {key for key in keys if key not in peer}
    return {key: mine[key] for key in mine if key in found and key not in COLUMNS}


def _order(group: Group) -> tuple[Any, ...]:
    """By task, size of model, and the other columns."""
    rest = [str(group.settings.get(key)) for key in COLUMNS]
    return group.task, group.parameters or 0, *rest, str(group.other)


def differing(groups: Sequence[Group]) -> list[str]:
    """Those of `COLUMNS` in which some of these groups differ.

    A group without a setting, as a predicate's has no camera, differs in none.
    """
    return [
        key
        for key in COLUMNS
        if len({str(g.settings[key]) for g in groups if key in g.settings}) > 1
    ]


def told(key: str, value: Any) -> str:
    """A setting's value in words that need no key beside them, where possible."""
    match key, value:
        case _, None:
            return "-"
        case "reward", "ground_truth":
            return "true reward"
        case "reward", "clip":
            return "CLIP reward"
        case "alpha", _:
            return f"alpha {value:g}" if number(value) is not None else str(value)
        case "task.textures", _:
            return f"{value} textures"
        case "task.camera", _:
            return f"{value} camera"
        case (("task.name" | "clip.name" | "algo.name"), _):
            return str(value)
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{key}={text}"


def labels(groups: Sequence[Group], known: Sequence[str] = ()) -> list[str]:
    """Short names that tell these groups apart.

    Each names only what tells it from a group that agrees in all it named before.

    Args:
        groups: to be named.
        known: settings that the reader knows already.
    """
    names = []
    for group in groups:
        peers = [other for other in groups if other is not group]
        parts = []
        for key in (*COLUMNS, *group.other):
            if key in known or key not in group.settings:
                continue
            value = group.settings[key]
            alike = [peer for peer in peers if peer.settings.get(key) == value]
            if len(alike) < len(peers):
                parts.append(told(key, value))
            peers = alike
        if not parts:
            shown = [key for key in ("task.name", "clip.name") if key not in known]
            parts = [told(key, group.settings.get(key)) for key in shown]
        names.append(", ".join(parts) or "all runs")
    return names


@dataclass
class Series:
    """Groups that differ in one setting alone, in its order."""

    groups: list[Group]
    x: list[Any]


def series_over(
    groups: Sequence[Group],
    keys: tuple[str, ...],
    x: Callable[[Group], Any],
) -> list[Series]:
    """Collect groups with success that differ in nothing but some settings.

    Args:
        groups: to choose from.
        keys: what may differ: settings, or, with a dot at the end, groups of them.
        x: what they are ordered by; None: the group is left out.

    Returns:
        Only series with at least two different x.
    """
    pooled: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        if x(group) is not None and group.success() is not None:
            fixed = {k: v for k, v in group.settings.items() if not k.startswith(keys)}
            pooled[json.dumps(fixed, sort_keys=True, default=str)].append(group)
    found = []
    for members in pooled.values():
        members.sort(key=x)
        if len({str(x(group)) for group in members}) > 1:
            found.append(Series(members, [x(group) for group in members]))
    return found


def count_statuses(runs: Sequence[Run]) -> str:
    """How many runs there are of each status, in words."""
    counts = {status: sum(run.status == status for run in runs) for status in STATUSES}
    parts = [f"{count} {status}" for status, count in counts.items() if count]
    return ", ".join(parts) or "none"


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and standard deviation over runs; None for one run."""
    spread = statistics.stdev(values) if len(values) > 1 else None
    return statistics.fmean(values), spread
