"""Wrapped environments in torchrl, against pictures that are drawn again."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from vlmrm_exp.scorer import Scorer
from vlmrm_exp.wrappers import FrameInInfo, VectorVLMReward, VLMReward

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("torchrl") is None, reason="torchrl is not installed"),
]

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "torchrl_rollout.py"
SENTENCE: Any = {"prompt": "a car at the flag", "clip": "nano",
                 "overrides": ["compute=cpu"]}  # fmt: skip


def mountain(length: int = 999) -> gym.Env:
    return gym.make(
        "MountainCarContinuous-v0", render_mode="rgb_array", max_episode_steps=length
    )


def one() -> gym.Env:
    return VLMReward(mountain(5), **SENTENCE)


def several(mode: AutoresetMode) -> VectorVLMReward:
    makers = [lambda n=n: FrameInInfo(mountain(n)) for n in (3, 4)]
    return VectorVLMReward(SyncVectorEnv(makers, autoreset_mode=mode), **SENTENCE)


@pytest.mark.parametrize(
    "mode", [None, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]
)
def test_rewards_are_of_the_frames_after_their_steps(mode):
    # Imported here: it takes seconds, in each process that collects tests.
    from torchrl.envs import GymWrapper
    from torchrl.envs.utils import check_env_specs

    envs = GymWrapper(one() if mode is None else several(mode))
    check_env_specs(envs)
    envs.set_seed(0)
    rollout = envs.rollout(12, break_when_any_done=False)
    assert rollout["next", "truncated"].sum() == (2 if mode is None else 4 + 3)
    env, frames = mountain(), []
    env.reset()
    for position in rollout["next", "observation"][..., 0].ravel():
        env.unwrapped.state = np.array([position, 0], np.float32)
        frames.append(env.render())
    expected = Scorer(**SENTENCE)(frames)
    assert np.ptp(expected) > 1e-3
    rewards = rollout["next", "reward"].ravel()
    np.testing.assert_allclose(rewards, expected, rtol=0, atol=2e-6)


@pytest.mark.long
def test_example(tmp_path):
    done = subprocess.run(
        [sys.executable, EXAMPLE, "60"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "mean reward of random actions: -0." in done.stdout
