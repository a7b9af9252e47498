"""Time what a humanoid's rollout takes besides learning: its physics and its pictures.

    python scripts/time_rollout.py      # no settings

Two turns of each, alternately: physics of 16 humanoids in 1, 2, 4 and 8 threads;
pictures of 96 px without effects, as the embedded models see them, read one by one and
as one sheet. Start several at once to see what a shared GPU does to each
(docs/decisions/0016).
"""

import time

import numpy as np

from vlmrm_exp import app
from vlmrm_exp.config import to_config
from vlmrm_exp.envs.humanoid import HumanoidEnvs
from vlmrm_exp.envs.humanoid_renderer import HumanoidRenderer

TURNS = 2
STATES = 32  # 64 pictures, as many as clip.batch_size embeds at once
SECONDS = 2.0  # of pictures in a turn


def main() -> None:
    """Print seconds a rollout and milliseconds a picture, of each turn."""
    config = to_config(app.compose("config", "task=kneeling").cfg)
    task, num_envs = config.task, config.algo.num_envs
    rng = np.random.default_rng(0)
    shape = (task.episode_length, num_envs, 17)
    actions = rng.uniform(-0.4, 0.4, shape).astype(np.float32)
    states = np.empty((0, 47))
    for _ in range(TURNS):
        for threads in (1, 2, 4, 8):
            envs = HumanoidEnvs(task, num_envs, threads)
            envs.reset(seed=0)
            started = time.perf_counter()
            for action in actions:
                envs.step(action)
            taken = time.perf_counter() - started
            print(f"{actions.shape[0] * num_envs} env steps, threads {threads}:"
                  f" {taken:.3f} s", flush=True)  # fmt: skip
            states = np.concatenate((states, envs.states()))[:STATES]
            envs.close()
    ways = (
        ("one by one", HumanoidRenderer(task, 96, effects=False, columns=1)),
        ("as a sheet", HumanoidRenderer(task, 96, effects=False, columns=8)),
    )
    print(ways[0][1].drawn_by)
    for _ in range(TURNS):
        for name, renderer in ways:
            pictures, started = 0, time.perf_counter()
            while (taken := time.perf_counter() - started) < SECONDS:
                renderer.render(states)
                pictures += STATES * len(task.views)
            print(f"{name}: {1000 * taken / pictures:.3f} ms a picture", flush=True)
    for _, renderer in ways:
        renderer.close()


if __name__ == "__main__":
    main()
