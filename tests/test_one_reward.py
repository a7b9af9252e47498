"""There is one reward: every way to it gives the same numbers.

Two prompts that are averaged, an alpha between 0 and 1, settings that are nobody's
default, and two views of a few humanoid states.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import studies
from vlmrm_exp import composition, epic, landscape, peak, prompts, score
from vlmrm_exp.config import Config
from vlmrm_exp.envs import world_of
from vlmrm_exp.pretraining import check as pretraining_check
from vlmrm_exp.reward import Episodes
from vlmrm_exp.reward.clip import ClipReward, Sentence
from vlmrm_exp.reward.workers import Workers, make_pool
from vlmrm_exp.rl.evaluation import play
from vlmrm_exp.studies import examine, state_sets
from vlmrm_exp.studies.rewards import rewarders
from vlmrm_exp.studies.settings import Study
from vlmrm_exp.studies.state_sets import StateSet
from vlmrm_exp.vlm.encoder import load_encoder
from vlmrm_exp.words import to_keys

pytestmark = pytest.mark.slow

OF_RUN = ("clip=nano", "compute=cpu", "clip.preprocess=squash", "renormalise=false",
          "clip.frame_height=128", "prompt=[a robot kneeling, a car on its knees]",
          "baseline=[a robot, a car]", "alpha=0.5")  # fmt: skip
TASK = ("task=kneeling", "task.camera=fixed+side")
SAME = {"rtol": 0, "atol": 1e-6}


@pytest.fixture(scope="module")
def config() -> Config:
    words = [*TASK, *OF_RUN, "task.episode_length=3", "compute.workers=1"]
    return studies.run_config(*words)


@pytest.fixture(scope="module")
def states(config) -> np.ndarray:
    """(T, N, 47): three steps of four poses that differ."""
    sampled = world_of(config.task).sample_states(config.task, 12, 0)
    return sampled.states.reshape(3, 4, -1)


@pytest.fixture(scope="module")
def pool(config, states):
    """In this process."""
    own = replace(config, compute=replace(config.compute, workers=0))
    pool = make_pool(own, Episodes(states=states[:1, :1]))
    assert not isinstance(pool, Workers)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def rewards(pool, states) -> np.ndarray:
    """(T, N): those that a run in one process learns from."""
    rewards = pool.rewards(Episodes(states=states))
    assert np.ptp(rewards) > 0.01
    return rewards


def test_of_workers(config, states, rewards):
    pool = make_pool(config, Episodes(states=states[:1, :1]))
    assert isinstance(pool, Workers)
    try:
        found = pool.rewards(Episodes(states=states))
    finally:
        pool.close()
    np.testing.assert_allclose(found, rewards, **SAME)


def test_of_evaluation(config, pool):
    envs = world_of(config.task).make_envs(config.task, 2, 1)
    act = lambda observation: np.full((len(observation), 17), 0.1, np.float32)  # noqa: E731
    played = play(envs, act, 2, seed=0, pool=pool, keep_states=2)
    envs.close()
    seen = np.stack(played.states, axis=1)
    assert seen.shape == (3, 2, 47)
    of_pool = pool.rewards(Episodes(states=seen))
    np.testing.assert_allclose(played.reward, of_pool, **SAME)


def asked(verb, tmp_path, *words: str) -> Study:
    folders = [f"cache={tmp_path}/cache", f"out={tmp_path}/out"]
    return studies.asked(verb, *words, *OF_RUN, *folders)


def state_set(study: Study, states: np.ndarray) -> StateSet:
    flat = states.reshape(-1, states.shape[-1])
    world = study.tasks[0].task.env
    return StateSet(world, np.full(len(flat), "x"), flat, group=np.arange(len(flat)))


def test_of_epic(tmp_path, states, rewards):
    study = asked(epic, tmp_path, *TASK)
    (rewarder,) = rewarders(study, study.tasks)
    jobs = study.jobs(study.tasks[0], rewarder.model)
    (found,) = rewarder.rewards(state_set(study, states), jobs)
    np.testing.assert_allclose(found, rewards.ravel(), **SAME)


def captured(monkeypatch, place: object, name: str) -> list[np.ndarray]:
    """The rewards that a function is given, first of all its arguments."""
    seen = []
    before = getattr(place, name)

    def instead(reward, *rest):
        seen.append(reward)
        return before(reward, *rest)

    monkeypatch.setattr(place, name, instead)
    return seen


def test_of_prompts(tmp_path, states, rewards, monkeypatch):
    study = asked(prompts, tmp_path, *TASK)
    goal = np.arange(states[..., 0].size) < 3
    one = state_sets.Examined(
        study.tasks[0], state_set(study, states), state_sets.Truth(goal, "here")
    )
    monkeypatch.setattr(study.asked, "resamples", 0)
    seen = captured(monkeypatch, state_sets, "agreement")
    monkeypatch.setattr(examine, "examine", lambda study: [one])
    result = examine.measure(study, prompts.variants)
    rows = result["rows"]
    assert rows[0]["sentence"] == "a robot kneeling / a car on its knees"
    assert len(seen) == len(rows) == 16
    np.testing.assert_allclose(seen[0], rewards.ravel(), **SAME)
    assert np.abs(seen[1] - rewards.ravel()).max() > 1e-3  # other sentences


def test_of_peak(tmp_path, states, rewards):
    study = asked(peak, tmp_path, *TASK)
    (job,) = study.jobs(study.tasks[0], study.models[0])
    model = ClipReward(job)
    try:
        found = peak.reward_of(model, states.reshape(-1, 47))
    finally:
        model.close()
    np.testing.assert_allclose(found, rewards.ravel(), **SAME)


def test_of_landscape(tmp_path):
    """Of the mountain, as it has no humanoid."""
    study = asked(landscape, tmp_path, "task=mountaincar", "states=5")
    (rewarder,) = rewarders(study, study.tasks)
    for panel in landscape.panels(study):
        (line,) = landscape._of_model(study, rewarder, panel)
        run = studies.run_config(
            "task=mountaincar", f"task.textures={line['textures']}", *OF_RUN
        )
        model = ClipReward(run)
        x = np.array(line["x"])
        seen = np.stack((x, np.zeros(5)), axis=1)[:, None]
        expected = model.rewards(Episodes(states=seen))[:, 0]
        model.close()
        np.testing.assert_allclose(line["reward"], expected, **SAME)


def test_of_score(config, states, rewards, tmp_path):
    """Pictures of single views, whose rewards are averaged here."""
    of_views = []
    for view in config.task.views:
        task = replace(config.task, camera=view)
        world = world_of(task)
        renderer = world.make_renderer(
            task, config.frame_height, config.clip.render_effects
        )
        frames = renderer.render(states.reshape(-1, 47))
        renderer.close()
        folder = tmp_path / view
        folder.mkdir()
        for i, frame in enumerate(frames):
            Image.fromarray(frame).save(folder / f"{i:02}.png")
        of_views.append(scored(folder, tmp_path / f"of_{view}"))
    assert np.abs(of_views[0] - of_views[1]).max() > 1e-3
    np.testing.assert_allclose(np.mean(of_views, axis=0), rewards.ravel(), **SAME)


def scored(pictures: Path, out: Path) -> np.ndarray:
    """The rewards that `python -m vlmrm_exp.score` gives pictures."""
    words = [str(pictures), *TASK[:1], *OF_RUN, f"out={out}"]
    keys = to_keys(words, score.PLURAL, files=True)
    asked = score.check(composition.compose("score", *keys))
    assert asked.columns[0].name == "a robot kneeling / a car on its knees"
    encoder = load_encoder(asked.jobs[0].clip, torch.device("cpu"))
    scores = score.score_pictures(asked, score.rewards_of(encoder, asked.jobs))
    assert scores.reward.shape == (12, 1)
    return scores.reward[:, 0]


def test_of_the_check_after_pretraining(config, states, rewards):
    encoder = load_encoder(config.clip, torch.device("cpu"))
    embeddings = pretraining_check._embed(encoder, config, states.reshape(-1, 47))
    found = Sentence(encoder, config)(embeddings).numpy()
    np.testing.assert_allclose(found, rewards.ravel(), **SAME)
