"""Gradient steps between two rollouts; on a GPU as one CUDA graph, replayed.

A step of networks this small is some two hundred kernels of a few microseconds, which
Python takes several times as long to launch. A graph launches them all at once, from
the same addresses each time: what changes between steps (which transitions, how
rewards are normalised) is written into tensors that stay where they are.
"""

import math
from collections.abc import Mapping, Sequence

import torch

from vlmrm_exp.config import ConfigError
from vlmrm_exp.files import reason
from vlmrm_exp.rl.experience import Agent, Replay

WARM_UP_STEPS = 3
"""Taken one by one before the capture, at most (PyTorch's notes on CUDA graphs):
libraries set themselves up in them, and optimisers make their state."""


class GradientSteps:
    """Takes gradient steps on transitions from a replay buffer."""

    def __init__(
        self, agent: Agent, replay: Replay, batch_size: int, cuda_graph: bool
    ) -> None:
        """Take the parts; load their saved state before the first call.

        Loading gives an optimiser new tensors, which a graph made before does not see.

        Args:
            agent: takes the steps.
            replay: on the agent's device.
            batch_size: transitions per step.
            cuda_graph: replay a graph, if the device is a GPU.
        """
        self.agent = agent
        self.replay = replay
        self.batch_size = batch_size
        self._device = replay.generator.device
        self._capture_wanted = cuda_graph and self._device.type == "cuda"
        self._graph: torch.cuda.CUDAGraph | None = None
        # The graph's input, and its output summed over the replays.
        self._row = torch.zeros(batch_size, dtype=torch.int64, device=self._device)
        self._sums: dict[str, torch.Tensor] = {}

    def __call__(self, count: int) -> list[dict[str, torch.Tensor]]:
        """Take `count` steps, at least one.

        Raises:
            ConfigError: the GPU or its driver refuses a graph.

        Returns:
            Metrics whose mean over the list is the mean over the steps: of each step,
            or, with a graph, that mean alone.
        """
        rows = self.replay.draw(count, self.batch_size)
        if not self._capture_wanted:
            return [self.agent.update(self.replay.gather(row)) for row in rows]
        if self._graph is None:
            metrics = self._warm_up(rows[:WARM_UP_STEPS])
            self._graph = self._capture(metrics[0])
            rows = rows[WARM_UP_STEPS:]
        else:
            metrics = []
        for total in self._sums.values():
            total.zero_()
        for values in metrics:
            for key, value in values.items():
                self._sums[key] += value
        for row in rows:
            self._row.copy_(row)
            self._graph.replay()
        return [{key: total / count for key, total in self._sums.items()}]

    def _warm_up(self, rows: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        """Take steps one by one, on a side stream as PyTorch asks before a capture."""
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            metrics = [self.agent.update(self.replay.gather(row)) for row in rows]
        torch.cuda.current_stream(self._device).wait_stream(stream)
        return metrics

    def _capture(self, metrics: Mapping[str, torch.Tensor]) -> torch.cuda.CUDAGraph:
        self._sums = {key: torch.zeros_like(value) for key, value in metrics.items()}
        graph = torch.cuda.CUDAGraph()
        if self.agent.generator.device.type == "cuda":
            # So that each replay draws new numbers; else the capture is refused.
            graph.register_generator_state(self.agent.generator)
        try:
            with torch.cuda.graph(graph):  # recorded, not run
                batch = self.replay.gather(self._row)
                for key, value in self.agent.update(batch).items():
                    self._sums[key] += value
        except RuntimeError as error:
            raise ConfigError(
                "Gradient steps cannot be captured as a CUDA graph here "
                f"({reason(error)}): "
                "set compute.cuda_graph=false."
            ) from error
        return graph


def means(metrics: Sequence[dict[str, torch.Tensor]]) -> dict[str, float]:
    """Average each key over the gradient steps.

    Raises:
        FloatingPointError: a mean is not a finite number.
    """
    if not metrics:
        return {}
    keys = list(metrics[0])
    # (gradient steps x keys,) -> (keys,): one copy to the CPU for all of them
    flat = torch.stack([values[key] for values in metrics for key in keys])
    averages = flat.view(len(metrics), len(keys)).mean(0).tolist()
    for key, mean in zip(keys, averages, strict=True):
        if not math.isfinite(mean):
            raise FloatingPointError(
                f"{key} became {mean}: learning diverged; try a lower "
                "algo.learning_rate."
            )
    return dict(zip(keys, averages, strict=True))
