"""Deep Q-network with double targets for discrete actions (van Hasselt et al. 2016).

Read from top to bottom: network, losses, agent, training loop. Differences from Mnih et
al. 2015: targets follow softly at every gradient step, and the next action is chosen
by the network that learns (arXiv 1509.06461).
"""

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vlmrm_exp.config import AlgoConfig, Config
from vlmrm_exp.envs import VectorEnv
from vlmrm_exp.log import RunLog
from vlmrm_exp.reward.pool import Pool
from vlmrm_exp.rl import Batch, make_seeds, means, network_input
from vlmrm_exp.rl.cuda_graph import CudaGraph
from vlmrm_exp.rl.evaluation import evaluate, rollout_metrics
from vlmrm_exp.rl.remembering import RememberingReplay, make_replay
from vlmrm_exp.rl.rollout import collect
from vlmrm_exp.rl.state import State
from vlmrm_exp.signals import Interrupts


class QNetwork(nn.Module):
    """The value of every action."""

    def __init__(self, observation_dim: int, num_actions: int, hidden: Sequence[int]):
        super().__init__()
        layers: list[nn.Module] = []
        for widths in itertools.pairwise([observation_dim, *hidden, num_actions]):
            layers += [nn.Linear(*widths), nn.ReLU(inplace=True)]
        self.net = nn.Sequential(*layers[:-1])  # no ReLU after the last

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

    `next_value` and `next_target_value` are theirs, (B, number of actions) each; gamma
    discounts an env step. With `bootstrap_at_time_limit` the value after an episode's
    last step counts.
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
        on_gpu = device.type == "cuda"  # where a CUDA graph captures it
        self.optimiser = torch.optim.Adam(
            self._network, algo.learning_rate, fused=True, capturable=on_gpu
        )

    @torch.no_grad()
    def act_greedily(self, observation: np.ndarray) -> np.ndarray:
        """Observations (N, O) -> the actions of highest value, (N,) int64."""
        inputs = network_input(observation, self.algo.squash_observations)
        value = self.network(torch.from_numpy(inputs).to(self.device))
        return value.argmax(-1).cpu().numpy()

    def act(self, observation: np.ndarray, epsilon: float) -> np.ndarray:
        """Explore: observations (N, O) -> (N,) int64, random with chance epsilon."""
        greedy = torch.from_numpy(self.act_greedily(observation))
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


def train(
    config: Config,
    envs: VectorEnv,
    eval_envs: VectorEnv,
    pool: Pool,
    log: RunLog,
    device: torch.device,
    saved: Mapping[str, Any] | None = None,
    save: Callable[[State], object] = lambda state: None,
) -> State:
    """Simulate, reward, learn and report, until all env steps are learned from.

    `envs` have discrete actions. `eval_envs` are others, so that evaluation leaves
    training's random stream alone; best `evaluation.episodes` of them. `saved` is a
    `State.state_dict` to go on from; `save` is called after each rollout that was
    learned from.

    Raises:
        FloatingPointError: a reward or a loss is not a finite number.
    """
    algo, seeds = config.algo, make_seeds(config.seed)
    assert isinstance(envs.action_space, gym.spaces.Discrete)
    agent = DQN(algo, envs.observation_space, envs.action_space, seeds.agent, device)
    replay = make_replay(config, envs, pool.remembers, device)
    state = State(envs, agent, replay, pool, next_evaluation=config.evaluation.every)
    if saved is not None:
        state.load_state_dict(saved)
    graph = None
    if config.compute.cuda_graph and device.type == "cuda":
        graph = CudaGraph(agent, replay, algo.batch_size)
    # Rewards that cost nothing are there at once.
    overlap = config.compute.overlap and not pool.cheap

    def act(observation: np.ndarray) -> np.ndarray:
        # env_steps are counted by whole rollouts, so epsilon falls in as many stairs.
        random = state.env_steps < algo.random_steps
        return agent.act(observation, 1.0 if random else epsilon(algo, state.env_steps))

    with Interrupts() as interrupt:
        while state.learned_steps < config.env_steps and not interrupt.number:
            # Simulate one episode in each environment, and have it rewarded.
            more = state.env_steps < config.env_steps
            if more:
                seed = seeds.envs if state.env_steps == 0 else None
                rollout = collect(envs, act, seed, pool.needs_states)
                state.env_steps += rollout.env_steps
                log.lap("perf/collect_s")
                state.rewards.append(pool.submit(rollout, thin=True))
                state.in_flight.append(rollout)
            # With overlap, learn from the rollout before while this one is rewarded.
            if overlap and more and len(state.rewards) == 1:
                continue
            reward = state.rewards.popleft()()
            rollout = state.in_flight.popleft()
            log.lap("perf/reward_wait_s")

            # Learn.
            replay.add(
                network_input(rollout.observation, algo.squash_observations),
                rollout.action,
                reward,
                rollout.states,
            )
            state.learned_steps += rollout.env_steps
            metrics, losses = {}, []
            if isinstance(replay, RememberingReplay):
                metrics = pool.learn(replay)
            if replay.size >= algo.learning_starts:
                places = replay.draw(algo.gradient_steps, algo.batch_size)
                if graph is not None:
                    losses = graph(places)
                else:
                    losses = [agent.update(replay.gather(place)) for place in places]
                state.gradient_steps += algo.gradient_steps
            metrics |= means(losses)  # the only wait for the device
            log.lap("perf/learn_s")

            # Report, and evaluate when it is time.
            reward = replay.newest_reward()
            metrics |= rollout_metrics(rollout, reward, envs)
            metrics["train/gradient_steps"] = state.gradient_steps
            ended = state.env_steps >= config.env_steps and not state.rewards
            if state.learned_steps >= state.next_evaluation or ended:
                metrics |= evaluate(config, state, eval_envs, log.folder)
                log.lap("perf/evaluate_s")
            log.metrics(state.learned_steps, metrics, {"train/rewards": reward})
            save(state)
    state.interrupted, state.whole = interrupt.number, not interrupt.midway
    return state
