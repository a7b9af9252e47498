"""Soft actor-critic for continuous actions (Haarnoja et al. 2018, arXiv 1812.05905).

Read from top to bottom: networks, losses, agent, training loop. Inside, actions lie in
the unit box [-1, 1]^A; they are scaled to the environment's bounds on their way out.
Both critics are one set of stacked weights, and losses stay tensors until the report.
"""

import copy
import itertools
import math
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

LOG_STD_RANGE = (-20.0, 2.0)
"""Of the Gaussian before tanh; Stable-Baselines3's bounds."""


class Actor(nn.Module):
    """Mean and log standard deviation of a Gaussian that tanh squashes."""

    def __init__(self, observation_dim: int, action_dim: int, hidden: Sequence[int]):
        super().__init__()
        layers: list[nn.Module] = []
        for widths in itertools.pairwise([observation_dim, *hidden, 2 * action_dim]):
            layers += [nn.Linear(*widths), nn.ReLU(inplace=True)]
        self.net = nn.Sequential(*layers[:-1])  # no ReLU after the last

    def forward(self, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Observations (B, O) -> mean (B, A), log standard deviation (B, A)."""
        mean, log_std = self.net(observation).chunk(2, dim=-1)
        # A clamp whose gradient is one kernel, not five.
        return mean, F.hardtanh(log_std, *LOG_STD_RANGE)


class TwinCritics(nn.Module):
    """Two Q-functions, evaluated at once as batched matrix products.

    With `layer_norm`, the inputs of each ReLU are normalised: critics then cannot
    extrapolate without bounds to actions that were never tried (Ball et al. 2023,
    arXiv 2302.02948, section 4.2).
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        layer_norm: bool = False,
    ):
        super().__init__()
        self.layer_norm = layer_norm
        sizes = [observation_dim + action_dim, *hidden, 1]
        weights, biases = [], []
        for width_in, width_out in itertools.pairwise(sizes):
            # nn.Linear's own initialisation.
            bound = width_in**-0.5
            weights.append(torch.empty(2, width_in, width_out).uniform_(-bound, bound))
            biases.append(torch.empty(2, 1, width_out).uniform_(-bound, bound))
        # In two parts: for the actor's gradient only the actions' part is needed.
        self.action_weight = nn.Parameter(weights[0][:, observation_dim:].clone())
        weights[0] = weights[0][:, :observation_dim].clone()
        self.weights = nn.ParameterList(weights)
        self.biases = nn.ParameterList(biases)
        # The same in a tuple: a slice of a ParameterList costs as much as a layer.
        self._layers = tuple(zip(self.weights, self.biases, strict=True))

    def forward(self, observation: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """Observations (B, O), unit actions (B, A) -> values (2, B)."""
        (weight, bias), *hidden, (last_weight, last_bias) = self._layers
        x = torch.baddbmm(bias, observation.expand(2, *observation.shape), weight)
        x = torch.baddbmm(x, action.expand(2, *action.shape), self.action_weight)
        for weight, bias in hidden:
            x = torch.baddbmm(bias, self._activation(x), weight)
        # Faster than a matrix product of one column: (2, B, H), (2, 1, H) -> (2, B)
        value = torch.linalg.vecdot(self._activation(x), last_weight.mT)
        return value + last_bias.squeeze(-1)

    def _activation(self, x: torch.Tensor) -> torch.Tensor:
        return (F.layer_norm(x, x.shape[-1:]) if self.layer_norm else x).relu_()


def squashed_gaussian(
    mean: torch.Tensor, log_std: torch.Tensor, noise: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Action tanh(mean + std * noise) and its log-density in the unit box.

    Mean, log_std and noise (standard normal), (B, A) each -> actions (B, A) and
    log-densities (B,). log(1 - tanh(u)^2) is written as
    2 (log 2 - u - softplus(-2u)), which does not underflow where tanh saturates.
    """
    u = mean + log_std.exp() * noise
    gaussian = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    tanh_slope = 2 * (math.log(2) - u - F.softplus(-2 * u))
    return torch.tanh(u), (gaussian - tanh_slope).sum(-1)


def critic_target(
    batch: Batch,
    next_value: torch.Tensor,
    next_log_prob: torch.Tensor,
    temperature: torch.Tensor,
    gamma: float,
    bootstrap_at_time_limit: bool,
) -> torch.Tensor:
    """Soft Bellman target (B,) from target values (2, B) and log-densities (B,)."""
    soft_value = next_value.amin(0) - temperature * next_log_prob
    if not bootstrap_at_time_limit:
        soft_value = soft_value * ~batch.last
    return batch.reward + gamma * soft_value


def critic_loss(value: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Squared errors, averaged over B and summed over critics: (2, B), (B,) -> ()."""
    return (value - target).square().mean(-1).sum()


def actor_loss(
    value: torch.Tensor, log_prob: torch.Tensor, temperature: torch.Tensor
) -> torch.Tensor:
    """Entropy-regularised negative value: (2, B), (B,), () -> ()."""
    return (temperature * log_prob - value.amin(0)).mean()


def temperature_loss(
    log_temperature: torch.Tensor, log_prob: torch.Tensor, target_entropy: float
) -> torch.Tensor:
    """Raises the temperature while entropy is below its target: (), (B,) -> ()."""
    return -log_temperature * (log_prob + target_entropy).mean()


class SAC:
    """Actor, critics, their optimisers and random numbers."""

    def __init__(
        self,
        algo: AlgoConfig,
        observation_space: gym.spaces.Box,
        action_space: gym.spaces.Box,
        seed: int,
        device: torch.device,
    ) -> None:
        self.algo = algo
        self.device = device
        self.generator = torch.Generator(device).manual_seed(seed)
        self.low, self.high = action_space.low, action_space.high
        self.observation_dim = observation_space.shape[0]
        self.action_dim = action_space.shape[0]
        dims = (self.observation_dim, self.action_dim, algo.hidden)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.actor = Actor(*dims).to(device)
            self.critics = TwinCritics(*dims, algo.layer_norm).to(device)
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.log_temperature = torch.tensor(
            math.log(algo.temperature), device=device, requires_grad=True
        )
        asked = algo.target_entropy
        self.target_entropy = -float(self.action_dim) if asked is None else asked
        self.held_action = torch.empty(0)
        self.held_steps = 0
        # Lists made once: walking a module's parameters costs as much as a layer.
        actor: list[torch.Tensor] = list(self.actor.parameters())
        if algo.learn_temperature:  # by the same step: each one costs
            actor.append(self.log_temperature)
        self._learned = {"actor": actor, "critics": list(self.critics.parameters())}
        self._targets: list[torch.Tensor] = list(self.targets.parameters())
        # In place, all tensors at once: target += tau (critic - target).
        self._follow = get_ema_multi_avg_fn(1 - algo.tau)
        on_gpu = device.type == "cuda"  # where a CUDA graph captures it
        self.optimisers = {
            name: torch.optim.Adam(
                parameters, algo.learning_rate, fused=True, capturable=on_gpu
            )
            for name, parameters in self._learned.items()
        }

    def random_action(self, num_envs: int) -> np.ndarray:
        """Uniform in the bounds, held for `random_action_repeat` steps: (N, A) float32.

        Actions drawn anew each step average out, so that nothing far away is reached.
        """
        if self.held_steps % self.algo.random_action_repeat == 0:
            shape = (num_envs, self.action_dim)
            unit = torch.rand(shape, generator=self.generator, device=self.device)
            self.held_action = unit * 2 - 1
        self.held_steps += 1
        return to_bounds(self.held_action.cpu().numpy(), self.low, self.high)

    @torch.no_grad()
    def act_greedily(self, observation: np.ndarray) -> np.ndarray:
        """The mean action: observations (N, O) -> (N, A) in bounds."""
        inputs = network_input(observation, self.algo.squash_observations)
        mean, _ = self.actor(torch.from_numpy(inputs).to(self.device))
        return to_bounds(torch.tanh(mean).cpu().numpy(), self.low, self.high)

    @torch.no_grad()
    def act(self, observation: np.ndarray) -> np.ndarray:
        """Explore: observations (N, O) -> sampled actions (N, A) in bounds."""
        inputs = network_input(observation, self.algo.squash_observations)
        unit, _ = self._sample(torch.from_numpy(inputs).to(self.device))
        return to_bounds(unit.cpu().numpy(), self.low, self.high)

    def update(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Take one gradient step on each network; its metrics stay on the device."""
        temperature = self.log_temperature.detach().exp()
        with torch.no_grad():
            action, log_prob = self._sample(batch.next_observation)
            target = critic_target(
                batch,
                self.targets(batch.next_observation, action),
                log_prob,
                temperature,
                self.algo.gamma,
                self.algo.bootstrap_at_time_limit,
            )

        value = self.critics(batch.observation, batch.action)
        loss = critic_loss(value, target)
        self._step("critics", loss)
        metrics = {"loss/critic": loss.detach(), "train/q_mean": value.detach().mean()}

        action, log_prob = self._sample(batch.observation)
        value = self.critics(batch.observation, action)
        loss = actor_loss(value, log_prob, temperature)
        metrics["loss/actor"] = loss.detach()
        metrics["train/entropy"] = -log_prob.detach().mean()
        metrics["train/temperature"] = temperature
        if self.algo.learn_temperature:
            of_temperature = temperature_loss(
                self.log_temperature, log_prob.detach(), self.target_entropy
            )
            metrics["loss/temperature"] = of_temperature.detach()
            loss = loss + of_temperature  # neither depends on the other's parameters
        self._step("actor", loss)

        self._follow(self._targets, self._learned["critics"], 0)
        return metrics

    def _sample(self, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw unit actions (B, A), with their log-densities (B,)."""
        mean, log_std = self.actor(observation)
        noise = torch.randn(mean.shape, generator=self.generator, device=self.device)
        return squashed_gaussian(mean, log_std, noise)

    def _step(self, name: str, loss: torch.Tensor) -> None:
        # Only these gradients: the actor's loss would also compute the critics'.
        parameters = self._learned[name]
        gradients = torch.autograd.grad(loss, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self.optimisers[name].step()

    def checkpoint(self) -> dict[str, Any]:
        """What acting without exploration needs, copied to the CPU: see `Policy`."""
        weights = self.actor.state_dict()
        return {
            "algo": "sac",
            "observation_dim": self.observation_dim,
            "action": {"low": self.low.tolist(), "high": self.high.tolist()},
            "hidden": list(self.algo.hidden),
            "squash_observations": self.algo.squash_observations,
            "policy": {key: value.cpu().clone() for key, value in weights.items()},
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that learning changes, random generator included."""
        return {
            "actor": self.actor.state_dict(),
            "critics": self.critics.state_dict(),
            "targets": self.targets.state_dict(),
            "log_temperature": self.log_temperature.detach(),
            "optimisers": {k: v.state_dict() for k, v in self.optimisers.items()},
            "generator": self.generator.get_state(),
            "held_action": self.held_action,
            "held_steps": self.held_steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.actor.load_state_dict(state["actor"])
        self.critics.load_state_dict(state["critics"])
        self.targets.load_state_dict(state["targets"])
        self.log_temperature.data.copy_(state["log_temperature"])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        self.generator.set_state(state["generator"])
        self.held_action, self.held_steps = state["held_action"], state["held_steps"]


def to_bounds(unit: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Unit actions (..., A) -> the environment's bounds (A,) each."""
    # Rounding can lead a little out of the bounds.
    return np.clip(low + (unit + 1) * ((high - low) / 2), low, high)


def to_unit(action: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The inverse of `to_bounds`."""
    return (action - low) * (2 / (high - low)) - 1


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

    `envs` have bounded continuous actions. `eval_envs` are others, so that evaluation
    leaves training's random stream alone; best `evaluation.episodes` of them. `saved`
    is a `State.state_dict` to go on from; `save` is called after each rollout that was
    learned from.

    Raises:
        FloatingPointError: a reward or a loss is not a finite number.
    """
    algo, seeds = config.algo, make_seeds(config.seed)
    assert isinstance(envs.action_space, gym.spaces.Box)
    agent = SAC(algo, envs.observation_space, envs.action_space, seeds.agent, device)
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
        if state.env_steps < algo.random_steps:
            return agent.random_action(len(observation))
        return agent.act(observation)

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
                to_unit(rollout.action, agent.low, agent.high),
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
