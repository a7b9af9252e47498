"""Collect states that trained agents visit: src/vlmrm_exp/envs/visited.npz.

    python scripts/visited_states.py outputs/sweeps/tasks_embedded/* ...

The arguments are folders of humanoid runs, of whatever reward; one that is named twice
counts twice. The embedded models see such states among those they learn from
(docs/embedded_models.md). The names are kept beside the states, as `runs`.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from vlmrm_exp.envs import world_of
from vlmrm_exp.envs.humanoid_model import NUM_QPOS
from vlmrm_exp.envs.poses import VISITED
from vlmrm_exp.rl.policy import Policy, load_policy
from vlmrm_exp.rl.rollout import collect
from vlmrm_exp.run_folder import load_run_config

EPISODES = 16  # of each policy, half of them with noise
NOISE = 0.2  # standard deviation of an action's, of which the limits are 0.4
KEPT = 20_000  # states: a megabyte


def visited(folder: Path, rng: np.random.Generator) -> np.ndarray:
    """Positions (B, 24) that a run's best and last policies pass through."""
    task = load_run_config(folder).task
    parts = []
    for name in ("best", "last"):
        policy = load_policy(folder / "checkpoints" / f"{name}.pt")

        def act(observation: np.ndarray, policy: Policy = policy) -> np.ndarray:
            action = policy.act(observation)
            noise = rng.normal(0, NOISE, action.shape)
            noise[::2] = 0
            return (action + noise).clip(-0.4, 0.4).astype(np.float32)

        seed = int(rng.integers(2**31))
        envs = world_of(task).make_envs(task, EPISODES, 1)
        states = collect(envs, act, seed=seed).states
        envs.close()
        assert states is not None
        parts.append(states[rng.integers(3) :: 3, :, :NUM_QPOS].reshape(-1, NUM_QPOS))
    return np.concatenate(parts)


def main() -> None:
    """Collect and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path)
    given = parser.parse_args().folders
    rng = np.random.default_rng(0)
    folders = [folder for folder in given if (folder / "checkpoints").is_dir()]
    if not folders:
        sys.exit("No run with checkpoints is given: give folders of humanoid runs.")
    for folder in folders:
        if load_run_config(folder).task.env != "humanoid":
            sys.exit(f"{folder} is no run of the humanoid: leave it out.")
    states = np.concatenate([visited(folder, rng) for folder in folders])
    kept = np.sort(rng.choice(len(states), min(KEPT, len(states)), replace=False))
    runs = np.array([str(folder) for folder in folders])
    np.savez_compressed(VISITED, qpos=states[kept].astype(np.float16), runs=runs)
    print(f"{len(kept)} of {len(states)} states of {len(folders)} runs in {VISITED}")


if __name__ == "__main__":
    main()
