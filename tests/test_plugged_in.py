"""Worlds and rewards of one's own, by configuration alone."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import point_mass
import reacher
from point_mass import Progress, read_metrics
from vlmrm_exp import epic, prompts
from vlmrm_exp.composition import Composed
from vlmrm_exp.config import TaskConfig
from vlmrm_exp.envs import world_of
from vlmrm_exp.notes import unread
from worlds import make_envs

pytestmark = pytest.mark.slow

SMALL = ("experiment=smoke", "log=none", "clip=nano")


@pytest.fixture
def conf(tmp_path) -> Path:
    """A folder of options of one's own."""
    for name, text in (
        ("task/reacher", reacher.TASK),
        ("reward/progress", "name: progress\nmodel: point_mass:Progress\n"),
        ("reward/weighed", "name: weighed\nmodel: point_mass:Learned\n"),
        ("reward/gone", "name: gone\nmodel: point_mass:Gone\n"),
    ):
        path = tmp_path / "conf" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "conf"


def run(program, conf, tmp_path, *words) -> dict:
    folder = tmp_path / "run"
    asked = ("--config-dir", str(conf), *SMALL, *words, f"hydra.run.dir={folder}")
    ended = program(*asked)
    assert ended.code == 0, ended.err
    return json.loads((folder / "summary.json").read_text())


def test_a_world_of_ones_own_is_trained_in(program, conf, tmp_path):
    summary = run(program, conf, tmp_path, "task=reacher", "compute.workers=1")
    assert (summary["task"], summary["gradient_steps"]) == ("reacher", 4)
    assert summary["eval/success_rate"] is not None
    assert -1 < summary["eval/reward_mean"] < 1
    assert (tmp_path / "run" / "videos" / "eval.mp4").stat().st_size > 1000


def test_the_files_in_the_documentation_are_whole(program, conf):
    text = (Path(__file__).parents[1] / "docs" / "api.md").read_text()
    files = re.findall(r"^```yaml\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    for name, file in zip(("reward/near", "task/own"), files, strict=True):
        (conf / f"{name}.yaml").write_text(file)
    for task, shown in (("own", "pretrained: laion2b"), ("kneeling", "\n  every: 1\n")):
        words = f"task={task}", "reward=near", "--cfg", "job"
        ended = program("--config-dir", str(conf), *words)
        assert ended.code == 0
        assert shown in ended.out


@pytest.mark.parametrize("workers", [0, 1])
def test_a_reward_is_tried_with_as_many_states_as_it_wants(
    program, conf, tmp_path, workers
):
    words = "task=mountaincar", "reward=gone", f"compute.workers={workers}"
    assert run(program, conf, tmp_path, *words)["gradient_steps"] > 0


def test_a_worlds_module_decides_what_is_kept_of_its_states():
    assert world_of(TaskConfig("p", "point_mass:WORLD")).sources == (
        point_mass.__file__,
    )


def test_a_world_of_ones_own_is_measured(start, conf, tmp_path):
    words = ("--config-dir", str(conf), "task=reacher", "clip=nano", "states=200",
             "task.options.near=0.1", "resamples=20", f"cache={tmp_path}/cache",
             f"out={tmp_path}/out")  # fmt: skip

    def measure(composed: Composed) -> None:
        epic.measure(epic.check(composed))

    ended = start(words, measure, "epic", epic.check, epic.PLURAL)
    assert ended.code == 0, ended.err
    result = json.loads((tmp_path / "out" / "epic.json").read_text())
    assert result["tasks"]["reacher"]["states"] == 200
    assert 0 < result["tasks"]["reacher"]["goal_states"] < 100
    assert {"epic", "epic_low", "auroc", "epic_graded"} <= set(result["rows"][0])


@pytest.mark.long
def test_the_wording_of_a_task_of_ones_own_is_measured(start, conf, tmp_path):
    def measure(*words: str):
        words = ("--config-dir", str(conf), "task=reacher", "clip=nano", "states=200",
                 "task.options.near=0.1", "resamples=0", f"cache={tmp_path}/cache",
                 f"out={tmp_path}/out", *words)  # fmt: skip

        def measured(composed: Composed) -> None:
            prompts.measure(prompts.check(composed))

        return start(words, measured, "prompts", prompts.check, prompts.PLURAL)

    refused = measure()
    assert refused.code == 2
    assert "no sentences for task=reacher: give sentences=FILE.yaml" in refused.err
    form = refused.err[refused.err.index("{") : refused.err.index("}") + 1]
    file = tmp_path / "wording.yaml"
    file.write_text(form)  # which is the whole of such a file
    nowhere = measure("sentences=nowhere.yaml").err
    assert "There is no file nowhere.yaml: give sentences=FILE.yaml" in nowhere
    ended = measure(f"sentences={file}")
    assert ended.code == 0, ended.err
    result = json.loads((tmp_path / "out" / "prompts.json").read_text())
    said = [row["sentence"] for row in result["rows"]]
    assert said == ["an arm that touches the red ball", *"abcd"]


def test_the_reachers_fingertip_is_mujocos():
    """Its predicate is computed by hand."""
    task = TaskConfig("r", "reacher:WORLD", episode_length=5, options={"near": 0.05})
    envs = make_envs(task, 2)
    for _ in range(5):
        envs.step(np.ones((2, 2), np.float32))
    for env, far in zip(envs._envs, reacher.distance(envs.states()), strict=True):
        between = env.get_body_com("fingertip") - env.get_body_com("target")
        assert np.linalg.norm(between[:2]) == pytest.approx(far, abs=2e-3)


@pytest.mark.parametrize(
    ("task", "reward", "workers"),
    [
        ("mountaincar", "progress", 0),
        ("mountaincar", "weighed", 0),
        ("cartpole", "progress", 0),
        ("cartpole", "weighed", 1),
    ],
)
def test_a_reward_of_ones_own_is_trained_on(
    program, conf, tmp_path, task, reward, workers
):
    words = f"task={task}", f"reward={reward}", f"compute.workers={workers}"
    summary = run(program, conf, tmp_path, *words)
    assert (summary["reward"], summary["gradient_steps"]) == (reward, 4)
    learned = [x.get("reward/weight") for x in read_metrics(tmp_path / "run")]
    assert learned == ([20.0, 40.0] if reward == "weighed" else [None, None])


class Looks(Progress):
    """Says that it shows pictures to the model of `clip`."""

    sees_pictures = True


def test_a_reward_of_ones_own_says_whether_clip_plays_a_part(compose):
    def told(model: str) -> list[str]:
        config = compose("clip=nano", "alpha=0.5", f"reward.model={model}")
        return [note.split()[0] for note in unread(config, ["clip", "alpha"])]

    assert told("point_mass:Progress") == ["clip", "alpha"]
    assert told("test_plugged_in:Looks") == []


def test_a_reward_that_wants_its_old_frames_is_refused(program, conf, tmp_path):
    ended = program(
        "--config-dir", str(conf), *SMALL, "reward=weighed", "task=gym",
        "task.env_id=Pendulum-v1", "prompt=a", "baseline=b",
        "reward.model=point_mass:Learned", "compute.workers=0",
        f"hydra.run.dir={tmp_path}/run",
    )  # fmt: skip
    assert ended.code == 2
    assert "wants its old states again, but here they are frames" in ended.err
    assert "40 of them are 0.00602 GB" in ended.err


def test_a_study_refuses_a_reward_that_sees_time(start, conf, tmp_path):
    words = ("--config-dir", str(conf), "reward=progress", f"out={tmp_path}/out")
    ended = start(words, lambda _: None, "epic", epic.check, epic.PLURAL)
    assert ended.code == 2
    assert "reward=progress looks at several states in a row, but a study" in ended.err
    assert not (tmp_path / "out").exists()


def test_a_refused_study_leaves_no_folder_where_none_is_given(
    start, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    words = "task=mountaincar", "states=31"
    ended = start(words, lambda _: None, "epic", epic.check, epic.PLURAL)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "states is 31" in ended.err
    assert list(tmp_path.iterdir()) == []
