"""Deep Q-network with double targets for discrete actions (van Hasselt et al. 2016).

Read from top to bottom: network, losses, agent, training loop. Differences from Mnih et
al. 2015: targets follow softly at every gradient step, and the next action is chosen
by the network that learns (arXiv 1509.06461).
"""

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vlmrm_exp.config import AlgoConfig
from vlmrm_exp.rl.gradient_steps import GradientSteps
from vlmrm_exp.rl.replay import Batch
from vlmrm_exp.rl.rollout import network_input

if TYPE_CHECKING:
    from vlmrm_exp.rl.run import Labelled, Run


class QNetwork(nn.Module):
    """The value of every action."""

    def __init__(self, observation_dim: int, num_actions: int, hidden: Sequence[int]):
        super().__init__()
        layers: list[nn.Module] = []
        width_in = observation_dim
        for width in hidden:
            layers += [nn.Linear(width_in, width), nn.ReLU(inplace=True)]
            width_in = width
        self.net = nn.Sequential(*layers, nn.Linear(width_in, num_actions))

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        """Observations (B, O) -> values (B, number of actions)."""
        return self.net(observation)


def q_target(
    batch: Batch,
    next_value: torch.Tensor,
    next_target_value: torch.Tensor,
    gamma: float,
    bootstrap_at_time_limit: bool,
) -> torch.Tensor:
    """Bellman target (B,): the learning network chooses, the target network judges.

    Args:
        batch: of B transitions.
        next_value: (B, number of actions), of the learning network.
        next_target_value: (B, number of actions), of the target network.
        gamma: discount per env step.
        bootstrap_at_time_limit: whether the value after an episode's last step counts.
    """
    choice = next_value.argmax(-1, keepdim=True)  # (B, 1)
    chosen = next_target_value.gather(-1, choice).squeeze(-1)  # (B, 1) -> (B,)
    if not bootstrap_at_time_limit:
        chosen = chosen * ~batch.last
    return batch.reward + gamma * chosen


def q_loss(value: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Huber loss with threshold 1, averaged: (B,), (B,) -> ()."""
    return F.smooth_l1_loss(value, target)


def epsilon(algo: AlgoConfig, env_steps: int) -> float:
    """Share of random actions after `env_steps`: falls linearly, then stays."""
    progress = min(env_steps / max(algo.exploration_steps, 1), 1.0)
    return algo.exploration_start + progress * (
        algo.exploration_end - algo.exploration_start
    )


class DQN:
    """Q-network, its target, optimiser and random numbers."""

    def __init__(
        self,
        algo: AlgoConfig,
        observation_space: gym.spaces.Box,
        action_space: gym.spaces.Discrete,
        seed: int,
        device: torch.device,
    ) -> None:
        self.algo = algo
        self.device = device
        # On the CPU: it only decides between actions, a few numbers per env step.
        self.generator = torch.Generator().manual_seed(seed)
        self.observation_dim = observation_space.shape[0]
        self.num_actions = int(action_space.n)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.network = QNetwork(self.observation_dim, self.num_actions, algo.hidden)
        self.network.to(device)
        self.target = copy.deepcopy(self.network).requires_grad_(False)
        # Lists made once: walking a module's parameters costs as much as a layer.
        self._network: list[torch.Tensor] = list(self.network.parameters())
        self._target: list[torch.Tensor] = list(self.target.parameters())
        # In place, all tensors at once: target += tau (network - target).
        self._follow = get_ema_multi_avg_fn(1 - algo.tau)
        self.optimiser = torch.optim.Adam(
            self._network,
            algo.learning_rate,
            fused=True,
            capturable=device.type == "cuda",  # by a CUDA graph
        )

    @torch.no_grad()
    def act(self, observation: np.ndarray, epsilon: float) -> np.ndarray:
        """Explore: observations (N, O) -> (N,) int64, random with chance epsilon."""
        inputs = network_input(observation, self.algo.squash_observations)
        value = self.network(torch.from_numpy(inputs).to(self.device))
        greedy = value.argmax(-1).cpu()
        shape = greedy.shape
        chance = torch.rand(shape, generator=self.generator)
        uniform = torch.randint(self.num_actions, shape, generator=self.generator)
        return torch.where(chance < epsilon, uniform, greedy).numpy()

    def update(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Take one gradient step; its metrics stay on the device."""
        with torch.no_grad():
            target = q_target(
                batch,
                self.network(batch.next_observation),
                self.target(batch.next_observation),
                self.algo.gamma,
                self.algo.bootstrap_at_time_limit,
            )
        values = self.network(batch.observation)
        value = values.gather(-1, batch.action.unsqueeze(-1)).squeeze(-1)  # (B,)
        loss = q_loss(value, target)
        gradients = torch.autograd.grad(loss, self._network)
        for parameter, gradient in zip(self._network, gradients, strict=True):
            parameter.grad = gradient
        self.optimiser.step()
        self._follow(self._target, self._network, 0)
        return {"loss/q": loss.detach(), "train/q_mean": value.detach().mean()}

    def checkpoint(self) -> dict[str, Any]:
        """What acting without exploration needs, copied to the CPU: see `Policy`."""
        weights = self.network.state_dict()
        return {
            "algo": "dqn",
            "observation_dim": self.observation_dim,
            "action": {"count": self.num_actions},
            "hidden": list(self.algo.hidden),
            "squash_observations": self.algo.squash_observations,
            "policy": {key: value.cpu().clone() for key, value in weights.items()},
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that learning changes, random generator included."""
        return {
            "network": self.network.state_dict(),
            "target": self.target.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.network.load_state_dict(state["network"])
        self.target.load_state_dict(state["target"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"])


def train(run: "Run") -> None:
    """Collect, label, learn, report, until all env steps are labelled and learned from.

    Raises:
        KeyboardInterrupt: at the end of a rollout, after Ctrl-C.
        FloatingPointError: a reward or a loss is not a finite number.
    """
    algo = run.config.algo
    observation_space, action_space = run.envs.observation_space, run.envs.action_space
    assert isinstance(action_space, gym.spaces.Discrete)
    agent = DQN(algo, observation_space, action_space, run.seeds.agent, run.device)
    state = run.start(agent)
    replay = state.replay
    gradient_steps = GradientSteps(
        agent, replay, algo.batch_size, run.config.compute.cuda_graph
    )

    def act(observation: np.ndarray) -> np.ndarray:
        # env_steps are counted by whole rollouts, so epsilon falls in as many stairs.
        random = state.env_steps < algo.random_steps
        return agent.act(observation, 1.0 if random else epsilon(algo, state.env_steps))

    def learn(labelled: "Labelled | None") -> list[dict[str, torch.Tensor]]:
        if labelled is None:  # the first rollout is still being scored
            return []
        rollout = labelled.rollout
        replay.add(
            network_input(rollout.observation, algo.squash_observations),
            rollout.action,
            labelled.reward,
        )
        if replay.size < algo.learning_starts:
            return []
        state.gradient_steps += algo.gradient_steps
        return gradient_steps(algo.gradient_steps)

    while not run.finished():
        rollout = run.collect(act)
        labelled = run.label(rollout)
        metrics = learn(labelled)
        run.report(labelled, metrics)
