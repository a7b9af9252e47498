"""Muon: momentum, made orthogonal, as the step of a matrix (Jordan et al. 2024).

`torch.optim.Muon` is the same in bfloat16, which a CPU without it only imitates:
there one step of `clip=base` takes eleven seconds, and here less than half of one. It
also takes matrices alone, where most of these models are convolutions.
"""

from collections.abc import Iterable

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Lift small values fast: https://kellerjordan.github.io/posts/muon/"""


class Muon(torch.optim.Optimizer):
    """Steps whose singular values are all near `lr`, whatever the gradient's are.

    For matrices, and convolutions (O, I, H, W) that are taken as (O, I H W). Where one
    has more rows than columns, steps are sqrt(rows / columns) times longer. Momentum is
    of Nesterov's kind.
    """

    def __init__(
        self, params: Iterable[torch.Tensor], lr: float, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step along the gradients."""
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                if not state:
                    state["average"] = torch.zeros_like(weight)
                average = state["average"].lerp_(weight.grad, 1 - group["momentum"])
                ahead = weight.grad.lerp(average, group["momentum"])
                step = orthogonal(ahead.flatten(1))
                rows, columns = step.shape
                scale = group["lr"] * max(1.0, rows / columns) ** 0.5
                weight.sub_(step.reshape(weight.shape), alpha=scale)


def orthogonal(matrix: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """Bring singular values of (R, C) to 0.7 to 1.2: Newton and Schulz's iteration."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if tall else x
