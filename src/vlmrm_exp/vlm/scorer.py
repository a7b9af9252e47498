"""States in, rewards out: render, embed and reward, beside each other.

A state row is a few hundred bytes and a frame most of a megabyte, so rows travel and
frames do not: each scorer process draws, embeds and rewards on its own, while the
training process simulates and learns.
"""

import contextlib
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, Protocol

import numpy as np
import torch

from vlmrm_exp.config import Config, ConfigError

FIRST_PICTURE_S = 180  # an OpenGL driver may hang for ever (mujoco issue 3444)


class Scorer(Protocol):
    """Turns states into rewards, in the order in which they were submitted."""

    def submit(self, rows: np.ndarray) -> int:
        """Begin to score rows (B, S) or frames (B, H, W, 3); returns a ticket."""
        ...

    def result(self, ticket: int) -> np.ndarray:
        """Wait for a ticket's rewards: (B,) float32. Each ticket is given once."""
        ...

    def score(self, rows: np.ndarray) -> np.ndarray:
        """Submit and wait."""
        ...

    def facts(self) -> dict[str, Any]:
        """What embeds and what draws, for the run's record."""
        ...

    def close(self) -> None:
        """Stop processes, free the drawing context."""
        ...


class Draws(Protocol):
    """What a scorer needs of a renderer (`envs.Renderer`)."""

    drawn_by: str

    def render(self, rows: np.ndarray) -> np.ndarray:
        """State rows -> frames (B, H, W, 3) uint8."""
        ...

    def close(self) -> None:
        """Release the drawing context."""
        ...


MakeRenderer = Callable[[], Draws]
"""Called in the process that will draw, so it must survive pickling."""


def make_scorer(
    config: Config, make_renderer: MakeRenderer, example: np.ndarray
) -> Scorer:
    """Build what draws, embeds and scores a run's states.

    Args:
        config: prompts, model, alpha and where to compute.
        make_renderer: opens the drawing context.
        example: a few states, drawn and scored at once so that what is wrong shows
            before anything depends on it.

    Raises:
        ConfigError: prompts that do not fit, weights that cannot be had, no GPU.
    """
    if config.compute.scorer_workers == 0:
        scorer = LocalScorer(config, make_renderer)
        scorer.score(example)
        return scorer
    return WorkerScorer(config, make_renderer, example)


def choose_device(name: str, setting: str = "compute") -> torch.device:
    """Turn auto, cpu or gpu into a torch device.

    Args:
        name: as compute.device has it.
        setting: what a user chooses it by, for the message.

    Raises:
        ConfigError: gpu was asked for and there is none that torch can use.
    """
    if name == "gpu" and not torch.cuda.is_available():
        raise ConfigError(
            f"{setting}=gpu needs a GPU that torch can use, and torch sees none: "
            f"install a CUDA build of torch, or use {setting}=cpu."
        )
    return torch.device(
        "cpu" if name == "cpu" or not torch.cuda.is_available() else "cuda"
    )


class InPlaceScorer:
    """Scores in the calling process, as soon as states are submitted."""

    def __init__(self) -> None:
        self._results: dict[int, np.ndarray] = {}
        self._tickets = 0

    def submit(self, rows: np.ndarray) -> int:
        """Score rows now; returns a ticket."""
        self._tickets += 1
        self._results[self._tickets] = self.score(rows)
        return self._tickets

    def result(self, ticket: int) -> np.ndarray:
        """The rewards of a ticket: (B,) float32."""
        return self._results.pop(ticket)

    def score(self, rows: np.ndarray) -> np.ndarray:
        """Rewards of rows: (B,) float32."""
        raise NotImplementedError


class LocalScorer(InPlaceScorer):
    """Draws, embeds and rewards in the calling process."""

    def __init__(self, config: Config, make_renderer: MakeRenderer) -> None:
        super().__init__()
        from vlmrm_exp.vlm.encoder import check_prompts, load_encoder
        from vlmrm_exp.vlm.reward import goal_baseline_reward, mean_embedding

        check_prompts(config.clip, [*config.prompts, *config.baselines])
        self._views = len(config.task.views)
        self._chunk = max(1, config.clip.batch_size // self._views)
        self._encoder = load_encoder(config.clip, choose_device(config.compute.device))
        goal, baseline = (
            mean_embedding(self._encoder.embed_prompts(p), config.renormalise)
            for p in (config.prompts, config.baselines)
        )
        self._encoder.drop_text_tower()  # the sentences do not change any more
        self._reward = lambda s: goal_baseline_reward(s, goal, baseline, config.alpha)
        try:
            self._reward(goal[None])
        except ValueError as error:
            raise ConfigError(str(error)) from None
        self._renderer = make_renderer()

    def score(self, rows: np.ndarray) -> np.ndarray:
        """Rewards of rows: (B,) float32."""
        rewards = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), self._chunk):
            part = slice(start, start + self._chunk)
            frames = _views_apart(self._renderer.render(rows[part]), self._views)
            of_views = self._reward(self._encoder.embed_frames(frames))
            rewards[part] = of_views.reshape(-1, self._views).mean(dim=1).cpu()
        return rewards

    def facts(self) -> dict[str, Any]:
        """What embeds and what draws."""
        return {"encoder": self._encoder.facts, "drawn_by": self._renderer.drawn_by}

    def close(self) -> None:
        """Free the drawing context."""
        self._renderer.close()


def _views_apart(frames: np.ndarray, views: int) -> np.ndarray:
    """Cut frames with views side by side, (B, H, V W, 3), into (B V, H, W, 3)."""
    batch, height, width, _ = frames.shape
    apart = frames.reshape(batch, height, views, width // views, 3).swapaxes(1, 2)
    return apart.reshape(batch * views, height, width // views, 3)


class WorkerScorer:
    """Scores in processes of its own; each gets an equal, contiguous share of rows."""

    def __init__(
        self, config: Config, make_renderer: MakeRenderer, example: np.ndarray
    ) -> None:
        choose_device(config.compute.device)
        # spawn: an OpenGL or CUDA context does not survive a fork.
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        self._pending: deque[int] = deque()
        self._parts: list[np.ndarray] = []
        self._results: dict[int, np.ndarray] = {}
        self._tickets = 0
        try:
            for _ in range(config.compute.scorer_workers):
                ours, theirs = context.Pipe()
                arguments = (config, make_renderer, example, theirs)
                process = context.Process(target=_serve, args=arguments, daemon=True)
                # Ctrl-C, and a job scheduler's SIGTERM, go to the whole group, also
                # while a worker is importing; the training process decides what they
                # mean.
                with blocked_interrupts():
                    process.start()
                theirs.close()
                self._pipes.append(ours)
                self._processes.append(process)
            for worker in range(len(self._pipes)):
                self._receive(worker)  # weights are loaded, however long that took
            facts = [
                self._receive(worker, FIRST_PICTURE_S)
                for worker in range(len(self._pipes))
            ]
            self._facts: dict[str, Any] = facts[0]
        except BaseException:
            self.close()
            raise

    def submit(self, rows: np.ndarray) -> int:
        """Send rows to the workers; returns a ticket."""
        # A worker that still wants to answer does not read: both ends would wait.
        while self._pending:
            self._finish_oldest()
        for pipe, part in zip(
            self._pipes, np.array_split(rows, len(self._pipes)), strict=True
        ):
            pipe.send(part)
        self._tickets += 1
        self._pending.append(self._tickets)
        return self._tickets

    def result(self, ticket: int) -> np.ndarray:
        """Wait for the rewards of a ticket: (B,) float32."""
        while ticket not in self._results:
            self._finish_oldest()
        return self._results.pop(ticket)

    def score(self, rows: np.ndarray) -> np.ndarray:
        """Submit and wait."""
        return self.result(self.submit(rows))

    def facts(self) -> dict[str, Any]:
        """What embeds and what draws."""
        return self._facts

    def close(self) -> None:
        """Stop the workers."""
        for pipe in self._pipes:
            pipe.close()  # a worker ends when its pipe does
        for process in self._processes:
            process.join(timeout=5)
            if process.is_alive():
                process.kill()
                process.join()
        self._pipes, self._processes = [], []

    def _finish_oldest(self) -> None:
        # Kept between calls: Ctrl-C may come between two workers' answers.
        while len(self._parts) < len(self._pipes):
            self._parts.append(self._receive(len(self._parts)))
        self._results[self._pending.popleft()] = np.concatenate(self._parts)
        self._parts = []

    def _receive(self, worker: int, timeout_s: float | None = None) -> Any:
        pipe = self._pipes[worker]
        if timeout_s is not None and not pipe.poll(timeout_s):
            raise ConfigError(
                f"A scorer process drew no picture within {timeout_s} s, so its OpenGL "
                "driver probably hangs: try compute.scorer_workers=1, or another "
                "MUJOCO_GL (egl, osmesa)."
            )
        try:
            answer = pipe.recv()
        except EOFError:
            self._processes[worker].join(timeout=5)
            raise RuntimeError(
                "A scorer process ended by itself (exit code "
                f"{self._processes[worker].exitcode}; -9 usually means that memory ran "
                "out): its own message stands above."
            ) from None
        if isinstance(answer, Exception):
            raise answer
        return answer


@contextlib.contextmanager
def blocked_interrupts() -> Iterator[None]:
    """A process started in here sees no Ctrl-C and no SIGTERM; this one does later."""
    # Starting this helper of multiprocessing, as the first process does, unblocks them.
    resource_tracker.ensure_running()
    stopping = {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, stopping)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(
    config: Config, make_renderer: MakeRenderer, example: np.ndarray, pipe: Connection
) -> None:
    """A worker's life: load, draw once, then answer until the pipe closes."""
    torch.set_num_threads(config.compute.torch_threads)
    try:
        try:
            scorer = LocalScorer(config, make_renderer)
            pipe.send("loaded")
            scorer.score(example)
            pipe.send(scorer.facts())
            while True:
                pipe.send(scorer.score(pipe.recv()))
        except ConfigError as error:
            pipe.send(error)
    except (EOFError, ConnectionError):
        pass  # the training process is gone or done
