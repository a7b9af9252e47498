"""Rewards over time, against a loop over steps, episodes and views."""

import json

import numpy as np
import pytest
import torch

from vlmrm_exp import composition
from vlmrm_exp.config import ConfigError
from vlmrm_exp.envs import world_of
from vlmrm_exp.reward import Episodes, make_model
from vlmrm_exp.reward.clip import ClipReward
from vlmrm_exp.reward.over_time import checked

TASK = ("task=kneeling", "task.camera=fixed+side", "clip=nano", "compute=cpu")


@pytest.fixture
def of(compose):
    """Makes reward models, and closes them."""
    made = []

    def make(*words):
        made.append(make_model(compose(*TASK, *words)))
        return made[-1]

    yield make
    for model in made:
        model.close()


@pytest.fixture(scope="module")
def states() -> np.ndarray:
    """Six steps of two episodes; the fourth is as the third, so that nothing moves."""
    from vlmrm_exp.config import TaskConfig

    task = TaskConfig("kneeling", "humanoid", goal="kneeling", camera="fixed+side",
                      textures="realistic", episode_length=6)  # fmt: skip
    sampled = world_of(task).sample_states(task, 12, 0).states.reshape(6, 2, -1)
    sampled[3] = sampled[2]
    return sampled


@pytest.mark.slow
@pytest.mark.parametrize(("alpha", "steps"), [(0.0, 3), (0.5, 3), (0.0, 50)])
def test_mean_is_the_reward_of_the_mean_of_the_last_embeddings(
    of, states, alpha, steps
):
    words = f"alpha={alpha}", "baseline=a robot"
    model = of("reward=video", f"reward.options.steps={steps}", *words)
    found = model.rewards(Episodes(states=states))
    single = of(*words)
    seen = single.embeddings(states)
    for t in range(6):
        for n in range(2):
            means = []
            for view in range(2):
                total = sum(
                    seen[k, n, view] for k in range(max(t - steps + 1, 0), t + 1)
                )
                means.append(total / total.norm())
            expected = single._sentence(torch.stack(means)[None]).item()
            assert found[t, n] == pytest.approx(expected, abs=1e-5)


def test_one_step_is_the_reward_of_single_states(of, states):
    video = of("reward=video", "reward.options.steps=1")
    found = video.rewards(Episodes(states=states))
    expected = of().rewards(Episodes(states=states))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 2, 50])
def test_change_is_the_cosine_with_the_way_from_baseline_to_goal(of, states, steps):
    words = "prompt=a robot kneeling", "baseline=a standing robot"
    change = ("reward.options.of=change", f"reward.options.steps={steps}")
    found = of("reward=video", *change, *words).rewards(Episodes(states=states))
    single = of(*words)
    seen = single.embeddings(states)
    goal, start = single._sentence._goal, single._sentence._baseline
    for t in range(6):
        for n in range(2):
            cosines = []
            for view in range(2):
                moved = seen[t, n, view] - seen[max(t - steps, 0), n, view]
                product = (moved @ (goal - start)) / (goal - start).norm()
                cosines.append((product / moved.norm()).item() if moved.any() else 0)
            assert found[t, n] == pytest.approx(np.mean(cosines), abs=1e-4)
    assert (found[0] == 0).all()
    if steps == 1:
        assert (found[3] == 0).all()


def test_change_needs_two_sentences(of):
    words = "prompt=a robot", "baseline=a robot", "reward.options.of=change"
    with pytest.raises(ConfigError, match="so there is no way from one to the other"):
        of("reward=video", *words)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"of": "sum"}, "reward.options.of is 'sum', but must be one of mean, change"),
        ({"steps": 0}, "reward.options.steps is 0: give a whole number"),
        ({"step": 3}, "no option reward.options.step, only of, steps. Did you mean"),
    ],
)
def test_options_that_cannot_be_are_refused(options, told):
    with pytest.raises(ConfigError, match=told.replace(".", r"\.")):
        checked(options)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_learns_from_it(program, tmp_path, workers):
    words = ("experiment=smoke", "task=mountaincar", "clip=nano", "log=none",
             "reward=video", "reward.options.of=change", "reward.options.steps=5",
             f"compute.workers={workers}", f"hydra.run.dir={tmp_path}/run")  # fmt: skip
    ended = program(*words)
    assert ended.code == 0, ended.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert -1 <= summary["eval/reward_mean"] <= 1
    assert "changes nothing here: reward" not in ended.out


def test_studies_of_single_states_refuse_it():
    from vlmrm_exp import epic

    composed = composition.compose("epic", "task=kneeling", "reward=video", "out=x")
    with pytest.raises(ConfigError, match="but a study rewards single states"):
        epic.check(composed)


def test_it_is_clips_model(of):
    assert isinstance(of("reward=video"), ClipReward)
