"""Scoring in processes of its own equals scoring in place, and errors arrive whole."""

import contextlib
from functools import partial

import numpy as np
import pytest

from vlmrm_exp.config import ConfigError
from vlmrm_exp.envs import make_envs, make_renderer
from vlmrm_exp.envs.poses import ARMS, LEGS, PoseLibrary
from vlmrm_exp.vlm import scorer as scorer_module
from vlmrm_exp.vlm.scorer import make_scorer


def rows_of(config, count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    rows = np.zeros((count, 2))
    rows[:, 0] = rng.uniform(-1.2, 0.6, count)
    return rows


def open_scorer(config):
    envs = make_envs(config.task, 1)
    envs.reset(0)
    draw = partial(
        make_renderer, config.task, config.frame_height, config.clip.render_effects
    )
    return make_scorer(config, draw, envs.state_rows())


@pytest.mark.slow
def test_workers_give_the_rewards_of_one_process(compose):
    rows = rows_of(None, 50)
    rewards = []
    for workers in (0, 2):
        config = compose("task=mountaincar", f"compute.scorer_workers={workers}")
        scorer = open_scorer(config)
        first, second = scorer.submit(rows), scorer.submit(rows[:7])
        alone = scorer.score(rows[7:9])  # while two tickets are open
        rewards.append((scorer.result(first), scorer.result(second), alone))
        scorer.close()
    # The same chunks of rows would be bit-equal; shares of 25 are chunked otherwise.
    for local, remote in zip(*rewards, strict=True):
        np.testing.assert_allclose(remote, local, atol=1e-6)
    np.testing.assert_allclose(rewards[0][0][:7], rewards[0][1], atol=1e-6)


def test_reward_equals_cosine_of_picture_and_sentence(compose):
    """The whole path, against encoder and renderer used by hand."""
    import torch

    from vlmrm_exp.vlm.encoder import load_encoder

    config = compose("task=mountaincar", "compute.scorer_workers=0", "alpha=0")
    scorer = open_scorer(config)
    rewards = scorer.score(rows_of(config, 5))
    scorer.close()
    encoder = load_encoder(config.clip, torch.device("cpu"))
    renderer = make_renderer(config.task, config.frame_height, effects=False)
    images = encoder.embed_frames(renderer.render(rows_of(config, 5)))
    text = encoder.embed_prompts([config.prompt])[0]
    np.testing.assert_allclose(rewards, (images @ text).numpy(), atol=1e-6)


@pytest.mark.usefixtures("one_by_one")
def test_reward_of_several_views_is_the_mean_of_each(compose):
    library = PoseLibrary()
    rows = np.stack([library.row(legs, ARMS[i]) for i, legs in enumerate(LEGS[10:17])])
    reward = {}
    for camera in ("fixed", "side", "fixed+side"):
        config = compose(
            "task=lotus",
            f"task.camera={camera}",
            "clip=nano",
            "clip.batch_size=5",  # of pictures: two views of two states
            "compute.scorer_workers=0",
            "alpha=0.4",
        )
        scorer = open_scorer(config)
        reward[camera] = scorer.score(rows)
        scorer.close()
    assert np.abs(reward["fixed"] - reward["side"]).max() > 0.02
    mean = (reward["fixed"] + reward["side"]) / 2
    np.testing.assert_allclose(reward["fixed+side"], mean, atol=1e-6)


@pytest.mark.parametrize("renormalise", [True, False])
def test_several_prompts_and_baselines_are_averaged(compose, renormalise):
    """Against the formula of paper section 3.3, of mean embeddings by hand."""
    import torch

    from vlmrm_exp.vlm.encoder import load_encoder

    config = compose(
        "task=mountaincar",
        "compute.scorer_workers=0",
        "prompt=[a car at the peak, a car next to the flag]",
        "baseline=[a car, a car in the mountain]",
        "alpha=0.5",
        f"renormalise={renormalise}",
    )
    scorer = open_scorer(config)
    rewards = scorer.score(rows_of(config, 5))
    scorer.close()
    encoder = load_encoder(config.clip, torch.device("cpu"))
    renderer = make_renderer(config.task, config.frame_height, effects=False)
    s = encoder.embed_frames(renderer.render(rows_of(config, 5))).numpy()
    g, b = (
        encoder.embed_prompts(texts).mean(dim=0).numpy()
        for texts in (config.prompts, config.baselines)
    )
    if renormalise:
        g, b = g / np.linalg.norm(g), b / np.linalg.norm(b)
    unit = (g - b) / np.linalg.norm(g - b)
    projected = b + np.outer((s - b) @ unit, unit)
    expected = 1 - ((0.5 * projected + 0.5 * s - g) ** 2).sum(axis=1) / 2
    np.testing.assert_allclose(rewards, expected, atol=1e-5)


def echo(config, make_renderer, example, pipe) -> None:
    """Answers as a worker does, with the rows' first numbers for rewards."""
    pipe.send("loaded")
    pipe.send({})
    with contextlib.suppress(EOFError):
        while True:
            pipe.send(pipe.recv()[:, 0].astype(np.float32))


def test_answers_larger_than_a_pipe_do_not_block(compose, monkeypatch):
    """Both ends of a pipe would wait if a worker answered while it is written to."""
    monkeypatch.setattr(scorer_module, "_serve", echo)
    config = compose("compute.scorer_workers=2")
    scorer = scorer_module.WorkerScorer(config, None, rows_of(config, 1))
    rows = np.random.default_rng(0).random((120_001, 2)).astype(np.float32)
    tickets = [scorer.submit(rows), scorer.submit(rows[::-1]), scorer.submit(rows[:3])]
    for ticket, expected in zip(tickets, (rows, rows[::-1], rows[:3]), strict=True):
        np.testing.assert_array_equal(scorer.result(ticket), expected[:, 0])
    scorer.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_prompt_that_reads_as_its_baseline_is_refused(compose, workers):
    config = compose(
        "prompt=a car",
        "baseline=A CAR",  # the same to a tokenizer
        "alpha=0.5",
        f"compute.scorer_workers={workers}",
    )
    with pytest.raises(ConfigError, match="same embedding"):
        open_scorer(config)
