"""A worker that computes rewards: what it does, and how it is spoken to.

crew.Crew -> Process -> [another process: life]
"""

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Generator, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import numpy as np
import torch

from vlmrm_exp.config import Config, ConfigError, ForeignError
from vlmrm_exp.files import reason
from vlmrm_exp.foreign import blaming
from vlmrm_exp.reward import Episodes, facts_of, make_model, rewards_of

NICE = 10  # added to workers' niceness: where cores are few, learning goes first
PRELOADED = ["vlmrm_exp.app", "vlmrm_exp.reward.worker", "vlmrm_exp.vlm.encoder"]
"""By a helper that forks: none of them makes an OpenGL or CUDA context."""
LOST = 255
"""Exit code of a worker, alive or not, whose helper was killed."""
STOPPING = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}


class WorkerEnded(Exception):
    """A worker ended or hangs; the text says how."""


class Process:
    """A worker that is a process of its own, at the other end of a pipe.

    Messages and answers come in order.
    """

    def __init__(self, config: Config, example: Episodes) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        # A terminal sends Ctrl-C to all processes, a scheduler SIGTERM. Only the
        # training process reacts, and tells the workers.
        with blocked_interrupts():
            self._process = _started(config, example, theirs)
        theirs.close()

    def send(self, message: bytes | Episodes) -> None:
        """Hand over a pickled `state_dict`, or states to reward. It never fails.

        That a worker has ended is told when its answer is waited for.
        """
        with contextlib.suppress(ConnectionError):
            self._pipe.send(message)

    def answer(self, timeout_s: float | None = None) -> Any:
        """The next answer, as `life` gives them; those that are None are left out.

        Raises:
            WorkerEnded: there will be none.
            TimeoutError: none came within so many seconds.
        """
        if timeout_s is not None and not self._pipe.poll(timeout_s):
            raise TimeoutError
        try:
            return self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join(timeout=5)
            code = self._process.exitcode
            why = f"ended by itself (exit code {code})"
            if code is not None and code < 0:
                why = f"was killed by {signal.Signals(-code).name}"
            if code == -signal.SIGKILL:
                why += ", as the system does where memory runs out"
            raise WorkerEnded(why) from None

    def end(self) -> None:
        """Tell it to end, without waiting for that: it does when its pipe does."""
        self._pipe.close()

    def kill(self, patience_s: float = 0) -> None:
        """End it by force, if it has not ended within so many seconds."""
        self._process.join(timeout=patience_s)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        elif self._process.exitcode == LOST and self._process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)


class Failure(NamedTuple):
    """What a worker sends in place of rewards."""

    error: Exception
    traceback: str


def life(config: Config, example: Episodes) -> Generator[bytes | None, Any, None]:
    """What a worker does: load, reward once, then answer messages, which are sent in.

    Yields:
        Pickled: the batch size and the facts, each for None; then rewards (T, N) for
        episodes, and nothing for a pickled `state_dict`. A `Failure` is the last.
    """
    torch.set_num_threads(config.compute.torch_threads)
    try:
        model = make_model(config)
        yield pickle.dumps(model.batch_size)
        rewards_of(model, example)
        asked = yield pickle.dumps(facts_of(model))
        while True:
            answer = None
            if isinstance(asked, bytes):
                with blaming(model, "in load_state_dict"):
                    model.load_state_dict(pickle.loads(asked))
            elif 0 in (size := asked.shape):  # fewer batches than workers
                answer = pickle.dumps(np.empty(size, np.float32))
            else:
                answer = pickle.dumps(rewards_of(model, asked))
            asked = yield answer
    except Exception as error:
        told = error
        if not isinstance(error, (ConfigError, FloatingPointError, ForeignError)):
            # Others may not survive the way back.
            told = RuntimeError(reason(error, named=True))
        yield pickle.dumps(Failure(told, traceback.format_exc()))


def _started(*arguments: Any) -> BaseProcess:
    """A new process that does `_serve`.

    Not forked from this one: an OpenGL or CUDA context does not survive that. One
    helper imports what workers need, and forks each of them in no time.
    """
    multiprocessing.set_forkserver_preload(PRELOADED)
    for method in ("forkserver", "forkserver", "spawn"):
        context: Any = multiprocessing.get_context(method)
        process = context.Process(target=_serve, args=arguments, daemon=True)
        try:
            with _same_modules():
                process.start()
            break
        # The helper was killed, so another one is started; or it cannot be, as where
        # its socket's name in a long TMPDIR is too long, so workers import themselves.
        except (EOFError, OSError):
            if method == "spawn":
                raise
    return process


@contextlib.contextmanager
def _same_modules() -> Iterator[None]:
    """Let a helper that is started in here find the modules that this process finds."""
    before = dict(os.environ)
    # Without "safe path", Python would look into the present folder first.
    os.environ |= {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONSAFEPATH": "1"}
    try:
        yield
    finally:
        for name in ("PYTHONPATH", "PYTHONSAFEPATH"):
            os.environ.pop(name)
            if name in before:
                os.environ[name] = before[name]


def _serve(config: Config, example: Episodes, pipe: Connection) -> None:
    """A worker's process, which ends when its pipe does: that of who asks is closed."""
    os.nice(NICE)
    # As the helper does, unless it was started for something else.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    answers = life(config, example)
    unasked = [None, None]  # the first answers are to no question
    with contextlib.suppress(EOFError, ConnectionError, StopIteration):
        while True:
            answer = answers.send(unasked.pop() if unasked else pipe.recv())
            if answer is not None:
                pipe.send_bytes(answer)


@contextlib.contextmanager
def blocked_interrupts() -> Iterator[None]:
    """A process started in here sees no Ctrl-C and no SIGTERM; this one does later."""
    # multiprocessing starts a helper process first, which would unblock them again.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
