"""Rewards of how an episode looks over some steps in time, instead of at one.

    states -> [render] -> frames -> [embed] -> embeddings over time -> rewards

The model still sees single frames; what is new is what their embeddings are asked.
Letters: T steps, N episodes, V views of each state, D embedding.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from vlmrm_exp.checks import check_options, one_of, whole_number
from vlmrm_exp.config import Config, ConfigError
from vlmrm_exp.reward import Episodes
from vlmrm_exp.reward.clip import ClipReward

OPTIONS = ("of", "steps")
STILL = 1e-6
"""Length of a change of unit embeddings below which nothing was seen to move."""


class VideoReward(ClipReward):
    """CLIP's reward of the last steps together, or of the way that they went.

    `reward.options.of`:

    - mean: the goal-baseline reward of the mean of the embeddings of the last `steps`
      states, brought back to unit length.
    - change: the cosine between the change of the embedding over `steps` states and the
      way from the baseline's sentence to the goal's (alpha is not read).

    In an episode's beginning, where there are fewer, of those that there are.
    """

    window = 2  # or more, as reward.options.steps says: whole episodes
    has_options = True

    def __init__(self, config: Config) -> None:
        """Load the model.

        Raises:
            ConfigError: as of `ClipReward`; impossible options; for `change`, prompt
                and baseline that mean the same.
        """
        self._of, self._steps = checked(config.reward.options)
        super().__init__(config)
        way = self._sentence.way
        if self._of == "change" and way.norm() < STILL:
            raise ConfigError(
                "The prompt and the baseline have the same embedding, so there is no "
                "way from one to the other: say how it looks before in baseline=..."
            )
        self._way = functional.normalize(way, dim=0)

    def rewards(self, episodes: Episodes) -> np.ndarray:
        """(T, N) float32."""
        assert episodes.states is not None
        seen = self.embeddings(episodes.states)
        over_time = {"mean": self._of_mean, "change": self._of_change}[self._of]
        return over_time(seen).cpu().numpy()

    def _of_mean(self, seen: torch.Tensor) -> torch.Tensor:
        """Embeddings (T, N, V, D) -> (T, N)."""
        total = seen.cumsum(0)
        total[self._steps :] -= total[: -self._steps].clone()
        means = functional.normalize(total, dim=-1)
        return self._sentence(means.flatten(0, 1)).unflatten(0, seen.shape[:2])

    def _of_change(self, seen: torch.Tensor) -> torch.Tensor:
        """Embeddings (T, N, V, D) -> (T, N), the mean over views; 0 of the first."""
        before = torch.cat([seen[:1].expand(self._steps, -1, -1, -1), seen])
        change = seen - before[: len(seen)]
        length = change.norm(dim=-1)
        cosine = (change @ self._way) / length.clamp(min=STILL)
        return torch.where(length > STILL, cosine, 0).mean(-1)


def checked(options: Mapping[str, Any]) -> tuple[str, int]:
    """What `reward.options` asks for: of what, and over how many steps.

    Raises:
        ConfigError: there is no such option, or its value is impossible.
    """
    check_options(options, OPTIONS)
    of, steps = options.get("of", "mean"), options.get("steps", 10)
    one_of("reward.options.of", of, ("mean", "change"))
    return of, whole_number("reward.options.steps", steps)
