"""What needs a CUDA GPU: `make test-gpu`."""

import json
import subprocess
import sys
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch

from vlmrm_exp.config import AlgoConfig
from vlmrm_exp.rl.cuda_graph import CudaGraph
from vlmrm_exp.rl.dqn import DQN
from vlmrm_exp.rl.replay import Replay
from vlmrm_exp.rl.sac import SAC
from vlmrm_exp.vlm.encoder import load_encoder

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda")


@pytest.mark.parametrize(
    ("clip", "cosine"),
    [
        (["clip=base"], 0.9999),
        # Larger models are run in bfloat16 there, whose numbers have 8 bits.
        (["clip=vitb32", "clip.pretrained=random"], 0.99),
    ],
)
def test_a_gpu_embeds_as_the_cpu_does(compose, clip, cosine):
    config = compose("task=kneeling", *clip).clip
    frames = np.random.default_rng(0).integers(0, 256, (6, 96, 96, 3), np.uint8)
    by_device = []
    for device in (torch.device("cpu"), GPU):
        encoder = load_encoder(config, device)
        sentences = encoder.embed_prompts(["a robot", "a robot kneeling"])
        by_device.append(torch.cat([encoder.embed_frames(frames), sentences]).cpu())
    assert (by_device[0] * by_device[1]).sum(dim=1).min() > cosine


@pytest.mark.parametrize("task", ["mountaincar", "cartpole", "kneeling"])
def test_a_run_learns_and_scores_on_the_gpu(tmp_path, task):
    subprocess.run(
        [sys.executable, "-m", "vlmrm_exp", f"task={task}", "experiment=smoke",
         "log=none", "compute=gpu", f"hydra.run.dir={tmp_path}"],
        cwd=tmp_path, check=True,
    )  # fmt: skip
    assert json.loads((tmp_path / "versions.json").read_text())["device"] == "cuda"
    assert json.loads((tmp_path / "summary.json").read_text())["gradient_steps"] == 4


@pytest.mark.parametrize("name", ["sac", "dqn"])
def test_replayed_gradient_steps_are_those_taken_one_by_one(name):
    """Across two rollouts, with actions drawn from the same generator in between."""
    algo = AlgoConfig(name=name, hidden=[64, 64], layer_norm=name == "sac")
    observation_space = gym.spaces.Box(-np.inf, np.inf, (5,), np.float32)
    if name == "sac":
        action_space, kind = gym.spaces.Box(-1, 1, (2,), np.float32), SAC
    else:
        action_space, kind = gym.spaces.Discrete(3), DQN
    outcomes = []
    for cuda_graph in (False, True):
        agent = kind(algo, observation_space, action_space, 0, GPU)
        envs = SimpleNamespace(
            num_envs=8,
            episode_length=20,
            observation_space=observation_space,
            action_space=action_space,
        )
        replay = Replay(3 * 160, envs, 0, GPU, normalise_rewards=True)
        graph = CudaGraph(agent, replay, 32)
        rng = np.random.default_rng(0)
        metrics, actions = [], []
        for scale in (1, 7):
            observation = rng.standard_normal((21, 8, 5), np.float32)
            action = (
                rng.uniform(-1, 1, (20, 8, 2)).astype(np.float32)
                if name == "sac"
                else rng.integers(0, 3, (20, 8))
            )
            reward = scale * observation[1:, :, 0]
            replay.add(observation, action, reward)
            places = replay.draw(25, 32)
            if cuda_graph:
                taken = graph(places)
                assert len(taken) == 1
            else:
                taken = [agent.update(replay.gather(place)) for place in places]
            metrics.append(
                {k: np.mean([float(each[k]) for each in taken]) for k in taken[0]}
            )
            epsilon = () if name == "sac" else (0.0,)
            actions.append(agent.act(observation[0], *epsilon))
        network = agent.critics if name == "sac" else agent.network
        outcomes.append((metrics, actions, list(network.parameters())))
    (metrics, actions, weights), (our_metrics, our_actions, our_weights) = outcomes
    for ours, theirs in zip(our_metrics, metrics, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    np.testing.assert_allclose(our_actions, actions, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(our_weights, weights, rtol=1e-3, atol=1e-4)
