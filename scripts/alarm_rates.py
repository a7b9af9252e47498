"""How often `rl/alarms.py` raises an alarm in runs whose truth is known.

    python scripts/alarm_rates.py [RUNS]

Runs of 25 evaluations, of which the k-th is at t = k / 25. The reward rises from 0 to 1
with normal noise of a tenth of the judge's. Prints docs/judges.md's table.
"""

import argparse

import numpy as np

from vlmrm_exp.rl.alarms import WINDOW, disagreement

T = np.arange(25) / 25
JUDGES = {
    "rises with the reward": T,
    "rises in the first fifth, then stays": np.minimum(5 * T, 1),
    "rises only after a third": np.maximum(0, T - 1 / 3) * 1.5,
    "rises only in the second half": np.maximum(0, T - 0.5) * 2,
    "rises until the middle, then falls back": 1 - 4 * (T - 0.5) ** 2,
}


def rates(runs: int, make) -> str:
    """Percent of the runs whose first alarm is of each kind."""
    first = []
    for _ in range(runs):
        reward, judge = make()
        told = (disagreement(reward[:k], judge[:k]) for k in range(WINDOW, 26))
        first.append(next((kind for kind in told if kind), None))
    kinds = "falls", "stands still"
    return ", ".join(f"{100 * first.count(kind) / runs:.0f} %" for kind in kinds)


parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("runs", nargs="?", type=int, default=500)
runs = parser.parse_args().runs
rng = np.random.default_rng(0)
print("falls, stands still")
noise = rates(runs, lambda: rng.normal(size=(2, 25)))
print(f"nothing rises, reward and judge are noise: {noise}")
print(f"is zero throughout: {rates(runs, lambda: (T, 0 * T))}")
for name, judge in JUDGES.items():
    for spread in (0.1, 0.3):
        drawn = rates(
            runs,
            lambda judge=judge, spread=spread: (
                T + 0.1 * spread * rng.normal(size=25),
                judge + spread * rng.normal(size=25),
            ),
        )
        print(f"{name}, noise {spread}: {drawn}")
