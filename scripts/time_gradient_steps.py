"""Time the gradient steps between two rollouts, launched one by one and as a graph.

    python scripts/time_gradient_steps.py [cpu|gpu]

The agent and its settings are kneeling's; its transitions are noise. Five turns of
each kind, taken alternately after one turn that warms up; on a CPU both launch alike.
docs/decisions/0015 was measured with its first form, which did the same.
"""

import sys
import time

import numpy as np
import torch

from vlmrm_exp.cli import composed
from vlmrm_exp.config import ConfigError
from vlmrm_exp.envs import make_envs
from vlmrm_exp.rl.cuda_graph import CudaGraph
from vlmrm_exp.rl.replay import ReplayBuffer
from vlmrm_exp.rl.sac import SAC
from vlmrm_exp.vlm.scorer import choose_device

TURNS = 5
ROLLOUTS = 20


def main() -> None:
    """Print milliseconds a gradient step, of each turn."""
    name = sys.argv[1] if len(sys.argv) > 1 else "gpu"
    if name not in ("cpu", "gpu"):
        sys.exit(__doc__)
    try:
        device = choose_device(name)
    except ConfigError as error:
        sys.exit(f"time_gradient_steps: {error}")
    torch.set_num_threads(1)
    config = composed("task=kneeling")
    algo = config.algo
    envs = make_envs(config.task, algo.num_envs)
    spaces = envs.observation_space, envs.action_space
    kinds = {}
    for kind, cuda_graph in (("one by one", False), ("as a graph", True)):
        agent = SAC(algo, *spaces, 0, device)
        size = ROLLOUTS, envs.episode_length, envs.num_envs
        replay = ReplayBuffer(*size, *spaces, 0, device, algo.normalise_rewards)
        rng = np.random.default_rng(0)
        steps, num_envs = size[1:]
        for _ in range(ROLLOUTS):
            replay.add(
                rng.standard_normal((steps + 1, num_envs, spaces[0].shape[0]), "f4"),
                rng.uniform(-1, 1, (steps, num_envs, spaces[1].shape[0])).astype("f4"),
                rng.standard_normal((steps, num_envs), "f4"),
            )
        kinds[kind] = GradientSteps(agent, replay, algo.batch_size, cuda_graph)
    taken: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(1 + TURNS):
        for kind, gradient_steps in kinds.items():
            started = time.perf_counter()
            metrics = gradient_steps(algo.gradient_steps)
            float(metrics[-1]["loss/critic"])  # waits for the device
            duration = time.perf_counter() - started
            taken[kind].append(1e3 * duration / algo.gradient_steps)
    for kind, times in taken.items():
        print(f"{kind}: {', '.join(f'{t:.2f}' for t in times[1:])} ms a step")


if __name__ == "__main__":
    main()
