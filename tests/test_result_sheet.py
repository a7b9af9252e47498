"""`scripts/result_sheet.py`: the table of docs/results.md."""

import csv
import importlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from vlmrm_exp.config import ConfigError

pytestmark = pytest.mark.slow

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def result_sheet(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)  # it imports its neighbour
    return importlib.import_module("result_sheet")


@pytest.fixture
def write(tmp_path, compose) -> Callable[..., str]:
    """Writes a finished run with what the sheet reads."""

    def written(name: str, *words: str, success: float = 0.9, device="cpu") -> str:
        folder = tmp_path / name
        config = asdict(compose("task=kneeling", *words))
        versions = {"device": device, "encoder": {"weights_sha256": "abc"}}
        versions |= {"cpu": "a CPU", "gpu": None, "commit": "0123", "command": "python"}
        laps = {"perf/collect_s": 10.0, "perf/learn_s": 5.0, "perf/label_wait_s": 0.5}
        reports = [
            {"env_steps": 800, "perf/collect_s": 9.0},
            {"env_steps": 1600, **laps, "perf/env_steps_per_s": 50.0},
        ]
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        (folder / "versions.json").write_text(json.dumps(versions))
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, reports)))
        evaluated(folder, "summary", success, video="eval")
        return str(folder)

    return written


def evaluated(folder: Path, name: str, success: float, video: str | None = None):
    values = {
        "eval/success_rate": success,
        "eval/episodes": 100,
        "eval/buckets": [1 - success, 0, 0, success, 0],
        "eval/reward_mean": success / 4,
        "eval/return_mean": 5.0,
        "env_steps": 80_000,
        "best_env_steps": 64_000,
        "train_wall_s": 600.0,
        "perf/env_steps_per_s": 133.3,
        "policy_env_steps": 64_000,
    }
    (folder / f"{name}.json").write_text(json.dumps(values))
    (folder / "videos").mkdir(exist_ok=True)
    (folder / "videos" / f"{video or name}.mp4").touch()


def test_a_row_holds_the_seeds_of_a_task_length_machine_and_sweep(
    tmp_path, result_sheet, write
):
    folders = [
        write("b", "seed=1", success=0.5),
        write("a", "seed=0", success=1.0),
        write("gpu", "seed=0", success=0.0, device="cuda"),
        write("up", "task=standing_up", success=0.25),
    ]
    outcomes = result_sheet.outcomes_of(folders)
    rows = result_sheet.table(outcomes).splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    # Wilson's interval of 150 in 200, 0 in 100 and 25 in 100, by scipy.stats.binomtest.
    assert [row[:5] for row in cells] == [
        ["kneeling", "80", "0, 1", "1.00, 0.50", "0.75 (0.69 to 0.80)"],
        ["kneeling", "80", "0", "0.00", "0.00 (0.00 to 0.04)"],
        ["standing_up", "80", "0", "0.25", "0.25 (0.18 to 0.34)"],
    ]
    assert [row[5:] for row in cells[:2]] == [
        ["25 / 0 / 0 / 75 / 0", "0.25, 0.12", "64", "10, 10"],
        ["100 / 0 / 0 / 0 / 0", "0.00", "64", "10 (GPU)"],
    ]
    result_sheet.write_csv(outcomes, tmp_path / "runs.csv")
    with (tmp_path / "runs.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["run"].split("/")[1] for line in lines] == ["a", "b", "gpu", "up"]
    about = [lines[1][key] for key in ("reward", "successes", "gpu", "weights")]
    assert about == ["clip", "50", "", "abc"]


def test_the_newest_evaluation_is_what_counts(result_sheet, write):
    folder = Path(write("run", success=0.1))
    for number, name in enumerate(("evaluation", "evaluation-2", "evaluation-10"), 2):
        evaluated(folder, name, number / 10)
        assert result_sheet.outcome(folder).success.successes == 10 * number


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (["seed=0"], "are of one seed"),
        (["seed=1", "alpha=0.5"], "make a table of each"),
        (["task=mountaincar"], "a run of mountaincar, no humanoid's"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(
    result_sheet, write, second, reason
):
    folders = [write("a", "seed=0"), write("b", *second)]
    with pytest.raises(ConfigError, match=reason):
        result_sheet.outcomes_of(folders)


def test_a_killed_run_counts_as_far_as_it_came(result_sheet, write):
    folder = Path(write("run"))
    (folder / "summary.json").unlink()
    with pytest.raises(ConfigError, match="finish or `evaluate`"):
        result_sheet.outcome(folder)
    evaluated(folder, "evaluation", 0.3)
    one = result_sheet.outcome(folder)
    found = one.run.env_steps, one.kept_at, one.success.successes
    assert found == (1600, 64_000, 30)
    assert (one.train_wall_s, one.env_steps_per_s) == (24.5, 50)
    (folder / "metrics.jsonl").write_text("")
    with pytest.raises(ConfigError, match=r"metrics\.jsonl has no report yet"):
        result_sheet.outcome(folder)


def test_other_lengths_and_other_sweeps_are_other_rows(tmp_path, result_sheet, write):
    folders = [
        write("one/a", "seed=0"),
        write("one/b", "seed=0", "env_steps=5000"),
        write("two/a", "seed=0"),
        write("one/c", "seed=1"),
    ]
    runs = result_sheet.groups(result_sheet.outcomes_of(folders))
    names = [["/".join(one.run.folder.parts[-2:]) for one in group] for group in runs]
    assert names == [["one/b"], ["one/a", "one/c"], ["two/a"]]
    again = f"{tmp_path}/two/../one/a"
    with pytest.raises(ConfigError, match="are of one seed"):
        result_sheet.outcomes_of([*folders, again])
