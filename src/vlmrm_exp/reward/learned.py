"""Rewards of states that nobody looked at, from networks that learn from the others.

    a rollout's states -> [choose] -> some of them -> [reward model] -> their rewards
    states in replay, rewards of some -> [learn] -> rewards of all

Looking costs the most where the model is large. An ensemble learns the reward model's
answers while the agent learns from the ensemble's. Which states are looked at next is
decided by chance, for an honest measure of its error, and by its members' disagreement.
Letters: T steps, N episodes, S numbers in a state, E members, B states.
"""

import itertools
import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from vlmrm_exp.config import Config
from vlmrm_exp.device import choose_device
from vlmrm_exp.reward import Episodes, Memory

MEMBERS = 5
HIDDEN = (128, 128)
LEARNING_RATE = 1e-3
GRADIENT_STEPS = 50  # after each rollout
BATCH_SIZE = 128  # for each member
BY_CHANCE = 0.25  # of reward.query_share
RELABELLED = 0.1  # of the rollouts in replay are new: all get the newest estimate
WARM_UP = 5  # rollouts before the error is measured
REMEMBERED = 0.8  # of the squared error, from one rollout to the next
CUT = 10.0  # standard deviations beyond which a state's numbers are cut


class Ensemble(nn.Module):
    """Networks of different starts and different batches, as batched products.

    Where they have seen nothing like a state they disagree (Lakshminarayanan et al.
    2017, arXiv 1612.01474).
    """

    state_mean: torch.Tensor
    state_std: torch.Tensor
    reward_mean: torch.Tensor
    reward_std: torch.Tensor

    def __init__(self, state_size: int) -> None:
        super().__init__()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for width_in, width_out in itertools.pairwise([state_size, *HIDDEN, 1]):
            bound = width_in**-0.5  # as nn.Linear
            weight = torch.empty(MEMBERS, width_in, width_out).uniform_(-bound, bound)
            bias = torch.empty(MEMBERS, 1, width_out).uniform_(-bound, bound)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(bias))
        self.register_buffer("state_mean", torch.zeros(state_size))
        self.register_buffer("state_std", torch.ones(state_size))
        self.register_buffer("reward_mean", torch.zeros(()))
        self.register_buffer("reward_std", torch.ones(()))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """States (B, S), or (E, B, S), of each member its own -> rewards (E, B)."""
        x = ((states - self.state_mean) / self.state_std).clamp(-CUT, CUT)
        x = x.expand(MEMBERS, *x.shape[-2:])
        layers = zip(self.weights, self.biases, strict=True)
        for layer, (weight, bias) in enumerate(layers):
            x = torch.baddbmm(bias, x.relu() if layer else x, weight)
        return self.reward_mean + self.reward_std * x.squeeze(-1)

    def set_scales(self, states: torch.Tensor, rewards: torch.Tensor) -> None:
        """Take the mean and the spread of states (B, S) and rewards (B,)."""
        self.state_mean.copy_(states.mean(0))
        self.reward_mean.copy_(rewards.mean())
        self.reward_std.copy_(rewards.std(correction=0))
        # A number that is always the same says nothing: any scale will do.
        std = states.std(0, correction=0)
        self.state_std.copy_(torch.where(std > 1e-6, std, torch.ones_like(std)))


class Estimator:
    """Chooses which states are looked at, and estimates the rewards of the others."""

    def __init__(self, config: Config, state_size: int) -> None:
        """Begin with networks that know nothing; `state_size` is S."""
        self._asked = config.reward
        self._seed = config.seed
        self._device = choose_device(config.compute.device)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.seed % 2**63)
            self._ensemble = Ensemble(state_size).to(self._device)
        self._optimiser = torch.optim.Adam(
            self._ensemble.parameters(), LEARNING_RATE, fused=True
        )
        self._chosen = 0  # rollouts
        self._learned = 0  # of these
        self._not_relabelled = 0  # of these
        self._queries = 0  # states looked at
        self._squared_error = 0.0  # mean over the last rollouts
        self._spread = 0.0  # of the rewards in replay
        self._error: float | None = None  # of the last rollouts; None: not measured yet

    @property
    def share(self) -> float:
        """Of a rollout's states that are looked at."""
        limit, asked = self._asked.max_error, self._asked.query_share
        beyond = min(self._error or 0, 1) - limit
        more = beyond / (1 - limit) if beyond > 0 else 0
        return asked + more * (1 - asked)

    def choose(self, episodes: Episodes) -> np.ndarray:
        """Places of the states to look at in the flattened (T, N): (K,) int64, sorted.

        Some are drawn with equal chances, the rest in proportion to how much the
        members disagree.
        """
        assert episodes.states is not None
        by_chance = self._by_chance(self._chosen, episodes.shape)
        rng = self._rng(self._chosen, 1)
        self._chosen += 1
        doubt = self._predict(episodes.states).std(0, correction=0).cpu().numpy()
        doubt = np.where(by_chance, 0, doubt.astype(np.float64) + 1e-9).ravel()
        count = round(self.share * doubt.size) - int(by_chance.sum())
        chosen = np.flatnonzero(by_chance)
        if count > 0:
            more = rng.choice(doubt.size, count, replace=False, p=doubt / doubt.sum())
            chosen = np.concatenate([chosen, more])
        return np.sort(chosen)

    def _by_chance(self, number: int, shape: tuple[int, int]) -> np.ndarray:
        """Which states of a rollout are drawn with equal chances, (T, N) bool.

        It can be asked again: the random numbers are those of the rollout's number.
        """
        drawn = np.zeros(shape, bool)
        count = math.ceil(BY_CHANCE * self._asked.query_share * drawn.size)
        rng = self._rng(number, 0)
        drawn.flat[rng.choice(drawn.size, count, replace=False)] = True
        return drawn

    def _rng(self, rollout: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, rollout, purpose])

    def learn(self, memory: Memory) -> dict[str, float]:
        """Measure the error on the newest rollout, learn from it, estimate anew.

        Returns `metrics`, and the rollout's share of states that were looked at.
        """
        states, given = memory.newest()
        if self._learned >= WARM_UP and self._spread > 1e-6:
            self._measure_error(states, given)
        self._learned += 1
        looked_at = np.isfinite(given)
        self._queries += int(looked_at.sum())
        self._not_relabelled += 1
        newest = self._not_relabelled * given.size < RELABELLED * memory.size
        self.estimate(memory, newest)
        if not newest:
            self._not_relabelled = 0
        return {"reward/query_share": float(looked_at.mean()), **self.metrics()}

    def metrics(self) -> dict[str, float]:
        """What a run tells: `reward/queries`, states looked at so far; `reward/error`.

        That is, once measured, the root mean squared error of estimates, over the
        standard deviation of the rewards in replay, on states that were drawn with
        equal chances, before they are learned from.
        """
        error = {} if self._error is None else {"reward/error": self._error}
        return {"reward/queries": self._queries, **error}

    def _measure_error(self, states: np.ndarray, given: np.ndarray) -> None:
        """Compare estimates of a rollout with the rewards drawn with equal chances."""
        missed = self._predict(states).mean(0).cpu().numpy() - given
        of_them = missed[self._by_chance(self._learned, given.shape)]
        squared = float(np.square(of_them, dtype=np.float64).mean())
        kept = 0 if self._error is None else REMEMBERED
        self._squared_error = kept * self._squared_error + (1 - kept) * squared
        before, limit = self._error or 0, self._asked.max_error
        self._error = math.sqrt(self._squared_error) / self._spread
        if before <= limit < min(self._error, 1):
            print(
                f"Rewards are estimated with an error of {self._error:.2f} of their "
                f"spread, above reward.max_error={limit:g}: {self.share:.0%} of the "
                "next states are looked at.",
                file=sys.stderr,
            )

    def estimate(self, memory: Memory, newest: bool) -> None:
        """Learn from what is stored, and set the rewards of all, or of the newest.

        Those that nobody looked at get the members' mean, minus `reward.pessimism`
        times their standard deviation.

        Raises:
            FloatingPointError: an estimate is not a finite number.
        """
        rng = self._rng(self._learned, 2)
        shape = (GRADIENT_STEPS, MEMBERS, BATCH_SIZE)
        states, rewards = memory.draw_rewarded(math.prod(shape), rng)
        states, rewards = states.to(self._device), rewards.to(self._device)
        self._ensemble.set_scales(states, rewards)
        scale = self._ensemble.reward_std.clamp(min=1e-6)
        for batch, target in zip(
            states.view(*shape, -1), rewards.view(*shape), strict=True
        ):
            missed = (self._ensemble(batch) - target) / scale
            self._optimiser.zero_grad()
            missed.square().mean(1).sum().backward()
            self._optimiser.step()

        def reward(states: np.ndarray, given: np.ndarray) -> np.ndarray:
            members = self._predict(states)
            doubt = members.std(0, correction=0)
            estimate = (members.mean(0) - self._asked.pessimism * doubt).cpu().numpy()
            if not np.isfinite(estimate).all():
                raise FloatingPointError(
                    "The networks that learn rewards gave one that is not finite: the "
                    "model's rewards are too large for them; use "
                    "reward.query_share=1."
                )
            return np.where(np.isfinite(given), given, estimate)

        self._spread = memory.relabel(reward, newest)

    @torch.no_grad()
    def _predict(self, states: np.ndarray) -> torch.Tensor:
        """States (T, N, S) -> each member's rewards (E, T, N)."""
        flat = torch.from_numpy(states).flatten(0, 1)
        rewards = self._ensemble(flat.to(self._device, torch.float32))
        return rewards.unflatten(1, states.shape[:2])

    def state_dict(self) -> dict[str, Any]:
        """Everything that learning changes."""
        return {
            "ensemble": self._ensemble.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            **{name: getattr(self, name) for name in _COUNTS},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self._ensemble.load_state_dict(state["ensemble"])
        self._optimiser.load_state_dict(state["optimiser"])
        for name in _COUNTS:
            setattr(self, name, state[name])


_COUNTS = (
    "_chosen _learned _not_relabelled _queries _squared_error _spread _error".split()
)
