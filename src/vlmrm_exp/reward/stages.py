"""A task as sentences in order: the agent sees which one it is at, and is paid for it.

    state -> [render, embed] -> a score for each sentence -> stage, progress -> reward

The stage must be known before the next action. So the model is asked while episodes are
played, in the training process, and not afterwards by workers. Letters: N environments,
B states, K stages.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np

from vlmrm_exp.checks import number_from_0, reward_options, whole_number
from vlmrm_exp.config import Config, ConfigError
from vlmrm_exp.envs import Step, VectorEnv
from vlmrm_exp.envs.in_order import Around
from vlmrm_exp.reward import Episodes
from vlmrm_exp.reward.clip import ClipReward
from vlmrm_exp.reward.random_states import random_states

checked = partial(
    reward_options,
    {"episodes": (16, whole_number), "shaping": (1.0, number_from_0)},
)
"""What `reward.options` asks for, or a ConfigError."""
ROUNDING = 1e-4
"""Of progress: a state's embedding differs that much with the batch that it is in."""


class StagesReward(ClipReward):
    """How many stages are passed, and how far the present one is.

    A state's score for a stage is the goal-baseline reward of its sentence; if the
    stage has a `margin`, minus the highest reward of the other stages' sentences.
    Progress goes from 0, at the lowest score of the states that random actions lead to,
    to 1, where the stage is reached: at the `quantile` of these scores, or at the
    margin. A stage that is reached for `hold` steps in a row is passed, and that is not
    taken back in the episode. The last one goes on to the episode's end, and its
    progress beyond 1: a state just as reached is not yet the best of its kind.

    The level after a step is (stages before the present one + progress) / K: a later
    stage never pays less than an earlier one. The reward is this level, and
    `reward.options.shaping` times gamma * level - level before: a potential, so that no
    way around a circle is paid for (Ng, Harada and Russell 1999).
    """

    has_options = True
    cheap = True
    needs_states = False
    online = True

    @classmethod
    def check_config(cls, config: Config) -> None:
        """Refuse impossible options."""
        checked(config.reward.options)

    def __init__(self, config: Config) -> None:
        """Load the model, and look at `reward.options.episodes` of random actions.

        Raises:
            ConfigError: as of `ClipReward`; impossible options; or all states that
                random actions lead to are beyond a stage's margin.
        """
        self._options = checked(config.reward.options)
        stages = config.stages
        super().__init__(config, [replace(config, prompt=x.prompt) for x in stages])
        prompts = [stage.prompts for stage in stages]
        self.hold = [stage.hold for stage in stages]
        self._gamma = config.algo.gamma
        # Others that say something else: to stand at first and at last is no contest.
        self._others = {
            k: [j for j, other in enumerate(prompts) if other != prompts[k]]
            for k, stage in enumerate(stages)
            if stage.margin is not None
        }
        usual = random_states(config, self._options["episodes"], self.batch_size)
        scores = np.concatenate([self.scores(states) for states in usual])
        self._lowest = scores.min(0)
        self._reached = np.array(
            [
                np.quantile(scores[:, k], stage.quantile or 1)
                if stage.margin is None
                else stage.margin
                for k, stage in enumerate(stages)
            ]
        )
        for k in np.flatnonzero(self._reached <= self._lowest):
            raise ConfigError(
                f"Stage {k + 1} ({prompts[k][0]!r}) is reached at "
                f"{self._reached[k]:.4g}, but random actions lead to nothing below "
                f"{self._lowest[k]:.4g}: give it a higher margin, or a quantile."
            )

    def scores(self, states: np.ndarray) -> np.ndarray:
        """States (B, S), or frames -> what each stage says of them: (B, K) float64."""
        scores = super().scores(states).astype(np.float64)
        best = {k: scores[:, others].max(1) for k, others in self._others.items()}
        for k, other in best.items():
            scores[:, k] -= other
        return scores

    def progress(self, scores: np.ndarray) -> np.ndarray:
        """Scores (B, K) -> how far each stage is, were it the present one; 1: reached.

        From 0 to 1, of the last stage to more.
        """
        way = (scores - self._lowest) / (self._reached - self._lowest)
        way = np.where((way > 1 - ROUNDING) & (way < 1), 1, way.clip(0))
        way[:, :-1] = way[:, :-1].clip(max=1)
        return way

    def level(self, passed: np.ndarray, progress: np.ndarray) -> np.ndarray:
        """Stages passed (N,) int, and progress (N, K) -> (N,)."""
        present = np.minimum(passed, len(self.hold) - 1)
        own = np.take_along_axis(progress, present[:, None], 1)[:, 0]
        return (present + own) / len(self.hold)

    def reward(self, before: np.ndarray, level: np.ndarray) -> np.ndarray:
        """Levels (N,) before and after a step -> rewards (N,)."""
        return level + self._options["shaping"] * (self._gamma * level - before)

    def around(self, envs: VectorEnv) -> VectorEnv:
        """Environments whose observation says the stage, and whose steps are paid."""
        return StagedEnvs(envs, self)

    def rewards(self, episodes: Episodes) -> np.ndarray:
        """(T, N) float32, as they came with the steps."""
        if episodes.online is None:
            raise ConfigError(
                "reward=stages knows the stage only while episodes are played, and "
                "these are states alone: choose another reward."
            )
        return episodes.online

    def about(self) -> dict[str, Any]:
        """What embeds and renders, and where stages begin and are reached."""
        stages = {"lowest": self._lowest.tolist(), "reached": self._reached.tolist()}
        return {**super().about(), "stages": stages}


class StagedEnvs(Around):
    """Environments whose agent sees its stage, behind the world's own numbers."""

    def __init__(self, envs: VectorEnv, model: StagesReward) -> None:
        super().__init__(envs, model.hold)
        self._model = model
        self._level = np.zeros(envs.num_envs)
        own, stages = envs.observation_space, np.ones(len(model.hold), np.float32)
        self.observation_space = gym.spaces.Box(
            np.concatenate((own.low, 0 * stages)),
            np.concatenate((own.high, stages)),
            dtype=np.float32,
        )

    def reset(self, seed: int | None = None) -> np.ndarray:
        """Start new episodes, at the first stage; (N, O + K) float32."""
        observation = super().reset(seed)
        progress = self._model.progress(self._model.scores(self.states()))
        self._level = self._model.level(self._order.count, progress)
        return self._seen(observation)

    def step(self, action: np.ndarray) -> Step:
        """Advance all environments, look at them, and go on to the next stage."""
        step, before = super().step(action), self._level
        progress = self._model.progress(self._model.scores(self.states()))
        self._order.step(progress >= 1)
        self._level = self._model.level(self._order.count, progress)
        return step._replace(
            observation=self._seen(step.observation),
            online=self._model.reward(before, self._level).astype(np.float32),
            passed={**step.passed, "stage": self._order.passed},
        )

    def _seen(self, observation: np.ndarray) -> np.ndarray:
        """Observations (N, O) -> (N, O + K): 1 at the present stage, else 0."""
        stages = len(self._model.hold)
        present = np.minimum(self._order.count, stages - 1)
        shown = np.eye(stages, dtype=np.float32)[present]
        return np.concatenate((observation, shown), 1, dtype=np.float32)

    def state_dict(self) -> dict[str, Any]:
        """Of the environments, and how far episodes are."""
        return {**super().state_dict(), "level": self._level.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        super().load_state_dict(state)
        self._level = np.array(state["level"])
