"""Train on what a perfect embedded model would reward: nothing is rendered or embedded.

    python scripts/train_on_captions.py task=kneeling name=... [key=value ...]

The arguments are those of `python -m vlmrm_exp`. The reward of a state is the logarithm
of how probable the captions' own facts make the task's pose
(`captions.humanoid_facts`), scaled to the range of a cosine. docs/decisions/0008 was
measured with it, on one core.
"""

import sys
from typing import Any

import numpy as np

from vlmrm_exp import __main__, app
from vlmrm_exp.config import Config
from vlmrm_exp.pretraining.captions import ARM_FACTS, LEG_FACTS, humanoid_facts
from vlmrm_exp.reward import Episodes, RewardModel

LEGS = {name: name for name in ("kneeling", "lotus", "splits", "one_leg")}
ARMS = {"arms_raised": "raised", "hands_on_hips": "hips", "arms_crossed": "crossed"}
WORDS = ("reward.name=captions", "reward.model=train_on_captions:CaptionReward")


class CaptionReward(RewardModel):
    """Rewards states with the captions' probabilities of a task's pose."""

    cheap = True

    def __init__(self, config: Config) -> None:
        task = config.task.goal
        self._legs = LEG_FACTS.index(LEGS.get(task, "standing"))
        self._arms = ARM_FACTS.index(ARMS[task]) if task in ARMS else None

    def rewards(self, episodes: Episodes) -> np.ndarray:
        """(T, N) float32."""
        states = episodes.states
        assert states is not None
        legs, arms = humanoid_facts(states.reshape(-1, states.shape[-1]))
        told = np.log(legs[:, self._legs])
        if self._arms is not None:
            told += np.log(arms[:, self._arms])
        return (0.6 + 0.1 * told).astype(np.float32).reshape(states.shape[:2])

    def about(self) -> dict[str, Any]:
        """Nothing embeds or renders."""
        return {"reward": "the captions' own probabilities"}


if __name__ == "__main__":
    sys.argv[1:1] = WORDS
    app.start(__main__.train, check=__main__.check)
