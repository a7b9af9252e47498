"""Stable-Baselines3's SAC learns a sentence: python examples/sac_sb3.py [STEPS]."""

import sys

from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env

from vlmrm_exp.sb3 import VLMReplayBuffer
from vlmrm_exp.wrappers import FrameInInfo

drawn = {"render_mode": "rgb_array"}
envs = make_vec_env(
    "MountainCarContinuous-v0", 4, wrapper_class=FrameInInfo, env_kwargs=drawn
)
prompt = "a car at the peak of the mountain, next to the yellow flag"
sentence = {"prompt": prompt, "clip": "tiny"}  # for other pictures: vitl14
later = {"replay_buffer_class": VLMReplayBuffer, "replay_buffer_kwargs": sentence}
agent = SAC("MlpPolicy", envs, train_freq=8, gradient_steps=8, **later, verbose=1)
agent.learn(int(sys.argv[1]) if sys.argv[1:] else 20_000)
agent.save("sac_mountaincar")
