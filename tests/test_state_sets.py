"""Where states come from, and what labels them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from studies import forbid
from vlmrm_exp.config import ConfigError
from vlmrm_exp.envs import humanoid, world_of
from vlmrm_exp.envs.goals import GOALS
from vlmrm_exp.rl.checkpoint import save_policy
from vlmrm_exp.rl.rollout import collect
from vlmrm_exp.rl.sac import SAC
from vlmrm_exp.studies import state_sets
from vlmrm_exp.studies.state_files import (
    labels_of,
    picture_states,
    save_states,
    stored_states,
)
from vlmrm_exp.studies.state_sets import StateSet, Truth, sample, truth_of

pytestmark = pytest.mark.slow


def test_cart_pole_grid_is_uniform_over_angle_and_position(compose):
    config = compose("task=cartpole")
    sampled = sample(config.task, 3600)
    states = sampled.states
    assert len(sampled) == len(states) == 3600
    assert len({tuple(state) for state in states}) == 3600
    for column, reach, bins in ((0, 2.4, 3), (2, np.pi, 4)):
        counts, _ = np.histogram(states[:, column], bins, (-reach, reach))
        assert set(counts) == {3600 // bins}
    truth = truth_of(config, sampled)
    # 24 of 360 degrees, whatever the position: all carts are inside the walls.
    assert truth.goal.mean() == pytest.approx(24 / 360, abs=0.01)
    np.testing.assert_array_equal(truth.goal, np.abs(states[:, 2]) <= np.deg2rad(12))
    np.testing.assert_allclose(truth.graded, -np.abs(states[:, 2]))


def test_mountain_car_grid_runs_over_the_track(compose):
    config = compose("task=mountaincar")
    states = sample(config.task, 1801)
    np.testing.assert_allclose(np.diff(states.states[:, 0]), 0.001)
    assert (states.states[0, 0], states.states[-1, 0]) == (-1.2, 0.6)
    truth = truth_of(config, states)
    np.testing.assert_array_equal(truth.goal, states.states[:, 0] >= 0.45)
    np.testing.assert_array_equal(truth.graded, states.states[:, 0])


def test_humanoid_states_are_those_of_the_seed_and_are_kept(
    compose, tmp_path, monkeypatch
):
    task = compose("task=kneeling").task
    states = sample(task, 300, seed=3, kept=tmp_path)
    counts = {s: int((states.source == s).sum()) for s in set(states.source)}
    assert counts == {"tasks": 120, "poses": 90, "falls": 30, "random": 60}
    assert states.states.shape == (300, 47)
    assert np.isfinite(states.states).all()
    np.testing.assert_allclose(np.linalg.norm(states.states[:, 3:7], axis=1), 1, 1e-6)
    for name in GOALS:  # goals and others of every task
        truth = truth_of(compose(f"task={name}"), states)  # refuses one class
        assert 3 <= truth.goal.sum() <= 150, name
        assert truth.graded is None
    again, other = sample(task, 100, seed=3), sample(task, 100)
    assert not np.isin(again.states[:, 2], other.states[:, 2]).any()
    np.testing.assert_array_equal(sample(task, 100, seed=3).states, again.states)
    forbid(monkeypatch, humanoid, "sample_states")
    again = sample(task, 300, seed=3, kept=tmp_path)
    np.testing.assert_array_equal(again.states, states.states)
    np.testing.assert_array_equal(again.source, states.source)
    with pytest.raises(AssertionError, match="forbidden"):
        sample(task, 300, seed=4, kept=tmp_path)


def make_run(folder: Path, config, names: tuple[str, ...], seed: int = 0) -> Path:
    """A run's folder with untrained policies."""
    envs = world_of(config.task).make_envs(config.task, 1, 1)
    folder.mkdir()
    OmegaConf.save(OmegaConf.structured(config), folder / "config.yaml")
    for i, name in enumerate(names):
        agent = SAC(
            config.algo,
            envs.observation_space,
            envs.action_space,
            seed + i,
            torch.device("cpu"),
        )
        checkpoint = {**agent.checkpoint(), "env_steps": i}
        save_policy(folder / "checkpoints" / f"{name}.pt", checkpoint)
    return folder


def test_half_of_the_states_are_those_of_the_policies_of_runs(tmp_path, compose):
    config = compose("task=kneeling", "algo.hidden=[8]")
    run = make_run(tmp_path / "run", config, ("best", "last"))
    arguments = dict(runs=[run], kept=tmp_path / "kept")
    states = sample(config.task, 120, **arguments)
    assert len(states) == 120
    visited = states.source == "policies"
    policies = states.states[visited]
    assert len(policies) == 60
    assert len(np.unique(policies, axis=0)) == 60
    # Two episodes of each policy; a pose has a group of its own.
    groups = states.group[visited]
    assert len(set(groups[:30])) == len(set(groups[30:])) == 2
    assert not set(groups[:30]) & set(groups[30:])
    assert len(set(states.group[states.source == "poses"])) == 18
    again = sample(config.task, 120, **arguments)
    np.testing.assert_array_equal(again.group, states.group)
    # Other checkpoints in the same folder are another set of states.
    make_run(tmp_path / "other", config, ("best",), seed=9)
    (tmp_path / "other" / "checkpoints" / "best.pt").replace(
        run / "checkpoints" / "best.pt"
    )
    changed = sample(config.task, 120, **arguments)
    assert not np.array_equal(changed.states, states.states)


def test_as_many_episodes_are_played_as_states_are_asked(tmp_path, compose):
    config = compose("task=kneeling", "algo.hidden=[8]", "task.episode_length=12")
    run = make_run(tmp_path / "run", config, ("best", "last"))
    played = [(config.task, policy) for policy in state_sets._policies(run)]
    states, group = state_sets._policy_states(played, 161, seed=0)
    assert len(np.unique(states, axis=0)) == 161
    assert len(set(group)) == 14  # 7 episodes of 12 steps for 81 states, and for 80
    # Each state is one that its policy visits, in the episode of its group.
    rng = np.random.default_rng([0, 1])
    for i, size in enumerate((81, 80)):
        envs = world_of(config.task).make_envs(config.task, 7, 1)
        seed = int(rng.integers(2**31))
        visited = collect(envs, played[i][1].act, seed=seed).states
        rng.choice(84, size, replace=False)
        for state, episode in zip(
            states[81 * i :][:size], group[81 * i :], strict=False
        ):
            assert (visited[:, episode - 7 * i] == state).all(axis=1).any()


def test_a_run_that_ended_at_its_best_has_one_policy(tmp_path, compose):
    config = compose("task=kneeling", "algo.hidden=[8]")
    run = make_run(tmp_path / "run", config, ("best", "last"))
    assert len(state_sets._policies(run)) == 2
    folder = run / "checkpoints"
    (folder / "last.pt").write_bytes((folder / "best.pt").read_bytes())
    assert len(state_sets._policies(run)) == 1


def test_a_damaged_checkpoint_is_refused_before_anything_is_sampled(
    tmp_path, compose, monkeypatch
):
    config = compose("task=kneeling", "algo.hidden=[8]")
    run = make_run(tmp_path / "run", config, ("best",))
    (run / "checkpoints" / "best.pt").write_bytes(b"nothing")
    forbid(monkeypatch, humanoid, "sample_states")
    with pytest.raises(ConfigError, match="is not a policy"):
        sample(config.task, 100, runs=[run])


def test_runs_that_cannot_be_played_are_refused(tmp_path, compose):
    task = compose("task=kneeling").task
    with pytest.raises(ConfigError, match="no folder"):
        sample(task, 100, runs=[tmp_path / "nowhere"])
    empty = make_run(tmp_path / "empty", compose("task=kneeling"), ())
    with pytest.raises(ConfigError, match="no checkpoint in"):
        sample(task, 100, runs=[empty])
    other = make_run(tmp_path / "other", compose("task=mountaincar"), ("best",))
    with pytest.raises(
        ConfigError, match="is of mountaincar, which is of another world"
    ):
        sample(task, 100, runs=[other])
    with pytest.raises(ConfigError, match="leave runs out"):
        sample(compose("task=cartpole").task, 100, runs=[tmp_path])


def test_a_task_without_predicate_is_refused(compose):
    config = compose("task=kneeling")
    config = replace(config, task=replace(config.task, goal=""))
    states = StateSet("humanoid", np.full(2, "x"), np.zeros((2, 47)))
    with pytest.raises(ConfigError, match="no predicate"):
        truth_of(config, states)
    with pytest.raises(ConfigError, match="at least 100"):
        sample(compose("task=cartpole").task, 12)


def test_a_set_of_one_class_is_refused(compose):
    rows = np.zeros((5, 2))
    states = StateSet("mountain_car", np.full(5, "x"), rows)
    with pytest.raises(ConfigError, match="None of the 5 states of task=mountaincar"):
        truth_of(compose("task=mountaincar"), states)


def test_stored_states_come_back(tmp_path, compose):
    task = compose("task=mountaincar").task
    states = sample(task, 100)
    goal = np.arange(100) > 50
    save_states(tmp_path / "s.npz", states, {"mountaincar": Truth(goal, "people")})
    again, truth = stored_states(tmp_path / "s.npz", task)
    np.testing.assert_array_equal(truth.goal, goal)
    assert truth.labelled_by == "people"
    np.testing.assert_array_equal(again.states, states.states)
    np.testing.assert_array_equal(again.source, states.source)
    assert again.world == "mountain_car"
    assert again.group is None
    save_states(tmp_path / "g.npz", replace(states, group=np.arange(100) // 4), {})
    grouped, truth = stored_states(tmp_path / "g.npz", task)
    assert truth is None
    np.testing.assert_array_equal(grouped.group, np.arange(100) // 4)
    (tmp_path / "s.npz").write_bytes((tmp_path / "s.npz").read_bytes()[:300])
    with pytest.raises(ConfigError, match="damaged"):
        stored_states(tmp_path / "s.npz", task)


@pytest.mark.parametrize("arrays", [{"foo": 1}, {"source": "x", "states": 1.0}])
def test_kept_states_of_another_kind_are_made_anew(tmp_path, compose, arrays):
    task = compose("task=kneeling").task
    states = sample(task, 100, kept=tmp_path).states
    (kept,) = tmp_path.iterdir()
    np.savez(kept, **arrays)
    np.testing.assert_array_equal(sample(task, 100, kept=tmp_path).states, states)


def pictures(folder: Path, count: int = 3) -> StateSet:
    for i in range(count):
        Image.new("RGB", (4, 4), (i, i, i)).save(folder / f"f{i}.png")
    (folder / "notes.txt").write_text("no picture")
    return picture_states(folder)


def test_labels_of_pictures_and_of_stored_states(tmp_path):
    states = pictures(tmp_path)
    assert [f.name for f in states.files] == ["f0.png", "f1.png", "f2.png"]
    file = tmp_path / "labels.csv"
    # Any order, further columns, a byte-order mark, spaces.
    file.write_text("\ufefflabel, file,who\n1,f2.png,me\n0, f0.png,me\n0,f1.png,me\n")
    truth = labels_of(file, states)
    assert truth.goal.tolist() == [False, False, True]
    assert truth.labelled_by == str(file)
    rows = StateSet("mountain_car", np.full(2, "x"), np.zeros((2, 2)))
    file.write_text("\n ,\nindex,label,\n1,0.0,\n0,1.0,,\n")
    assert labels_of(file, rows).goal.tolist() == [True, False]


def test_one_name_in_two_spellings_is_one_file(tmp_path):
    """A file system may part a letter from its dots, and a spreadsheet not."""
    for name in ("u\u0308.png", "b.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    file = tmp_path / "labels.csv"
    file.write_text("file,label\n\u00fc.png,1\nb.png,0\n")
    assert labels_of(file, picture_states(tmp_path)).goal.tolist() == [False, True]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no file of labels"),
        ("", "needs the columns file and label, but has none"),
        ("file,goal\nf0.png,1\n", "but has file, goal"),
        ("file,label\nf0.png,yes\n", "line 2: the label is 'yes'"),
        ("file,label\nf0.png\n", "line 2: the label is ''"),
        ("file,label\nf0.png,1\nf0.png,0\n", "line 3: .* a second time"),
        ('file,label,who\nf0.png,1,"a\nb"\n\nf1.png,2,c\n', "line 5: the label is"),
        ("file,label\nf0.png,1\nf1.png,0\n", "2 labels for 3 states .* f2.png has"),
        (
            "file,label\nf0.png,1\nf1.png,0\nf2.png,0\nf9.png,0\n",
            "f9.png, which is not",
        ),
        ("file,label\nf0.png,1\nf1.png,1\nf2.png,1\n", "All of the 3 states"),
        (b"\xff\xfe\x00", "not in UTF-8: save it as CSV UTF-8"),
        ("file;label\nf0.png;1\n", "file and label, between commas, but has file;l"),
        ("file,label,label\nf0.png,1,0\n", "has two columns label"),
        ("file,label\nf0.png,1,0\n", "line 2: there are more cells than columns"),
        ("file,label\n/a/f0.png,1\n", "/a/f0.png, .* names without folders"),
    ],
)
def test_labels_that_do_not_fit_are_refused_in_one_sentence(tmp_path, text, words):
    states = pictures(tmp_path)
    file = tmp_path / "labels.csv"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=words) as caught:
        labels_of(file, states)
    assert "\n" not in str(caught.value)


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no pictures"):
        picture_states(tmp_path)
    with pytest.raises(ConfigError, match=r"no folder .*nowhere"):
        picture_states(tmp_path / "nowhere")
