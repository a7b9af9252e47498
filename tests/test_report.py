"""`python -m vlmrm_exp.report` on folders with known numbers."""

import base64
import csv
import html
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from scipy import stats

from vlmrm_exp import figures
from vlmrm_exp import report as verb
from vlmrm_exp.config import ConfigError
from vlmrm_exp.report import ReportConfig, report
from vlmrm_exp.reporting import plots
from vlmrm_exp.reporting.groups import group_runs, labels, series_over
from vlmrm_exp.reporting.run_folders import last_error, walk
from vlmrm_exp.settings import OF_ONE_MODEL

from run_folders import COMMIT, ENV_STEPS, write_run  # isort: skip

pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """What a reader sees of a page, and what a browser would load."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.tables: list[list[list[str]]] = []
        self._text: list[str] = []
        self._in_cell = False
        self.feed(path.read_text(encoding="utf-8"))
        self.text = re.sub(r"\s+", " ", " ".join(self._text))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "poster")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag):
        self._in_cell &= tag not in ("th", "td")

    def handle_data(self, data):
        self._text.append(data)
        if self._in_cell:
            self.tables[-1][-1][-1] += data.strip()

    def rows(self, column: str) -> list[dict[str, str]]:
        """The rows of the first table with a column of that name."""
        table = next(table for table in self.tables if column in table[0])
        return [dict(zip(table[0], row, strict=True)) for row in table[1:]]


@pytest.fixture
def no_figures(monkeypatch):
    """Figures are made, but not rendered, which takes most of a report's time."""

    def save(made: Any, path: Path) -> None:
        path.with_name(f"{path.name}.svg").write_text("<svg/>")

    monkeypatch.setattr(figures, "save", save)


def make(*folders: Path, **settings: Any) -> Page:
    return Page(report(ReportConfig([str(folder) for folder in folders], **settings)))


def add_video(run: Path, name: str = "eval", content: bytes = b"a video") -> None:
    (run / "videos").mkdir(exist_ok=True)
    (run / "videos" / f"{name}.mp4").write_bytes(content)


def write_json(path: Path, **values: Any) -> None:
    """Write a JSON file, or change an older one's values."""
    older = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(older | values))


def notes_of(page: Page) -> dict[str, str]:
    """What the list of all runs says of each, by the last part of its name."""
    rows = page.rows("status")
    return {row["run"].rpartition("/")[2]: row["reason and notes"] for row in rows}


def csv_rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_seeds_are_pooled_and_episodes_counted(tmp_path):
    write_run(tmp_path / "0", seed=1, success=0.5, episodes=50, reward=0.4)
    write_run(tmp_path / "1", seed=0, success=0.9, episodes=10, reward=0.2)
    write_run(tmp_path / "2", seed=0, alpha=0.5, success=1.0)
    page = make(tmp_path)
    pooled, other = page.rows("success (95 %)")
    assert pooled["alpha"] == "0"
    assert pooled["success (95 %)"] == "0.57 (0.44 to 0.68), 34/60"  # by hand
    assert pooled["of each seed"] == "0.90, 0.50"
    assert pooled["of the highest reward"] == "0.50"
    assert pooled["reward a step"] == "0.3 ± 0.14"
    assert pooled["seeds"] == "0, 1"
    assert other["success (95 %)"].startswith("1.00")
    first = csv_rows(tmp_path / "report" / "groups.csv")[0]
    assert float(first["success"]) == pytest.approx(34 / 60)
    assert (first["episodes"], first["finished"]) == ("60", "2")
    for stem in ("success", "curves-kneeling-reward", "success-alpha"):
        with Image.open(tmp_path / "report" / f"{stem}.png") as image:
            assert len(image.convert("L").getcolors() or range(999)) > 9, "empty"
        assert (tmp_path / "report" / f"{stem}.svg").stat().st_size > 1000


def test_the_command_line_takes_folders_as_words(tmp_path, start, no_figures):
    for seed, name in enumerate("ab"):
        write_run(tmp_path / name / "0-run", seed=seed)
    words = [str(tmp_path / "a"), str(tmp_path / "b"), "videos=false"]
    words.append(f"out={tmp_path}/out")
    ended = start(
        words, lambda c: verb.report(verb.check(c)), "report", verb.check, files=True
    )
    assert ended.code == 0, ended.err
    assert "2 runs (2 finished)" in ended.out
    assert (tmp_path / "out" / "report.html").is_file()
    ended = start(["max_mb=3"], lambda c: verb.report(verb.check(c)), "report",
                  verb.check, files=True)  # fmt: skip
    assert ended.code == 2
    assert "Which runs?" in ended.err


def test_folders_of_one_name_are_told_apart(tmp_path, no_figures):
    folders = tmp_path / "a" / "sw", tmp_path / "b" / "sw"
    for folder in folders:
        write_run(folder / "run")
    page = make(*folders)
    assert {row["run"] for row in page.rows("status")} == {"a/sw/run", "b/sw/run"}
    assert re.search("same settings and seed as [ab]/sw/run: not counted", page.text)
    assert {row["run"] for row in make(folders[0], folders[0]).rows("status")} == {
        "sw/run"
    }


def test_buckets_weigh_runs_by_their_episodes(tmp_path, no_figures):
    write_run(tmp_path / "0", episodes=10, summary={"eval/buckets": [1, 0, 0, 0, 0]})
    late = {"eval/buckets": [0, 0, 0, 0.5, 0.5]}
    write_run(tmp_path / "1", seed=1, episodes=30, summary=late)
    unknown = {"eval/buckets": [None, 0, 0, 0, 1]}
    write_run(tmp_path / "2", seed=2, episodes=60, summary=unknown)
    (row,) = make(tmp_path).rows("success (95 %)")
    (key,) = (name for name in row if "0 / 25 / 50 / 75 / 100" in name)
    assert row[key] == "25 / 0 / 0 / 38 / 38"


def test_runs_that_did_not_finish_are_listed_with_the_reason(tmp_path, no_figures):
    write_run(tmp_path / "good", seed=0)
    cut = write_run(tmp_path / "cut", seed=1)
    changes = {"interrupted": True, "env_steps": 800, "eval/success_rate": 0.0}
    write_json(cut / "summary.json", **changes)
    failed = write_run(tmp_path / "failed", seed=2)
    (failed / "summary.json").unlink()
    (failed / "error.txt").write_text(
        'Traceback (most recent call last):\n  File "a.py", line 1, in f\n'
        "vlmrm_exp.config.ConfigError: No GPU: use compute=cpu.\n"
    )
    killed = write_run(tmp_path / "killed", seed=3)
    (killed / "summary.json").unlink()
    early = tmp_path / "early"  # refused before anything but Hydra wrote
    early.mkdir()
    (early / "error.txt").write_text("ValueError\n")
    page = make(tmp_path)
    assert "5 runs: 1 finished, 1 interrupted, 2 failed, 1 unfinished" in page.text
    reason = notes_of(page)
    assert reason["good"] == ""
    assert reason["cut"] == "interrupted after 800 env steps"
    assert reason["failed"] == "ConfigError: No GPU: use compute=cpu."
    assert "still running or killed" in reason["killed"]
    assert reason["early"].startswith("ValueError")
    (group,) = page.rows("success (95 %)")
    assert group["runs"] == "1 of 4 finished"
    assert group["seeds"] == "0"
    assert group["of each seed"] == "0.90"  # the interrupted one's 0.0 is not pooled
    assert "not in it: 1 interrupted, 1 failed, 1 unfinished." in page.text


@pytest.mark.parametrize(
    ("lines", "last"),
    [
        ("Traceback (most recent call last):\n  f()\na.b.Some: x: y\n", "Some: x: y"),
        ("a.Some: no key\n    full_key: a\n    object_type=B\n", "Some: no key"),
        ("KeyboardInterrupt\n", "KeyboardInterrupt"),
        ("", "error.txt is empty"),
    ],
)
def test_last_error_names_the_exception(lines, last):
    assert last_error(lines) == last


def test_groups_are_told_apart_by_what_differs(tmp_path):
    elsewhere = {"name": "gpu", "device": "gpu", "overlap": True}
    write_run(tmp_path / "a", seed=0)
    write_run(tmp_path / "b", seed=1, settings={"compute": elsewhere})
    write_run(tmp_path / "c", settings={"algo": {"name": "sac", "learning_rate": 0.1}})
    write_run(tmp_path / "d", task="splits", prompt="a humanoid robot doing splits")
    # Model and camera play no part where the predicate is the reward.
    for folder, clip, camera in (("e", "nano", "fixed"), ("f", "tiny", "fixed+side")):
        predicate = {"reward": {"name": "predicate", "model": "predicate"}}
        write_run(tmp_path / folder, clip=clip, camera=camera, settings=predicate)
    # Nor does overlap there, nor the baseline where alpha is 0.
    predicate["compute"] = elsewhere | {"overlap": False}
    write_run(tmp_path / "g", seed=1, settings=predicate)
    write_run(tmp_path / "h", seed=2, settings={"baseline": "a robot"})
    groups = group_runs(walk(tmp_path)[0])
    runs = {
        name: [run.folder.name for run in group.runs]
        for name, group in zip(labels(groups), groups, strict=True)
    }
    assert runs == {
        "kneeling, base, algo.learning_rate=0.0006": ["a", "b", "h"],
        "kneeling, base, algo.learning_rate=0.1": ["c"],
        "kneeling, predicate reward": ["e", "f", "g"],
        "splits": ["d"],
    }


def test_runs_with_other_weights_in_one_group_are_told(tmp_path, no_figures):
    write_run(tmp_path / "0", seed=0, parameters=4_000_000)
    write_run(tmp_path / "1", seed=1, parameters=4_000_004)
    (row,) = make(tmp_path).rows("success (95 %)")
    assert row["warning"] == "2 different model weights"
    (row,) = csv_rows(tmp_path / "report" / "groups.csv")
    assert row["parameters"] == "4000000"  # of both towers


def test_comparisons_over_size_alpha_and_appearance(tmp_path):
    sizes = {"nano": 300_000, "tiny": 1_600_000}
    for n, (clip, parameters) in enumerate(sizes.items()):
        write_run(tmp_path / f"s{n}", clip=clip, parameters=parameters, success=n / 2)
    write_run(tmp_path / "a", clip="tiny", parameters=1_600_000, alpha=0.4)
    write_run(tmp_path / "t", clip="tiny", parameters=1_600_000, camera="track")
    page = make(tmp_path)
    out = tmp_path / "report"
    assert (out / "success-size.svg").is_file()
    assert (out / "success-alpha.svg").is_file()
    (row,) = page.rows("track camera")
    assert row["textures"] == "realistic"
    assert row["fixed camera"].startswith("0.50")
    assert row["track camera"].startswith("0.90")


def test_models_seen_through_other_pictures_are_not_on_one_line(tmp_path):
    def run(clip: str, parameters: int, precision: str) -> None:
        model = {"name": clip, "model": clip, "precision": precision}
        write_run(tmp_path / f"{clip}-{precision}", parameters=parameters,
                  settings={"clip": model})  # fmt: skip

    for precision in ("fp32", "int8"):
        for clip, parameters in (("a", 300_000), ("b", 1_600_000)):
            run(clip, parameters, precision)
    groups = group_runs(walk(tmp_path)[0])
    series = series_over(groups, OF_ONE_MODEL, lambda group: group.parameters)
    assert [[g.settings["clip.precision"] for g in one] for one in series] == [
        ["fp32", "fp32"], ["int8", "int8"]]  # fmt: skip


def test_success_over_states_looked_at(tmp_path, monkeypatch):
    """Rewards that were learned and rewards between which lines were drawn."""
    for every in (2, 10):
        reward = {"name": "clip", "model": "clip", "every": every, "query_share": 1}
        write_run(tmp_path / f"e{every}", settings={"reward": reward})
    for share in (0.03, 0.1):
        reward = {"name": "learned", "model": "clip", "every": 1, "query_share": share}
        queries = {"reward/queries": 2 * share * ENV_STEPS}  # more than were asked for
        write_run(tmp_path / f"q{share}", settings={"reward": reward}, summary=queries)
    lines = []
    plotted = plots.success_over

    def recorded(series, keys, x, path):
        lines.append([[x(group) for group in groups] for groups in series])
        plotted(series, keys, x, path)

    monkeypatch.setattr(plots, "success_over", recorded)
    make(tmp_path)
    (drawn,) = lines
    assert sorted(drawn) == [pytest.approx([0.06, 0.2]), pytest.approx([0.1, 0.5])]
    assert (tmp_path / "report" / "success-looks.svg").is_file()


def test_judges_and_alarms_are_shown(tmp_path, monkeypatch):
    chosen = []
    best_of_n = plots.best_of_n

    def recorded(*given):
        chosen.append([each.tolist() for each in given])
        return best_of_n(*given)

    monkeypatch.setattr(plots, "best_of_n", recorded)
    for seed, last in enumerate((0.2, 0.0)):
        raised = {"predicate": {"env_steps": 20_000, "judge": "falls"}}
        run = write_run(
            tmp_path / str(seed), seed=seed, summary={"alarms": {} if seed else raised}
        )
        with (run / "metrics.jsonl").open("a") as file:
            for steps, said in ((10_000, 0.1), (20_000, 0.9), (30_000, last)):
                values = {"eval/reward_mean": steps / 1e5, "judge/predicate": said}
                file.write(json.dumps({"env_steps": steps, **values}) + "\n")
    write_run(tmp_path / "without", task="splits")
    (row,) = make(tmp_path).rows("judge")
    assert (row["judge"], row["alarms"]) == ("predicate", "1 of 2")
    assert (row["first"], row["best"], row["last"]) == ("0.1", "0.9", "0.1")
    assert row["when"] == "falls at 20,000 (seed 0)"
    rewards, said = [0.1, 0.2, 0.3] * 2, [0.1, 0.9, 0.2, 0.1, 0.9, 0.0]
    assert chosen == [[rewards, rewards], [rewards, said]]
    assert (tmp_path / "report" / "judges-0.svg").is_file()


def test_judges_that_are_told_something_else_are_not_pooled(
    tmp_path, monkeypatch, no_figures
):
    plotted, save = [], figures.save
    monkeypatch.setattr(
        figures, "save", lambda made, path: (plotted.append(made), save(made, path))
    )
    small, both = "clip=small", ["clip=small", "task.camera=side"]
    for seed, (judge, said, alarms) in enumerate(
        (
            ({"model": small}, 0.1, {"model": {"env_steps": 9, "judge": "falls"}}),
            ({"model": small}, 0.3, {}),
            ({"model": both, "other": small}, 0.5, {}),
        )
    ):
        run = write_run(
            tmp_path / str(seed),
            seed=seed,
            summary={"alarms": alarms},
            settings={"judge": judge},
        )
        told = {"env_steps": 9, "eval/reward_mean": said}
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(told | {f"judge/{name}": said for name in judge}))
    rows = make(tmp_path).rows("judge")
    assert [(row["judge"], row["last"], row["alarms"]) for row in rows] == [
        ("model (clip=small)", "0.2", "1 of 2"),
        ("model (clip=small, task.camera=side)", "0.5", "0 of 1"),
        ("other", "0.5", "0 of 1"),
    ]
    (figure,) = (made for made in plotted if len(made.axes) == 2 * (1 + len(rows)))
    best = figure.axes[1::2]
    assert [len(axes.lines[0].get_ydata()) for axes in best] == [3, 2, 1, 1]
    # A line of one point would not be seen.
    assert {axes.lines[0].get_marker() for axes in figure.axes} == {"."}
    assert best[-1].get_xticks().tolist() == [1, 2, 3]


def test_judges_records_may_hold_anything(tmp_path):
    for name, line in (
        ("never", {"eval/reward_mean": 0.1, "judge/never": None}),
        ("alone", {"judge/alone": 0.1}),
    ):
        alarms = {"alarms": {name: {"env_steps": 10_000}}}
        run = write_run(tmp_path / name, prompt=name, summary=alarms)
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"env_steps": 10_000, **line}) + "\n")
    (row,) = make(tmp_path).rows("judge")
    assert (row["judge"], row["alarms"], row["last"]) == ("alone", "0 of 1", "0.1")


def test_success_over_tasks_uses_all_runs(tmp_path, no_figures):
    rates = {"kneeling": [0.9, 1.0, 0.8], "splits": [0.0, 0.1, 0.2]}
    for task, values in rates.items():
        for seed, rate in enumerate(values):
            write_run(tmp_path / f"{task}{seed}", task=task, seed=seed, success=rate)
    (row,) = make(tmp_path).rows("interquartile mean")
    assert (row["tasks"], row["runs"]) == ("2", "6")
    assert row["interquartile mean"] == "0.50"  # of .1 .2 .8 .9
    low, high = map(float, row["95 % interval"].split(" to "))
    assert 0.3 < low < 0.5 < high < 0.7


def test_without_success_the_page_says_so(tmp_path):
    told = {"eval/return_mean": -1437.4}
    run = write_run(tmp_path / "0", success=None, summary=told)
    played = told | {"eval/reward_mean": -7.5, "checkpoint": "random"}
    write_json(run / "evaluation-random.json", **played)
    add_video(run, "evaluation-random")
    page = make(tmp_path)
    group, listed = (page.rows(column)[0] for column in ("minutes a run", "status"))
    assert (group["return"], listed["return"]) == ("-1437", "-1437")
    assert listed["evaluated again"] == "reward -7.5, return -1437 (random)"
    assert "random actions: kneeling" in page.text
    assert "No finished run has measured success." in page.text
    assert not (tmp_path / "report" / "success.png").exists()


def test_broken_files_are_told_and_the_rest_is_used(tmp_path, no_figures):
    run = write_run(tmp_path / "0", rewards=[0.1, 0.2, 0.3, 0.4])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('[1]\n{"env_steps": 50000, "train/rewa')
    (run / "versions.json").write_text("{")
    write_run(tmp_path / "1", seed=1)
    (tmp_path / "1" / "config.yaml").write_text("task: [")
    (tmp_path / "1" / ".hydra" / "config.yaml").unlink()
    page = make(tmp_path)
    notes = notes_of(page)
    assert "2 lines are unreadable in metrics.jsonl and left out" in notes["0"]
    assert "versions.json cannot be read" in notes["0"]
    assert "its settings are not known" in notes["1"]
    curve = walk(tmp_path)[0][0].curve("train/reward_mean")
    assert curve.index.tolist() == [ENV_STEPS * i // 4 for i in (1, 2, 3, 4)]
    assert curve.tolist() == [0.1, 0.2, 0.3, 0.4]


def test_prompts_and_errors_are_escaped(tmp_path):
    prompt = '<script>alert("x")</script> & $x^2$ <b>'
    other = write_run(tmp_path / "<i>0", prompt=prompt)
    (other / "error.txt").write_text("ValueError: <script>boom</script>\n")
    add_video(other)
    write_run(tmp_path / "1", prompt="a humanoid robot kneeling")
    page = make(tmp_path)
    assert "script" not in page.tags
    assert not {"b", "i"} & set(page.tags)
    assert 'alert("x")' in page.text
    assert "ValueError: <script>boom</script>" in page.text


def test_page_loads_nothing_from_elsewhere(tmp_path):
    for n, clip in enumerate(("nano", "tiny")):
        add_video(write_run(tmp_path / clip, clip=clip, parameters=10 ** (n + 5)))
    page = make(tmp_path)
    assert len(page.links) > 8
    for link in page.links:
        assert link.startswith(("data:", "#")), link[:60]
    text = (tmp_path / "report" / "report.html").read_text()
    rest = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"https?:|//\w|@import|url\(", rest)
    for link in page.links:  # the figures inside too
        if link.startswith("data:image/svg"):
            svg = base64.b64decode(link.partition(",")[2]).decode()
            assert not re.search(r'(href|src)="(?!#)', svg)


def test_videos_have_room_for_the_best_of_each_group_first(tmp_path, no_figures):
    for name, clip, reward in (
        ("0", "tiny", 0.1),
        ("1", "tiny", 0.3),
        ("2", "base", 0),
    ):
        run = write_run(tmp_path / name, clip=clip, seed=int(name), reward=reward)
        add_video(run, content=name.encode() * 300_000)
    page = make(tmp_path, max_mb=0.9)  # room for two: base64 takes a third more
    inside = [link for link in page.links if link.startswith("data:video")]
    first = [base64.b64decode(link.partition(",")[2])[:1] for link in inside]
    assert sorted(first) == [b"1", b"2"]
    assert f"{tmp_path.name}/0/videos/eval.mp4 (0.4 MB)" in page.text
    assert "1 left out" in page.text
    page = make(tmp_path, videos=False)
    assert "video" not in page.tags
    assert "videos=false" in page.text


def test_command_commit_and_versions_stand_behind_every_item(tmp_path, no_figures):
    write_run(tmp_path / "0")
    page = make(tmp_path)
    assert page.tags.count("img") + page.tags.count("table") == page.tags.count("dl")
    alone = (
        "python -m vlmrm_exp --config-dir sweeps --config-name tasks_embedded "
        "hydra.mode=RUN task=kneeling clip=base seed=0 "
        "\"prompt='a humanoid robot kneeling'\""
    )
    for text in (alone, f"commit {COMMIT}", "torch 2.13.0", "--config-name tasks"):
        assert page.text.count(text) >= page.tags.count("dl"), text
    assert "Embedded (base): small models" in page.text


def epic_row(clip: str, parameters: float, epic: float, **values: Any):
    row = {"task": "kneeling", "clip": clip, "alpha": 0, "parameters": parameters}
    return {**row, "epic": epic, **values}


SIZES = {"nano": 3e5, "tiny": 2e6, "base": 1e7}


def test_epic_over_size_is_fitted_on_the_mean_over_tasks(tmp_path, no_figures):
    """Where every model has the same tasks; else a mean would compare unlike ones."""
    rows = [
        epic_row(clip, parameters, 0.9 - slope * np.log10(parameters), task=task)
        for clip, parameters in SIZES.items()
        for task, slope in (("kneeling", 0.05), ("splits", 0.07))
    ]
    write_json(tmp_path / "epic.json", rows=rows)
    fits = {fit["task"]: fit["slope"] for fit in make(tmp_path).rows("slope")}
    means = {"mean over tasks": "-0.060"}
    assert fits == {"kneeling": "-0.050", "splits": "-0.070", **means}
    write_json(tmp_path / "epic.json", rows=rows[:-1])
    fits = make(tmp_path).rows("slope")
    assert [fit["task"] for fit in fits] == ["kneeling"]


def test_epic_is_shown_with_its_picture_and_fit(tmp_path):
    more = {"auroc": 0.9, "per_state": [1.5], "epic_low": 0.0, "epic_high": 1.0}
    rows = [
        epic_row(clip, size, 0.9 - 0.1 * np.log10(size) + alpha / 10, alpha=alpha)
        | more
        for clip, size in SIZES.items()
        for alpha in (0, 0.5)
    ]
    folder = tmp_path / "epic" / "first"
    folder.mkdir(parents=True)
    versions = {"command": "python -m vlmrm_exp.epic task=kneeling", "commit": COMMIT}
    write_json(
        folder / "epic.json",
        rows=rows,
        versions=versions,
        tasks={"kneeling": {"goal_share": 0.071, "prompt": ["kneels", "on knees"]}},
        models={"nano": {"model": "embedded", "weights_sha256": "feed" * 16}},
    )
    Image.new("RGB", (40, 30), "red").save(folder / "epic.png")
    (tmp_path / "prompts.json").write_text("[]")
    poses = {"task": "lotus", "reward_peak": 0.62, "meets": 0.25, "rows": [[0.0] * 47]}
    write_json(tmp_path / "peak.json", rows=[poses])
    page = make(tmp_path)
    assert "0 runs; 3 results" in page.text
    (peak,) = page.rows("reward_peak")
    assert peak == {"task": "lotus", "reward_peak": "0.62", "meets": "0.25"}
    assert len(page.rows("auroc")) == len(rows)
    fits = page.rows("slope")
    assert [(f["alpha"], f["sizes"], f["slope"]) for f in fits] == [
        ("0", "3", "-0.100"),
        ("0.5", "3", "-0.100"),
    ]
    assert {f["R²"] for f in fits} == {"1.00"}
    assert sum(link.startswith("data:image/png") for link in page.links) == 1
    assert (tmp_path / "report" / "epic-3-size-kneeling.png").is_file()
    assert versions["command"] in page.text
    assert "prompts.json holds no rows that could be shown" in page.text
    assert "per_state" not in page.text
    (about,) = page.rows("goal_share")
    assert about == {
        "task": "kneeling",
        "goal_share": "0.071",
        "prompt": "kneels / on knees",
    }
    assert "weights of nano feedfeedfeed" in page.text
    assert "Embedded (nano)" in page.text


def test_a_report_is_not_reported_on(tmp_path):
    write_run(tmp_path / "sweep" / "0")
    pretraining = tmp_path / "sweep" / "tiny-s0" / ".hydra"
    pretraining.mkdir(parents=True)
    (pretraining / "config.yaml").write_text(yaml.safe_dump({"recipe": {"steps": 1}}))
    for _ in range(2):
        page = make(tmp_path / "sweep", tmp_path)  # the same run twice
        assert "1 run: 1 finished." in page.text


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (ReportConfig([]), "Which runs? Please give the folder of a sweep"),
        (ReportConfig(["nowhere"]), "There is no folder nowhere: give"),
        (ReportConfig(["run/config.yaml"]), "run/config.yaml is a file: give the"),
        (ReportConfig(["run"], out="run/config.yaml"), "a file is where a folder"),
        (ReportConfig(["run"], out="run/config.yaml/x"), "cannot be used"),
        (ReportConfig(["empty"]), "empty holds no run"),
        (ReportConfig(["run"], max_mb=-1), "max_mb is -1"),
        (ReportConfig(["run"], max_mb=float("nan")), "max_mb is nan"),
    ],
)
def test_bad_input_ends_in_one_sentence(tmp_path, monkeypatch, asked, words):
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        report(asked)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("ended", [True, False])  # older runs do not say when
def test_a_copy_of_a_run_is_no_second_piece_of_evidence(tmp_path, no_figures, ended):
    for name, success, second in (("a", 0.2, 100), ("b", 0.8, 200), ("c", 0.5, 50)):
        said = {"ended": float(second)} if ended else {}
        run = write_run(tmp_path / name, seed=0, success=success, summary=said)
        # Copying changes a file's time.
        os.utime(run / "summary.json", (300 - second if ended else second,) * 2)
    write_run(tmp_path / "d", seed=1, success=0.4)
    write_run(tmp_path / "e", seed=0, success=0.0, alpha=0.5)
    page = make(tmp_path)
    row, other = page.rows("success (95 %)")
    assert row["of each seed"] == "0.80, 0.40"  # the newest's, b's
    assert row["success (95 %)"].endswith("120/200")
    assert row["runs"] == "2, and 2 not counted"
    first = csv_rows(tmp_path / "report" / "groups.csv")[0]
    counts = [first[key] for key in ("seeds", "finished", "repeats", "episodes")]
    assert counts == ["0, 1", "2", "2", "200"]
    assert page.rows("minutes a run")[0]["seeds"] == "0, 1"
    assert other["runs"] == "1"
    notes = notes_of(page)
    told = f"same settings and seed as {tmp_path.name}/b: not counted"
    assert notes == {"a": told, "b": "", "c": told, "d": "", "e": ""}
    # In the figures of success over alpha and of all groups, and in two of curves.
    told = "Runs in it: 3 finished; not in it: 2 finished (2 with settings and seed"
    assert page.text.count(told) == page.text.count("Runs in it") == 4


def test_a_copy_does_not_take_the_place_of_the_run_that_was_evaluated(
    tmp_path, no_figures
):
    """However late it was copied; and of two tries of chance the longer counts."""
    run = write_run(tmp_path / "run")
    shutil.copytree(run, tmp_path / "backup")
    os.utime(run / "summary.json", (100, 100))
    for name, episodes in (("evaluation-random", 2), ("evaluation-random-2", 50)):
        played = {"eval/success_rate": 0.5, "eval/episodes": episodes}
        write_json(run / f"{name}.json", **played)
    (row,) = make(tmp_path).rows("success (95 %)")
    assert row["random actions"].endswith("25/50")
    backup, original = csv_rows(tmp_path / "report" / "runs.csv")
    assert (backup["group"], original["group"]) == ("0", "0")
    assert backup["repeats"] == original["run"]
    assert original["repeats"] == ""


def test_what_chooses_the_kept_policy_tells_groups_apart(tmp_path):
    for n, (evaluation, camera) in enumerate(
        (
            ({"every": 8000}, "fixed+side"),
            ({"every": 8000, "final_episodes": 9}, "side+fixed"),
            ({"every": 4000}, "fixed+side"),
        )
    ):
        settings = {"evaluation": evaluation}
        write_run(tmp_path / str(n), seed=n, camera=camera, settings=settings)
    groups = group_runs(walk(tmp_path)[0])
    found = [[run.folder.name for run in group.runs] for group in groups]
    assert sorted(found) == [["0", "1"], ["2"]]


@pytest.mark.parametrize("runs", [4, 6])
def test_a_curve_is_the_interquartile_mean_in_its_band(tmp_path, monkeypatch, runs):
    """Four runs: their lowest and highest. Six: a bootstrap, narrower than that."""
    plotted = []
    monkeypatch.setattr(figures, "save", lambda figure, path: plotted.append(figure))
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(runs, 12))
    for seed, values in enumerate(rewards):
        write_run(tmp_path / str(seed), seed=seed, rewards=values.tolist())
    groups = group_runs(walk(tmp_path)[0])
    plots.curves(groups, "train/reward_mean", "reward", tmp_path / "figure")
    (axes,) = plotted[0].axes
    (line,) = axes.lines
    band = "lowest to highest run" if runs == 4 else "95 % stratified bootstrap"
    assert f"{runs} runs, band: {band}" in line.get_label().replace("\n", " ")
    middle = stats.trim_mean(rewards, 0.25, axis=0)
    np.testing.assert_allclose(line.get_ydata(), middle)
    corners = axes.collections[0].get_paths()[0].vertices
    low, high = (
        [pick(corners[corners[:, 0] == x, 1]) for x in line.get_xdata()]
        for pick in (min, max)
    )
    lowest, highest = rewards.min(axis=0), rewards.max(axis=0)
    if runs == 4:
        np.testing.assert_allclose([low, high], [lowest, highest])
    else:
        order = np.stack([lowest, low, middle, high, highest])
        assert (np.diff(order, axis=0) >= 0).all()
        assert np.subtract(high, low).mean() < 0.9 * (highest - lowest).mean()


def test_a_setting_that_older_runs_lack_tells_groups_apart(tmp_path):
    write_run(tmp_path / "old", seed=0)
    algo = {"name": "sac", "learning_rate": 6e-4, "hidden": [256, 256]}
    write_run(tmp_path / "new", seed=1, settings={"algo": {**algo, "squash": False}})
    # Of a sweep that went on in a version with a setting more, left as it comes.
    write_run(tmp_path / "later", seed=2, settings={"renormalise": True})
    groups = group_runs(walk(tmp_path)[0])
    found = dict(
        zip(labels(groups), (len(group.runs) for group in groups), strict=True)
    )
    assert found == {"algo.squash=false": 1, "kneeling, base": 2}


def test_runs_of_older_versions_are_listed(tmp_path, no_figures):
    older = {"reward": "clip", "reward_every": 1, "compute": {"scorer_workers": 2}}
    write_run(tmp_path / "old", settings=older)
    write_run(tmp_path / "new")
    assert len(make(tmp_path).rows("status")) == 2


@pytest.mark.parametrize("word", ["on its knees ", "knees"])
def test_a_long_prompt_is_folded(tmp_path, no_figures, word):
    long = "a humanoid robot " + word * 400
    for seed, prompt in enumerate((long, f"{long} now")):
        add_video(write_run(tmp_path / str(seed), seed=seed, prompt=prompt))
    rows = [{"sentence": long, "epic": 0.5}]
    write_json(tmp_path / "prompts.json", rows=rows, tasks={"a": {"prompt": [long]}})
    page = make(tmp_path)
    text = (tmp_path / "report" / "report.html").read_text()
    unfolded = re.sub(
        r"<details.*?</details>", "", text.partition("<body>")[2], flags=re.DOTALL
    )
    assert len(max(re.findall(r">([^<]*)<", unfolded), key=len)) < 700
    rows = page.rows("other settings")
    assert [row["other settings"].endswith(" now") for row in rows] == [True, False]


def test_long_prompts_that_differ_in_the_middle_have_different_names(tmp_path):
    begin, end = "a humanoid robot " * 9, " on the floor" * 9
    for name in ("kneeling", "sitting", "sitting up"):
        write_run(tmp_path / name, prompt=f"{begin}{name}{end}")
    names = labels(group_runs(walk(tmp_path)[0]))
    assert len(set(names)) == 3
    assert all("robot kneeling on" in n or "robot sitting " in n for n in names)


def test_one_seed_on_two_devices_is_two_runs(tmp_path, no_figures):
    """Their random numbers differ, and so does the precision of large models."""
    write_run(tmp_path / "cpu", success=0.9)
    gpu = write_run(tmp_path / "gpu", success=0.1)
    write_json(gpu / "versions.json", device="cuda", encoder={"precision": "bf16"})
    page = make(tmp_path)
    (row,) = page.rows("success (95 %)")
    assert row["success (95 %)"].endswith("100/200")
    assert row["warning"].endswith("2 different precisions")
    assert (row["seeds"], row["of each seed"]) == ("0, 0", "0.90, 0.10")


def test_a_short_record_that_ends_a_curve_is_named(tmp_path, no_figures):
    for seed in range(3):
        write_run(tmp_path / str(seed), seed=seed)
    assert "ends where" not in make(tmp_path).text
    path = tmp_path / "1" / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:7]))
    told = f"ends where the shortest record ends: {tmp_path.name}/1."
    assert told in make(tmp_path).text


def test_each_evaluation_keeps_its_own_numbers(tmp_path, no_figures):
    run = write_run(tmp_path / "0", success=0.9)
    for stem, rate, of in (
        ("evaluation", 0.75, "best"),
        ("evaluation-random", 0.125, "random"),
    ):
        values = {"eval/success_rate": rate, "eval/episodes": 8, "checkpoint": of}
        write_json(run / f"{stem}.json", **values)
    for stem in ("eval", "evaluation", "evaluation-random", "evaluation-last"):
        add_video(run, stem)
    page = make(tmp_path)
    (row,) = page.rows("random actions")
    assert row["random actions"].endswith("1/8")
    (listed,) = page.rows("status")
    assert listed["evaluated again"] == "0.75 over 8 (best)\n0.12 over 8 (random)"
    shown = re.findall(
        r"(?:success ([\d.]+) over \d+ episodes )?0, (\S+\.mp4)",
        page.text.replace(f"{tmp_path.name}/", ""),
    )
    assert {file: rate for rate, file in shown} == {
        "eval.mp4": "0.90",
        "evaluation.mp4": "0.75",
        "evaluation-random.mp4": "0.12",
        "evaluation-last.mp4": "",
    }


def test_the_command_of_a_refused_start_is_not_the_runs(tmp_path):
    run = write_run(tmp_path / "0", seed=0)
    assert "seed=0" in walk(tmp_path)[0][0].command
    path = run / ".hydra" / "config.yaml"
    composed = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**composed, "name": "${now:%H}"}))
    assert "seed=0" in walk(tmp_path)[0][0].command
    path.write_text(yaml.safe_dump({**composed, "seed": 7}))
    typed = "python -m vlmrm_exp --config-dir sweeps --config-name tasks"
    assert walk(tmp_path)[0][0].command == typed


def test_one_bad_thing_costs_one_row(tmp_path, no_figures):
    write_run(tmp_path / "good")
    write_run(tmp_path / "high", seed=1, success=1.25)
    nameless = {"clip": {"model": "embedded", "frame_height": 64}}
    nameless = write_run(tmp_path / "nameless", seed=2, settings=nameless)
    (nameless / "videos").mkdir()
    (nameless / "videos" / "eval.mp4").symlink_to(tmp_path / "nothing")
    (nameless / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "error.txt").write_text("OSError: astray\n")
    (tmp_path / "metrics.jsonl").write_text("")
    page = make(tmp_path)
    assert "4 runs: 3 finished, 1 failed" in page.text
    notes = notes_of(page)
    assert notes["high"] == "its success rate is 1.25, which is no share: not counted"
    assert notes[tmp_path.name].startswith("OSError: astray")
    counts = [row["success (95 %)"][-7:] for row in page.rows("success (95 %)")]
    assert sorted(counts) == [" 90/100", " 90/100"]
    assert "videos/eval.mp4 (cannot be read: No such file" in page.text


def test_bad_rows_and_pictures_of_results_leave_the_rest(tmp_path):
    rows = [
        epic_row("a", 10, 0.5),
        epic_row("b", 100, 0.5, epic_low="?"),
        epic_row("c", 0, 0.5),
        {"task": "kneeling", "alpha": [0], "epic": 0.5, "parameters": 1000},
    ]
    write_json(tmp_path / "epic.json", rows=rows)
    (tmp_path / "epic.png").write_bytes(b"no picture")
    page = make(tmp_path)
    assert len(page.rows("parameters")) == 4
    assert "epic.png cannot be shown" in page.text
    assert (tmp_path / "report" / "epic-1-size-kneeling.png").is_file()


HUGE = "9" * 400
ODD = "[" * 5_000, HUGE, f'{{"env_steps": {HUGE}}}', "{task: &a {a: *a}}", "NaN"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("text", ODD)
@pytest.mark.parametrize(
    "name", "config.yaml summary.json metrics.jsonl versions.json error.txt".split()
)
def test_no_file_of_a_run_stops_the_report(tmp_path, no_figures, name, text):
    write_run(tmp_path / "good")
    (write_run(tmp_path / "bad", seed=1) / name).write_text(text)
    page = make(tmp_path)
    assert notes_of(page)["good"] == ""


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("versions.json", {"encoder": {"name": ["a"]}, "commit": ["a"]}),
        ("versions.json", {"encoder": {"name": {"a": 1}}, "packages": [1]}),
        ("summary.json", {"eval/reward_mean": 10**400, "eval/buckets": [10**400] * 5}),
        ("config.yaml", {3: 4, None: 1}),
        ("config.yaml", {"alpha": "x", "prompt": 5}),
        ("config.yaml", {"alpha": float("nan"), "prompt": {"a": [1]}}),
        ("config.yaml", {"seed": [1], "clip": {"name": None}, "prompt": "\ud800"}),
    ],
)
def test_no_value_of_a_run_stops_the_report(request, tmp_path, name, values):
    if name == "versions.json":  # of which no figure shows anything
        request.getfixturevalue("no_figures")
    for seed, alpha in enumerate((0.0, 0.5)):
        add_video(write_run(tmp_path / str(seed), alpha=alpha))
    path = tmp_path / "1" / name
    older = yaml.safe_load(path.read_text())  # JSON is YAML too
    dump = yaml.safe_dump if name == "config.yaml" else json.dumps
    path.write_text(dump(older | values))
    assert "2 runs: 2 finished" in make(tmp_path).text
    assert (tmp_path / "report" / "success.svg").is_file()


@pytest.mark.parametrize(
    "held",
    [
        {"rows": [{}]},
        {"models": [1], "rows": [{"a": [1, 2], "b": {"c": 1}}]},
        {"rows": [epic_row("a", 10, 0.5) | {"clip": {"a": 1}, "task": ["t"]}] * 2},
        {"rows": [epic_row(n, 10 * n, 0.5, task=t) for n, t in ((5, 7), (6, None))]},
    ],
)
def test_no_value_of_a_study_stops_the_report(tmp_path, no_figures, held):
    write_json(tmp_path / "epic.json", **held)
    page = make(tmp_path)
    shown = isinstance(held["rows"][0].get("epic"), float)
    assert ("holds no rows that could be shown" in page.text) != shown


def test_a_study_is_no_run(tmp_path, no_figures):
    """It has the settings of a run, and its own; here one of scores alone."""
    write_run(tmp_path / "score", settings={"out": "o", "files": ["a.png"]})
    (tmp_path / "score" / "config.yaml").unlink()
    with pytest.raises(ConfigError, match="score holds no run and no result"):
        make(tmp_path / "score")
    write_run(tmp_path / "run")
    assert "1 run: 1 finished" in make(tmp_path).text


def test_folders_that_cannot_be_read_are_told(tmp_path, no_figures, monkeypatch):
    for name in ("good", "bad", "worse"):
        write_run(tmp_path / name)
    scandir, is_file = os.scandir, Path.is_file

    def refused(path: str) -> Any:
        if str(path).endswith("/bad"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    def odd(path: Path) -> bool:
        if path.parent.name == "worse":
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(os, "scandir", refused)
    monkeypatch.setattr(Path, "is_file", odd)
    page = make(tmp_path)
    assert "1 run: 1 finished" in page.text
    assert f"{tmp_path}/bad cannot be used: Permission denied." in page.text
    assert f"{tmp_path}/worse cannot be read (PermissionError:" in page.text


def test_names_that_are_no_text_are_written(tmp_path):
    for seed in range(2):
        name = os.fsdecode(os.fsencode(tmp_path) + b"/\xe4%d" % seed)
        write_run(tmp_path / "run", alpha=seed / 2).rename(name)
    assert "2 runs: 2 finished" in make(tmp_path).text
    assert "\\udce40" in (tmp_path / "report" / "runs.csv").read_text()


@pytest.mark.parametrize("older", [False, True])
def test_a_report_is_written_whole_or_not_at_all(tmp_path, monkeypatch, older):
    write_run(tmp_path / "run")
    out = tmp_path / "report"
    if older:
        make(tmp_path)
    before = {path.name: path.stat().st_ino for path in tmp_path.glob("report/*")}
    monkeypatch.setattr("jinja2.Template.render", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make(tmp_path)
    assert out.exists() == older
    assert before == {path.name: path.stat().st_ino for path in out.glob("*")}


def test_a_row_that_success_over_tasks_lacks_is_told(tmp_path, no_figures):
    write_run(tmp_path / "0", task="kneeling")
    write_run(tmp_path / "1", task="splits")
    write_run(tmp_path / "2", task="splits", settings={"env_steps": 7})
    told = "Not in success over tasks: clip base, reward clip, alpha 0"
    page = make(tmp_path)
    assert told in page.text
    assert "several groups of splits" in page.text


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium on PATH")
def test_browser_shows_the_page_within_its_width(tmp_path):
    long = "a humanoid robot " + "very" * 60
    for n in range(2):
        write_run(tmp_path / f"run{n}", seed=n, prompt=long + str(n))
    make(tmp_path)
    page = html.escape((tmp_path / "report" / "report.html").read_text())
    # In frames, as no window of chromium's is as narrow as a phone.
    probe = tmp_path / "probe.html"
    probe.write_text(
        f'<title>-</title><iframe width=375 srcdoc="{page}"></iframe>'
        f'<iframe width=1280 srcdoc="{page}"></iframe>'
        "<script>addEventListener('load', () => {"
        "document.title = [...document.querySelectorAll('iframe')].map(frame => {"
        "const page = frame.contentDocument, root = page.documentElement,"
        " images = [...page.images];"
        "return [root.clientWidth, root.scrollWidth, images.length,"
        " images.filter(image => !image.naturalWidth).length]}).join()})</script>"
    )
    command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu"]
    command += [f"--user-data-dir={tmp_path}/chromium", "--window-size=1600,900"]
    done = subprocess.run(
        [*command, "--virtual-time-budget=5000", "--dump-dom", probe.as_uri()],
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title, done.stderr
    found = np.array(title[1].split(","), int).reshape(2, 4)
    for width, (room, needed, images, broken) in zip((375, 1280), found, strict=True):
        assert width - 20 <= room  # a scroll bar
        assert needed <= room
        assert (images, broken) == (3, 0)


def test_stages_are_shown_as_the_reward_and_the_predicates_count_them(tmp_path):
    for seed, (passed, met) in enumerate(((1.0, 0.5), (0.5, 0.0))):
        told = {"eval/stage_mean": passed, "eval/goal_mean": met}
        told |= {"eval/stage_1": passed, "eval/stage_2": 0.0}
        told |= {"eval/goal_1": met, "eval/goal_2": "?" if seed else 0.0}
        run = write_run(tmp_path / f"s{seed}", seed=seed, summary=told)
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"env_steps": 50, "train/stage_mean": 1.5}) + "\n")
    write_run(tmp_path / "one", clip="tiny", summary={"eval/goal_1": 0.25})
    write_run(tmp_path / "other", task="splits")
    page = make(tmp_path)
    assert "kneeling: stages passed, training" in page.text
    rows = page.rows("goals by predicates")
    found = [(row["stages by the reward"], row["goals by predicates"]) for row in rows]
    # What one run tells of fewer goals than the other is no mean.
    assert found == [("0.75 / 0.00", ""), ("", "0.25")]
