"""The dashboard verb: what W&B's own client sends, to a server of the tests."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from run_folders import write_run
from test_log import decode, history, make_config, wandb_records
from vlmrm_exp import dashboard, log
from vlmrm_exp.settings import flat, group_hash

# The library's own, when it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style")

SENTENCE = 'a car, "<b>" 山'


@pytest.fixture
def verb(start):
    """`python -m vlmrm_exp.dashboard WORDS`."""
    return lambda *words: start(
        words,
        lambda composed: dashboard.dashboard(dashboard.check(composed)),
        "dashboard",
        dashboard.check,
        files=True,
    )


def panels(spec: Any) -> list[dict]:
    """All panels in what a workspace or a report is made of, however deep."""
    inner = spec.values() if isinstance(spec, dict) else spec
    found = [spec] if isinstance(spec, dict) and "viewType" in spec else []
    if isinstance(spec, dict | list):
        found += [panel for each in inner for panel in panels(each)]
    return found


def keys(panel: dict) -> set[str]:
    """Metrics (plain), summaries and settings that a panel names."""
    config = panel["config"]
    named = [config.get("xAxis"), config.get("yAxis")]
    return {
        *filter(None, named),
        *config.get("metrics", []),
        *config.get("mediaKeys", []),
    }


def without_ids(spec: Any) -> Any:
    """What is new with each call left out."""
    if isinstance(spec, dict):
        return {k: without_ids(v) for k, v in spec.items() if k not in ("__id__", "id")}
    return [without_ids(each) for each in spec] if isinstance(spec, list) else spec


def epic_json(folder: Path, more: float = 0, **settings: Any) -> Path:
    """A result of `epic` for two alphas, with distances larger by `more`."""
    about = {
        "prompt": [SENTENCE],
        "baseline": ["a car"],
        "textures": "plain",
        "camera": "fixed",
    }
    rows = [
        {"task": "mountaincar", "clip": "nano", "alpha": alpha, "epic": epic + more}
        for alpha, epic in ((0.0, 0.51), (0.5, 0.52))
    ]
    folder.mkdir()
    data = {"tasks": {"mountaincar": about | settings}, "rows": rows}
    (folder / "epic.json").write_text(json.dumps(data))
    return folder


@pytest.mark.slow
def test_every_panel_names_what_a_real_offline_run_logged(
    program, verb, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = program(
        *("experiment=smoke", "clip=nano", "log=offline", f"prompt={SENTENCE}"),
        *("task.textures=plain", "hydra.run.dir=run", "compute.workers=0"),
        "judge=predicate",
    )
    assert ended.code == 0, ended.err
    ended = verb("entity=lab", "run", "dry_run=true")
    assert ended.code == 0, ended.err
    sent = json.loads(Path("dashboard.json").read_text())
    records = list(wandb_records(Path("run")))
    (head,) = [r.run for r in records if r.HasField("run")]
    logged = {key for row in history(records) for key in row}
    logged |= {"eval/video"} if "eval/video/path" in logged else set()
    config = decode(head.config.update)
    written = yaml.safe_load(Path("run/config.yaml").read_text())
    assert {key: config[key] for key in written} == written
    config = flat(config)
    said = {f"config:{key}.value" for key, value in config.items() if value is not None}
    summaries = [decode(r.summary.update) for r in records if r.HasField("summary")]
    ends = {f"summary:{key}" for summary in summaries for key in summary}
    for kind in ("workspace", "report"):
        made = panels(sent[kind])
        assert {"judge/predicate", "eval/video"} <= set().union(*map(keys, made))
        for panel in made:
            assert keys(panel) <= logged | said | ends, panel
        line = next(panel for panel in made if "metrics" in panel["config"])
        assert line["config"]["xAxis"] == "env_steps"
    runsets = sent["workspace"]["section"]["runSets"]
    grouped = {key["name"].removesuffix(".value") for key in runsets[0]["grouping"]}
    assert grouped <= set(config)


def test_lines_are_of_runs_that_differ_in_nothing_but_their_seed(compose):
    own = group_hash(compose("task=kneeling"))
    for same in ("seed=3", "judge=predicate", "log=none", "compute.workers=1"):
        assert group_hash(compose("task=kneeling", same)) == own, same
    others = (
        *("task.camera=track", "task.textures=plain", "reward.query_share=0.5"),
        *("algo.learning_rate=1e-3", "env_steps=300000", "compute.overlap=false"),
    )
    assert len({group_hash(compose("task=kneeling", other)) for other in others}) == 6
    assert own not in {group_hash(compose("task=kneeling", other)) for other in others}


@pytest.mark.slow
def test_a_workspace_and_a_report_are_made_once_and_then_updated(
    verb, tmp_path, wandb_online, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for task, alpha, judge in (("mountaincar", 0.5, 1.0), ("cartpole", 0.5, None)):
        config = make_config("online")
        config.task.name, config.clip.name, config.alpha = task, "nano", alpha
        config.prompt, config.baseline = SENTENCE, "a car"
        config.reward.name = config.reward.model = "clip"
        run = log.RunLog(tmp_path / "runs" / task, config)
        settings = yaml.safe_dump(dataclasses.asdict(config))
        (run.folder / "config.yaml").write_text(settings)
        run.metrics(8, {"train/reward_mean": 0.1})
        ends = {"eval/success_rate": np.float64(0.5)}
        if judge is not None:
            run.metrics(16, {"judge/success": judge})
            video = run.folder / "videos" / "alarm-success.mp4"
            video.parent.mkdir()
            video.write_bytes(b"a video")
            run.video(16, "judge/success_alarm", video, "before | after")
            ends["alarms"] = {"success": {"env_steps": 16, "judge": "falls"}}
        run.summary(ends)
        run.close()
    epic_json(tmp_path / "epic")
    for _ in range(2):
        ended = verb("entity=lab", "epic")
        assert ended.code == 0, ended.err
        views = {view["type"]: view for view in wandb_online.views.values()}
        assert len(wandb_online.views) == len(views) == 2
        assert f"{wandb_online.url}/lab/vlmrm_exp?nw=" in ended.out
        assert f"{wandb_online.url}/lab/vlmrm_exp/reports/" in ended.out
        for view in views.values():
            assert view["displayName"] == "Compare vlmrm_exp runs"
            assert (view["entityName"], view["projectName"]) == ("lab", "vlmrm_exp")
        summaries = {
            wandb_online.runs[id]["displayName"]: summary.get("reward/epic")
            for id, summary in wandb_online.summaries.items()
        }
        assert summaries == {"mountaincar": 0.52, "cartpole": None}
        written = [v for name, v in wandb_online.asked if name == "UpsertBucket"]
        changed = [v for v in written if set(v) == {"id", "summaryMetrics"}]
        assert len(changed) == 1  # the second call finds it there
    asked = len(wandb_online.asked)
    twice = verb("entity=lab", "epic", "runs", "runs/mountaincar", "dry_run=true")
    assert (twice.code, twice.out.count("2 runs")) == (0, 1)
    assert len(wandb_online.asked) == asked  # nobody was
    dry = json.loads(Path("dashboard.json").read_text())
    assert [*dry["summaries"].values()] == [{"reward/epic": 0.52}]
    for kind, view in (("workspace", "project-view"), ("report", "runs")):
        sent = json.loads(views[view]["spec"])
        assert without_ids(dry[kind]) == without_ids(sent)
    blocks = sent["blocks"]
    by_task: dict[str, list] = {}
    for block in blocks:
        if block["type"] == "heading":
            by_task[block["children"][0]["text"]] = made = []
        elif block["type"] == "panel-grid":
            made += panels(block)
            [chosen] = block["metadata"]["runSets"][0]["filters"]["filters"]
            assert chosen["value"] == [*by_task][-1]
    assert [*by_task] == ["cartpole", "mountaincar"]
    named = {task: set().union(*map(keys, made)) for task, made in by_task.items()}
    one = {"judge/success", "judge/success_alarm", "summary:reward/epic"}
    assert one <= named["mountaincar"]
    assert one.isdisjoint(named["cartpole"])
    lines = [p["config"] for p in by_task["mountaincar"] if "metrics" in p["config"]]
    assert ["judge/success"] in [config["metrics"] for config in lines]
    assert not any("judge/success_alarm" in config["metrics"] for config in lines)


@pytest.mark.parametrize(
    ("changed", "epic"),
    [
        ({}, 0.51),
        ({"prompt": ["another"]}, None),
        ({"textures": "realistic"}, None),
        ({"reward": {"name": "predicate", "model": "predicate"}}, None),
        ({"baseline": ["another"]}, 0.51),  # plays no part: alpha is 0
    ],
)
def test_epic_is_that_of_the_same_reward(verb, tmp_path, changed, epic) -> None:
    settings = {"task": "mountaincar", "clip": "nano", "prompt": SENTENCE}
    own = {key: value for key, value in changed.items() if key == "reward"}
    write_run(tmp_path / "run", textures="plain", settings=own, **settings)
    (tmp_path / "epic").mkdir()
    for name, more, written in ("b", 0.3, 100), ("a", 0, 200):  # the newest one counts
        folder = epic_json(tmp_path / "epic" / name, more, **changed)
        os.utime(folder / "epic.json", (written, written))
    shutil.copytree(tmp_path / "run", tmp_path / "again" / "run")
    out = tmp_path / "out.json"
    folders = tmp_path / "run", tmp_path / "again" / "run", tmp_path / "epic"
    ended = verb(*map(str, folders), "dry_run=true", f"out={out}")
    assert ended.code == 0, ended.err
    sent = json.loads(out.read_text())
    told = {name: {"reward/epic": epic} for name in ("run", "again/run")}
    assert sent["summaries"] == (told if epic else {})
    named = set().union(*map(keys, panels(sent["report"])))
    assert ("summary:reward/epic" in named) == bool(epic)


@pytest.mark.slow
def test_refusals_are_one_sentence(verb, tmp_path, wandb_online, monkeypatch) -> None:
    for words, told in (
        ([], "Whose project? Give your user's or team's name"),
        (["entity=lab", "dry_run=true"], "dry_run=true asks no server"),
        (["entity=lab", str(tmp_path / "no")], "There is no folder"),
        (["entity=lab"], "lab/vlmrm_exp holds no training run"),
        (["entity=lab", "project=other"], "lab/other: Could not find project other"),
        (["entity=lab", f"title={'x' * 129}"], "titles of 1 to 128 characters"),
        (["entity=lab", "title="], "title is '', but W&B takes titles of 1 to 128"),
    ):
        ended = verb(*words)
        assert ended.code == 2
        assert told in ended.err
        assert ended.err.count("\n") == 1
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    # It tries again till then; from WANDB_HTTP_TIMEOUT, when it was imported.
    monkeypatch.setattr("wandb.Api._HTTP_TIMEOUT", 1)
    ended = verb("entity=lab")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "check entity, project, the network" in ended.err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'vlmrm_exp[dashboard]'" in verb("entity=lab").err
