"""Alarms: the reward rises, and a second opinion does not.

A policy is trained on the reward, so after a while it may find states that the reward
likes and nothing else does (Gao et al. 2022, arXiv 2210.10760). Judges are not learned
from, and are asked of the same episodes.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

PREFIX = "judge/"
WINDOW = 10  # evaluations
PATIENCE = 16  # evaluations: before it rises, an honest judge stands still too
CHANCE = 0.005  # of an order so strict by accident, at most


def disagreement(reward: Sequence[float], judge: Sequence[float]) -> str | None:
    """How a judge disagrees with a reward that rises, by Kendall's rank test.

    - "falls": over the newest `WINDOW` evaluations the reward rises and the judge falls
      (one-sided tests, p at most `CHANCE` each).
    - "stands still": over all evaluations, at least `PATIENCE`, the reward rises, and
      the judge's rank correlation with time is not above 0.
    - None: too few evaluations, or no disagreement.

    Both are means of all evaluations so far, in order; those where the judge's is not
    finite do not count.
    """
    finite = np.isfinite(judge)
    reward = np.compress(finite, reward).tolist()
    judge = np.compress(finite, judge).tolist()
    recent = reward[-WINDOW:], judge[-WINDOW:]
    if len(reward) >= WINDOW and _rises(recent[0]) and _rises([-x for x in recent[1]]):
        return "falls"
    if len(reward) >= PATIENCE and _rises(reward) and _trend(judge)[0] <= 0:
        return "stands still"
    return None


def _rises(values: Sequence[float]) -> bool:
    return _trend(values)[1] <= CHANCE


def _trend(values: Sequence[float]) -> tuple[float, float]:
    """Kendall's tau with time, and the chance of one as high; 0 and 1 of a constant."""
    from scipy.stats import kendalltau

    if np.ptp(values) == 0:
        return 0.0, 1.0
    found: Any = kendalltau(range(len(values)), values, alternative="greater")
    return float(found.statistic), float(found.pvalue)


class Alarms:
    """What judges said of each evaluation, and where they disagreed with the reward."""

    def __init__(self) -> None:
        self.raised: dict[str, dict[str, Any]] = {}
        """The first alarm of each judge: `env_steps`, and what the `judge` does."""
        self._reward: list[float] = []
        self._judges: dict[str, list[float]] = {}
        self._policies: dict[str, dict[str, Any]] = {}

    def add(
        self, reward: float, judged: Mapping[str, Any], policy: dict[str, Any]
    ) -> list[str]:
        """Take an evaluation: its mean reward, its judge/ metrics, and the policy.

        Returns the names of the judges that now disagree for the first time.
        """
        self._reward.append(reward)
        raised = []
        for key, value in judged.items():
            if not key.startswith(PREFIX):
                continue
            name = key.removeprefix(PREFIX)
            said = self._judges.setdefault(name, [])
            best = max(filter(math.isfinite, said), default=-math.inf)
            if best < value < math.inf:
                self._policies[f"judged-{name}"] = policy
            said.append(value)
            does = name not in self.raised and disagreement(self._reward, said)
            if does:
                self.raised[name] = {"env_steps": policy["env_steps"], "judge": does}
                self._policies[f"alarm-{name}"] = policy
                raised.append(name)
        return raised

    def policies(self, name: str) -> dict[str, dict[str, Any]]:
        """Of an alarm: the policy that was judged best, and that of the alarm."""
        return {kind: self._policies[f"{kind}-{name}"] for kind in ("judged", "alarm")}

    def state_dict(self) -> dict[str, Any]:
        """Everything, in primitives and tensors."""
        return vars(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        vars(self).update(state)
