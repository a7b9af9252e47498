"""Rollouts: one episode of each environment, played and checked.

They carry states, which a reward model renders where it runs; frames never pass here.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from vlmrm_exp.envs import Step, VectorEnv
from vlmrm_exp.foreign import blaming
from vlmrm_exp.reward import Episodes

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


def collect(
    envs: VectorEnv, act: Act, seed: int | None = None, keep_states: bool = True
) -> Rollout:
    """Play one episode in each environment.

    They are reset here, so that every rollout is of whole episodes; a seed restarts
    their random stream. Where only some steps tell whether the goal is met, it is not
    in the others. States are not kept where nobody will look at them.
    """
    t = 0
    with blaming(envs, lambda: f"at step {t} of an episode"):
        none_yet = np.zeros(envs.num_envs, np.float32)
        start = _checked(envs, Step(envs.reset(seed), none_yet, None)).observation
        observation, actions, steps = start, [], []
        states: np.ndarray | None = None
        for t in range(1, envs.episode_length + 1):
            action = act(observation)
            step = _checked(envs, envs.step(action))
            observation = step.observation
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
    observations, env_reward, goal, online, passed = zip(*steps, strict=True)
    return Rollout(
        states=states,
        env_reward=np.stack(env_reward),
        online=None if online[-1] is None else np.stack(online),
        observation=np.stack([start, *observations]),
        action=np.stack(actions),
        goal=flags(goal),
        passed=passed[-1],
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
    if step.goal is not None and step.goal.dtype != bool:
        raise ValueError(f"its goal is of {step.goal.dtype}, not bool")
    count = (envs.num_envs,)
    shapes = {"observation": count + envs.observation_space.shape}
    shapes |= dict.fromkeys(("env_reward", "online", "goal"), count)
    for name, shape in shapes.items():
        given = getattr(step, name)
        if given is not None and given.shape != shape:
            raise ValueError(f"its {name} is {given.shape}, not {shape}")
        if given is not None and not np.isfinite(given).all():
            raise ValueError(f"its {name} is not finite")
    return step


def flags(goals: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Stack goal flags; None stands for False, or for all if there is nothing else."""
    known = [goal for goal in goals if goal is not None]
    if not known:
        return None
    unknown = np.zeros_like(known[0])
    return np.stack([unknown if goal is None else goal for goal in goals])
