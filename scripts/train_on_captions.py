"""Train on what a perfect embedded model would reward: nothing is drawn or embedded.

    python scripts/train_on_captions.py task=kneeling name=... [key=value ...]

The arguments are those of `python -m vlmrm_exp`. The reward of a state is the logarithm
of how probable the captions' own facts make the task's pose
(`captions.humanoid_facts`), scaled to the range of a cosine. docs/decisions/0008 was
measured with it, on one core.
"""

import numpy as np

from vlmrm_exp import __main__, captions
from vlmrm_exp.config import Config
from vlmrm_exp.envs import VectorEnv
from vlmrm_exp.envs.poses import PoseLibrary
from vlmrm_exp.rl import labels
from vlmrm_exp.vlm.scorer import InPlaceScorer

LEGS = {name: name for name in ("kneeling", "lotus", "splits", "one_leg")}
ARMS = {"arms_raised": "raised", "hands_on_hips": "hips", "arms_crossed": "crossed"}


class CaptionScorer(InPlaceScorer):
    """Rewards states with the captions' probabilities of a task's pose."""

    def __init__(self, task: str) -> None:
        super().__init__()
        self._library = PoseLibrary()
        self._legs = captions.LEG_FACTS.index(LEGS.get(task, "standing"))
        arms = ARMS.get(task)
        self._arms = None if arms is None else captions.ARM_FACTS.index(arms)

    def score(self, rows: np.ndarray) -> np.ndarray:
        """Rewards of rows: (B,) float32."""
        legs, arms = captions.humanoid_facts(
            self._library.leg_distances(rows), self._library.arm_distances(rows)
        )
        told = np.log(legs[:, self._legs])
        if self._arms is not None:
            told += np.log(arms[:, self._arms])
        return (0.6 + 0.1 * told).astype(np.float32)

    def facts(self) -> dict:
        """Nothing embeds or draws."""
        return {"reward": "the captions' own probabilities"}

    def close(self) -> None:
        """Nothing is open."""


def labeller(config: Config, envs: VectorEnv) -> CaptionScorer:
    """In the place of `rl.labels.make_labeller`."""
    return CaptionScorer(config.task.goal)


if __name__ == "__main__":
    labels.make_labeller = labeller
    __main__.main()
