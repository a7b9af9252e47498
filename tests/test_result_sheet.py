"""`scripts/result_sheet.py`: the table of docs/results.md."""

import importlib
import json
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from vlmrm_exp.cli import composed

from vlmrm_exp.config import ConfigError

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def result_sheet(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)  # it imports its neighbour
    return importlib.import_module("result_sheet")


def write(folder: Path, *overrides: str, success: float = 0.9, device="cpu") -> str:
    """A finished run with what the sheet reads."""
    (folder / "videos").mkdir(parents=True)
    (folder / "videos" / "eval.mp4").touch()
    config = composed("task=kneeling", *overrides)
    (folder / "config.yaml").write_text(yaml.safe_dump(asdict(config)))
    versions = {"device": device, "encoder": {"weights_sha256": "abc"}}
    (folder / "versions.json").write_text(json.dumps(versions))
    write_trial(folder / "summary.json", success)
    reports = [
        {"env_steps": 800, "perf/collect_s": 9.0},
        {
            "env_steps": 1600,
            "perf/collect_s": 10.0,
            "perf/learn_s": 5.0,
            "perf/label_wait_s": 0.5,
            "perf/env_steps_per_s": 50.0,
        },
    ]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, reports)))
    return str(folder)


def write_trial(path: Path, success: float) -> None:
    told = {
        "eval/success_rate": success,
        "eval/episodes": 100,
        "eval/buckets": [1 - success, 0, 0, success, 0],
        "eval/reward_mean": success / 4,
        "env_steps": 80_000,
        "best_env_steps": 64_000,
        "train_wall_s": 600.0,
        "perf/env_steps_per_s": 133.3,
        "policy_env_steps": 64_000,
    }
    path.write_text(json.dumps(told))


def test_a_row_holds_the_seeds_of_a_task_length_machine_and_sweep(
    tmp_path, result_sheet
):
    folders = [
        write(tmp_path / "b", "seed=1", success=0.5),
        write(tmp_path / "a", "seed=0", success=1.0),
        write(tmp_path / "gpu", "seed=0", success=0.0, device="cuda"),
        write(tmp_path / "up", "task=standing_up", success=0.25),
    ]
    rows = result_sheet.table(result_sheet.outcomes_of(folders)).splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    # Wilson's interval of 150 in 200, 0 in 100 and 25 in 100, by scipy.stats.binomtest.
    assert [row[:6] for row in cells] == [
        ["kneeling", "80", "0, 1", "1.00, 0.50", "0.75 (0.69 to 0.80)",
         "25 / 0 / 0 / 75 / 0"],
        ["kneeling", "80", "0", "0.00", "0.00 (0.00 to 0.04)", "100 / 0 / 0 / 0 / 0"],
        ["standing_up", "80", "0", "0.25", "0.25 (0.18 to 0.34)",
         "75 / 0 / 0 / 25 / 0"],
    ]  # fmt: skip
    assert [row[6:] for row in cells[:2]] == [
        ["0.25, 0.12", "64", "10, 10"],
        ["0.00", "64", "10 (GPU)"],
    ]


def test_the_newest_evaluation_is_what_counts(tmp_path, result_sheet):
    folder = write(tmp_path / "run", success=0.1)
    for name, success in (
        ("evaluation", 0.2),
        ("evaluation-2", 0.3),
        ("evaluation-10", 0.4),
    ):
        write_trial(tmp_path / "run" / f"{name}.json", success)
        (tmp_path / "run" / "videos" / f"{name}.mp4").touch()
        assert result_sheet.outcome(Path(folder)).successes == 100 * success


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (["seed=0"], "are of one seed"),
        (["seed=1", "alpha=0.5"], "make a table of each"),
        (["task=mountaincar"], "a run of mountaincar, no humanoid's"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(
    tmp_path, result_sheet, second, reason
):
    folders = [write(tmp_path / "a", "seed=0"), write(tmp_path / "b", *second)]
    with pytest.raises(ConfigError, match=reason):
        result_sheet.outcomes_of(folders)


def test_a_run_that_is_not_finished_is_refused(tmp_path, result_sheet):
    folder = write(tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.raises(ConfigError, match="finish or `evaluate`"):
        result_sheet.outcomes_of([folder])


def test_a_killed_run_counts_as_far_as_it_came(tmp_path, result_sheet):
    folder = Path(write(tmp_path / "run"))
    (folder / "summary.json").unlink()
    with pytest.raises(ConfigError, match="evaluate"):
        result_sheet.outcome(folder)
    write_trial(folder / "evaluation.json", 0.3)
    (folder / "videos" / "evaluation.mp4").touch()
    run = result_sheet.outcome(folder)
    assert (run.env_steps, run.kept_at, run.successes) == (1600, 64_000, 30)
    assert (run.train_wall_s, run.env_steps_per_s) == (24.5, 50)


def test_a_run_without_a_report_is_refused(tmp_path, result_sheet):
    folder = Path(write(tmp_path / "run"))
    (folder / "metrics.jsonl").write_text("")
    with pytest.raises(ConfigError, match=r"metrics\.jsonl has no report yet"):
        result_sheet.outcome(folder)


def test_other_lengths_and_other_sweeps_are_other_rows(tmp_path, result_sheet):
    folders = [
        write(tmp_path / "one" / "a", "seed=0"),
        write(tmp_path / "one" / "b", "seed=0", "env_steps=5000"),
        write(tmp_path / "two" / "a", "seed=0"),
        write(tmp_path / "one" / "c", "seed=1"),
    ]
    runs = result_sheet.groups(result_sheet.outcomes_of(folders))
    names = [["/".join(run.folder.parts[-2:]) for run in group] for group in runs]
    assert names == [["one/b"], ["one/a", "one/c"], ["two/a"]]
    again = f"{tmp_path}/two/../one/a"
    with pytest.raises(ConfigError, match="are of one seed"):
        result_sheet.outcomes_of([*folders, again])
