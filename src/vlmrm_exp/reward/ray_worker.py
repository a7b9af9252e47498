"""Reward workers as Ray actors, on any number of GPUs and nodes: the only user of ray.

    crew.Crew -> RayWorker -> [node of the cluster: Actor -> worker.life]

An actor does what a worker process does; what a pipe carries are calls here. Which
actor gets which states is the pool's business, and who takes the place of a lost one is
the crew's.
"""

import contextlib
import functools
import logging
import os
import pickle
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

import ray  # pyright: ignore[reportMissingImports]
from ray import exceptions  # pyright: ignore[reportMissingImports]
from ray.util.scheduling_strategies import (  # pyright: ignore[reportMissingImports]
    NodeAffinitySchedulingStrategy,
)

from vlmrm_exp.config import MAX_WORKERS, Config, ConfigError, ForeignError, cores
from vlmrm_exp.files import reason
from vlmrm_exp.reward import Episodes
from vlmrm_exp.reward.worker import WorkerEnded, blocked_interrupts, life

REACH_S = 10  # for a cluster's head to be reached; Ray itself tries for a quarter hour
PLACED_S = 300  # a node that was lost, or one that is started on demand, takes minutes
KEPT = "MUJOCO_GL PYOPENGL_PLATFORM LIBGL_ALWAYS_SOFTWARE HF_HUB_OFFLINE".split()
"""Environment of this process that holds on all nodes: rewards depend on it."""
LOST = ("was lost with its node", "cannot be reached")


class Actor:
    """A worker's life on some node of the cluster."""

    def __init__(self, folder: str, path: list[str], arguments: bytes) -> None:
        """Be as a spawned process: in the same folder, with the same modules.

        This node may not have the folder. The arguments are those of `life`, pickled.
        """
        if os.path.isdir(folder):
            os.chdir(folder)
        sys.path.extend(entry for entry in path if entry not in sys.path)
        gpus = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
        if gpus and gpus[0].isdigit() and gpus[0] != "0":
            # OpenGL would draw on the first GPU for all actors of a node.
            os.environ.setdefault("MUJOCO_EGL_DEVICE_ID", gpus[0])
        self._life = life(*pickle.loads(arguments))

    def placed(self) -> None:
        """Answered as soon as there is a process."""

    def answer(self, message: bytes) -> bytes | None:
        """What `life` answers to a pickled message."""
        return self._life.send(pickle.loads(message))


class RayWorker:
    """This end of an actor, spoken to as a `worker.Process` is."""

    def __init__(self, arguments: bytes, gpu: bool, number: int) -> None:
        self._arguments = os.getcwd(), sys.path, arguments
        self._gpu = gpu
        self._number = number
        self._ended: WorkerEnded | None = None
        self._begin()

    def _begin(self) -> None:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        here = ray.get_runtime_context().get_node_id()
        if here not in [node["NodeID"] for node in nodes]:  # it would wait for ever
            raise ForeignError(
                "Ray has ended on this machine, so that rewards cannot be computed."
            )
        # Ray's own SPREAD was seen to put all on one node. Evenly, then, one for each
        # GPU or core; elsewhere if others have taken it, or if the node is lost.
        resource, options = ("GPU", {"num_gpus": 1}) if self._gpu else ("CPU", {})
        places = sorted(
            (of_node, node["NodeID"])
            for node in nodes
            for of_node in range(int(node["Resources"].get(resource, 0)))
        )
        where: Any = "DEFAULT"
        if places:
            _, node = places[self._number % len(places)]
            where = NodeAffinitySchedulingStrategy(
                node, soft=True, _spill_on_unavailable=True
            )
        # Without num_cpus it needs a free core only to be placed, so that one that
        # takes another's place finds one on the nodes that are left.
        kind: Any = ray.remote(Actor).options(scheduling_strategy=where, **options)
        self._actor: Any = kind.remote(*self._arguments)
        self._placed: Any = self._actor.placed.remote()
        self._answers: deque[Any] = deque()  # not waited for yet, oldest first
        for _ in range(2):  # as of a process, of which nobody asks them
            self.send(None)

    def send(self, message: bytes | Episodes | None) -> None:
        """Call the actor."""
        # Pickled here, since arrays that Ray hands over cannot be written to.
        self._answers.append(self._actor.answer.remote(pickle.dumps(message)))

    def answer(self, timeout_s: float | None = None) -> Any:
        """Wait for the actor's oldest call."""
        if self._ended is not None:
            raise self._ended
        try:
            if self._placed is not None:
                self._wait_for_place()
            while True:
                # Removed only then: Ctrl-C may come while it waits.
                answer: Any = ray.get(self._answers[0], timeout=timeout_s)
                self._answers.popleft()
                if answer is not None:
                    return pickle.loads(answer)
        except TimeoutError:  # Ray's own is one
            raise
        except exceptions.RayError as error:
            self._ended = WorkerEnded(how_it_ended(error))
            raise self._ended from error

    def end(self) -> None:
        """Kill the actor; it has nothing to save."""
        ray.kill(self._actor)

    def kill(self, patience_s: float = 0) -> None:
        """As `end`; Ray sees to it."""
        self.end()

    def _wait_for_place(self) -> None:
        deadline = time.monotonic() + PLACED_S
        while self._placed is not None:
            try:
                ray.get(self._placed, timeout=max(deadline - time.monotonic(), 0))
                self._placed = None
            except TimeoutError:
                why = f"found no place in the Ray cluster within {PLACED_S} s"
                self._ended = WorkerEnded(why)
                raise self._ended from None
            except exceptions.RayActorError as error:
                # Ray may choose a node of which it does not know yet that it died.
                if how_it_ended(error) not in LOST:
                    raise
                self.end()
                self._begin()


def how_it_ended(error: Exception) -> str:
    """What Ray says of a lost actor over many lines, in a few words."""
    text = str(error)
    if getattr(error, "actor_init_failed", False):
        return f"did not start ({text.strip().splitlines()[-1]})"
    if "node has died" in text:
        return LOST[0]
    if isinstance(error, exceptions.ActorUnavailableError):
        return LOST[1]
    if "worker process has died" in text:
        return "was killed, as the system does where memory runs out"
    # The first line is a heading, those with a tab are numbers.
    lines = [line for line in text.splitlines() if line and line[0] != "\t"]
    return f"was lost ({reason(RuntimeError(*lines[1:2] or lines[:1]))})"


@contextlib.contextmanager
def cluster(
    config: Config, example: Episodes
) -> Iterator[tuple[int, Callable[[int], RayWorker]]]:
    """Join the cluster of RAY_ADDRESS, or start one here, and leave or stop it.

    One that this process has joined before is used and left as it is.

    Yields:
        How many workers there should be, and what starts one of a number.

    Raises:
        ConfigError: there is no such cluster, or it is too small.
    """
    joined = ray.is_initialized()
    try:
        if not joined:
            _connect(config)
        compute = config.compute
        there = ray.cluster_resources()
        gpus = 0 if compute.device == "cpu" else int(there.get("GPU", 0))
        count = compute.workers
        if count is None:
            count = min(gpus or max(int(there.get("CPU", 1)), 1), MAX_WORKERS)
        if (gpus and count > gpus) or (compute.device == "gpu" and not gpus):
            raise ConfigError(
                f"compute.workers is {count}, each of which needs a GPU, but the Ray "
                f"cluster has {gpus}: give so many at most, or compute.device=cpu."
            )
        if not gpus:  # a GPU that Ray does not know of is not to be used
            config = replace(config, compute=replace(compute, device="cpu"))
        # As the plain class: the program's own may be known to nobody else.
        config = Config(**{x.name: getattr(config, x.name) for x in fields(Config)})
        arguments = pickle.dumps((config, example))
        yield count, functools.partial(RayWorker, arguments, gpus > 0)
    finally:
        if not joined:
            ray.shutdown()


def _connect(config: Config) -> None:
    """Join or start a cluster, without a word on the terminal."""
    address = os.environ.get("RAY_ADDRESS") or "local"
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    settings: dict[str, Any] = {"runtime_env": {"env_vars": kept}}
    shield = contextlib.nullcontext
    if address == "local":  # its processes inherit the environment
        gpus = 0 if config.compute.device == "cpu" else None  # None: those there are
        settings = {"num_cpus": cores(), "num_gpus": gpus}
        shield = blocked_interrupts  # inherited, too
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    handler = signal.getsignal(signal.SIGTERM)
    with shield():
        try:
            if address not in ("local", "auto"):
                host, _, port = address.rpartition(":")
                socket.create_connection((host, int(port)), REACH_S).close()
            ray.init(
                address,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **settings,
            )
            # What it would print when an actor or a node dies, over forty lines.
            vars(sys.modules["ray._private.worker"])["_worker_logs_enabled"] = False
        except Exception as error:
            raise ConfigError(
                f"Ray does not start with RAY_ADDRESS={address} "
                f"({reason(error, named=True)}): give HOST:PORT of a cluster's head "
                "(with RAY_AUTH_MODE=token if it asks for one), or unset it for a "
                "cluster of this machine alone."
            ) from error
        finally:
            if signal.getsignal(signal.SIGTERM) is not handler:  # Ray sets its own
                signal.signal(signal.SIGTERM, handler)
