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

from vlmrm_exp import app
from vlmrm_exp.config import ConfigError, to_config
from vlmrm_exp.envs.humanoid import HumanoidEnvs
from vlmrm_exp.reward import choose_device
from vlmrm_exp.rl.cuda_graph import CudaGraph
from vlmrm_exp.rl.experience import Replay
from vlmrm_exp.rl.sac import SAC

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
    config = to_config(app.compose("config", "task=kneeling").cfg)
    algo = config.algo
    envs = HumanoidEnvs(config.task, algo.num_envs)
    spaces = envs.observation_space, envs.action_space
    steps, num_envs = envs.episode_length, envs.num_envs
    kinds = {}
    for kind in ("one by one", "as a graph"):
        agent = SAC(algo, *spaces, 0, device)
        replay = Replay(
            ROLLOUTS * steps * num_envs, envs, 0, device, algo.normalise_rewards
        )
        rng = np.random.default_rng(0)
        for _ in range(ROLLOUTS):
            replay.add(
                rng.standard_normal((steps + 1, num_envs, spaces[0].shape[0]), "f4"),
                rng.uniform(-1, 1, (steps, num_envs, spaces[1].shape[0])).astype("f4"),
                rng.standard_normal((steps, num_envs), "f4"),
            )
        graph = None
        if kind == "as a graph" and device.type == "cuda":
            graph = CudaGraph(agent, replay, algo.batch_size)
        kinds[kind] = agent, replay, graph
    taken: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(1 + TURNS):
        for kind, (agent, replay, graph) in kinds.items():
            started = time.perf_counter()
            places = replay.draw(algo.gradient_steps, algo.batch_size)
            if graph is not None:
                metrics = graph(places)
            else:
                metrics = [agent.update(replay.gather(place)) for place in places]
            float(metrics[-1]["loss/critic"])  # waits for the device
            duration = time.perf_counter() - started
            taken[kind].append(1e3 * duration / algo.gradient_steps)
    for kind, times in taken.items():
        print(f"{kind}: {', '.join(f'{t:.2f}' for t in times[1:])} ms a step")


if __name__ == "__main__":
    main()
