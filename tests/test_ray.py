"""Reward workers as Ray actors, on a real cluster of several nodes on this machine."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from point_mass import point_mass, point_mass_config, read_metrics, trained
from vlmrm_exp.config import ConfigError, ForeignError
from vlmrm_exp.reward import Episodes
from vlmrm_exp.reward.worker import WorkerEnded
from vlmrm_exp.reward.workers import make_pool

ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402  # pyright: ignore

from vlmrm_exp.reward.ray_worker import RayWorker, cluster  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    # Ray leaves files and processes to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
HEAD = {
    "num_cpus": 1,
    "include_dashboard": False,
    # A node that is silent for 4 s is dead; until then one may be given an actor.
    "_system_config": {
        "health_check_initial_delay_ms": 0,
        "health_check_period_ms": 1000,
        "health_check_failure_threshold": 4,
    },
}


@pytest.fixture(scope="module")
def started():
    """A head and two more nodes, of one core each."""
    nodes = Cluster(initialize_head=True, head_node_args=HEAD)
    for _ in range(2):
        nodes.add_node(num_cpus=1)
    yield nodes
    nodes.shutdown()


@pytest.fixture
def nodes(started, monkeypatch):
    """The cluster, which is left as it was found: three nodes and no actors."""
    monkeypatch.setenv("RAY_ADDRESS", started.address)
    yield started
    assert not ray.is_initialized()
    for _ in range(2 - len(started.worker_nodes)):
        started.add_node(num_cpus=1)
    assert until(lambda: actors() == []), "actors are left"


def processes(above: int) -> dict[int, str]:
    """Ids and names of all processes below one."""
    found = {above: ""}
    for _ in range(4):  # its children, theirs and so on
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                pid, name, rest = re.split(r" \(|\) ", path.read_text(), maxsplit=2)
                if int(rest.split()[1]) in found and rest[0] != "Z":
                    found[int(pid)] = name
    del found[above]
    return found


def actors() -> list[int]:
    """Processes of this cluster in which an actor lives."""
    below = processes(os.getpid()).items()
    return [pid for pid, name in below if name.startswith("ray::Actor")]


def until(holds, seconds: float = 30) -> bool:
    """Wait for something; whether it came."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@contextlib.contextmanager
def opened(config, states):
    pool = make_pool(config, Episodes(states=states))
    try:
        yield pool
    finally:
        pool.close()


def on_ray(workers: int | None, model: str = "point_mass:Distance", **options):
    return point_mass_config(
        reward={"name": "own", "model": model, "options": options},
        compute={"pool": "ray", "workers": workers},
    )


def test_rewards_are_those_of_one_process_to_the_bit(nodes, compose):
    states = np.zeros((25, 6, 2))
    states[..., 0] = np.random.default_rng(0).uniform(-1.2, 0.6, (25, 6))
    rewards, handler = [], signal.getsignal(signal.SIGTERM)
    for words in (["compute.workers=0"], ["compute.pool=ray", "compute.workers=2"]):
        config = compose("task=mountaincar", "clip=nano", "compute=cpu", *words)
        with opened(config, states[:1]) as pool:
            assert signal.getsignal(signal.SIGTERM) is handler  # Ray has its own
            first = pool.submit(Episodes(states=states))
            second = pool.submit(Episodes(states=states[:2]))
            rewards += [(first(), second())]
    for local, remote in zip(*rewards, strict=True):
        np.testing.assert_array_equal(remote, local)


def test_what_a_lost_actor_or_node_had_is_rewarded_again(
    nodes, tmp_path, capsys, monkeypatch
):
    """Each is lost in the middle of a batch; nothing is lost or doubled."""
    states = np.random.default_rng(1).uniform(-1, 1, (9, 200, 2))
    config = on_ray(
        None, "ray_models:Slow", folder=str(tmp_path), seconds=[0, 0.5, 0, 3, 1000]
    )
    with opened(config, states[:1, :1]) as pool:

        def begun(call: int) -> dict[int, str]:
            """Processes that began a call, and their nodes."""
            files = (path.name.split("-") for path in tmp_path.iterdir())
            return {int(pid): node for pid, node, of in files if int(of) == call}

        def rewards_while(call: int, disturb) -> np.ndarray:
            wait = pool.submit(Episodes(states=states))
            assert until(lambda: len(begun(call)) == 3)
            disturb(begun(call))
            return wait()

        def kill_one(begun) -> None:
            os.kill(sorted(begun)[1], signal.SIGKILL)

        def remove_node(begun) -> None:
            removed = next(n for n in nodes.worker_nodes if n.node_id in begun.values())
            nodes.remove_node(removed, allow_graceful=False)

        expected = -np.abs(states[..., 0]).astype(np.float32)
        assert len(set(begun(0).values())) == 3  # one actor a node
        np.testing.assert_array_equal(rewards_while(1, kill_one), expected)
        told = capsys.readouterr()
        assert told.err == (
            "A reward worker was killed, as the system does where memory runs out: "
            "another one goes on.\n"
        )
        np.testing.assert_array_equal(pool.rewards(Episodes(states=states)), expected)
        np.testing.assert_array_equal(rewards_while(3, remove_node), expected)
        told = capsys.readouterr()
        lost = "A reward worker (was lost with its node|cannot be reached): another.*\n"
        assert re.fullmatch(lost, told.err)
        assert told.out == ""
        # Now those that were never replaced hang: one that was is at its second call.
        monkeypatch.setattr("vlmrm_exp.reward.crew.HANGS_S", 2)
        monkeypatch.setattr("vlmrm_exp.reward.crew.SLOW", 0)
        np.testing.assert_array_equal(pool.rewards(Episodes(states=states)), expected)
        assert "gave no answer within 2 s" in capsys.readouterr().err


def test_actors_follow_what_was_learned_and_no_more_is_under_way_than_asked(
    nodes, tmp_path, monkeypatch
):
    under_way, send = [], RayWorker.send

    def counted(self, message) -> None:
        send(self, message)
        under_way.append(len(self._answers))

    monkeypatch.setattr(RayWorker, "send", counted)
    learned = {"model": "point_mass:Learned"}
    trained(tmp_path / "here", reward=learned)
    compute = {"pool": "ray", "workers": 2}
    with point_mass(tmp_path / "ray", reward=learned, compute=compute) as parts:

        def save(state) -> None:
            if state.learned_steps == 320:
                os.kill(actors()[0], signal.SIGKILL)

        parts.train(save=save)
    assert read_metrics(tmp_path / "ray") == read_metrics(tmp_path / "here")
    assert max(under_way) == 2  # what was learned, and states


def test_actors_that_end_one_after_another_end_the_run(nodes, tmp_path):
    reward = {"name": "faulty", "model": "faulty:Reward", "options": {"fault": "die"}}
    with pytest.raises(ForeignError, match=r"one after another, .* memory runs out"):
        trained(tmp_path, reward=reward, compute={"pool": "ray", "workers": 1})


def test_what_is_wrong_in_an_actor_is_told_as_it_is(nodes):
    with pytest.raises(ConfigError, match=r"^There are no such weights: give others"):
        with opened(on_ray(1, "ray_models:Refuses"), np.zeros((1, 1, 2))):
            pass


def test_a_run_whose_own_node_is_lost_ends_and_does_not_wait(nodes, monkeypatch):
    example = Episodes(states=np.zeros((1, 1, 2)))
    with cluster(on_ray(1), example) as (_, start):
        monkeypatch.setattr(ray, "nodes", lambda: [])
        with pytest.raises(ForeignError, match="Ray has ended on this machine"):
            start(0)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense", "ray://127.0.0.1:1"])
def test_a_cluster_that_is_not_there_is_refused_soon(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=r"RAY_ADDRESS=.*give HOST:PORT of a cluster"):
        with opened(on_ray(1), np.zeros((1, 1, 2))):
            pass
    assert not ray.is_initialized()


def test_an_actor_for_each_gpu_of_the_cluster(nodes, monkeypatch, tmp_path):
    """GPUs that Ray is only told of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MUJOCO_GL", "osmesa")  # unlike the nodes
    example = Episodes(states=np.zeros((1, 1, 2)))
    node = nodes.add_node(num_cpus=3, num_gpus=2)
    try:
        with cluster(on_ray(None, "ray_models:Told"), example) as (count, start):
            assert count == 2
            workers = [start(number) for number in range(3)]
            facts = [(worker.answer(), worker.answer())[1] for worker in workers[:2]]
            monkeypatch.setattr("vlmrm_exp.reward.ray_worker.PLACED_S", 2)
            with pytest.raises(WorkerEnded, match="found no place in the Ray cluster"):
                workers[2].answer()
        seen = {"cwd": str(tmp_path), "MUJOCO_GL": "osmesa"}
        assert sorted(facts, key=lambda x: x["CUDA_VISIBLE_DEVICES"]) == [
            {"CUDA_VISIBLE_DEVICES": "0", "MUJOCO_EGL_DEVICE_ID": None, **seen},
            {"CUDA_VISIBLE_DEVICES": "1", "MUJOCO_EGL_DEVICE_ID": "1", **seen},
        ]
        with pytest.raises(
            ConfigError, match=r"workers is 3, .* the Ray cluster has 2"
        ):
            with opened(on_ray(3), example.states):
                pass
    finally:
        nodes.remove_node(node)


def test_a_run_with_a_cluster_of_its_own_leaves_nothing_behind(tmp_path):
    """Quiet on the terminal; a scheduler's signal reaches all, and a state is saved."""
    words = (
        "task=mountaincar clip=nano log=none compute=cpu compute.pool=ray "
        "compute.workers=1 task.episode_length=20 algo.num_envs=2 "
        "evaluation.episodes=2 evaluation.final_episodes=2 evaluation.video_episodes=0"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "vlmrm_exp", *words.split(),
         f"hydra.run.dir={tmp_path}"],
        cwd=tmp_path, start_new_session=True, text=True,
        env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    metrics = tmp_path / "metrics.jsonl"
    assert until(lambda: metrics.exists() and metrics.stat().st_size, 60)
    below = processes(process.pid)
    # Whether one that did not would end the run depends on the moment.
    for name in ("gcs_server", "raylet", "ray::Actor"):
        pid = next(pid for pid, of in below.items() if of.startswith(name))
        told = Path(f"/proc/{pid}/status").read_text()
        blocked = int(re.search(r"SigBlk:\s*(\w+)", told).group(1), 16)
        for number in (signal.SIGINT, signal.SIGTERM):
            assert blocked & 1 << (number - 1), f"{name} sees signal {number}"
    os.killpg(process.pid, signal.SIGTERM)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 75, told
    assert list((tmp_path / "checkpoints").glob("state*.pt"))
    assert "another one goes on" not in told
    assert "ray" not in told.lower().replace("compute.pool=ray", "")
    assert until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below))
