"""SAC with rewards in each step, and in batches later: CPU seconds of an env step.

OMP_NUM_THREADS=1 python scripts/time_later_rewards.py MODEL NUM_ENVS [ROUNDS]
"""

import argparse
import statistics
import time

from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env

from vlmrm_exp.sb3 import VecVLMReward, VLMReplayBuffer
from vlmrm_exp.wrappers import FrameInInfo

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("model")
parser.add_argument("num_envs", type=int)
parser.add_argument("rounds", nargs="?", type=int, default=3)
asked = parser.parse_args()
model, num_envs, rounds = asked.model, asked.num_envs, asked.rounds
if not 1 <= num_envs <= 64:
    parser.error(f"num_envs is {num_envs}: give a whole number from 1 to 64")
steps = 128 if model != "tiny" else 512  # of all environments
sentence = {"prompt": "a car at the flag", "clip": model, "overrides": ["compute=cpu"]}
if model != "tiny":
    sentence["overrides"].append("clip.pretrained=random")  # as fast as real weights


def make(later: bool) -> SAC:
    """An agent that has filled its buffer a little."""
    envs = make_vec_env(
        "MountainCarContinuous-v0", num_envs, seed=0, wrapper_class=FrameInInfo,
        env_kwargs={"render_mode": "rgb_array"},
    )  # fmt: skip
    options = {"train_freq": 64 // num_envs, "gradient_steps": 64, "seed": 0}
    if later:
        options |= {"replay_buffer_class": VLMReplayBuffer,
                    "replay_buffer_kwargs": sentence}  # fmt: skip
    else:
        envs = VecVLMReward(envs, **sentence)
    agent = SAC("MlpPolicy", envs, learning_starts=0, **options)
    agent.learn(64)
    return agent


agents = {"at once": make(False), "later": make(True)}
took = {name: [] for name in agents}
for _ in range(rounds):
    for name, agent in agents.items():
        started = time.process_time()
        agent.learn(steps, reset_num_timesteps=False)
        took[name].append((time.process_time() - started) / steps)
for name, each in took.items():
    print(f"{name:8s} {1e3 * statistics.median(each):.1f} ms of CPU an env step")
ratio = statistics.median(a / b for a, b in zip(*took.values(), strict=True))
print(f"later: {ratio:.2f} times the rate")
