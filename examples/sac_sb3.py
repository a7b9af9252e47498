"""Stable-Baselines3's SAC learns a sentence: python examples/sac_sb3.py [STEPS]."""

import sys

from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env

from vlmrm_exp.sb3 import VecVLMReward
from vlmrm_exp.wrappers import FrameInInfo

drawn = {"render_mode": "rgb_array"}
envs = make_vec_env(
    "MountainCarContinuous-v0", 4, wrapper_class=FrameInInfo, env_kwargs=drawn
)
prompt = "a car at the peak of the mountain, next to the yellow flag"
envs = VecVLMReward(envs, prompt=prompt, clip="tiny")  # for other pictures: vitl14
agent = SAC("MlpPolicy", envs, verbose=1)
agent.learn(int(sys.argv[1]) if sys.argv[1:] else 20_000)
agent.save("sac_mountaincar")
