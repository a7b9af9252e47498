"""The cross-entropy method in a plain loop: python examples/plain_loop.py [ROUNDS]."""

import sys

import gymnasium as gym
import numpy as np

from vlmrm_exp.wrappers import VectorVLMReward

envs = gym.make_vec("CartPole-v1", num_envs=8, render_mode="rgb_array")
prompt = "pole vertically upright on top of the cart"
envs = VectorVLMReward(envs, prompt=prompt, clip="tiny")  # for other pictures: vitl14
rng = np.random.default_rng(0)
mean, std = np.zeros(4), np.ones(4)
for number in range(int(sys.argv[1]) if sys.argv[1:] else 10):
    weights = rng.normal(mean, std, (8, 4))  # a linear policy for each environment
    observations, _ = envs.reset(seed=number)
    returns, lengths, alive = np.zeros(8), np.zeros(8), np.ones(8, bool)
    for _ in range(100):
        actions = ((observations * weights).sum(1) > 0).astype(int)
        observations, rewards, terminated, truncated, _ = envs.step(actions)
        returns, lengths = returns + rewards * alive, lengths + alive
        alive &= ~(terminated | truncated)
    best = weights[returns.argsort()[-2:]]
    mean, std = best.mean(0), best.std(0) + 0.1
    print(f"round {number}: return {returns.mean():.2f}, steps {lengths.mean():.1f}")
