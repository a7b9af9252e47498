"""torchrl collects rewarded steps: python examples/torchrl_rollout.py [STEPS]."""

import sys

import gymnasium as gym
from gymnasium.vector import AutoresetMode
from torchrl.envs import GymWrapper

from vlmrm_exp.wrappers import VectorVLMReward

by_torchrl = {"autoreset_mode": AutoresetMode.DISABLED}  # it resets them itself
name, drawn = "MountainCarContinuous-v0", {"render_mode": "rgb_array"}
envs = gym.make_vec(name, 4, vector_kwargs=by_torchrl, max_episode_steps=50, **drawn)
prompt = "a car at the peak of the mountain, next to the yellow flag"
envs = VectorVLMReward(envs, prompt=prompt, clip="tiny")  # for other pictures: vitl14
steps = int(sys.argv[1]) if sys.argv[1:] else 200
rollout = GymWrapper(envs).rollout(steps, break_when_any_done=False)
print(rollout)
print("mean reward of random actions:", rollout["next", "reward"].mean().item())
