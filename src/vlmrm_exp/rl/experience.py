"""What a run gathers: rollouts of whole episodes, replay, and the state of its loop.

A rollout is one episode of each environment. It carries states, which a reward model
renders where it runs; frames never pass here.
"""

import math
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
import torch

from vlmrm_exp.config import ConfigError
from vlmrm_exp.envs import Step, VectorEnv
from vlmrm_exp.files import written_whole
from vlmrm_exp.refusals import blaming
from vlmrm_exp.reward import Episodes
from vlmrm_exp.reward.pool import Pool, Wait
from vlmrm_exp.rl.alarms import Alarms

Act = Callable[[np.ndarray], np.ndarray]
"""Observations (N, O) float32 -> actions (N, A) float32, or (N,) int64."""


@dataclass(kw_only=True)
class Rollout(Episodes):
    """N whole episodes of T steps: states and own rewards, and what an agent needs."""

    observation: np.ndarray
    """(T + 1, N, O) float32: before each step, and after the last one."""
    action: np.ndarray
    """(T, N, A) float32, or (T, N) int64."""
    goal: np.ndarray | None
    """(T, N) bool: whether the state after each step meets the goal."""
    passed: Mapping[str, np.ndarray] = field(default_factory=dict)
    """(N, K) bool, at the end: which parts of the task were done (`Step.passed`)."""

    @property
    def env_steps(self) -> int:
        """T x N, the number of transitions."""
        return math.prod(self.shape)

    def first(self, episodes: int) -> "Rollout":
        """The first `episodes` of them (views)."""
        cut: dict[str, Any] = {
            name: None if array is None else array[:, :episodes]
            for name, array in vars(self).items()
            if name != "passed"
        }
        passed = {name: parts[:episodes] for name, parts in self.passed.items()}
        return Rollout(**cut, passed=passed)


def collect(
    envs: VectorEnv, act: Act, seed: int | None = None, keep_states: bool = True
) -> Rollout:
    """Play one episode in each environment.

    Where only some steps tell whether the goal is met, it is not in the others.

    Args:
        envs: reset here, so that every rollout is of whole episodes.
        act: chooses the actions.
        seed: restarts the environments' random stream; None goes on with it.
        keep_states: False where nobody will look at them.
    """
    t = 0
    with blaming(envs, lambda: f"at step {t} of an episode"):
        observation = np.array(envs.reset(seed), np.float32)
        observations, actions, steps = [observation], [], []
        states: np.ndarray | None = None
        for t in range(1, envs.episode_length + 1):
            action = act(observation)
            step = _checked(envs, envs.step(action))
            observation = step.observation
            observations.append(observation)
            actions.append(action)
            steps.append(step)
            if keep_states:
                now = envs.states()
                if now.dtype.kind == "f" and not np.isfinite(now).all():
                    raise ValueError("its states are not finite")
                if states is None:
                    # One array from the start: stacking a list would hold frames twice.
                    states = np.empty((envs.episode_length, *now.shape), now.dtype)
                if now.shape != states.shape[1:]:
                    raise ValueError(f"its states are {now.shape}, not as before")
                states[t - 1] = now
    return Rollout(
        states=states,
        env_reward=np.stack([step.env_reward for step in steps]),
        online=(
            None
            if steps[-1].online is None
            else np.stack([step.online for step in steps])
        ),
        observation=np.stack(observations).astype(np.float32, copy=False),
        action=np.stack(actions),
        goal=flags([step.goal for step in steps]),
        passed=steps[-1].passed,
    )


def _checked(envs: VectorEnv, step: Step) -> Step:
    """What a step gave, in arrays of our own: a world may fill its own again.

    Raises:
        ValueError: shapes are others than `Step` has, or a number is not finite.
    """
    step = Step(
        np.array(step.observation, np.float32),
        np.array(step.env_reward, np.float32),
        None if step.goal is None else np.array(step.goal),
        None if step.online is None else np.array(step.online, np.float32),
        {name: np.array(parts) for name, parts in step.passed.items()},
    )
    count = (envs.num_envs,)
    shapes = {"observation": count + envs.observation_space.shape, "env_reward": count}
    if step.online is not None:
        shapes["online"] = count
    if step.goal is not None:
        shapes["goal"] = count
        if step.goal.dtype != bool:
            raise ValueError(f"its goal is of {step.goal.dtype}, not bool")
    for name, shape in shapes.items():
        if getattr(step, name).shape != shape:
            raise ValueError(f"its {name} is {getattr(step, name).shape}, not {shape}")
        if not np.isfinite(getattr(step, name)).all():
            raise ValueError(f"its {name} is not finite")
    return step


def flags(goals: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Stack goal flags; None stands for False, or for all if there is nothing else."""
    known = [goal for goal in goals if goal is not None]
    if not known:
        return None
    unknown = np.zeros_like(known[0])
    return np.stack([unknown if goal is None else goal for goal in goals])


def network_input(observation: np.ndarray, squash: bool) -> np.ndarray:
    """What networks are shown of observations (..., O): squashed, or as they are."""
    if squash:
        return np.sign(observation) * np.log1p(np.abs(observation))
    return observation


class Batch(NamedTuple):
    """B transitions."""

    observation: torch.Tensor
    """(B, O) float32."""
    action: torch.Tensor
    """(B, A) float32, or (B,) int64."""
    reward: torch.Tensor
    """(B,) float32."""
    next_observation: torch.Tensor
    """(B, O) float32: of the same episode, also after its last step."""
    last: torch.Tensor
    """(B,) bool: the episode's last step, at the time limit."""


class Replay:
    """A ring of whole rollouts with rewards; the oldest makes room for the newest.

    Every rollout has N episodes of T steps, so each observation is kept once (T + 1 per
    episode) and serves as the next observation of the step before it.
    """

    def __init__(
        self,
        capacity: int,
        envs: VectorEnv,
        seed: int,
        device: torch.device,
        normalise_rewards: bool = False,
        keep_states: bool = False,
    ) -> None:
        """Set memory aside; on the CPU the system hands it out as it is filled.

        Args:
            capacity: in transitions, at least one rollout; rounded down to whole ones.
            envs: tells the sizes.
            seed: of the draws.
            device: where the transitions lie and are drawn.
            normalise_rewards: give rewards out with mean 0 and standard deviation 1
                over all that is stored.
            keep_states: for rewards that are learned: old states get new ones.

        Raises:
            ConfigError: states are to be kept, but are frames; or it does not fit.
        """
        steps, count = envs.episode_length, envs.num_envs
        self.generator = torch.Generator(device).manual_seed(seed)
        self._transitions, self._num_envs = steps * count, count
        self.capacity = max(capacity // self._transitions, 1)  # in rollouts
        self._normalise = normalise_rewards
        self._reward_mean = torch.zeros((), device=device)
        self._reward_std = torch.ones((), device=device)
        self._filled = 0  # rollouts
        self._next = 0  # the slot that is written next
        discrete = isinstance(envs.action_space, gym.spaces.Discrete)
        action = envs.action_space.shape or ()  # () of discrete ones
        shape = (self.capacity, steps, count)
        _check_memory(envs.observation_space, math.prod(shape), device)
        self._observation = torch.empty(
            (self.capacity, steps + 1, count, *envs.observation_space.shape),
            device=device,
        )
        self._action = torch.empty(
            (*shape, *action),
            dtype=torch.int64 if discrete else torch.float32,
            device=device,
        )
        self._reward = torch.empty(shape, device=device)
        self._states = self._given = torch.empty(0)
        self._keeps_states = keep_states
        if keep_states:
            state = envs.states()[0]
            if state.ndim > 1:
                gigabytes = math.prod(shape) * state.nbytes / 1e9
                raise ConfigError(
                    "The reward model wants its old states again, but here they are "
                    f"frames of {' x '.join(map(str, state.shape))}: "
                    f"{math.prod(shape):,} of them are {gigabytes:.3g} GB; choose "
                    "another reward, or a task whose states are numbers."
                )
            self._states = torch.empty((*shape, *state.shape), dtype=torch.float64)
            self._given = torch.empty(shape)  # as they came, NaN where none did
        # The same memory with one row per step, to gather from.
        self._observation_rows = self._observation.flatten(0, 2)
        self._action_rows = self._action.flatten(0, 2)
        self._reward_rows = self._reward.flatten(0, 2)

    @property
    def size(self) -> int:
        """Transitions that can be drawn."""
        return self._filled * self._transitions

    def add(
        self,
        observation: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        states: np.ndarray | None = None,
    ) -> None:
        """Add a rollout.

        Args:
            observation: (T + 1, N, O) float32.
            action: (T, N, A) float32, or (T, N) int64.
            reward: (T, N) float32; NaN, if states are kept: to be set before the next
                draw.
            states: (T, N, S), read if states are kept.
        """
        self._observation[self._next].copy_(torch.from_numpy(observation))
        self._action[self._next].copy_(torch.from_numpy(action))
        self._reward[self._next].copy_(torch.from_numpy(reward))
        if self._keeps_states:
            assert states is not None
            self._states[self._next].copy_(torch.from_numpy(states))
            self._given[self._next].copy_(torch.from_numpy(reward))
        self._next = (self._next + 1) % self.capacity
        self._filled = min(self._filled + 1, self.capacity)
        self._measure_rewards()

    def draw(self, *shape: int) -> torch.Tensor:
        """Places of transitions, uniform with replacement: int64 of that shape."""
        return torch.randint(
            self.size, shape, generator=self.generator, device=self.generator.device
        )

    def gather(self, place: torch.Tensor) -> Batch:
        """Transitions by their places (B,); nothing is copied to or from the CPU."""
        # A rollout has one more observation than steps: N rows more per rollout.
        slot = place.div(self._transitions, rounding_mode="floor")
        before = place + slot * self._num_envs
        return Batch(
            observation=self._observation_rows.index_select(0, before),
            action=self._action_rows.index_select(0, place),
            reward=(self._reward_rows.index_select(0, place) - self._reward_mean)
            / self._reward_std,
            next_observation=self._observation_rows.index_select(
                0, before + self._num_envs
            ),
            last=place - slot * self._transitions >= self._transitions - self._num_envs,
        )

    def episodes(self) -> Episodes:
        """All stored states, as (T, rollouts x N, S)."""
        stored = self._states[: self._filled].transpose(0, 1)  # (T, rollouts, N, S)
        return Episodes(states=stored.flatten(1, 2).numpy())

    def set_rewards(self, reward: np.ndarray) -> None:
        """Replace the rewards of all that is stored: (T, rollouts x N)."""
        of_rollouts = reward.reshape(len(reward), self._filled, self._num_envs)
        self._reward[: self._filled].copy_(
            torch.from_numpy(of_rollouts.swapaxes(0, 1).copy())
        )
        self._measure_rewards()

    def newest(self) -> tuple[np.ndarray, np.ndarray]:
        """The newest rollout: states (T, N, S), and rewards (T, N) as they came."""
        return self._states[self._newest].numpy(), self._given[self._newest].numpy()

    def newest_reward(self) -> np.ndarray:
        """The rewards (T, N) of the newest rollout, as they are learned from."""
        return self._reward[self._newest].cpu().numpy()

    def draw_rewarded(
        self, count: int, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stored states whose reward came, with replacement.

        Returns:
            States (count, S) float32, rewards (count,) float32.
        """
        given = self._given[: self._filled].flatten()
        came = given.isfinite().nonzero().squeeze(1)
        place = came[torch.from_numpy(rng.integers(len(came), size=count))]
        states = self._states.flatten(0, 2)
        return states.index_select(0, place).float(), given[place]

    def relabel(
        self, reward: Callable[[np.ndarray, np.ndarray], np.ndarray], newest: bool
    ) -> float:
        """Replace rewards of all rollouts, or of the newest.

        Args:
            reward: takes states (T, N, S) and rewards (T, N) as they came, NaN where
                none did.
            newest: of the newest rollout alone.

        Returns:
            The standard deviation of all rewards that are stored now.
        """
        for slot in [self._newest] if newest else range(self._filled):
            given = self._given[slot].numpy()
            told = reward(self._states[slot].numpy(), given)
            self._reward[slot].copy_(torch.from_numpy(told))
        self._measure_rewards()
        return self._reward[: self._filled].std(correction=0).item()

    @property
    def _newest(self) -> int:
        return (self._next - 1) % self.capacity

    def state_dict(self) -> dict[str, Any]:
        """What is stored (views, not copies), where the ring stands, the draws."""
        return {
            "observation": self._observation[: self._filled],
            "action": self._action[: self._filled],
            "reward": self._reward[: self._filled],
            "states": self._states[: self._filled],
            "given": self._given[: self._filled],
            "next": self._next,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a `state_dict` of a buffer of the same shape."""
        self._filled = len(state["reward"])
        # More room than before: after what is there.
        self._next = state["next"] if self._filled == self.capacity else self._filled
        self._observation[: self._filled].copy_(state["observation"])
        self._action[: self._filled].copy_(state["action"])
        self._reward[: self._filled].copy_(state["reward"])
        if self._keeps_states:
            self._states[: self._filled].copy_(state["states"])
            self._given[: self._filled].copy_(state["given"])
        self.generator.set_state(state["generator"])
        self._measure_rewards()

    def _measure_rewards(self) -> None:
        if self._normalise:
            stored = self._reward[: self._filled]
            # In place, where a captured CUDA graph reads them.
            self._reward_mean.copy_(stored.mean())
            # All rewards alike, as of a predicate that is not met yet: leave the scale.
            std = stored.std(correction=0)
            self._reward_std.copy_(torch.where(std > 1e-6, std, torch.ones_like(std)))


def _check_memory(space: gym.Space, transitions: int, device: torch.device) -> None:
    """Refuse a buffer that this machine cannot hold, before it is filled for hours."""
    needed = math.prod(space.shape or ()) * 4 * transitions / 1e9
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    if device.type == "cuda":
        there = torch.cuda.get_device_properties(device).total_memory / 1e9
    if needed > there:
        raise ConfigError(
            f"Replay of {transitions:,} transitions takes {needed:,.0f} GB for their "
            f"observations of shape {space.shape}, but there are {there:,.0f} GB of "
            "memory: lower algo.buffer_size."
        )


class Agent(Protocol):
    """What SAC and DQN have in common."""

    generator: torch.Generator
    """Of all that `update` draws."""

    def act_greedily(self, observation: np.ndarray) -> np.ndarray:
        """Act without exploration: observations (N, O) -> actions (N, A) or (N,)."""
        ...

    def update(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Take one gradient step; its metrics stay on the device.

        It can be recorded as a CUDA graph: it changes its state in place, computes the
        same in each step, and never waits for the device.
        """
        ...

    def checkpoint(self) -> dict[str, Any]:
        """What acting without exploration needs, copied to the CPU: see `Policy`."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that learning changes, random generator included."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        ...


def means(metrics: Sequence[dict[str, torch.Tensor]]) -> dict[str, float]:
    """Average each key over the gradient steps.

    Raises:
        FloatingPointError: a mean is not a finite number.
    """
    if not metrics:
        return {}
    keys = list(metrics[0])
    # (gradient steps x keys,) -> (keys,): one copy to the CPU for all of them
    flat = torch.stack([values[key] for values in metrics for key in keys])
    averages = flat.view(len(metrics), len(keys)).mean(0).tolist()
    for key, mean in zip(keys, averages, strict=True):
        if not math.isfinite(mean):
            raise FloatingPointError(
                f"{key} became {mean}: learning diverged; try a lower "
                "algo.learning_rate."
            )
    return dict(zip(keys, averages, strict=True))


class Seeds(NamedTuple):
    """Independent seeds of everything random, all drawn from the run's one."""

    envs: int
    agent: int
    replay: int
    evaluation: int
    """Of the start states while training: always the same, to compare policies."""
    final: int
    """Of the start states at the end: others, on which nothing was chosen."""


def make_seeds(seed: int) -> Seeds:
    """Draw a run's seeds."""
    return Seeds(*np.random.SeedSequence(seed).generate_state(5).tolist())


@dataclass
class State:
    """Everything that a run needs to go on; whole between two rollouts."""

    envs: VectorEnv
    agent: Agent
    replay: Replay
    pool: Pool
    """For what a reward model has learned."""
    env_steps: int = 0
    """Simulated."""
    learned_steps: int = 0
    """Rewarded and learned from; the x-axis of the metrics."""
    gradient_steps: int = 0
    in_flight: deque[Rollout] = field(default_factory=deque)
    """Simulated, but not yet learned from."""
    rewards: deque[Wait] = field(default_factory=deque)
    """Theirs, which are being computed."""
    next_evaluation: int = 0
    """Learned env steps at which the policy is evaluated next."""
    best: dict[str, Any] | None = None
    """Checkpoint of the policy with the highest reward so far."""
    best_reward: float = -math.inf
    alarms: Alarms = field(default_factory=Alarms)
    """Where judges disagree with the reward."""
    interrupted: int = 0
    """The signal that ended it early."""
    whole: bool = True
    """Whether it ended between two rollouts, so that it can be saved."""

    def checkpoint(self) -> dict[str, Any]:
        """The present policy."""
        return {**self.agent.checkpoint(), "env_steps": self.learned_steps}

    def keep(self, judged: Mapping[str, Any], folder: Path) -> None:
        """Save the present policy, also as the best if none had a higher reward.

        Of equals the latest: where all rewards are the same, the most trained one. A
        line tells of each judge that now disagrees with the reward.

        Args:
            judged: `eval/reward_mean`, and `judge/NAME` of each judge.
            folder: for checkpoints.
        """
        checkpoint, reward = self.checkpoint(), judged["eval/reward_mean"]
        save_policy(folder / "last.pt", checkpoint)
        for name in self.alarms.add(reward, judged, checkpoint):
            does = self.alarms.raised[name]["judge"]
            print(
                f"Alarm at env step {self.learned_steps:,}: the reward rises, but "
                f"judge/{name} {does}.",
                file=sys.stderr,
            )
        if reward >= self.best_reward:
            self.best, self.best_reward = checkpoint, reward
            save_policy(folder / "best.pt", checkpoint)

    def state_dict(self) -> dict[str, Any]:
        """Tensors, arrays and primitives; what is large is not copied."""
        parts = {name: getattr(self, name).state_dict() for name in _PARTS}
        return {
            **vars(self),
            **parts,
            "in_flight": [vars(rollout) for rollout in self.in_flight],
            "rewards": [wait() for wait in self.rewards],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        for name, value in state.items():
            if name in _PARTS:
                getattr(self, name).load_state_dict(value)
            else:
                setattr(self, name, value)
        self.interrupted = 0
        self.in_flight = deque(Rollout(**rollout) for rollout in state["in_flight"])
        self.rewards = deque(partial(np.asarray, each) for each in state["rewards"])


_PARTS = ("envs", "agent", "replay", "pool", "alarms")


def save_policy(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Write a checkpoint: tensors and primitives, so that reading it runs no code."""
    with written_whole(path) as part:
        torch.save(dict(checkpoint), part)


REQUEUE_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Schedulers send one of these some time before they kill a job."""
REQUEUE = os.EX_TEMPFAIL
"""Exit code (75): the same command, started again, goes on."""
PATIENCE_S = 12
"""Seconds after such a signal within which a rollout must be over."""


class TooLate(BaseException):
    """A rollout was not over when a scheduler's patience was; holds the signal."""


class Interrupts:
    """Within it, signals are a request to stop after this rollout.

    Else they could strike halfway through a gradient step, or a message to a worker. A
    second Ctrl-C ends the block at once, without an exception. A scheduler waits half a
    minute at most: if the rollout is not over soon, the last saved state has to do.
    """

    number = 0
    """Of the signal; 0: none came."""
    midway = False
    """Whether the block was ended within a rollout."""

    def __enter__(self) -> "Interrupts":
        """Take over the signals; in another thread than the main one, nothing."""
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *REQUEUE_SIGNALS):
                self._before[number] = signal.signal(number, self._on_signal)
            self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._too_late)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        """Give the signals back."""
        signal.alarm(0)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind is KeyboardInterrupt:
            self.number, self.midway = self.number or signal.SIGINT, True
        return kind is KeyboardInterrupt

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.number == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number
        # Not print: the signal may have come in the middle of one.
        if number == signal.SIGINT:
            text = b"\nStopping after this rollout; Ctrl-C again stops at once.\n"
            os.write(2, text)
        else:
            signal.alarm(PATIENCE_S)

    def _too_late(self, number: int, frame: FrameType | None) -> None:
        raise TooLate(self.number)
