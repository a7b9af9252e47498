"""Gradient steps on a GPU as one CUDA graph, replayed.

A step of networks this small is some two hundred kernels of a few microseconds, which
Python takes several times as long to launch. A graph launches them all at once, from
the same addresses each time: what changes between steps (which transitions, how
rewards are normalised) is written into tensors that stay where they are.
"""

from collections.abc import Mapping

import torch

from vlmrm_exp.config import ConfigError
from vlmrm_exp.files import reason
from vlmrm_exp.rl import Agent
from vlmrm_exp.rl.replay import Replay

WARM_UP_STEPS = 3
"""Taken one by one before the capture, at most (PyTorch's notes on CUDA graphs):
libraries set themselves up in them, and optimisers make their state."""


class CudaGraph:
    """Takes an agent's gradient steps on transitions from a replay buffer."""

    def __init__(self, agent: Agent, replay: Replay, batch_size: int) -> None:
        """Take the parts, on a GPU; load their saved state before the first call.

        Loading gives an optimiser new tensors, which a graph made before does not see.
        """
        self.agent = agent
        self.replay = replay
        self._device = replay.generator.device
        self._graph: torch.cuda.CUDAGraph | None = None
        # The graph's input, and its output summed over the replays.
        self._place = torch.zeros(batch_size, dtype=torch.int64, device=self._device)
        self._sums: dict[str, torch.Tensor] = {}

    def __call__(self, places: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        """Take a gradient step at each of `places` (steps, B), at least one.

        Returns the mean of the metrics over the steps, alone in a list.

        Raises:
            ConfigError: the GPU or its driver refuses a graph.
        """
        count, metrics = len(places), []
        if self._graph is None:
            metrics = self._warm_up(places[:WARM_UP_STEPS])
            self._graph = self._capture(metrics[0])
            places = places[WARM_UP_STEPS:]
        for total in self._sums.values():
            total.zero_()
        for values in metrics:
            for key, value in values.items():
                self._sums[key] += value
        for place in places:
            self._place.copy_(place)
            self._graph.replay()
        return [{key: total / count for key, total in self._sums.items()}]

    def _warm_up(self, places: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        """Take steps one by one, on a side stream as PyTorch asks before a capture."""
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            metrics = [self.agent.update(self.replay.gather(place)) for place in places]
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
                batch = self.replay.gather(self._place)
                for key, value in self.agent.update(batch).items():
                    self._sums[key] += value
        except RuntimeError as error:
            raise ConfigError(
                "Gradient steps cannot be captured as a CUDA graph here "
                f"({reason(error)}): set compute.cuda_graph=false."
            ) from error
        return graph
