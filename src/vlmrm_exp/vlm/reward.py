"""From embeddings to rewards: the paper's equations 2 and 3 as pure tensor functions.

Everything is float32: rewards are small differences of close cosines.
Letters: B states, P prompts, D embedding.
"""

import torch
from torch.nn import functional


def mean_embedding(prompts: torch.Tensor, renormalise: bool = True) -> torch.Tensor:
    """Average unit embeddings of several prompts (P, D) into one (D,).

    The original code left the mean as it was, so that alpha 0 was no cosine any more;
    `renormalise=False` repeats that.
    """
    mean = prompts.float().mean(dim=0)
    return functional.normalize(mean, dim=0) if renormalise else mean


def goal_baseline_reward(
    states: torch.Tensor, goal: torch.Tensor, baseline: torch.Tensor, alpha: float
) -> torch.Tensor:
    """Goal-baseline regularised reward (paper Definition 1, equation 3).

    1 - 1/2 ||alpha proj_L(s) + (1 - alpha) s - g||^2, where L is the line through
    baseline b and goal g. With unit vectors, alpha 0 is the cosine (equation 2), and
    alpha 1 sees only the part of s along g - b.

    Args:
        states: (B, D) unit image embeddings.
        goal: (D,) embedding of the goal prompt.
        baseline: (D,) embedding of the baseline prompt; not read at alpha 0.
        alpha: regularisation strength in [0, 1].

    Returns:
        (B,) float32, at most 1.

    Raises:
        ValueError: goal and baseline coincide while alpha is above 0: no line.
    """
    offset = states.float() - goal.float()  # (B, D)
    if alpha > 0:
        direction = goal.float() - baseline.float()
        length = direction.norm()
        if length < 1e-6:
            raise ValueError(
                "The prompt and the baseline have the same embedding, so there is no "
                "line to project on: say something else in one of them, or set alpha=0."
            )
        direction = direction / length
        along = (offset @ direction)[:, None] * direction  # (B, D)
        offset = alpha * along + (1 - alpha) * offset
    return 1 - offset.square().sum(dim=1) / 2
