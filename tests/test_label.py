"""`python -m vlmrm_exp.label` without a browser: what is shown, written and refused."""

import contextlib
import csv
import hashlib
import http.client
import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from scipy.stats import binomtest

pytest.importorskip("nicegui")
pytest.importorskip("nltk")

from nicegui import Client
from nicegui.page import page as page_at

from vlmrm_exp import composition, evaluate, report
from vlmrm_exp import label as verb
from vlmrm_exp.config import ConfigError, FolderTakenError
from vlmrm_exp.envs import world_of
from vlmrm_exp.files import lock, sha256
from vlmrm_exp.label import check, label, page_of
from vlmrm_exp.labelling.page import Desk, Guard, Labelling
from vlmrm_exp.labelling.raters import Raters
from vlmrm_exp.labelling.shown import Item, Played, Session, episodes_of
from vlmrm_exp.rl.dqn import QNetwork
from vlmrm_exp.rl.sac import Actor
from vlmrm_exp.settings import resolved
from vlmrm_exp.studies.pictures import PictureFile, read_pictures
from vlmrm_exp.studies.settings import check_out
from vlmrm_exp.studies.state_files import labels_of, picture_states, stored_states
from vlmrm_exp.words import to_keys
from worlds import composed

pytestmark = pytest.mark.slow


def asked(*words: str) -> verb.Asked:
    return check(composition.compose("label", *to_keys(list(words), {})))


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Six pictures whose red says whether they are goals: 0, 2 and 4 are."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(6):
        image = Image.new("RGB", (2000, 500), (255 * (i % 2 == 0), 40 * i, 0))
        image.save(folder / f"{i}.png")
    return folder


def say(asked: verb.Asked, **labels: dict[str, int]) -> None:
    """Let raters label, as the page would; they begin with what they see first."""
    held = json.loads((asked.out / "items.json").read_text())["items"]
    names = [f"{x['run']}#{x['name']}" if x["run"] else x["name"] for x in held]
    values = (0, 25, 50, 75, 100) if asked.buckets else (0, 1)
    raters = Raters(asked.out, names, values, asked.settings.seed)
    for name, said in labels.items():
        key = raters.key(name)
        rater = raters.by_key.get(key) or raters.by_key[raters.join(name)]
        while item := rater.current:
            if item in said:
                assert rater.label(item, said[item], 1.0)
            elif rater.skipped + len(rater.labels) == len(names):
                break
            else:
                rater.skip(item)
    raters.close()


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_pictures_are_labelled_and_epic_reads_the_labels(pictures, tmp_path, capsys):
    out = tmp_path / "out"
    words = "task=kneeling", f"frames={pictures}", f"out={out}", "serve=false"
    assert label(asked(*words)) == {}
    assert "Nobody has labelled" in capsys.readouterr().out
    shown = {path.name: path for path in (out / "shown").iterdir()}
    assert len(shown) == 6
    # Else a browser that keeps files would show an earlier session's.
    assert all(path.stem == sha256(path)[:16] for path in shown.values())
    for item in json.loads((out / "items.json").read_text())["items"]:
        image = Image.open(shown[item["file"]])
        assert image.size == (1280, 320)  # what a screen shows, in its proportions
        color = int(item["name"][0]) * 40
        assert image.getpixel((9, 9)) == (255 * (color % 80 == 0), color, 0)

    truth = {f"{i}.png": int(i % 2 == 0) for i in range(6)}
    other = truth | {"0.png": 0, "1.png": 1}
    say(asked(*words), Ada=truth, Bo=other)
    result = label(asked(*words))
    told = capsys.readouterr().out
    assert f"epic task=kneeling frames={pictures} labels={out}/label.csv" in told
    assert rows(out / "label.csv")[:2] == [
        {"file": "0.png", "label": "0", "raters": "2", "goals": "1"},  # a tie
        {"file": "1.png", "label": "0", "raters": "2", "goals": "1"},
    ]
    states = picture_states(pictures)
    goal = labels_of(out / "label.csv", states).goal
    np.testing.assert_array_equal(goal, [False, False, True, False, True, False])
    (ada,) = out.glob("label-ada-*.csv")
    np.testing.assert_array_equal(labels_of(ada, states).goal, [1, 0, 1, 0, 1, 0])
    (pair,) = result["pairs"]
    # Half of each rater's labels are goals, so chance is .5: (4/6 - .5) / .5.
    assert pair["cohen_kappa"] == pytest.approx(1 / 3)
    assert [row["item"] for row in result["differences"]] == ["0.png", "1.png"]
    assert "predicate" not in result["differences"][0]
    with Image.open(out / "label.png") as sheet:
        assert sheet.width > 500

    page = report.report(report.ReportConfig([str(out)])).read_text()
    assert "Label: out" in page
    assert "Ada: 1, Bo: 0" in page
    assert "cohen_kappa" in page


def test_sampled_states_are_kept_with_the_predicates_word(tmp_path, capsys):
    out = tmp_path / "out"
    words = ("task=mountaincar", "states=100", f"out={out}", "serve=false",
             f"cache={tmp_path}/cache")  # fmt: skip
    label(asked(*words))
    first = asked(*words)
    states, judged = stored_states(out / "states-mountain_car.npz", first.task.task)
    assert judged is None
    of_set = asked(words[0], f"state_set={out}/states-mountain_car.npz")
    (digest,) = of_set.contents.values()
    assert digest == sha256(out / "states-mountain_car.npz")
    renderer = world_of(first.task.task).make_renderer(first.task.task, 400, True)
    frames = renderer.render(states.states[:3])
    renderer.close()
    items = json.loads((out / "items.json").read_text())["items"]
    for item in items:
        row = int(item["name"])
        if row < len(frames):
            with Image.open(out / "shown" / item["file"]) as image:
                np.testing.assert_array_equal(np.asarray(image), frames[row])
        assert item["goal"] == (states.states[row, 0] >= 0.45)  # the flag's place
    # Ada says what the predicate says, but for one state.
    said = {item["name"]: int(item["goal"]) for item in items}
    odd = next(name for name, goal in said.items() if not goal)
    say(first, Ada={**said, odd: 1})
    result = label(asked(*words))
    assert [row["item"] for row in result["differences"]] == [odd]
    assert result["raters"][0]["agreement_with_predicate"] == pytest.approx(0.99)
    assert "labels=" in capsys.readouterr().out
    goal = labels_of(out / "label.csv", states).goal
    assert goal.sum() == sum(said.values()) + 1


@pytest.fixture
def run(tmp_path) -> Callable[..., Path]:
    """A run of CartPole whose policy pushes right where controller @ o > 0."""

    def made(name: str, controller: list[float]) -> Path:
        folder = tmp_path / name
        keys = ("task=cartpole", "clip=nano", "compute=cpu", "log=none", "name=test",
                "task.episode_length=30", "algo.num_envs=3", "algo.hidden=[2]",
                "reward=environment")  # fmt: skip
        cfg = composition.compose("config", *keys).cfg
        (folder / "checkpoints").mkdir(parents=True)
        OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
        network = QNetwork(4, 2, [2])
        for weights in network.parameters():
            torch.nn.init.zeros_(weights)
        first, last = network.net[0], network.net[2]
        assert isinstance(first, torch.nn.Linear)
        assert isinstance(last, torch.nn.Linear)
        with torch.no_grad():
            first.weight[0], first.weight[1] = (
                torch.tensor(controller), -torch.tensor(controller)
            )  # fmt: skip
            last.weight[1, 0] = last.weight[0, 1] = 1.0
        policy = {"algo": "dqn", "observation_dim": 4, "env_steps": 1, "hidden": [2],
                  "squash_observations": False, "action": {"count": 2},
                  "policy": network.state_dict()}  # fmt: skip
        torch.save(policy, folder / "checkpoints" / "best.pt")
        return folder

    return made


def test_episodes_are_those_that_evaluate_judges(run, tmp_path, capsys):
    good, bad = run("good", [0.05, 0.1, 1.0, 0.3]), run("bad", [0.0, 0.0, -1.0, 0.0])
    out = tmp_path / "out"
    words = f"videos=[{good},{bad}]", "episodes=4", f"out={out}", "serve=false"
    label(asked(*words))
    held = json.loads((out / "items.json").read_text())["items"]
    for folder, success in ((good, True), (bad, False)):
        mine = [item for item in held if item["run"] == str(folder)]
        judged = evaluated(folder, "episodes=4")["per_episode"]
        assert [item["goal"] for item in mine] == judged["success"] == 4 * [success]
        assert [item["share"] for item in mine] == judged["goal_share"]
    videos = sorted((out / "shown").iterdir())
    assert len(videos) == 8
    assert all(path.stem == sha256(path)[:16] for path in videos)
    frames = list(read_pictures(PictureFile(videos[0], "video")))
    assert len(frames) == 30  # one for each step, and no title or reward
    assert frames[0].pixels.shape[1] == 600
    assert not any(word in videos[0].read_bytes() for word in (b"good", b"cartpole"))

    names = [f"{item['run']}#{item['name']}" for item in held]
    say(asked(*words), Ada={name: int("good#" in name) for name in names})
    result = label(asked(*words))
    assert [(x["success"], x["success_by_predicate"]) for x in result["success"]] == [
        (1, 1), (0, 0)
    ]  # fmt: skip
    assert result["success"][0]["success_low"] == pytest.approx(0.51, abs=0.01)
    policy = hashlib.sha256((good / "checkpoints" / "best.pt").read_bytes())
    assert rows(out / "label.csv")[0] == {
        "run": str(good), "episode": "0", "policy": policy.hexdigest(), "label": "1",
        "raters": "1", "goals": "1", "predicate": "1", "predicate_share": "1.0",
        "rater:Ada": "1",
    }  # fmt: skip
    assert "Ada" in capsys.readouterr().out


def evaluated(folder: Path, *words: str) -> dict:
    """What evaluate says, and what it says to whom it refuses."""
    words = ("video=false", "compute.workers=0", *words)
    keys = composition.compose("evaluate", f"run={folder}", *words)
    return evaluate.evaluate(*evaluate.check(keys))


def test_evaluate_tells_what_people_say_of_the_same_episodes(run, tmp_path, capsys):
    mixed, bad = run("mixed", [-1, 0, 1, 0]), run("bad", [0.0, 0.0, -1.0, 0.0])
    out, csv = tmp_path / "out", tmp_path / "out" / "label.csv"
    words = f"videos=[{bad},{mixed}]", "episodes=5", f"out={out}", "serve=false"
    label(asked(*words))
    goal = evaluated(mixed, "episodes=5")["per_episode"]["success"]
    assert 1 < sum(goal) < 5
    # Bo says the opposite of the first two, and has not seen the last.
    ada = {f"{mixed}#{i}": int(said) for i, said in enumerate(goal)}
    bo = {key: said ^ (i < 2) for i, (key, said) in enumerate(ada.items()) if i < 4}
    say(asked(*words), Ada=ada, Bo=bo | {f"{bad}#0": 1})
    label(asked(*words))
    command = f"python -m vlmrm_exp.evaluate run={mixed} labels={csv} checkpoint=best"
    assert command in capsys.readouterr().out

    result = evaluated(mixed, "episodes=7", f"labels={csv}")
    told = capsys.readouterr().out
    assert f"What people say of these episodes ({csv})" in told
    assert "majority" in told
    people = json.loads((mixed / "evaluation-2.json").read_text())["people"]
    assert people == json.loads(json.dumps(result["people"]))
    decided = [False, False, *goal[2:]]  # ties are no success
    for row, said, truth in zip(
        people["raters"],
        (goal, [bo[f"{mixed}#{i}"] for i in range(4)], decided),
        (goal, goal[:4], goal),
        strict=True,
    ):
        assert row["goals"] == sum(said)
        assert row["share"] == pytest.approx(sum(said) / len(said))
        interval = binomtest(sum(said), len(said)).proportion_ci(0.95, "wilson")
        assert (row["share_low"], row["share_high"]) == pytest.approx(tuple(interval))
        same = [bool(a) == b for a, b in zip(said, truth, strict=True)]
        assert row["agreement_with_predicate"] == pytest.approx(np.mean(same))
    (success,) = people["success"]  # nothing of the other run
    assert (success["run"], success["episodes"]) == (str(mixed), 5)
    assert success["success"] == pytest.approx(sum(decided) / 5)
    assert success["success_by_predicate"] == pytest.approx(sum(goal) / 5)
    assert people["pairs"][0]["agreement"] == 0.5
    assert evaluated(bad, f"labels={csv}")["people"]["raters"][0]["rater"] == "Bo"
    mixed.rename(tmp_path / "elsewhere")  # a run is known by its policy
    assert evaluated(tmp_path / "elsewhere", f"labels={csv}")["people"]["pairs"]


def test_labels_of_two_runs_with_the_same_policy_are_told_apart(run, tmp_path):
    folder, copied = (run(name, [0.05, 0.1, 1.0, 0.3]) for name in ("run", "copied"))
    of_videos = f"videos=[{folder},{copied}]", f"out={tmp_path}/out", "serve=false"
    label(asked(*of_videos, "episodes=2"))
    said = {f"{folder}#0": 1, f"{folder}#1": 1, f"{copied}#0": 0, f"{copied}#1": 0}
    say(asked(*of_videos, "episodes=2"), Ada=said)
    label(asked(*of_videos, "episodes=2"))
    csv = f"labels={tmp_path}/out/label.csv"
    for one, success in ((folder, 1), (copied, 0)):
        (row,) = evaluated(one, csv)["people"]["success"]
        assert (row["episodes"], row["success"]) == (2, success)
    copied.rename(tmp_path / "moved")
    (row,) = evaluated(tmp_path / "moved", csv)["people"]["success"]
    assert (row["episodes"], row["success"]) == (2, 1)  # of the first


def test_labels_of_other_episodes_are_refused(run, pictures, tmp_path):
    folder, other = (
        run("run", [0.05, 0.1, 1.0, 0.3]),
        run("other", [0.0, 0, 1, 0]),
    )
    csv = tmp_path / "videos" / "label.csv"
    of_videos = f"videos=[{folder}]", "episodes=3", f"out={csv.parent}", "serve=false"
    label(asked(*of_videos))
    say(asked(*of_videos), Ada={f"{folder}#2": 1})
    label(asked(*of_videos))
    of_files = f"frames={pictures}", f"out={tmp_path}/files", "serve=false"
    label(asked(*of_files))
    say(asked(*of_files), Ada={"0.png": 1})
    label(asked(*of_files))
    by_hand = tmp_path / "by_hand.csv"
    by_hand.write_text(csv.read_text()[:-2] + "yes\n")
    first, line, *_ = csv.read_text().splitlines()
    odd = {"twice.csv": [line, line], "none.zip": []}
    odd["below.csv"] = [line.replace(",2,", ",-1,", 1)]
    for name, lines in odd.items():
        (tmp_path / name).write_text("\n".join([first, *lines]) + "\n")
    empty = tmp_path / "empty.csv"
    empty.write_text(csv.read_text()[:-2] + "\n")
    for where, labels, words, told in (
        (other, csv, [], f"no labels of episodes of this policy.*but of {folder}"),
        (folder, tmp_path / "files/label.csv", [], "has no column run"),
        (folder, tmp_path / "nowhere.csv", [], "nowhere.csv cannot be read"),
        (folder, by_hand, [], "changed by hand .*'yes'"),
        (folder, empty, [], "no rater who labelled"),
        (folder, tmp_path / "twice.csv", [], "changed by hand .*2 is no new one"),
        (folder, tmp_path / "below.csv", [], "changed by hand .*-1 is no new one"),
        (folder, tmp_path / "none.zip", [], "none.zip has no labels"),
        (folder, csv, ["seed=5"], "people label episodes of seed 1000000"),
        (folder, csv, ["episodes=2"], "give episodes=3 or more"),
        (folder, csv, ["checkpoint=random"], "no effect with checkpoint=random"),
    ):
        with pytest.raises(ConfigError, match=told):
            evaluated(where, f"labels={labels}", *words)
    trained_on = torch.load(folder / "checkpoints" / "best.pt", weights_only=True)
    torch.save(trained_on | {"env_steps": 2}, folder / "checkpoints" / "best.pt")
    with pytest.raises(ConfigError, match="trained on since has other episodes"):
        evaluated(folder, f"labels={csv}")
    assert not list(folder.glob("evaluation*"))
    with pytest.raises(FolderTakenError, match=f"another content of {folder} than"):
        asked(*of_videos)


def test_how_many_episodes_are_shown_does_not_change_them(tmp_path):
    """A network rounds otherwise for more observations, and a humanoid falls so."""
    config = composed("task=kneeling", "clip=nano", "task.episode_length=20")
    envs = world_of(config.task).make_envs(config.task, 1, 1)
    low, high = envs.action_space.low, envs.action_space.high
    observed = envs.observation_space.shape[-1]
    envs.close()
    torch.manual_seed(0)
    policy = {"algo": "sac", "observation_dim": observed, "env_steps": 1,
              "hidden": [256, 256], "squash_observations": False,
              "action": {"low": low.tolist(), "high": high.tolist()},
              "policy": Actor(observed, len(low), [256, 256]).state_dict()}  # fmt: skip
    torch.save(policy, tmp_path / "best.pt")
    run = Played("run", config, tmp_path / "best.pt", 7)
    few, many = list(episodes_of(run, 2)), list(episodes_of(run, 17))
    assert (len(few), len(many)) == (2, 17)
    for one, same in zip(few, many[:2], strict=True):
        np.testing.assert_array_equal(one[0], same[0])


def test_five_buckets_where_they_are_asked_for(run, tmp_path):
    folder = run("run", [0.05, 0.1, 1.0, 0.3])
    words = (f"videos=[{folder}]", "episodes=2", f"out={tmp_path}/out", "serve=false",
             "scale=buckets", "question=Upright, [all] the time?")  # fmt: skip
    mine = asked(*words)
    assert mine.question == "Upright, [all] the time?"
    label(mine)
    say(mine, Ada={f"{folder}#0": 25, f"{folder}#1": 50})
    label(asked(*words))
    assert [(x["label"], x["percent"]) for x in rows(tmp_path / "out/label.csv")] == [
        ("0", "25"), ("1", "50")
    ]  # fmt: skip
    told = evaluated(folder, f"labels={tmp_path}/out/label.csv")["people"]
    (success,) = told["success"]
    assert (success["success"], success["mean_percent"]) == (0.5, 37.5)
    assert success["mean_percent_by_predicate"] == 100


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("frames=FOLDER states=5", "states is 5, but has no effect with frames"),
        ("frames=FOLDER cache=c", "cache is c, but has no effect with frames"),
        ("state_set=a.npz cache=c", "cache is c, but has no effect with state_set"),
        ("videos=[FOLDER] cache=c", "cache is c, but has no effect with videos"),
        ("cache='' states=100", "cache is empty"),
        ("frames=nowhere", "There is no folder nowhere"),
        ("states=5", "states is 5: give at least 100"),
        ("videos=[nowhere]", "There is no folder nowhere"),
        ("videos=[FOLDER]", "is not the folder of a run"),
        ("scale=buckets frames=FOLDER", "scale=buckets is of videos"),
        ("scale=stars frames=FOLDER", "scale is 'stars'"),
        ("port=70000 frames=FOLDER", "port is 70000"),
        ("question='' frames=FOLDER", "question is empty"),
        ("out=FOLDER/0.png frames=FOLDER", "is a file"),
        ("task=gym task.env_id=Pendulum-v1 frames=FOLDER", "What should raters look"),
        ("name=foo frames=FOLDER", "name is .*, but has no effect with label"),
        ("clip=nano frames=FOLDER", "clip is nano, but has no effect with label"),
        ("clip.batch_size=3", "clip.batch_size is 3, but has no effect with label"),
        ("prompt=hello frames=FOLDER", "prompt is 'hello', but has no effect with"),
        ("videos=[FOLDER] log=none", "log is none, but has no effect with label"),
        ("videos=[FOLDER] task.hold=3", "task.hold is 3, but has no effect with vid"),
        ("task=kneeling task.goal= frames=FOLDER", "What should raters look for in"),
        ("task=mountaincar task.goal=left_hilltop frames=FOLDER", "What should raters"),
        ("task=kneel_then_stand frames=FOLDER", "What should raters look for in task"),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused_in_a_sentence(pictures, words, told):
    with pytest.raises(ConfigError, match=told):
        asked(*(word.replace("FOLDER", str(pictures)).replace("''", "")
                for word in words.split()))  # fmt: skip


def test_raters_are_asked_for_the_goal_and_not_for_the_tasks_name(pictures):
    found = asked("task=kneeling", "task.goal=splits", f"frames={pictures}")
    assert "side splits" in found.question


def test_goals_in_order_are_reached_or_not(tmp_path):
    """Their share of steps says nothing: the last of them is held for some steps."""
    config = composed("task=kneel_then_stand", "clip=nano")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.pt").touch()
    (tmp_path / "config.yaml").write_text(resolved(config))
    words = f"videos=[{tmp_path}]", "question=Kneels, then stands?"
    assert not asked(*words).buckets
    with pytest.raises(ConfigError, match="reached by its goals in order"):
        asked(*words, "scale=buckets")


def test_a_folder_goes_on_with_its_own_settings_alone(pictures, tmp_path):
    words = [f"frames={pictures}", f"out={tmp_path}/out", "serve=false"]
    label(asked(*words))
    items, shown = tmp_path / "out" / "items.json", tmp_path / "out" / "shown"
    made = [path.stat().st_mtime_ns for path in sorted(shown.iterdir())]
    label(asked(*words, "port=9000"))  # nothing is made anew
    assert [path.stat().st_mtime_ns for path in sorted(shown.iterdir())] == made
    with pytest.raises(FolderTakenError, match="begun with question=Both knees"):
        asked(*words, "question=Is it blue?")
    with pytest.raises(ConfigError, match=r"holds items.json already"):
        check_out(composition.compose("label", f"out={tmp_path}/out"))
    Image.new("RGB", (9, 9)).save(pictures / "3.png")
    with pytest.raises(FolderTakenError, match=f"another content of {pictures} than"):
        asked(*words)
    held = json.loads(items.read_text())
    del held["about"][f"SHA-256 of {pictures}"]  # as an older version wrote it
    items.write_text(json.dumps(held))
    asked(*words)
    next(shown.iterdir()).unlink()
    with pytest.raises(ConfigError, match=r"\.png, which raters are shown, is missing"):
        asked(*words)
    for text in ("{}", '{"about": [], "items": []}'):
        items.write_text(text)
        with pytest.raises(ConfigError, match=r"items.json cannot be read"):
            asked(*words)


def test_a_name_that_label_csv_cannot_hold_is_refused(pictures):
    (pictures / "0.png").rename(pictures / "b\udcff.png")
    with pytest.raises(ConfigError, match=r"holds b\?\.png, whose name is not UTF-8"):
        asked(f"frames={pictures}")


def test_one_server_at_a_time_and_a_taken_port_are_told(pictures, tmp_path):
    words = [f"frames={pictures}", f"out={tmp_path}/out"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"at 127.0.0.1:{port}"):
            label(asked(*words, f"port={port}"))
    (tmp_path / "out").mkdir()  # nothing was made for the other
    with (tmp_path / "out" / ".lock").open("w") as file:
        lock(file)
        told = r"another process just now: wait for its end, or give another out="
        for word in ("port=0", "serve=false"):  # the other may be making pictures
            with pytest.raises(FolderTakenError, match=told):
                label(asked(*words, word))
    label(asked(*words, "serve=false"))
    say(asked(*words), Ada={"0.png": 1})
    (ada,) = (tmp_path / "out" / "raters").iterdir()
    begun = {ada: ada.read_text() + '{"time"', ada.with_name("bo.jsonl"): '{"rat'}
    for path, text in begun.items():
        path.write_text(text)
    with (tmp_path / "out" / ".lock").open("w") as file:
        lock(file)
        label(asked(*words, "serve=false"))  # beside a server that is writing
    assert {path: path.read_text() for path in begun} == begun
    assert rows(tmp_path / "out" / "label.csv")[0]["label"] == "1"


def test_no_page_opens_without_its_token(pictures, tmp_path):
    """Not even on this machine: a web site may let its name point here."""
    mine = asked(f"frames={pictures}", f"out={tmp_path}/out", "serve=false")
    raters = Raters(mine.out, ["0.png"], (0, 1), 0)
    for host in ("127.0.0.1", "::1", "0.0.0.0", "192.0.2.7", "2001:db8::1"):
        page = page_of(mine, [], raters, (host, 80))
        assert len(page.token) == 32
        assert page.link().endswith(f":80/?token={page.token}")
        assert page.link("k").endswith(f":80/rate/k?token={page.token}")
    assert page.address == "http://[2001:db8::1]:80"
    raters.close()


def test_a_raters_window_takes_what_its_page_sends_and_nothing_else(tmp_path):
    items = [Item("0", "0.png"), Item("1", "1.png")]
    raters = Raters(tmp_path, ["0", "1"], (0, 1), 0)
    key = raters.join("Ada")
    ada = raters.by_key[key]
    page = Labelling(items, tmp_path, raters, "Red?", False, "right", "http://far:80")
    with Client(page_at("/")) as client:
        desk = Desk(page, ada, key)
        for told in (
            None, [], {"turn": "1"}, {"turn": "2", "seconds": 1},
            {"turn": "1", "seconds": None}, {"turn": "1", "seconds": "2"},
            {"turn": "1", "seconds": float("nan")}, {"turn": "1", "seconds": 10**400},
        ):  # fmt: skip
            desk._pressed(1, told)
        assert not ada.labels
        desk._pressed(1, {"turn": "1", "seconds": 2})
    assert list(ada.labels.values()) == [1]
    props = [element.props for element in client.elements.values()]
    # Reached in whatever way, as through an SSH tunnel, a rater's own link works.
    links = [one["href"] for one in props if "href" in one]
    assert links == [f"/rate/{key}?token=right"]
    keys = " ".join(one["data-keys"] for one in props if "data-keys" in one)
    assert keys == "0 1 u backspace s"  # and no arrows, which videos need
    client.delete()
    raters.close()


@contextlib.contextmanager
def served(application) -> "contextlib.Iterator[int]":
    """A real server on a free port of this machine."""
    import uvicorn

    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(application, log_level="warning", lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


async def anybody(scope, receive, send):
    """An application that answers whoever gets to it."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"inside"})


def test_nothing_is_served_without_the_token():
    upgrade = {
        "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }  # fmt: skip

    def get(path: str, **headers: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        answer.body = answer.read() if answer.status != 101 else b""
        connection.close()
        return answer

    with served(Guard(anybody, "right")) as port:
        for path in ("/", "/shown/x.png", "/?token=", "/?token=wrong", "/?token=%FF"):
            answer = get(path)
            assert (answer.status, b"inside" in answer.body) == (403, False)
            assert b"link with the token" in answer.body
        assert get("/", Cookie="token_right=wrong").status == 403
        assert get("/socket", **upgrade).status == 403
        answer = get("/rate/k?token=right")
        assert (answer.status, answer.getheader("location")) == (303, "/rate/k")
        cookie = answer.getheader("set-cookie")
        assert "HttpOnly" in cookie
        assert "samesite=lax" in cookie.lower()
        held = {"Cookie": cookie.partition(";")[0]}
        assert get("/shown/x.png", **held).body == b"inside"
        assert get("/socket", **upgrade, **held).status == 101


def test_an_unfinished_session_is_made_whole(pictures, tmp_path):
    """Killed while pictures were made: nothing says that they are all there."""
    out = tmp_path / "out"
    words = f"frames={pictures}", f"out={out}", "serve=false"
    broken = pictures / "9.png"
    broken.write_bytes(b"no picture")
    mine = asked(*words)
    with pytest.raises(ConfigError, match=r"9\.png"):
        label(mine)
    assert (out / "shown").exists()
    assert Session(out, mine.about()).items is None
    broken.unlink()
    label(asked(*words))
    assert len(list((out / "shown").iterdir())) == 6
