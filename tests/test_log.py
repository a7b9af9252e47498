"""RunLog's files, read back by means other than its own."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

import wandb_server
from vlmrm_exp import log
from vlmrm_exp.config import (
    AlgoConfig,
    ClipConfig,
    Config,
    ConfigError,
    LogConfig,
    TaskConfig,
)
from vlmrm_exp.log import versions

SOURCE = Path(log.__file__).parents[2]

ONE_RUN = """
import sys
import time
from pathlib import Path
from vlmrm_exp.config import AlgoConfig, ClipConfig, Config, ConfigError, LogConfig
from vlmrm_exp.config import TaskConfig
from vlmrm_exp import log
if sys.argv[1] != "none":
    from vlmrm_exp.log import wandb
    wandb.INIT_S = 3.0
config = Config(
    task=TaskConfig(name="cartpole", env="cartpole"), clip=ClipConfig(name="tiny"),
    algo=AlgoConfig(name="dqn"), log=LogConfig(name="x", mode=sys.argv[1]),
    prompt="p", baseline="b", alpha=0.0, name="n", env_steps=3)
try:
    run = log.RunLog(Path("run"), config)
except ConfigError as error:
    sys.exit(f"one sentence: {error}")
run.metrics(8, {"eval/reward_mean": 0.5})
run.summary({"env_steps": 8})
run.close()
print("imported" if "wandb" in sys.modules else "not imported")
"""


def make_config(mode: str) -> Config:
    return Config(
        task=TaskConfig(name="cartpole", env="cartpole"),
        clip=ClipConfig(name="tiny", model="embedded"),
        algo=AlgoConfig(name="dqn"),
        log=LogConfig(name=mode, mode=mode, tags=["a_tag"], notes="a note"),
        prompt=["a pole", "a pole upright"],
        baseline="a cart",
        alpha=0.25,
        seed=3,
        name="a_name",
        env_steps=100,
    )


def wandb_records(folder: Path) -> Iterator:
    """Parse a .wandb file: a 7-byte head, then LevelDB's log format around protobuf."""
    from wandb.proto import wandb_internal_pb2

    path = max(folder.glob("wandb/offline-run-*/run-*.wandb"))  # the newest
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # no head fits before the block's end: padding
            at += 32768 - at % 32768
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # complete, or the last part
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


def decode(items) -> dict:
    """Keys and values of W&B's item lists (a key may be a path)."""
    return {
        item.key or "/".join(item.nested_key): json.loads(item.value_json)
        for item in items
    }


def history(records: Iterable) -> list[dict]:
    """Rows of a .wandb file, without what W&B adds."""
    rows = [decode(r.history.item) for r in records if r.HasField("history")]
    return [{k: v for k, v in row.items() if k[0] != "_"} for row in rows]


def start(mode: str, folder: Path, **variables: str) -> subprocess.CompletedProcess:
    """Run ONE_RUN in a process of its own, whose home is `folder`/home."""
    home = folder / "home"
    home.mkdir()
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    return subprocess.run(
        [sys.executable, "-c", ONE_RUN, mode],
        cwd=folder,
        env={**kept, "HOME": str(home), "PYTHONPATH": str(SOURCE), **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def test_metrics_is_on_disk_after_each_report(tmp_path: Path) -> None:
    run = log.RunLog(tmp_path, make_config("none"))
    run.metrics(8, {"eval/reward_mean": 0.1})
    run.metrics(16, {"loss/critic": np.float32(0.5), "perf/n": 3})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    run.close()
    first, second = map(json.loads, lines)
    assert first == {"env_steps": 8, "eval/reward_mean": 0.1}
    assert second.pop("perf/env_steps_per_s") > 0  # since the first report
    assert second == {"env_steps": 16, "loss/critic": 0.5, "perf/n": 3}


def test_laps_are_of_one_report_each(tmp_path: Path, monkeypatch) -> None:
    times = iter([0.0, 2.0, 3.0, 7.0, 7.0, 8.0, 8.0])
    monkeypatch.setattr(log.time, "perf_counter", lambda: next(times))
    run = log.RunLog(tmp_path, make_config("none"))
    for name in ("perf/collect_s", "perf/learn_s", "perf/collect_s"):
        run.lap(name)
    run.metrics(8, {})  # the clock of the rate starts, at 7
    run.lap("perf/collect_s")
    run.metrics(18, {})
    run.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"env_steps": 8, "perf/collect_s": 6.0, "perf/learn_s": 1.0},
        {"env_steps": 18, "perf/collect_s": 1.0, "perf/env_steps_per_s": 10.0},
    ]


def test_metrics_writes_what_is_not_finite_as_null(tmp_path: Path) -> None:
    run = log.RunLog(tmp_path, make_config("none"))
    run.metrics(1, {"loss/a": float("nan"), "loss/b": np.inf, "loss/c": -0.5})
    run.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text == '{"env_steps": 1, "loss/a": null, "loss/b": null, "loss/c": -0.5}\n'


def test_metrics_goes_on_after_what_was_saved(tmp_path: Path) -> None:
    saved, wall_s = None, []
    for env_steps in (1, 2):
        run = log.RunLog(tmp_path, make_config("none"), saved)
        run.metrics(env_steps, {})
        saved = run.state_dict()
        wall_s.append(saved["wall_s"])
        saved["wall_s"] += 1000  # as if it had run for longer
        run.metrics(99, {})  # a line that is lost
        run.close()
        half = tmp_path / "videos" / ".eval.7.part.mp4"  # its process was killed
        assert not half.exists()
        half.parent.mkdir(exist_ok=True)
        half.touch()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["env_steps"] for line in lines] == [1, 2, 99]
    assert 0 <= wall_s[0] < 1000 <= wall_s[1] < 2000


def test_a_folder_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    run = log.RunLog(tmp_path, make_config("none"))
    run.metrics(1, {})
    code = (
        "import sys, pathlib, test_log\n"
        "test_log.log.RunLog(pathlib.Path(sys.argv[1]), test_log.make_config('none'))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    ended = subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True
    )
    assert "is written by another process just now" in ended.stderr
    run.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["env_steps"] == 1


def test_write_json_never_shows_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    log.write_json(path, {"a": 1})
    with path.open() as reader:  # who opened the older file still reads all of it
        log.write_json(path, {"b": 2})
        assert json.load(reader) == {"a": 1}
    assert json.loads(path.read_text()) == {"b": 2}


def test_write_json_keeps_the_older_file_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    log.write_json(path, {"a": (np.int64(1), Path("b"), None)})
    with pytest.raises(TypeError):
        log.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": [1, "b", None]}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_wandb_holds_the_same_numbers_as_metrics_jsonl(tmp_path: Path) -> None:
    run = log.RunLog(tmp_path, make_config("offline"))
    spread = {"train/rewards": np.array([[0.0, 1.0], [1.0, 1.0]])}
    run.metrics(8, {"train/reward_mean": 0.1, "perf/env_steps_per_s": 90.0}, spread)
    run.metrics(16, {"eval/success_rate": 1.0, "train/reward_mean": 0.3})
    run.metrics(24, {"train/reward_mean": 0.2})
    run.summary({"wall_s": 4.5})
    run.close()
    records = list(wandb_records(tmp_path))
    rows = history(records)
    drawn = rows[0].pop("train/rewards/values"), rows[0].pop("train/rewards/bins")
    assert (drawn[0][0], drawn[0][-1], sum(drawn[0])) == (1, 3, 4)
    assert (drawn[1][0], drawn[1][-1]) == (0.0, 1.0)
    assert rows[0].pop("train/rewards/_type") == "histogram"
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert rows == [json.loads(line) for line in lines]
    summaries = [decode(r.summary.update) for r in records if r.HasField("summary")]
    assert {"wall_s": 4.5} in summaries
    ends = [s["train/reward_mean"] for s in summaries if "train/reward_mean" in s]
    assert ends[-1] == {"min": 0.1, "max": 0.3, "last": 0.2}


def test_wandb_knows_the_axis_the_config_the_group_and_the_commit(tmp_path) -> None:
    about = {
        "commit": "0123456789" * 4,
        "encoder": {"name": "tiny", "parameters_image": 3, "parameters_text": 4},
    }
    run = log.RunLog(tmp_path, make_config("offline"), about=about)
    run.close()
    records = list(wandb_records(tmp_path))
    metrics = [r.metric for r in records if r.HasField("metric")]
    assert metrics[0].glob_name == "*"
    assert {metric.step_metric for metric in metrics} == {"env_steps"}
    (head,) = [r.run for r in records if r.HasField("run")]
    assert head.run_id == run.wandb_id
    assert head.git.commit == about["commit"]
    told = (head.project, head.display_name, head.job_type, list(head.tags), head.notes)
    assert told == ("vlmrm_exp", tmp_path.name, "train", ["a_tag"], "a note")
    assert head.run_group == "cartpole, tiny, a pole / a pole upright"
    config = decode(head.config.update)
    asked = dataclasses.asdict(make_config("offline"))
    assert {key: config[key] for key in asked} == json.loads(json.dumps(asked))
    flat = {k: config[k] for k in ("task_name", "clip_name", "clip_parameters")}
    assert flat == dict(task_name="cartpole", clip_name="tiny", clip_parameters=7)
    assert config["prompt_text"] == "a pole / a pole upright"


def test_one_sweep_is_one_group(tmp_path: Path) -> None:
    (tmp_path / "multirun.yaml").touch()  # Hydra's, of every sweep
    config = make_config("offline")
    for group, folder in ((None, "a"), (None, "ALE/b"), ("mine", "c")):
        config.log.group = group
        log.RunLog(tmp_path / folder, config).close()
        (head,) = [r.run for r in wandb_records(tmp_path / folder) if r.HasField("run")]
        assert head.run_group == (group or tmp_path.name)


def test_wandb_has_weights_as_input_and_policies_as_output(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    encoder = {"name": "my model/2", "weights_sha256": "abc"}
    run = log.RunLog(
        tmp_path / "run", make_config("offline"), None, {"encoder": encoder}
    )
    best = tmp_path / "run" / "best.pt"
    best.write_bytes(b"a policy")
    run.policies([best], {"eval/success_rate": np.float64(0.5)})
    columns = {"episode": [0, 1], "success": [True, None]}
    run.table(16, "eval/table", columns)
    run.close()
    records = list(wandb_records(tmp_path / "run"))
    (weights, policy, _) = [r.artifact for r in records if r.HasField("artifact")]
    assert (weights.name, weights.type) == ("clip-my-model-2", "model")
    assert weights.use_after_commit
    assert [c.ref for c in weights.manifest.contents] == ["sha256:abc"]
    assert (policy.name, policy.type) == (f"policy-{run.wandb_id}", "policy")
    assert not policy.use_after_commit
    assert json.loads(policy.metadata) == {"eval/success_rate": 0.5}
    (file,) = policy.manifest.contents
    assert (file.path, file.size, file.local_path) == ("best.pt", 8, str(best))
    (path,) = tmp_path.glob("run/wandb/offline-run-*/files/media/table/eval/*.json")
    table = json.loads(path.read_text())
    assert table["columns"] == ["episode", "success"]
    assert table["data"] == [[0, True], [1, None]]
    assert not (tmp_path / "home").exists()


def test_wandb_gets_the_video_file_as_it_is(tmp_path: Path) -> None:
    clip = tmp_path / "videos" / "eval.mp4"
    clip.parent.mkdir()
    clip.write_bytes(b"not re-encoded")
    run = log.RunLog(tmp_path, make_config("offline"))
    run.video(16, "eval/video", clip, 'a "car" <b>')
    run.close()
    (row,) = history(wandb_records(tmp_path))
    assert (row["env_steps"], row["eval/video/caption"]) == (16, 'a "car" <b>')
    (copy,) = tmp_path.glob("wandb/offline-run-*/files/media/videos/eval/*.mp4")
    assert copy.read_bytes() == b"not re-encoded"


def test_wandb_runs_of_one_process_are_separate(tmp_path: Path) -> None:
    for name, value in (("first", 1.0), ("second", 2.0)):
        run = log.RunLog(tmp_path / name, make_config("offline"))
        run.metrics(8, {"eval/reward_mean": value})
        run.close()
    for name, value in (("first", 1.0), ("second", 2.0)):
        records = wandb_records(tmp_path / name)
        rows = [decode(r.history.item) for r in records if r.HasField("history")]
        assert [row["eval/reward_mean"] for row in rows] == [value]


def wandbs_own() -> list[int]:
    """Processes that W&B has started for this one."""
    tasks = Path("/proc/self/task").glob("*/children")
    pids = " ".join(task.read_text() for task in tasks).split()
    commands = {int(pid): Path(f"/proc/{pid}/cmdline").read_text() for pid in pids}
    return [pid for pid, command in commands.items() if "wandb-core" in command]


def test_close_ends_the_process_of_wandb(tmp_path: Path) -> None:
    run = log.RunLog(tmp_path, make_config("offline"))
    assert len(wandbs_own()) == 1
    run.close()
    assert wandbs_own() == []


def run_alone(code: str, folder: Path) -> list[str]:
    """What it prints in a process of its own, which knows these tests, and no error."""
    ended = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout.splitlines()


@pytest.mark.slow
def test_a_run_ends_in_one_sentence_where_the_process_of_wandb_is_gone(
    tmp_path: Path,
) -> None:
    code = (
        "import os, pathlib, signal, test_log\n"
        "for name in ('one', 'next'):\n"
        "    folder = pathlib.Path(test_log.sys.argv[1], name)\n"
        "    run = test_log.log.RunLog(folder, test_log.make_config('offline'))\n"
        "    if name == 'one':\n"
        "        os.kill(*test_log.wandbs_own(), signal.SIGKILL)\n"
        "    run.close()\n"
    )
    one, following = (line for line in run_alone(code, tmp_path) if "sync" in line)
    assert one.startswith("W&B: the upload did not end (")
    assert f"; go on with: wandb sync {tmp_path}/one/wandb/" in one
    assert following.startswith("W&B: kept offline")


@pytest.mark.slow
def test_a_run_goes_on_where_the_process_of_wandb_is_killed(
    tmp_path: Path, wandb_online
) -> None:
    code = (
        "import os, pathlib, signal, test_log\n"
        "folder = pathlib.Path(test_log.sys.argv[1])\n"
        "run = test_log.log.RunLog(folder, test_log.make_config('offline'))\n"
        "for env_steps in (8, 16, 24, 32):\n"
        "    run.metrics(env_steps, {'train/x': 1.0})\n"
        "    test_log.time.sleep(0.6)  # W&B names folders by the second\n"
        "    if env_steps == 16:\n"
        "        os.kill(*test_log.wandbs_own(), signal.SIGKILL)\n"
        "        test_log.time.sleep(0.6)\n"
        "        run.metrics(20, {'train/x': 1.0})  # lost: it is not yet seen\n"
        "        (folder / 'x.mp4').write_bytes(b'a video')\n"
        "        test_log.time.sleep(0.6)\n"
        "        run.video(20, 'eval/video', folder / 'x.mp4', '')\n"
        "run.summary({'wall_s': 4.5})\n"
        "run.close()\n"
    )
    told, kept = run_alone(code, tmp_path)
    assert told.startswith("W&B: its process has ended")
    first, second = kept.partition("wandb sync ")[2].split("; wandb sync ")
    for piece in (first, second):
        wandb = [sys.executable, "-m", "wandb", "sync", piece]
        subprocess.run(wandb, check=True, capture_output=True)
    (rows,) = wandb_online.history.values()  # of one run
    assert [row["env_steps"] for row in rows][-3:] == [20, 24, 32]
    (ends,) = wandb_online.summaries.values()
    assert (ends["wall_s"], ends["eval/video"]["_type"]) == (4.5, "video-file")
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["env_steps"] for line in lines] == [8, 16, 20, 24, 32]


def test_a_server_that_is_gone_is_waited_for_only_so_long(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr("vlmrm_exp.log.wandb.FINISH_S", 2.0)
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    with wandb_server.wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        run = log.RunLog(tmp_path, make_config("online"))
    run.metrics(8, {"train/x": 1.0})
    started = time.perf_counter()
    run.close()
    assert time.perf_counter() - started < 10
    assert "W&B: the upload did not end (" in capsys.readouterr().out.splitlines()[-1]


def test_a_run_that_goes_on_has_one_id_and_is_uploaded_in_order(
    tmp_path: Path, capsys
) -> None:
    first = log.RunLog(tmp_path, make_config("offline"))
    first.metrics(8, {"train/x": 1.0})
    saved = first.state_dict()
    first.metrics(16, {"train/x": 2.0})
    first.close()
    time.sleep(1.1)  # W&B names folders by the second
    second = log.RunLog(tmp_path, make_config("offline"), saved)
    assert second.wandb_id == first.wandb_id
    second.metrics(16, {"train/x": 3.0})
    second.close()
    told = capsys.readouterr().out.splitlines()[-1]
    pieces = sorted(map(str, (tmp_path / "wandb").glob("offline-run-*")))
    assert len(pieces) == 2
    assert told.endswith("; ".join(f"wandb sync {piece}" for piece in pieces))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["train/x"] for line in lines] == [1.0, 3.0]


@pytest.mark.slow
def test_online_and_synced_runs_are_alike(tmp_path, wandb_online, capsys) -> None:
    about = {
        "commit": "0123456789" * 4,
        "encoder": {"name": "tiny", "weights_sha256": "abc"},
    }
    mp4 = tmp_path / "eval.mp4"
    mp4.write_bytes(b"a video")
    for mode in ("online", "offline"):
        run = log.RunLog(tmp_path / mode / "run", make_config(mode), None, about)
        spread = {"train/rewards": np.array([0.5, 1.0])}
        for steps, reward in ((8, 0.1), (16, 0.3)):
            run.metrics(steps, {"train/reward_mean": reward}, spread)
        run.video(16, "eval/video", mp4, "a caption")
        run.table(16, "eval/table", {"episode": [0], "success": [True]})
        run.policies([mp4], {})
        run.summary({"eval/success_rate": 0.5})
        run.close()
    first, told = capsys.readouterr().out.splitlines()
    url = f"{wandb_online.url}/lab/vlmrm_exp/runs/"
    assert first.startswith(f"W&B: {url}")
    wandb = ["-m", "wandb", *told.partition("wandb ")[2].split()]
    subprocess.run([sys.executable, *wandb], check=True, capture_output=True)

    def told_of(id: str) -> dict:
        sent = wandb_online.runs[id]
        names = "groupName jobType displayName notes commit tags project".split()
        config = {k: v["value"] for k, v in json.loads(sent["config"]).items()}
        ends, *rows = (
            {k: v for k, v in row.items() if not k.startswith(("_", "perf/"))}
            for row in (wandb_online.summaries[id], *wandb_online.history[id])
        )
        for table in (ends["eval/table"], rows[-1]["eval/table"]):
            for path in ("artifact_path", "_latest_artifact_path"):  # of its own
                del table[path]
        used = [
            wandb_online.artifacts[a] for name, a in wandb_online.used if name == id
        ]
        made = [a for a in wandb_online.artifacts.values() if a["runName"] == id]
        of_kind = [sorted(a["artifactTypeName"] for a in k) for k in (used, made)]
        own = {k: v for k, v in config.items() if k not in ("_wandb", "log")}
        return {"sent": [sent[name] for name in names], "config": own, "ends": ends,
                "rows": rows, "artifacts": of_kind}  # fmt: skip

    online, synced = map(told_of, wandb_online.runs)
    assert online == synced
    assert online["sent"][:4] == [
        "cartpole, tiny, a pole / a pole upright",
        "train",
        "run",
        "a note",
    ]
    assert [row["env_steps"] for row in online["rows"]] == [8, 16, 16, 16]
    assert online["artifacts"] == [["model"], ["policy", "run_table"]]


def test_a_server_that_is_gone_at_the_end_ends_no_run(
    tmp_path, wandb_online, capsys
) -> None:
    run = log.RunLog(tmp_path, make_config("online"))
    wandb_online.lets_in = False
    run.table(16, "eval/table", {"episode": [0]})
    run.policies([tmp_path / "metrics.jsonl"], {})
    run.close()
    told = [
        line for line in capsys.readouterr().out.splitlines() if "could not" in line
    ]
    assert [line.partition(" could")[0] for line in told] == [
        "W&B: eval/table",
        "W&B: the policies",
    ]


def test_close_twice_is_harmless(tmp_path: Path, capsys) -> None:
    run = log.RunLog(tmp_path, make_config("offline"))
    run.close(1)
    run.close(0)
    assert capsys.readouterr().out.count("wandb sync") == 1
    exits = [r.exit for r in wandb_records(tmp_path) if r.HasField("exit")]
    assert [e.exit_code for e in exits] == [1]


@pytest.mark.parametrize(
    ("error", "code"),
    [(None, 0), (OSError("full"), 1), (SystemExit(75), 75), (KeyboardInterrupt(), 130)],
)
def test_what_ends_a_block_is_the_exit_code(tmp_path: Path, error, code) -> None:
    with contextlib.suppress(BaseException):
        with log.RunLog(tmp_path, make_config("offline")):
            if error is not None:
                raise error
    exits = [r.exit for r in wandb_records(tmp_path) if r.HasField("exit")]
    assert [e.exit_code for e in exits] == [code]


@pytest.mark.slow
def test_offline_writes_only_into_the_run_folder_and_says_one_line(
    tmp_path: Path,
) -> None:
    done = start("offline", tmp_path)
    assert done.returncode == 0
    assert done.stderr == ""
    assert list((tmp_path / "home").rglob("*")) == []
    assert {path.name for path in tmp_path.iterdir()} == {"home", "run"}
    line, last = done.stdout.splitlines()
    (offline,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert line.endswith(f"wandb sync {offline.relative_to(tmp_path)}")
    assert last == "imported"


def test_none_never_imports_wandb(tmp_path: Path) -> None:
    done = start("none", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "not imported\n", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({}, "log=wandb needs a W&B account"),
        pytest.param(
            {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "a" * 40},
            "W&B did not start a run",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_online_without_login_or_server_is_one_sentence(
    tmp_path: Path, variables, told
) -> None:
    done = start("online", tmp_path, **variables)
    assert done.returncode == 1
    assert done.stderr.startswith(f"one sentence: {told}")
    assert "wandb login" in done.stderr
    assert "log=offline" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WANDB_RESUME", "banana"),
        ("WANDB_BASE_URL", "nonsense"),
        ("WANDB__SERVICE_WAIT", "abc"),
        ("WANDB_TAGS", "x" * 65),
    ],
)
def test_variables_that_wandb_cannot_read_are_named(
    tmp_path, monkeypatch, name, value
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as refusal:
        log.RunLog(tmp_path, make_config("offline"))
    told = str(refusal.value)
    assert told.startswith(f"W&B did not start a run ({name}: ")
    assert told.endswith("): correct or unset it.")
    assert "\n" not in told


def test_a_project_that_wandb_cannot_have_is_no_matter_of_the_network(tmp_path) -> None:
    config = make_config("offline")
    config.log.project = "a/b"
    with pytest.raises(ConfigError, match=r"'a/b'.*correct log\.project") as refusal:
        log.RunLog(tmp_path, config)
    assert "network" not in str(refusal.value)


def test_wandb_variables_are_read_or_said_not_to_be(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("WANDB_TAGS", "one,two")
    config = make_config("offline")
    config.log.tags = []
    log.RunLog(tmp_path, config).close()
    (head,) = [r.run for r in wandb_records(tmp_path) if r.HasField("run")]
    assert (head.project, list(head.tags)) == ("vlmrm_exp", ["one", "two"])
    told = capsys.readouterr().out.splitlines()[0]
    assert told.startswith("W&B: WANDB_MODE, WANDB_PROJECT: set, but not read")


@pytest.mark.slow
def test_one_wandb_id_for_all_jobs_of_a_sweep_is_refused(
    tmp_path: Path, program, monkeypatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "one")
    monkeypatch.chdir(tmp_path)
    ended = program("-m", "experiment=smoke", "log=offline", "seed=0,1")
    assert ended.code == 2
    assert "WANDB_RUN_ID is set" in ended.err
    assert list(tmp_path.iterdir()) == []
    run = log.RunLog(tmp_path, make_config("offline"))
    run.close()
    assert run.wandb_id == "one"


@pytest.mark.parametrize("tag", ["", "x" * 65])
def test_tags_that_wandb_cannot_have_are_refused_at_once(compose, tag) -> None:
    assert compose(f"log.tags=[{'x' * 64}]").log.tags == ["x" * 64]
    with pytest.raises(ConfigError, match=r"log\.tags .* 1 to 64"):
        compose(f"log.tags=['{tag}']")


def test_versions_names_the_installed_packages_and_the_facts() -> None:
    import torch

    told = versions.versions(
        {"gl_renderer": "llvmpipe", "packages": "mine", "command": ""}
    )
    assert told["command"]
    assert told["packages"]["torch"] == torch.__version__
    assert told["packages"]["numpy"] == np.__version__
    assert told["python"] == "{}.{}.{}".format(*sys.version_info[:3])
    assert told["gl_renderer"] == "llvmpipe"


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    command = ["git", "-C", str(folder), *who, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_versions_tells_the_commit_of_its_own_checkout(tmp_path: Path) -> None:
    git(tmp_path, "init")
    (tmp_path / "a").touch()
    assert versions._commit(tmp_path) == {}
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "a")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert versions._commit(tmp_path) == {"commit": head, "commit_is_dirty": False}
    (tmp_path / "new.py").touch()
    assert versions._commit(tmp_path) == {"commit": head, "commit_is_dirty": True}
    # Installed in somebody else's repository, it has no commit of its own.
    assert versions._commit(tmp_path / ".venv" / "lib") == {}


def tensorboard_points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself reads of a run's folder: steps and values by key."""
    from tensorboard.backend.event_processing import event_accumulator

    keep_all = {event_accumulator.SCALARS: 0}
    read = event_accumulator.EventAccumulator(str(folder / "tensorboard"), keep_all)
    read.Reload()
    keys = read.Tags()["scalars"]
    return {key: [(e.step, e.value) for e in read.Scalars(key)] for key in keys}


def test_tensorboard_has_each_point_of_metrics_jsonl_once(tmp_path: Path) -> None:
    first = log.RunLog(tmp_path, make_config("none"))
    first.metrics(8, {"train/reward_mean": 1.0})  # before it was asked for
    saved = first.state_dict()
    first.close()
    second = log.RunLog(tmp_path, make_config("tensorboard"), saved)
    second.metrics(16, {"train/reward_mean": 2.0, "loss/critic": float("nan")})
    saved = second.state_dict()
    second.metrics(24, {"train/reward_mean": 9.0})  # lost: the run is killed here
    third = tensorboard_points(tmp_path)["train/reward_mean"]
    assert third == [(8, 1.0), (16, 2.0), (24, 9.0)]  # while the run goes on
    second.close()
    last = log.RunLog(tmp_path, make_config("tensorboard"), saved)
    last.metrics(24, {"train/reward_mean": 3.0, "eval/success_rate": 1.0})
    last.close()
    points = tensorboard_points(tmp_path)
    assert points["train/reward_mean"] == [(8, 1.0), (16, 2.0), (24, 3.0)]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        step = line.pop("env_steps")
        for key, value in line.items():
            assert value is None or (step, np.float32(value)) in points[key]
    assert "loss/critic" not in points


def test_a_missing_tensorboard_is_one_sentence(compose, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'vlmrm_exp\[tensorboard\]'"):
        compose("log=tensorboard")
