"""Who labels states with rewards: the vision-language model, a predicate, or nobody."""

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmrm_exp.config import Config
from vlmrm_exp.envs import VectorEnv, make_renderer
from vlmrm_exp.vlm.scorer import InPlaceScorer, make_scorer

if TYPE_CHECKING:
    from vlmrm_exp.envs.goals import HumanoidGoal
    from vlmrm_exp.vlm.scorer import Scorer


class GoalScorer(InPlaceScorer):
    """Rewards states that meet a predicate with 1, others with 0; draws nothing."""

    def __init__(self, goal: "HumanoidGoal", name: str) -> None:
        super().__init__()
        self._goal = goal
        self._name = name

    def score(self, rows: np.ndarray) -> np.ndarray:
        """Rewards of rows: (B,) float32."""
        return self._goal(rows).astype(np.float32)

    def facts(self) -> dict[str, Any]:
        """Which predicate judges."""
        return {"predicate": self._name}

    def close(self) -> None:
        """Nothing is open."""


def make_labeller(config: Config, envs: VectorEnv) -> "Scorer | None":
    """Build what labels a run's states.

    Args:
        config: its reward, task, model and where to compute.
        envs: whose present states are drawn and scored at once, so that what is wrong
            shows before anything depends on it.

    Returns:
        None where the environment's own reward is learned from.

    Raises:
        ConfigError: prompts that do not fit, weights that cannot be had, no GPU.
    """
    task = config.task
    if config.reward == "ground_truth":
        if not task.goal:
            return None
        from vlmrm_exp.envs.goals import HumanoidGoal

        return GoalScorer(HumanoidGoal(task.goal), task.goal)
    draw = partial(make_renderer, task, config.frame_height, config.clip.render_effects)
    return make_scorer(config, draw, envs.state_rows())
