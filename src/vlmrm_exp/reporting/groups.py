"""Pool runs that differ in nothing but the seed, and name what tells groups apart."""

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from vlmrm_exp.config import as_list
from vlmrm_exp.files import natural, shorten
from vlmrm_exp.reporting.run_folders import FINISHED, STATUSES, Run, number, value_text
from vlmrm_exp.reporting.statistics import Success, pooled
from vlmrm_exp.settings import IGNORED, defaults, is_how

COLUMNS = {
    "task.name": "task",
    "clip.name": "clip",
    "reward.name": "reward",
    "alpha": "alpha",
    "task.textures": "textures",
    "task.camera": "camera",
    "algo.name": "algorithm",
}
"""What usually tells runs apart, with the names that readers see."""
UNUSED = (
    *("clip.", "alpha", "prompt", "baseline", "renormalise", "reward.every"),
    *("task.textures", "task.camera", "task.frame_height"),
)
"""What plays no part if the reward needs no picture."""
LABEL = 90  # characters of one setting in a group's name; a prompt may be longer


@dataclass
class Group:
    """Runs with the same settings and any seeds."""

    settings: dict[str, Any]
    other: dict[str, Any]  # those not in `COLUMNS` that tell it from its task's groups
    runs: list[Run]

    @property
    def task(self) -> str:
        """The task's name."""
        return str(self.settings.get("task.name", "?"))

    @property
    def alpha(self) -> float | None:
        """Alpha; None: not known."""
        return number(self.settings.get("alpha"))

    @property
    def counted(self) -> list[Run]:
        """The runs that repeat no other."""
        return [run for run in self.runs if not run.repeats]

    @property
    def finished(self) -> list[Run]:
        """The runs that the group's numbers come from: one for each seed, in order."""
        finished = [run for run in self.counted if run.status == FINISHED]
        return sorted(finished, key=lambda run: natural(run.seed))

    @property
    def measured(self) -> dict[Run, Success]:
        """The success of each finished run that measured it."""
        return {run: run.success for run in self.finished if run.success}

    @property
    def rates(self) -> list[float]:
        """The success rate of each of these."""
        return [success.rate for success in self.measured.values()]

    @property
    def success(self) -> Success | None:
        """Success over the pooled episodes of the finished runs."""
        return pooled(self.measured.values())

    @property
    def judges(self) -> dict[str, tuple[str, list[Run]]]:
        """Second opinions: name, and the finished runs that told it the same.

        The keys are names, with what a judge is told where runs differ in that.
        """
        found: dict[tuple[str, str], list[Run]] = defaultdict(list)
        for run in self.finished:
            for name in run.judges:
                told = map(str, as_list(run.config.get(f"judge.{name}", "not known")))
                found[name, ", ".join(told)].append(run)
        times = Counter(name for name, _ in found)
        return {
            f"{name} ({told})" if times[name] > 1 else name: (name, runs)
            for (name, told), runs in found.items()
        }

    @property
    def parameters(self) -> float | None:
        """Parameters of the model that gave the reward; None: not recorded, or 0."""
        return next((run.parameters for run in self.runs if run.parameters), None)

    @property
    def looked_at(self) -> float | None:
        """Share of training's states that the reward model was asked about."""
        every = number(self.settings.get("reward.every")) or 1
        shares = [
            1 / every if queries is None else queries / max(run.env_steps, 1)
            for run in self.finished
            for queries in [number(run.summary.get("reward/queries"))]
        ]
        return sum(shares) / len(shares) if shares else None


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Pool runs, in the order of tasks; runs with unreadable settings are left out."""
    found: dict[str, Group] = {}
    # What a run does not say is of an older version, which had no such setting.
    unsaid = {key: value for key, value in defaults().items() if value != MISSING}
    for run in runs:
        if run.config:
            settings = _relevant(unsaid | run.config)
            key = _key(_pooled_by(settings))
            found.setdefault(key, Group(settings, {}, [])).runs.append(run)
    groups = list(found.values())
    for group in groups:
        _mark_repeats(group.runs)
        group.other = _other(group.settings, [each.settings for each in groups])

    def order(group: Group) -> tuple[Any, ...]:
        rest = [str(group.settings.get(key)) for key in COLUMNS]
        return group.task, group.parameters or 0, *rest, str(group.other)

    return sorted(groups, key=order)


def _relevant(config: Mapping[str, Any]) -> dict[str, Any]:
    left_out = IGNORED
    model = config.get("reward.model")
    if model in ("predicate", "environment", "by_hand"):
        left_out += UNUSED
    if model in ("predicate", "environment", "by_hand", "stages"):
        left_out += ("compute.overlap",)  # these rewards are there at once
    if config["reward.query_share"] == 1:
        left_out += "reward.query_share", "reward.max_error", "reward.pessimism"
    else:
        left_out += ("reward.every",)
    relevant = {
        key: value
        for key, value in config.items()
        if not key.startswith(left_out) and not is_how(key)
    }
    if isinstance(views := relevant.get("task.camera"), str):
        relevant["task.camera"] = "+".join(sorted(views.split("+")))
    return relevant


def _pooled_by(settings: Mapping[str, Any]) -> dict[str, Any]:
    """These settings without a baseline that plays no part, as alpha is 0.

    Groups keep theirs, to be compared with those of other alphas.
    """
    model, of = settings.get("reward.model"), settings.get("reward.options.of")
    formula = model in ("clip", "stages", "xclip") or (model, of) == ("video", "mean")
    unread = "baseline" if formula and settings.get("alpha") == 0 else None
    return {key: value for key, value in settings.items() if key != unread}


def _key(settings: Mapping[str, Any]) -> str:
    """The same text for the same settings."""
    return json.dumps(settings, sort_keys=True, default=str)


def _mark_repeats(members: Sequence[Run]) -> None:
    """Let one finished run of each seed and device count, and mark the others.

    It is the one that ended last, or, of its copies, the one that was evaluated most
    often. On another device the same seed draws other numbers: another run.
    """
    of_seed: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in members:
        if run.status == FINISHED and "seed" in run.config:
            of_seed[run.seed, str(run.versions.get("device"))].append(run)
    for alike in of_seed.values():
        newest = max(alike, key=lambda run: run.written)
        copies = [run for run in alike if run.summary == newest.summary]
        counted = max(copies, key=lambda run: (len(run.evaluations), -run.written))
        for run in alike:
            if run is not counted:
                run.repeats = counted.name
                run.notes.append(
                    f"same settings and seed as {run.repeats}: not counted"
                )


def _other(own: dict[str, Any], every: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Settings not in `COLUMNS` in which some group of the same task differs.

    Settings of a model or a reward are compared only between groups that have the same.
    One that an older run lacks counts if nothing else differs.
    """
    found: set[str] = set()
    for peer in every:
        if peer.get("task.name") != own.get("task.name"):
            continue
        of_others = tuple(
            kind
            for kind in ("clip.", "reward.")
            if own.get(f"{kind}name") != peer.get(f"{kind}name")
        )
        keys = [k for k in own if k in COLUMNS or not k.startswith(of_others)]
        differs = {key for key in keys if key in peer and peer[key] != own[key]}
        found |= differs or {key for key in keys if key not in peer}
    return {key: own[key] for key in own if key in found and key not in COLUMNS}


def setting_text(key: str, value: Any) -> str:
    """A setting's value, in words that need no key beside them where possible."""
    if key not in COLUMNS:
        return f"{key}={value if isinstance(value, str) else json.dumps(value)}"
    name, text = COLUMNS[key], value_text(value)
    if name in ("reward", "textures", "camera"):
        return f"{text} {name}"
    return f"alpha {text}" if name == "alpha" else text


def labels(groups: Sequence[Group], known: tuple[str, ...] = ()) -> list[str]:
    """Short names that tell these groups apart, without settings that begin as `known`.

    Each names only what tells it from a group that agrees in all it named before.
    """
    names = []
    for group in groups:
        own = {
            key: group.settings[key]
            for key in (*COLUMNS, *group.other)
            if key in group.settings and not key.startswith(known)
        }
        peers, telling = [other for other in groups if other is not group], []
        for key, value in own.items():
            alike = [peer for peer in peers if peer.settings.get(key) == value]
            if len(alike) < len(peers):
                telling.append(key)
            peers = alike
        keys = telling or [key for key in ("task.name", "clip.name") if key in own]
        parts = [_short(key, own[key], groups) for key in keys]
        names.append(", ".join(parts) or "all runs")
    return names


def _short(key: str, value: Any, groups: Sequence[Group]) -> str:
    """A setting in at most `LABEL` characters.

    If another group's would read the same, it begins just before they differ.
    """
    text = setting_text(key, value)
    same = 0  # characters
    for other in {setting_text(key, group.settings.get(key)) for group in groups}:
        if other != text and shorten(other, LABEL) == shorten(text, LABEL):
            pairs = enumerate(itertools.zip_longest(text, other))
            same = max(same, next(i for i, (own, its) in pairs if own != its))
    return shorten(f"{key}=…{text[same - 20 :]}" if same else text, LABEL)


def series_over(
    groups: Sequence[Group], keys: tuple[str, ...], x: Callable[[Group], Any]
) -> list[list[Group]]:
    """Collect groups with success that differ only in settings that begin with `keys`.

    Each series has at least two different `x`, in order; None is no x.
    """
    members: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        if x(group) is not None and group.success:
            fixed = {k: v for k, v in group.settings.items() if not k.startswith(keys)}
            members[_key(fixed)].append(group)
    series = [sorted(alike, key=x) for alike in members.values()]
    return [each for each in series if len({x(group) for group in each}) > 1]


def count_statuses(runs: Sequence[Run]) -> str:
    """How many runs there are of each status, in words."""
    counts = Counter(run.status for run in runs)
    parts = [f"{counts[status]} {status}" for status in STATUSES if counts[status]]
    return ", ".join(parts) or "none"
