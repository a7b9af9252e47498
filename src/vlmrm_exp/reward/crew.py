"""Several workers: started, spoken to, and replaced when they end or hang.

    workers.Workers -> Crew -> [worker, worker, ...]

A worker is a process (`worker.py`) or a Ray actor (`ray_worker.py`).
"""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from vlmrm_exp.config import Config, ForeignError
from vlmrm_exp.reward import Episodes
from vlmrm_exp.reward.worker import Failure, Process, WorkerEnded

if TYPE_CHECKING:
    from vlmrm_exp.reward.ray_worker import RayWorker

Worker: TypeAlias = "Process | RayWorker"

FIRST_REWARD_S = 180  # an OpenGL driver may hang for ever (mujoco issue 3444)
HANGS_S = 600  # a worker that gives no answer for so long, and for
SLOW = 20  # times as long as its states took at first, hangs
MOST_ENDED = 3  # workers one after another: it is no accident


class Crew:
    """Workers with the same reward model, each in its place."""

    def __init__(self, config: Config, example: Episodes) -> None:
        """Start them, and wait until each has loaded and rewarded the example."""
        self.workers: list[Worker] = []
        self._opened = contextlib.ExitStack()
        # What the workers were told last, for one that takes another's place.
        self._state: bytes | None = None
        self._asked: Sequence[Episodes] = []
        self._ended = 0  # workers, one after another
        self._start: Callable[[int], Worker] = lambda number: Process(config, example)
        count = config.compute.num_workers
        try:
            if config.compute.pool == "ray":
                from vlmrm_exp.reward.ray_worker import cluster

                opened = self._opened.enter_context(cluster(config, example))
                count, self._start = opened
            for number in range(count):
                self.workers.append(self._start(number))
            greetings = []
            for number in range(count):
                greetings.append(self._greeting(number))
                self._ended = 0  # one that started parts those that did not
        except BaseException:
            self.close()
            raise
        self.batch_size, self.about, _ = greetings[0]
        self._s_per_state = max(s for *_, s in greetings) / math.prod(example.shape)

    def tell(self, state: bytes) -> None:
        """Give all of them what a model has learned, a pickled `state_dict`."""
        self._state = state
        for worker in self.workers:
            worker.send(state)

    def ask(self, shares: Sequence[Episodes]) -> None:
        """Give each its share to reward; answers come in the order of the questions."""
        self._asked = shares
        for worker, share in zip(self.workers, shares, strict=True):
            worker.send(share)

    def receive(self, number: int) -> Any:
        """A worker's answer; if it ends or hangs, that of one in its place.

        That one is asked the last question, so no earlier one may be unanswered.

        Raises:
            ConfigError, FloatingPointError, ForeignError, RuntimeError: the worker's.
        """
        patience = SLOW * self._s_per_state * math.prod(self._asked[number].shape)
        while True:
            try:
                answer = self._answer(number, max(HANGS_S, patience))
                self._ended = 0
                return answer
            except WorkerEnded as ended:
                self._replace(number, ended)
            self._greeting(number)
            worker = self.workers[number]
            if self._state is not None:
                worker.send(self._state)
            worker.send(self._asked[number])

    def close(self) -> None:
        """Stop the workers."""
        for worker in self.workers:
            worker.end()
        for worker in self.workers:
            worker.kill(patience_s=5)
        self.workers = []
        self._opened.close()

    def _greeting(self, number: int) -> tuple[int, dict[str, Any], float]:
        """Batch size and facts of a new worker, and how long its first rewards took.

        They are of the one in its place, if it ends before.
        """
        while True:
            try:
                size = self._answer(number)  # however long loading takes
                started = time.monotonic()
                about = self._answer(number, FIRST_REWARD_S)
                return size, about, time.monotonic() - started
            except WorkerEnded as ended:
                self._replace(number, ended)

    def _replace(self, number: int, ended: WorkerEnded) -> None:
        """Start another in the place of one that ended, unless several did in a row."""
        self._ended += 1
        if self._ended == MOST_ENDED:
            raise ForeignError(
                f"Reward workers end one after another, the last one {ended}."
            ) from ended
        print(f"A reward worker {ended}: another one goes on.", file=sys.stderr)
        self.workers[number].end()
        self.workers[number] = self._start(number)

    def _answer(self, number: int, timeout_s: float | None = None) -> Any:
        worker = self.workers[number]
        try:
            answer = worker.answer(timeout_s)
        except TimeoutError:
            worker.kill()
            raise WorkerEnded(
                f"gave no answer within {timeout_s:.0f} s, so its OpenGL driver "
                "probably hangs (try another MUJOCO_GL: egl, osmesa)"
            ) from None
        if isinstance(answer, Failure):
            raise answer.error from RuntimeError(f"In a worker:\n{answer.traceback}")
        return answer
