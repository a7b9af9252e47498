"""Rewards of the kind that people write first, one for each humanoid task.

They measure what comes with the goal, and are there to be compared with: each can be
had in other ways too. Heights and distances are in metres.
"""

from collections.abc import Callable

import numpy as np

from vlmrm_exp.config import Config, ConfigError
from vlmrm_exp.envs.goals import Bodies, HumanoidGoal
from vlmrm_exp.reward import Episodes, RewardModel

FORMULAS: dict[str, Callable[[Bodies], np.ndarray]] = {
    "kneeling": lambda b: -b.knees_low.mean(axis=1),
    "lotus": lambda b: -b.seat_low,
    "standing_up": lambda b: b.head[:, 2],
    "arms_raised": lambda b: b.hands[..., 2].mean(axis=1),
    "splits": lambda b: np.linalg.norm(b.feet[:, 0] - b.feet[:, 1], axis=1),
    "hands_on_hips": lambda b: -np.linalg.norm(b.hands - b.hips, axis=2).mean(axis=1),
    "arms_crossed": lambda b: -b.hands_at_chest[..., 1].mean(axis=1),  # outwards
    "one_leg": lambda b: b.feet_low.max(axis=1),
}
"""Bodies -> (B,)."""


class HandWrittenReward(RewardModel):
    """The formula of the task's goal."""

    cheap = True

    @classmethod
    def check_config(cls, config: Config) -> None:
        """Refuse a task without such a formula."""
        goal = config.task.goal
        if config.task.env != "humanoid" or goal not in FORMULAS:
            raise ConfigError(
                f"task={config.task.name} has no reward that was written by hand: use "
                f"one of {', '.join(FORMULAS)}, or reward=environment."
            )

    def __init__(self, config: Config) -> None:
        goal = config.task.goal
        self._formula, self._goal = FORMULAS[goal], HumanoidGoal(goal)

    def rewards(self, episodes: Episodes) -> np.ndarray:
        """(T, N) float32."""
        values = self._formula(self._goal.bodies(episodes.flat))
        return values.reshape(episodes.shape).astype(np.float32)
