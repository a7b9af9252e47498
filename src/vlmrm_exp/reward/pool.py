"""A reward model as training uses it: episodes are submitted, rewards waited for.

A pool knows only that there is a reward model and that there are states. This one asks
it in this process; `workers.py` has one with workers beside it.
"""

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmrm_exp.config import Config
from vlmrm_exp.envs import VectorEnv
from vlmrm_exp.foreign import blaming, close
from vlmrm_exp.reward import (
    Episodes,
    Memory,
    RewardModel,
    facts_of,
    reward_class,
    rewards_of,
)

if TYPE_CHECKING:
    from vlmrm_exp.reward.learned import Estimator

Wait = Callable[[], np.ndarray]
"""Waits for rewards: (T, N) float32."""


class Pool:
    """Rewards episodes, in this process and as soon as they are submitted."""

    def __init__(self, config: Config, model: RewardModel | None) -> None:
        """`model` is this process's own; None: only workers have one."""
        kind = reward_class(config) if model is None else model
        self._model: Any = model
        self._learner: RewardModel | None = model if kind.remembers else None
        self.estimator: Estimator | None = None
        """Of rewards that are learned instead of asking for all; set by `make_pool`."""
        self.judges: dict[str, RewardModel] = {}
        """Second opinions by name: evaluations ask them too, and nothing learns."""
        self.version = 0
        """How often a model that learns has changed what it would answer."""
        self._asked: deque[int] = deque()  # versions of rollouts still to be learned
        self.needs_states = kind.needs_states
        self.cheap = kind.cheap
        # Only what costs something is worth sparing, and time must have no gaps.
        thins = not kind.cheap and kind.window == 1
        self._every = config.reward.every if thins else 1
        self._advice = f"reward={config.reward.name} gave it"
        if kind.sees_pictures:
            self._advice = "check the weights and clip.precision"

    @property
    def remembers(self) -> bool:
        """Whether old states get new rewards, so that replay must keep them."""
        return (self.estimator or self._learner) is not None

    def submit(self, episodes: Episodes, thin: bool = False) -> Wait:
        """Begin to reward episodes, which have states if the model needs them.

        Returns what waits for the rewards, (T, N) float32, and raises
        FloatingPointError where one is not finite. `thin`: reward each
        `reward.every`-th step, the last one among them; steps between get the linear
        interpolation of their neighbours, those before the first get its reward. Or,
        where rewards are learned, the states that are worth a look; the others get NaN
        until `learn`.
        """
        if thin and self.estimator is not None:
            return self._submit_some(episodes, self.estimator.choose(episodes))
        if thin and self._learner is not None:
            self._asked.append(self.version)
        steps = episodes.shape[0]
        every = self._every if thin else 1
        at = np.arange(steps - 1, -1, -every)[::-1]
        wait = self._submit(episodes if every == 1 else episodes.thinned(at))

        def finish() -> np.ndarray:
            reward = wait()
            if every > 1:
                columns = [np.interp(np.arange(steps), at, r) for r in reward.T]
                reward = np.stack(columns, axis=1).astype(np.float32)
            return self._finite(reward, reward.size)

        return finish

    def _submit_some(self, episodes: Episodes, at: np.ndarray) -> Wait:
        """Reward the states at these places of the flattened (T, N); NaN elsewhere."""
        wait = self._submit(episodes.column().thinned(at))

        def finish() -> np.ndarray:
            reward = np.zeros(episodes.shape, np.float32)
            reward.flat[at] = wait()[:, 0]
            reward = self._finite(reward, len(at))
            reward.flat[np.setdiff1d(np.arange(reward.size), at)] = np.nan
            return reward

        return finish

    def _finite(self, reward: np.ndarray, asked: int) -> np.ndarray:
        """The rewards (T, N) as they are; so many were asked for.

        Raises:
            FloatingPointError: one is not a finite number.
        """
        bad = np.argwhere(~np.isfinite(reward))
        if len(bad):
            t, n = bad[0]
            raise FloatingPointError(
                f"The reward is {reward[t, n]} at step {t + 1} of episode {n + 1} of a "
                f"rollout, and {len(bad)} of {asked} are not finite: nothing can be "
                f"learned from it; {self._advice}."
            )
        return reward

    def rewards(self, episodes: Episodes) -> np.ndarray:
        """Submit and wait: (T, N) float32."""
        return self.submit(episodes)()

    def learn(self, memory: Memory) -> dict[str, float]:
        """Let a model that learns do so, then give all that is stored its new rewards.

        To be called once for each rollout that was submitted with `thin`: with overlap,
        its rewards may be of a version before the last. Returns metrics.
        """
        if self.estimator is not None:
            return self.estimator.learn(memory)
        if self._learner is None:
            return {}
        before, episodes = self._learner.version, memory.episodes()
        with blaming(self._learner, "in update"):
            told = self._learner.update(episodes)
            metrics = {key: float(value) for key, value in told.items()}
            for key in metrics:
                if not key.startswith("reward/"):
                    raise ValueError(f"its metric {key} does not begin with reward/")
            changed = bool(self._learner.version != before)
        asked = self._asked.popleft()
        if changed:
            self.version += 1
            memory.set_rewards(self.rewards(episodes))
        elif asked != self.version:
            memory.relabel(lambda s, _: self.rewards(Episodes(states=s)), newest=True)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """What a model that learns has learned, and versions of rewards in flight."""
        learner = self.estimator or self._learner
        learned = {} if learner is None else learner.state_dict()
        asked = {"version": self.version, "asked": list(self._asked)}
        return {"learned": learned, **asked}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.version, self._asked = state["version"], deque(state["asked"])
        learner = self.estimator or self._learner
        if learner is not None:
            learner.load_state_dict(state["learned"])

    def around(self, envs: VectorEnv) -> VectorEnv:
        """What an agent acts in: `envs`, or what an online model makes of them."""
        return envs if self._model is None else self._model.around(envs)

    def _submit(self, episodes: Episodes) -> Wait:
        rewards = rewards_of(self._model, episodes)
        return lambda: rewards

    def about(self) -> dict[str, Any]:
        """What the rewards and judges depend on, for the run's record."""
        judges = {name: facts_of(judge) for name, judge in self.judges.items()}
        return self._about() | ({"judges": judges} if judges else {})

    def _about(self) -> dict[str, Any]:
        return facts_of(self._model)

    def close(self) -> None:
        """Release what the model holds, and stop workers."""
        if self._model is not None:
            close(self._model)
