"""A W&B workspace and report of a project: python -m vlmrm_exp.dashboard entity=...

Makes a workspace and a report in the project, with panels for what its runs logged; the
next call updates them. Offline, `report` compares runs.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from vlmrm_exp import app
from vlmrm_exp.checks import check_extra
from vlmrm_exp.composition import Composed
from vlmrm_exp.config import ConfigError, as_list
from vlmrm_exp.files import natural, reason, write_json
from vlmrm_exp.reporting.run_folders import mapping, names_of, read, walk
from vlmrm_exp.settings import flat

EPIC = "reward/epic"
"""Of a run's reward, as `epic` measured it; written into the run's summary by us."""
SAME = (
    "task_name",
    "clip_name",
    "reward_name",
    "alpha",
    "prompt_text",
    "settings_hash",
)
"""Settings that runs of one group share: it is drawn as one line, over its seeds. The
last is of all of them; the others are for readers."""
CURVES = {
    "Reward of the states in training and evaluation": (
        "train/reward_mean",
        "eval/reward_mean",
    ),
    "Success in training and evaluation": ("train/success_rate", "eval/success_rate"),
    "The environment's own return": ("train/return_mean", "eval/return_mean"),
}
SPEED = {
    "Env steps per second": ["perf/env_steps_per_s"],
    "Seconds per report": [
        f"perf/{what}_s" for what in ("collect", "reward_wait", "learn", "evaluate")
    ],
}
"""Panels over env steps."""
JUDGE, ALARM = "judge/", "_alarm"
"""How keys of judges begin, and how those of their alarms' videos end."""
VIDEO = "eval/video"
RESULTS = {"eval/success_rate": "Success", "eval/return_mean": "Return"}
"""What a kept policy reaches; the second where a task has no success."""
MAX_TITLE = 128  # characters, W&B's own limit
Epics: TypeAlias = list[tuple[dict[str, Any], float]]
QUERY = """
query Views($entity: String!, $project: String!, $type: String!) {
  project(name: $project, entityName: $entity) {
    allViews(viewType: $type, first: 1000) { edges { node { id name displayName } } }
  }
}
"""


@dataclass
class DashboardConfig:
    """See conf/dashboard.yaml."""

    files: list[str]
    entity: str = MISSING
    project: str = MISSING
    title: str = MISSING
    dry_run: bool = MISSING
    out: str = MISSING


ConfigStore.instance().store(name="dashboard_schema", node=DashboardConfig)


@dataclass
class Logged:
    """What one run told W&B."""

    name: str
    keys: set[str]
    """Of its metrics and media."""
    config: Mapping[str, Any]
    """Settings by their dotted names."""
    online: Any = None
    """W&B's own run; None: of a folder."""
    epic: float | None = None
    """Its reward's EPIC distance; None: not measured."""


def check(composed: Composed) -> DashboardConfig:
    """What is asked, or a ConfigError."""
    asked: Any = OmegaConf.to_object(composed.cfg)
    if not asked.entity and not asked.dry_run:
        raise ConfigError(
            "Whose project? Give your user's or team's name at W&B, as entity=NAME."
        )
    if not asked.title.strip() or len(asked.title) > MAX_TITLE:
        raise ConfigError(
            f"title is {asked.title!r}, but W&B takes titles of 1 to {MAX_TITLE} "
            "characters: give another, as title=..."
        )
    check_extra("A dashboard", "wandb_workspaces", "dashboard", "the verb report")
    if asked.dry_run and not asked.files:
        raise ConfigError(
            "dry_run=true asks no server which runs there are: give their folders, as "
            "outputs/sweeps/NAME."
        )
    for folder in asked.files:
        if not Path(folder).expanduser().is_dir():
            raise ConfigError(f"There is no folder {folder}: give one of runs or epic.")
    return asked


def dashboard(asked: DashboardConfig) -> None:
    """Make or update the workspace and the report, or write what would be sent.

    A ConfigError if no run is there, or W&B cannot be reached.
    """
    tops = [Path(folder).expanduser() for folder in asked.files]
    found = [walk(top, name) for top, name in zip(tops, names_of(tops), strict=True)]
    results = [path for _, paths, _ in found for path in paths]
    of_epic = [path for path in results if path.name == "epic.json"]
    epics = epic_distances(sorted(of_epic, key=lambda path: path.stat().st_mtime))
    if asked.dry_run:
        # By their places, so that each counts once.
        folders = {run.folder.resolve(): run for runs, *_ in found for run in runs}
        runs = [of_folder(run) for run in folders.values()]
        return _write(asked, _some(runs, ", ".join(asked.files), epics))
    import wandb
    from wandb.errors import Error as WandbError

    wandb.setup(wandb.Settings(silent=True))
    try:
        api = wandb.Api()
        path = f"{asked.entity}/{asked.project}"
        try:
            runs = [of_wandb(run) for run in api.runs(path, lazy=False)]
        except ValueError as error:  # W&B's own, of a project that is not there
            raise ConfigError(f"{path}: {reason(error)}: give another.") from error
        _send(asked, api, _some(runs, path, epics))
    except WandbError as error:
        raise ConfigError(
            f"W&B does not let us into {asked.entity}/{asked.project} "
            f"({reason(error)}): check entity, project, the network and `wandb login`; "
            "dry_run=true needs none of them."
        ) from error
    finally:
        wandb.teardown()


def _some(runs: list[Logged], where: str, epics: Epics) -> list[Logged]:
    """Those of these runs that are ours, if there are any, with their distances."""
    runs = [run for run in runs if run.config.get("task.name")]
    if not runs:
        raise ConfigError(
            f"{where} holds no training run: train some first, for W&B with log=wandb, "
            "or log=offline and `wandb sync`."
        )
    for run in runs:
        sentences = {of: _text(run.config.get(of)) for of in ("prompt", "baseline")}
        own = {**run.config, **sentences}
        for settings, distance in reversed(epics):  # the newest one counts
            if all(own.get(key) == value for key, value in settings.items()):
                run.epic = distance
                run.keys.add(EPIC)
                break
    return runs


def of_folder(run: Any) -> Logged:
    """What W&B gets of a run that lies in a folder (reporting.run_folders.Run)."""
    names = {path.stem for path in run.videos}
    shown = {VIDEO} if "eval" in names else set()
    shown |= {f"{JUDGE}{n}{ALARM}" for n in run.alarms if f"alarm-{n}" in names}
    keys = {*map(str, run.reports.columns), *run.summary, *shown}
    return Logged(run.name, keys, run.config | {"clip_parameters": run.parameters})


def of_wandb(run: Any) -> Logged:
    """What W&B knows of a run (wandb.apis.public.Run)."""
    return Logged(run.id, set(run.summary.keys()), flat(run.config), run)


def _text(sentences: Any) -> str:
    return " / ".join(map(str, as_list(sentences)))


def epic_distances(paths: Iterable[Path]) -> Epics:
    """Distances in epic.json files, each after the settings of runs it is about."""
    found: Epics = []
    for path in paths:
        data = read(path, json.loads, {}, [])
        for row in map(mapping, as_list(data.get("rows", []))):
            about = mapping(mapping(data.get("tasks")).get(str(row.get("task"))))
            settings = {
                "reward.model": "clip",
                "task.name": row.get("task"),
                "clip.name": row.get("clip"),
                "alpha": row.get("alpha"),
                "prompt": _text(about.get("prompt")),
                "task.textures": about.get("textures"),
                "task.camera": about.get("camera"),
            }
            if row.get("alpha"):
                settings["baseline"] = _text(about.get("baseline"))
            if row.get("epic") is not None:
                found.append((settings, row["epic"]))
    return found


def panels(runs: Sequence[Logged]) -> dict[str, list[Any]]:
    """Panels of what runs logged, by the sections of a workspace.

    Curves are means over a group's seeds, from lowest to highest; keys that no run
    logged are left out. In a comparison a dot is a run: what its policy reaches,
    against what tells runs apart.
    """
    import wandb_workspaces.reports.v2.interface as wr

    keys = {key for run in runs for key in run.keys}
    names = sorted(key.removeprefix(JUDGE) for key in keys if key.startswith(JUDGE))
    alarms = [name.removesuffix(ALARM) for name in names if name.endswith(ALARM)]
    judged = {f"Judge: {n}": [JUDGE + n] for n in names if not n.endswith(ALARM)}
    shown = {VIDEO: "Videos of the kept policies"} if VIDEO in keys else {}
    shown |= {f"{JUDGE}{name}{ALARM}": f"Alarm: {name}" for name in alarms}

    def curves(wanted: Mapping[str, Any]) -> list[Any]:
        return [
            wr.LinePlot(
                title=title,
                x="env_steps",
                y=logged,
                groupby_aggfunc="mean",
                groupby_rangefunc="minmax",
            )
            for title, group in wanted.items()
            if (logged := [key for key in group if key in keys])
        ]

    dots = []
    if result := next((key for key in RESULTS if key in keys), None):
        axes = {
            "model size (parameters)": wr.Config("clip_parameters"),
            "alpha": wr.Config("alpha"),
            "the reward's EPIC distance": wr.SummaryMetric(EPIC),
        }
        settings = [item for run in runs for item in run.config.items()]
        known = keys | {key for key, value in settings if value is not None}
        dots = [
            wr.ScatterPlot(
                title=f"{RESULTS[result]} against {title}",
                x=x,
                y=wr.SummaryMetric(result),
                log_x=x.name == "clip_parameters",
                running_ymean=True,
            )
            for title, x in axes.items()
            if x.name in known
        ]
    return {
        "Learning": curves(CURVES | judged),
        "Comparison": dots,
        "Videos": [
            wr.MediaBrowser(title=title, media_keys=[key], num_columns=3)
            for key, title in shown.items()
        ],
        "Speed": curves(SPEED),
    }


def make_workspace(asked: DashboardConfig, runs: Sequence[Logged]) -> Any:
    """The workspace: a section for each kind of panel, over all tasks."""
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces import expr

    return ws.Workspace(
        entity=asked.entity,
        project=asked.project,
        name=asked.title,
        sections=[
            ws.Section(name=name, panels=made, is_open=True)
            for name, made in panels(runs).items()
            if made
        ],
        settings=ws.WorkspaceSettings(x_axis="env_steps", max_runs=50),
        runset_settings=ws.RunsetSettings(groupby=[expr.Config(key) for key in SAME]),
    )


def make_report(asked: DashboardConfig, runs: Sequence[Logged]) -> Any:
    """The report: a section for each task."""
    import wandb_workspaces.reports.v2.interface as wr
    from wandb_workspaces import expr

    def grid(panels: list[Any], task: str, groupby: list[str]) -> Any:
        for i, panel in enumerate(panels):
            panel.layout = wr.Layout(x=12 * (i % 2), y=8 * (i // 2), w=12, h=8)
        of_task = expr.And(expr.Config("task_name") == task)
        runset = wr.Runset(name=task, filters=of_task, groupby=groupby)
        return wr.PanelGrid(runsets=[runset], panels=panels)

    blocks: list[Any] = [
        wr.P(
            "Made by python -m vlmrm_exp.dashboard, which replaces what is changed "
            "here. Lines are means over seeds, bands their lowest and highest values; "
            "dots are runs."
        ),
        wr.TableOfContents(),
    ]
    groupby = [f"config.{key}" for key in SAME]
    for task in sorted({str(run.config["task.name"]) for run in runs}, key=natural):
        mine = [run for run in runs if str(run.config["task.name"]) == task]
        made = panels(mine)
        curves = made["Learning"] + made["Speed"]
        blocks += [wr.H1(task), grid(curves, task, groupby)]
        if alone := made["Comparison"] + made["Videos"]:
            blocks.append(grid(alone, task, []))
    return wr.Report(
        entity=asked.entity,
        project=asked.project,
        title=asked.title,
        description="Runs of vlmrm_exp, by task",
        blocks=blocks,
        width="fluid",
    )


def _write(asked: DashboardConfig, runs: list[Logged]) -> None:
    summaries = {run.name: {EPIC: run.epic} for run in runs if run.epic is not None}
    made = {
        "workspace": make_workspace(asked, runs),
        "report": make_report(asked, runs),
    }
    # As the client itself makes a text of them.
    sent = {
        kind: json.loads(
            part._to_model().spec.model_dump_json(by_alias=True, exclude_none=True)
        )
        for kind, part in made.items()
    }
    where = {"entity": asked.entity, "project": asked.project, "title": asked.title}
    out = Path(asked.out).expanduser()
    write_json(out, {**where, **sent, "summaries": summaries})
    print(f"{len(runs)} runs; nothing was sent")
    print(f"  saved    {out}")


def _send(asked: DashboardConfig, api: Any, runs: list[Logged]) -> None:
    for run in runs:
        summary = run.online.summary
        if run.epic is not None and summary.get(EPIC) != run.epic:
            summary[EPIC] = run.epic
            summary.update()
    workspace, report = make_workspace(asked, runs), make_report(asked, runs)
    # The library's own way to update asks for an address; titles are what we know.
    if view := _view(asked, api, "project-view"):
        workspace._internal_id, workspace._internal_name = view["id"], view["name"]
    if view := _view(asked, api, "runs"):
        report.id = view["id"]
    print(f"{len(runs)} runs")
    print(f"  workspace  {workspace.save().url}")
    print(f"  report     {report.save().url}")


def _view(asked: DashboardConfig, api: Any, kind: str) -> dict[str, str] | None:
    """The workspace (project-view) or report (runs) of this title, if there is one."""
    from wandb_workspaces._graphql import execute_graphql

    names = {"entity": asked.entity, "project": asked.project, "type": kind}
    edges = execute_graphql(api, QUERY, names)["project"]["allViews"]["edges"]
    nodes = [edge["node"] for edge in edges]
    return next((node for node in nodes if node["displayName"] == asked.title), None)


if __name__ == "__main__":
    app.start(
        lambda composed: dashboard(check(composed)), "dashboard", check, files=True
    )
