"""Where rewards are computed changes nothing, and errors arrive whole."""

import multiprocessing
import os
import signal
import time
from contextlib import suppress
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
import torch

from point_mass import (
    Distance,
    Learned,
    Progress,
    point_mass,
    point_mass_config,
    read_metrics,
    trained,
)
from vlmrm_exp.config import ConfigError, ForeignError
from vlmrm_exp.envs import world_of
from vlmrm_exp.envs.poses import ARMS, LEGS, PoseLibrary
from vlmrm_exp.reward import Episodes, worker
from vlmrm_exp.reward.workers import Workers, even_ends, make_pool
from vlmrm_exp.vlm.encoder import load_encoder


def states_of(count: int, episodes: int = 1) -> np.ndarray:
    """States (count, episodes, 2) of MountainCar."""
    states = np.zeros((count, episodes, 2))
    states[..., 0] = np.random.default_rng(0).uniform(-1.2, 0.6, (count, episodes))
    return states


def open_pool(config, states=None):
    example = states_of(1) if states is None else states
    return make_pool(config, Episodes(states=example))


def rewards_of(config, states: np.ndarray) -> np.ndarray:
    pool = open_pool(config, states[:1])
    try:
        return pool.rewards(Episodes(states=states))
    finally:
        pool.close()


@pytest.mark.slow
def test_workers_give_the_rewards_of_one_process_to_the_bit(compose):
    states = states_of(25, 6)  # 150: batches of 64, 64 and 22
    rewards = []
    for workers in (0, 2):
        config = compose("task=mountaincar", "clip=nano", f"compute.workers={workers}")
        pool = open_pool(config)
        first = pool.submit(Episodes(states=states))
        second = pool.submit(Episodes(states=states[:2]))
        alone = pool.rewards(Episodes(states=states[7:9]))  # while two are open
        rewards.append((first(), second(), alone))
        pool.close()
    for local, remote in zip(*rewards, strict=True):
        np.testing.assert_array_equal(remote, local)
    assert rewards[0][0].shape == (25, 6)
    np.testing.assert_allclose(rewards[0][0][:2], rewards[0][1], atol=1e-6)


def test_reward_equals_cosine_of_picture_and_sentence(compose):
    """The whole path, against encoder and renderer used by hand."""
    config = compose("task=mountaincar", "clip=nano", "compute.workers=0", "alpha=0")
    states = states_of(5)
    rewards = rewards_of(config, states)
    encoder = load_encoder(config.clip, torch.device("cpu"))
    make_renderer = world_of(config.task).make_renderer
    renderer = make_renderer(config.task, config.frame_height, False)
    images = encoder.embed_frames(renderer.render(states[:, 0]))
    text = encoder.embed_prompts([config.prompt])[0]
    np.testing.assert_allclose(rewards[:, 0], (images @ text).numpy(), atol=1e-6)


@pytest.mark.usefixtures("one_by_one")
def test_reward_of_several_views_is_the_mean_of_each(compose):
    library = PoseLibrary()
    states = np.stack(
        [library.state(legs, ARMS[i]) for i, legs in enumerate(LEGS[10:17])]
    )
    reward = {}
    for camera in ("fixed", "side", "fixed+side"):
        config = compose(
            "task=lotus",
            f"task.camera={camera}",
            "clip=nano",
            "clip.batch_size=5",  # of pictures: two views of two states
            "compute.workers=0",
            "alpha=0.4",
        )
        reward[camera] = rewards_of(config, states[:, None])
    assert np.abs(reward["fixed"] - reward["side"]).max() > 0.02
    mean = (reward["fixed"] + reward["side"]) / 2
    np.testing.assert_allclose(reward["fixed+side"], mean, atol=1e-6)


@pytest.mark.parametrize("renormalise", [True, False])
def test_several_prompts_and_baselines_are_averaged(compose, renormalise):
    """Against the formula of paper section 3.3, of mean embeddings by hand."""
    config = compose(
        "task=mountaincar",
        "clip=nano",
        "compute.workers=0",
        "prompt=[a car at the peak, a car next to the flag]",
        "baseline=[a car, a car in the mountain]",
        "alpha=0.5",
        f"renormalise={renormalise}",
    )
    states = states_of(5)
    rewards = rewards_of(config, states)[:, 0]
    encoder = load_encoder(config.clip, torch.device("cpu"))
    make_renderer = world_of(config.task).make_renderer
    renderer = make_renderer(config.task, config.frame_height, False)
    s = encoder.embed_frames(renderer.render(states[:, 0])).numpy()
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


@pytest.mark.parametrize(
    ("length", "size", "parts", "ends"),
    [
        (100, 16, 2, [48]),  # 48 and 52; by count of batches it would be 64 and 36
        (400, 8, 2, [200]),
        (10, 64, 2, [0]),  # one batch: one worker
        (50, 64, 4, [0, 0, 50]),
        (475, 64, 8, [64, 128, 192, 256, 320, 384, 448]),  # else one has 91
        (90, 1, 3, [30, 60]),
        (7, 3, 1, []),
    ],
)
def test_workers_get_shares_of_whole_batches_and_nearly_even(length, size, parts, ends):
    assert even_ends(length, size, parts).tolist() == ends


@pytest.mark.parametrize("every", [2, 3, 7])
def test_steps_that_are_not_rewarded_lie_between_their_neighbours(every):
    config = point_mass_config(reward={"every": every})
    states = np.random.default_rng(1).uniform(-1, 1, (5, 3, 2))
    pool = open_pool(config, states)
    exact = -np.abs(states[..., 0])
    np.testing.assert_allclose(pool.rewards(Episodes(states=states)), exact, rtol=1e-6)
    reward = pool.submit(Episodes(states=states), thin=True)()
    # By hand: the last of 5 steps is rewarded, and each `every`-th before it.
    at = {2: [0, 2, 4], 3: [1, 4], 7: [4]}[every]
    np.testing.assert_allclose(reward[at], exact[at], rtol=1e-6)
    if every == 2:
        np.testing.assert_allclose(reward[1], (exact[0] + exact[2]) / 2, rtol=1e-6)
        np.testing.assert_allclose(reward[3], (exact[2] + exact[4]) / 2, rtol=1e-6)
    if every == 3:
        between = exact[1] + (exact[4] - exact[1]) * [[1 / 3], [2 / 3]]
        np.testing.assert_allclose(reward[2:4], between, rtol=1e-5)
        np.testing.assert_allclose(reward[0], exact[1], rtol=1e-6)
    if every == 7:
        np.testing.assert_allclose(reward, np.tile(exact[4], (5, 1)), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_reward_that_is_not_finite_is_refused(bad):
    states = np.zeros((5, 3, 2))
    pool = open_pool(point_mass_config(), states)
    states[2, 1, 0] = bad
    wait = pool.submit(Episodes(states=states))
    with pytest.raises(FloatingPointError, match=r"step 3 of episode 2 .* 1 of 15 are"):
        wait()


@pytest.mark.slow
def test_answers_larger_than_a_pipe_do_not_block_and_none_are_empty():
    """Both ends of a pipe would wait if a worker answered while it is written to."""
    config = point_mass_config(compute={"workers": 2})
    pool = open_pool(config, np.zeros((1, 1, 2)))
    many = np.random.default_rng(0).random((120_001, 1, 2))
    asked = (many, many[::-1], many[:3])
    waits = [pool.submit(Episodes(states=states)) for states in asked]
    for wait, states in zip(waits, asked, strict=True):
        np.testing.assert_array_equal(wait(), -states[..., 0].astype(np.float32))
    pool.close()


class Flat(Distance):
    def rewards(self, episodes):
        return super().rewards(episodes).mean(axis=1, keepdims=True)


def test_a_model_that_gives_one_reward_for_several_episodes_is_refused():
    config = point_mass_config(reward={"model": "test_pool:Flat"})
    with pytest.raises(ForeignError, match=r"shape \(4, 1\) for 4 steps of 3 episodes"):
        open_pool(config, np.zeros((4, 3, 2)))


@pytest.mark.slow
def test_a_model_that_sees_time_gets_whole_episodes_in_any_process():
    """Also where others are asked for a part of the steps."""
    states = np.random.default_rng(2).uniform(-1, 1, (6, 5, 2))
    expected = Progress(None).rewards(Episodes(states=states))
    assert expected[0].any() == False  # noqa: E712  nothing came before
    np.testing.assert_allclose(
        expected[3, 4], abs(states[2, 4, 0]) - abs(states[3, 4, 0]), rtol=1e-5
    )
    for workers in (0, 2):
        config = point_mass_config(
            reward={"model": "point_mass:Progress", "every": 3},
            compute={"workers": workers},
        )
        pool = open_pool(config, states[:1])
        reward = pool.submit(Episodes(states=states), thin=True)()
        pool.close()
        np.testing.assert_array_equal(reward, expected)


@pytest.mark.slow
def test_learning_goes_before_rewards():
    config = point_mass_config(compute={"workers": 1})
    pool = open_pool(config, np.ones((1, 1, 2)))
    assert isinstance(pool, Workers)
    try:
        own, *theirs = (
            os.getpriority(os.PRIO_PROCESS, pid)
            for pid in (os.getpid(), *(one._process.pid for one in pool._crew.workers))
        )
    finally:
        pool.close()
    assert theirs == [min(own + 10, 19)]


class Memory:
    """Twelve states that are 1 each."""

    reward = None

    def episodes(self) -> Episodes:
        return Episodes(states=np.ones((4, 3, 2)))

    def set_rewards(self, reward: np.ndarray) -> None:
        self.reward = reward


@pytest.mark.slow
def test_workers_follow_what_a_model_has_learned():
    for workers in (0, 1):
        config = point_mass_config(
            reward={"model": "point_mass:Learned"}, compute={"workers": workers}
        )
        pool = open_pool(config, np.ones((1, 1, 2)))
        memory = Memory()
        before = pool.submit(memory.episodes(), thin=True)()
        assert pool.learn(memory) == {"reward/weight": 12.0}
        assert before.tolist() == np.full((4, 3), -1).tolist()
        assert memory.reward.tolist() == np.full((4, 3), -12).tolist()
        saved = pool.state_dict()
        pool.close()
        again = open_pool(config, np.ones((1, 1, 2)))
        again.load_state_dict(saved)
        np.testing.assert_array_equal(again.rewards(memory.episodes()), memory.reward)
        again.close()


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_prompt_that_reads_as_its_baseline_is_refused(compose, workers):
    config = compose(
        "clip=nano",
        "prompt=a car",
        "baseline=A CAR",  # the same to a tokenizer
        "alpha=0.5",
        f"compute.workers={workers}",
    )
    with pytest.raises(ConfigError, match="same embedding"):
        open_pool(config)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("clipp", "Did you mean clip?"),
        ("nowhere:Model", "there is no module nowhere: give"),
        (":Model", "which is no module:NAME"),
        ("os:path", "no subclass of"),
        ("point_mass:Nothing", "point_mass has no Nothing: give"),
        ("test_pool:Late", "says window=3 in its instance and window=1 in its class"),
        (
            "test_pool:Found",
            "type property, not int: set it in the class, as window = 1",
        ),
        ("test_pool:Asked", "says online=True and cheap=False: set cheap = True"),
        ("test_pool:Blind", "says remembers=True and needs_states=False: set needs_"),
    ],
)
def test_a_reward_model_that_cannot_be_is_refused(model, words):
    with pytest.raises(ConfigError, match=r"reward\.model is") as caught:
        open_pool(point_mass_config(reward={"model": model}), np.zeros((1, 1, 2)))
    assert words in str(caught.value)


@pytest.mark.slow
def test_a_worker_refuses_what_is_set_too_late_as_well():
    reward = {"model": "test_pool:Late"}
    config = point_mass_config(reward=reward, compute={"workers": 1})
    with pytest.raises(ConfigError, match="window=3 in its instance"):
        open_pool(config, np.zeros((1, 1, 2)))


class Late(Distance):
    def __init__(self, config):
        super().__init__(config)
        self.window = 3


class Found(Distance):
    @property
    def window(self):
        return 3


class Asked(Distance):
    online = True


class Blind(Learned):
    needs_states = False


@pytest.mark.parametrize(
    ("task", "at_goal", "elsewhere"),
    [
        ("mountaincar", [0.5, 0.0], [0.4, 0.0]),
        ("cartpole", [0.0, 0.0, 0.1, 0.0], [0.0, 0.0, 0.3, 0.0]),
    ],
)
def test_predicate_is_the_worlds(compose, task, at_goal, elsewhere):
    config = compose(f"task={task}", "reward=predicate")
    reward = rewards_of(config, np.array([[at_goal, elsewhere]]))
    assert reward.tolist() == [[1.0, 0.0]]


def test_a_task_without_a_predicate_has_no_such_reward(compose):
    config = compose("task=kneeling", "reward=predicate")
    with pytest.raises(ConfigError, match="has no predicate"):
        compose("task=kneeling", "task.goal=", "reward=predicate")
    config.task.goal = ""
    with pytest.raises(ConfigError, match="has no predicate"):
        open_pool(config, np.zeros((1, 1, 47)))


def test_states_alone_have_no_reward_of_the_environment(compose):
    config = compose("task=mountaincar", "reward=environment")
    with pytest.raises(ConfigError, match="states alone"):
        open_pool(config)


def faulty(fault: str, workers: int, **options):
    options = {"fault": fault, **options}
    reward = {"name": "faulty", "model": "faulty:Reward", "options": options}
    return {"reward": reward, "compute": {"workers": workers}}


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("make", r"failed when it was made \(FileNotFoundError: .*/nowhere/model.bin"),
        ("raise", r"failed in rewards \(KeyError: 'weight'\)"),
        ("connection", r"in rewards \(ConnectionResetError: the server went away\)"),
        ("pipe", r"in rewards \(BrokenPipeError: the server went away\)"),
        ("exit", r"in rewards \(SystemExit: 0\)"),
        ("none", "it gave NoneType, not an array of real numbers"),
        ("complex", "it gave complex64, not an array of real numbers"),
        ("shape", r"it gave rewards of shape \(\d+,\) for \d+ steps"),
        ("metric", "its metric env_steps does not begin with reward/"),
        ("update", r"failed in update \(ValueError: nothing to learn\)"),
    ],
)
def test_what_a_reward_of_ones_own_does_wrong_is_one_sentence(
    tmp_path, fault, sentence
):
    with pytest.raises(ForeignError, match=f"^faulty:Reward .*{sentence}") as told:
        trained(tmp_path, **faulty(fault, 0))
    assert "\n" not in str(told.value)
    assert told.value.__cause__ is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("exit", r"failed in rewards \(SystemExit: 0\)"),
        ("connection", "failed in rewards .*the server went away"),
        ("empty", "failed in state_dict .* workers would never learn"),
        ("lambda", "failed in state_dict .*pickle"),
        ("load", r"failed in load_state_dict \(KeyError: 'weight'\)"),
    ],
)
def test_what_goes_wrong_in_a_worker_is_told(tmp_path, fault, sentence):
    with pytest.raises(ForeignError, match=f"faulty:Reward {sentence}"):
        trained(tmp_path, **faulty(fault, 1))


def test_rewards_too_large_for_float32_are_blamed_on_their_model(tmp_path):
    with pytest.raises(FloatingPointError, match=r"-inf at step.*reward=faulty gave"):
        trained(tmp_path, **faulty("huge", 0))


def test_a_model_may_fill_its_own_array_again(tmp_path):
    for fault in ("buffer", "nothing"):
        trained(tmp_path / fault, **faulty(fault, 0))
    assert read_metrics(tmp_path / "buffer") == read_metrics(tmp_path / "nothing")


def test_facts_that_no_file_can_hold_are_refused(tmp_path):
    with point_mass(tmp_path, **faulty("about", 0)) as parts:
        with pytest.raises(ForeignError, match=r"in about .*not JSON serializable"):
            parts.pool.about()


def test_a_close_that_fails_spoils_no_result(tmp_path, capsys):
    trained(tmp_path, **faulty("close", 0))
    assert "faulty:Reward failed in close" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["die at first", "die once", "hang"])
def test_a_worker_that_ends_or_hangs_is_replaced(tmp_path, monkeypatch, capsys, fault):
    monkeypatch.setattr("vlmrm_exp.reward.crew.HANGS_S", 1)
    monkeypatch.setattr("vlmrm_exp.reward.crew.SLOW", 0)
    trained(tmp_path / "whole", **faulty("nothing", 0))
    trained(tmp_path / "cut", **faulty(fault, 1, folder=str(tmp_path)))
    told = capsys.readouterr().err
    how = "gave no answer within 1" if fault == "hang" else "was killed by SIGKILL"
    assert f"A reward worker {how}" in told
    assert "another one goes on" in told
    assert read_metrics(tmp_path / "cut") == read_metrics(tmp_path / "whole")


@pytest.mark.slow
def test_workers_that_end_one_after_another_end_the_run(tmp_path):
    with pytest.raises(ForeignError, match=r"one after another.*SIGKILL, .*memory"):
        trained(tmp_path, **faulty("die", 1))


@pytest.mark.slow
def test_a_worker_in_anothers_place_knows_what_was_learned():
    config = point_mass_config(
        reward={"model": "point_mass:Learned"}, compute={"workers": 2}
    )
    pool, memory = open_pool(config, np.ones((1, 1, 2))), Memory()
    pool.submit(memory.episodes(), thin=True)()
    pool.learn(memory)
    pool._crew.workers[1].kill()
    np.testing.assert_array_equal(pool.rewards(memory.episodes()), np.full((4, 3), -12))
    pool.close()


@pytest.mark.long
def test_workers_do_not_see_what_stops_a_run_whoever_started_their_helper():
    kill_helper()
    multiprocessing.set_forkserver_preload(["vlmrm_exp.reward.worker"])
    forkserver.ensure_running()
    config = point_mass_config(
        compute={"workers": 1}, reward={"model": "point_mass:Distance"}
    )
    pool = open_pool(config, np.zeros((1, 1, 2)))
    [process] = pool._crew.workers
    status = Path(f"/proc/{process._process.pid}/status").read_text()
    blocked = int(status.partition("SigBlk:")[2].split()[0], 16)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        assert blocked >> (number - 1) & 1
    pool.close()
    kill_helper()


def kill_helper() -> None:
    """End the process that forks workers, if there is one."""
    if (process := forkserver._forkserver._forkserver_pid) is not None:
        os.kill(process, signal.SIGKILL)
        os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)


@pytest.mark.slow
@pytest.mark.parametrize(
    "trouble",
    [
        "the helper is killed",
        pytest.param("it dies at first", marks=pytest.mark.long),
        pytest.param("its socket has no place", marks=pytest.mark.long),
    ],
)
def test_workers_start_without_the_helper_that_forks_them(
    tmp_path, monkeypatch, capfd, trouble
):
    kill_helper()  # that of the tests before
    # What these workers need; models are imported besides, which takes seconds.
    monkeypatch.setattr(worker, "PRELOADED", ["vlmrm_exp.reward.worker"])
    if trouble == "it dies at first":
        (tmp_path / "fatal.py").write_text(
            "import os, pathlib\n"
            f"died = pathlib.Path({str(tmp_path / 'died')!r})\n"
            "if not died.exists():\n"
            "    died.touch()\n"
            "    os.kill(os.getpid(), 9)\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(worker, "PRELOADED", ["fatal"])
    if trouble == "its socket has no place":
        folder = tmp_path / ("long" * 30)
        folder.mkdir()
        told = multiprocessing.current_process()._config
        monkeypatch.setitem(told, "tempdir", str(folder))
    reward = {"model": "point_mass:Distance"}
    config = point_mass_config(compute={"workers": 2}, reward=reward)
    states = np.random.default_rng(0).uniform(-1, 1, (6, 3, 2))
    pool = open_pool(config, states[:1])
    if trouble == "the helper is killed":
        kill_helper()
    else:
        assert (tmp_path / "died").exists() == (trouble == "it dies at first")
    pool._crew.workers[1]._process.kill()
    found = pool.rewards(Episodes(states=states))
    np.testing.assert_array_equal(found, -np.abs(states[..., 0]).astype(np.float32))
    first = pool._crew.workers[0]._process.pid
    os.kill(first, signal.SIGSTOP)
    pool.close()
    with suppress(FileNotFoundError):
        for _ in range(600):  # it is being ended, and then nobody may care
            if (state := Path(f"/proc/{first}/stat").read_text().split()[2]) == "Z":
                break
            time.sleep(0.05)
        assert state == "Z"
    assert "another one goes on" in capfd.readouterr().err
    kill_helper()  # that of this test
