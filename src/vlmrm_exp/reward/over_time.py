"""Rewards of how an episode looks over some steps in time, instead of at one.

    states -> [render] -> frames -> [embed] -> embeddings over time -> rewards

The model still sees single frames; what is new is what their embeddings are asked.
Letters: T steps, N episodes, V views of each state, D embedding.
"""

from functools import partial

import numpy as np
import torch
from torch.nn import functional

from vlmrm_exp.checks import one_of, reward_options, whole_number
from vlmrm_exp.config import Config, ConfigError
from vlmrm_exp.reward import Episodes
from vlmrm_exp.reward.clip import ClipReward

checked = partial(
    reward_options,
    {
        "of": ("mean", partial(one_of, options=("mean", "change"))),
        "steps": (10, whole_number),
    },
)
"""What `reward.options` asks for, or a ConfigError."""
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

    @classmethod
    def check_config(cls, config: Config) -> None:
        """Refuse impossible options."""
        checked(config.reward.options)

    def __init__(self, config: Config) -> None:
        """Load the model.

        Raises:
            ConfigError: as of `ClipReward`; impossible options; for `change`, prompt
                and baseline that mean the same.
        """
        options = checked(config.reward.options)
        self._of, self._steps = options["of"], options["steps"]
        super().__init__(config)
        way = self._sentence.way
        if self._of == "change" and way.norm() < STILL:
            raise ConfigError(
                "The prompt and the baseline have the same embedding, so there is no "
                "way from one to the other: say how it looks before in baseline=..."
            )
        self._way = functional.normalize(way, dim=0)

    def rewards(self, episodes: Episodes) -> np.ndarray:
        """(T, N) float32: the mean over views; of the first change, 0."""
        assert episodes.states is not None
        seen = self.embeddings(episodes.states)  # (T, N, V, D)
        if self._of == "mean":
            total = seen.cumsum(0)
            total[self._steps :] -= total[: -self._steps].clone()
            means = functional.normalize(total, dim=-1)
            reward = self._sentence(means.flatten(0, 1)).unflatten(0, seen.shape[:2])
        else:
            before = torch.cat([seen[:1].expand(self._steps, -1, -1, -1), seen])
            change = seen - before[: len(seen)]
            length = change.norm(dim=-1)  # (T, N, V)
            cosine = (change @ self._way) / length.clamp(min=STILL)
            reward = torch.where(length > STILL, cosine, 0).mean(-1)
        return reward.cpu().numpy()
