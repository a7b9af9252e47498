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
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from vlmrm_exp.config import Config, ConfigError
from vlmrm_exp.reward import Episodes, RewardModel, choose_device

MEMBERS = 5
HIDDEN = (128, 128)
LEARNING_RATE = 1e-3
GRADIENT_STEPS = 50  # after each rollout
BATCH_SIZE = 128  # for each member
BY_CHANCE = 0.25  # of reward.query_share
RELABELLED = 0.1  # of the rollouts in replay are new: all get the newest estimate
WARM_UP = 5  # rollouts before the error is measured
REMEMBERED = 0.8  # of the squared error, from one rollout to the next
AT_ONCE = 8192  # states of a forward pass
FAR = 10.0  # standard deviations at which a state's numbers are cut


class Memory(Protocol):
    """What learning rewards needs of the replay buffer."""

    def episodes(self, newest: bool = False) -> Episodes:
        """States of all that is stored, or of the newest rollout."""
        ...

    def given(self, newest: bool = False) -> np.ndarray:
        """Their rewards as they came, (T, N) float32; NaN where nobody looked."""
        ...

    def looked_at(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All states with a reward that came: (B, S) float64, (B,) float32."""
        ...

    def set_rewards(self, reward: np.ndarray, newest: bool = False) -> None:
        """Replace the rewards of all that is stored, or of the newest: (T, N)."""
        ...

    @property
    def size(self) -> int:
        """How many states are stored."""
        ...


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
        x = ((states - self.state_mean) / self.state_std).clamp(-FAR, FAR)
        x = x.expand(MEMBERS, *x.shape[-2:])
        layers = zip(self.weights, self.biases, strict=True)
        for layer, (weight, bias) in enumerate(layers):
            x = torch.baddbmm(bias, x.relu() if layer else x, weight)
        return self.reward_mean + self.reward_std * x.squeeze(-1)

    def measure(self, states: torch.Tensor, rewards: torch.Tensor) -> None:
        """Set the scales: states (B, S), rewards (B,)."""
        self.state_mean.copy_(states.mean(0))
        self.reward_mean.copy_(rewards.mean())
        # What never changes so far, as a body's height at the start, is left as it is.
        for std, values in ((self.state_std, states), (self.reward_std, rewards)):
            found = values.std(0, correction=0)
            std.copy_(torch.where(found > 1e-6, found, torch.ones_like(found)))


class Estimator:
    """Chooses which states are looked at, and estimates the rewards of the others."""

    def __init__(self, config: Config, state_size: int) -> None:
        """Begin with networks that know nothing.

        Args:
            config: its seed, device and `reward`.
            state_size: S.
        """
        self._query_share = config.reward.query_share
        self._max_error = config.reward.max_error
        self._seed = config.seed
        self._device = choose_device(config.compute.device)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.seed)
            self._ensemble = Ensemble(state_size).to(self._device)
        self._optimiser = torch.optim.Adam(
            self._ensemble.parameters(), LEARNING_RATE, fused=True
        )
        self._chosen = 0  # rollouts
        self._learned = 0  # of these
        self._not_relabelled = 0  # of these
        self._queries = 0  # states looked at
        self._squared_error = 0.0  # mean over the last rollouts
        self._error = 0.0  # its root over the spread of rewards; 0: not measured yet

    def choose(self, episodes: Episodes) -> np.ndarray:
        """Places of the states to look at in the flattened (T, N): (K,) int64, sorted.

        Some are drawn with equal chances, the rest in proportion to how much the
        members disagree.
        """
        assert episodes.states is not None
        by_chance, rng = self._by_chance(self._chosen, episodes.shape)
        self._chosen += 1
        doubt = self._predict(episodes.states).std(0, correction=0).cpu().numpy()
        doubt = np.where(by_chance, 0, doubt.astype(np.float64) + 1e-9).ravel()
        count = max(round(self.share * doubt.size) - int(by_chance.sum()), 0)
        others = rng.choice(doubt.size, count, replace=False, p=doubt / doubt.sum())
        return np.sort(np.concatenate([np.flatnonzero(by_chance), others]))

    def _by_chance(
        self, number: int, shape: tuple[int, int]
    ) -> tuple[np.ndarray, np.random.Generator]:
        """Which states of a rollout are drawn with equal chances, (T, N) bool.

        The random numbers are those of the rollout's number, so it can be asked again.
        """
        rng = np.random.default_rng([self._seed, number])
        drawn = np.zeros(shape, bool)
        count = math.ceil(BY_CHANCE * self._query_share * drawn.size)
        drawn.flat[rng.choice(drawn.size, count, replace=False)] = True
        return drawn, rng

    def learn(self, memory: Memory) -> dict[str, float]:
        """Measure the error on the newest rollout, learn from it, estimate anew.

        Returns:
            `reward/queries`, states looked at so far; `reward/query_share`, of the next
            rollout's states; `reward/error`, the root mean squared error of estimates
            over the standard deviation of all rewards that came, measured on states
            that were drawn with equal chances, before they are learned from.
        """
        given = memory.given(newest=True)
        states, rewards = memory.looked_at()
        by_chance, rng = self._by_chance(self._learned, given.shape)
        measured = by_chance & np.isfinite(given)
        if self._learned >= WARM_UP and measured.any():
            missed = (self._mean(memory.episodes(newest=True)) - given)[measured]
            squared = float(np.square(missed, dtype=np.float64).mean())
            kept = REMEMBERED if self._error else 0
            self._squared_error = kept * self._squared_error + (1 - kept) * squared
            spread = max(float(rewards.std(correction=0)), 1e-6)
            self._trust(math.sqrt(self._squared_error) / spread)
        self._learned += 1
        self._queries += int(np.isfinite(given).sum())
        self._fit(states, rewards, int(rng.integers(2**63)))
        self._not_relabelled += 1
        few = self._not_relabelled * given.size < RELABELLED * memory.size
        if not few:
            self._not_relabelled = 0
        given, estimate = memory.given(few), self._mean(memory.episodes(few))
        memory.set_rewards(np.where(np.isfinite(given), given, estimate), few)
        return self.metrics()

    @property
    def share(self) -> float:
        """Of the next rollout's states that are looked at; all if the error is 1."""
        limit = self._max_error
        beyond = (min(self._error, 1) - limit) / max(1 - limit, 1e-6)
        more = max(beyond, 0) * (1 - self._query_share)
        return self._query_share + more

    def metrics(self) -> dict[str, float]:
        """See `learn`; without an error as long as none is measured."""
        error = {"reward/error": self._error} if self._error else {}
        told = {"reward/queries": self._queries, "reward/query_share": self.share}
        return told | error

    def _trust(self, error: float) -> None:
        """Take the error over; tell when it has become too large."""
        before, self._error = self._error, error
        if before <= self._max_error < error:
            print(
                f"Rewards are estimated with an error of {error:.2f} of their spread, "
                f"above reward.max_error={self._max_error:g}: {self.share:.0%} of "
                "states are looked at until it is lower.",
                file=sys.stderr,
            )

    def _mean(self, episodes: Episodes) -> np.ndarray:
        """The members' mean reward of each state, (T, N) float32."""
        assert episodes.states is not None
        return self._predict(episodes.states).mean(0).cpu().numpy()

    @torch.no_grad()
    def _predict(self, states: np.ndarray) -> torch.Tensor:
        """States (T, N, S) -> each member's rewards (E, T, N)."""
        flat = torch.from_numpy(states).reshape(-1, states.shape[-1])
        parts = [
            self._ensemble(part.to(self._device, torch.float32))
            for part in flat.split(AT_ONCE)
        ]
        return torch.cat(parts, dim=1).reshape(MEMBERS, *states.shape[:2])

    def _fit(self, states: torch.Tensor, rewards: torch.Tensor, seed: int) -> None:
        """Take gradient steps: states (B, S), rewards (B,)."""
        states = states.to(self._device, torch.float32)
        rewards = rewards.to(self._device)
        self._ensemble.measure(states, rewards)
        generator = torch.Generator(self._device).manual_seed(seed)
        places = torch.randint(
            len(states),
            (GRADIENT_STEPS, MEMBERS, BATCH_SIZE),
            generator=generator,
            device=self._device,
        )
        for place in places:
            missed = self._ensemble(states[place]) - rewards[place]
            loss = (missed / self._ensemble.reward_std).square().mean(1).sum()
            self._optimiser.zero_grad()
            loss.backward()
            self._optimiser.step()

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
    *("_chosen", "_learned", "_not_relabelled", "_queries"),
    *("_squared_error", "_error"),
)


def make_estimator(
    config: Config, model: type[RewardModel], example: Episodes
) -> Estimator | None:
    """What `reward.query_share` asks for; None: nothing, or rewards cost nothing.

    Raises:
        ConfigError: the rewards of single states cannot be estimated.
    """
    share = config.reward.query_share
    if share == 1 or model.cheap:
        return None
    states = example.states
    if model.window > 1:
        why = f"reward={config.reward.name} looks at {model.window} states in a row"
    elif model.remembers:
        why = f"reward={config.reward.name} learns itself"
    elif states is None or states.ndim > 3:
        why = f"task={config.task.name} renders itself, and gives frames for states"
    else:
        return Estimator(config, states.shape[-1])
    raise ConfigError(
        f"reward.query_share is {share}, but {why}: give reward.query_share=1."
    )
