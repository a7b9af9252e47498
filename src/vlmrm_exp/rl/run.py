"""What SAC and DQN share: labelling, evaluation, checkpoints, reports, the summary.

The loop itself is in `sac.py` and `dqn.py`: collect, label, learn, report.
"""

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vlmrm_exp.config import Config
from vlmrm_exp.envs import VectorEnv
from vlmrm_exp.log import RunLog
from vlmrm_exp.rl import dqn, sac
from vlmrm_exp.rl.policy import Policy, save_policy
from vlmrm_exp.rl.progress import Progress
from vlmrm_exp.rl.replay import ReplayBuffer
from vlmrm_exp.rl.rollout import Act, Rollout, collect, receive, submit
from vlmrm_exp.rl.state import Labelled, State, make_seeds
from vlmrm_exp.rl.summary import peak_memory_gb, summary_text
from vlmrm_exp.rl.trial import EVAL_KEYS, judge, try_policy, write_video

if TYPE_CHECKING:
    from vlmrm_exp.vlm.scorer import Scorer


class Run:
    """One training run: what it was given, its state, and the steps of its loop."""

    state: State | None
    """None until `start`."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        envs: VectorEnv,
        eval_envs: VectorEnv,
        scorer: "Scorer | None",
        log: RunLog,
        device: torch.device,
    ) -> None:
        """Take the parts, which the caller closes afterwards.

        Args:
            config: checked.
            folder: where checkpoints and videos go.
            envs: `algo.num_envs` of them, with actions that the algorithm can choose.
            eval_envs: others, so that evaluation leaves training's random stream alone;
                best `evaluation.episodes` of them.
            scorer: None: the reward is the environment's own.
            log: takes metrics and the summary.
            device: of networks and replay.
        """
        self.config = config
        self.folder = folder
        self.envs = envs
        self.eval_envs = eval_envs
        self.scorer = scorer
        self.log = log
        self.device = device
        self.seeds = make_seeds(config.seed)
        self.state = None
        self.stop_requested = False
        # The environment's own reward is there at once.
        self._overlap = config.compute.overlap and scorer is not None
        # Only pictures are worth saving: a predicate is told of every state.
        self._every = config.reward_every if config.reward == "clip" else 1
        self._ticket: int | None = None  # of state.in_flight
        self._progress: Progress | None = None
        self._made = self._started = self._lap_started = time.perf_counter()
        self._warm: tuple[float, int] | None = None  # when, and env steps until then
        self._laps: dict[str, float] = {}

    def start(self, agent: sac.SAC | dqn.DQN) -> State:
        """Make the replay buffer and the state that the loop works on."""
        config, envs = self.config, self.envs
        rollout_steps = envs.num_envs * envs.episode_length
        needed = math.ceil(config.env_steps / rollout_steps)
        replay = ReplayBuffer(
            max(min(config.algo.buffer_size // rollout_steps, needed), 1),
            envs.episode_length,
            envs.num_envs,
            envs.observation_space,
            envs.action_space,
            self.seeds.replay,
            self.device,
            config.algo.normalise_rewards,
        )
        self.state = State(envs, agent, replay, next_evaluation=config.evaluation.every)
        self._progress = Progress(config.env_steps)
        self._started = self._lap_started = time.perf_counter()
        return self.state

    def finished(self) -> bool:
        """Whether all env steps are simulated and labelled."""
        state = self._running()
        return state.env_steps >= self.config.env_steps and state.in_flight is None

    def collect(self, act: Act) -> Rollout | None:
        """Simulate one rollout; None when all env steps are.

        Raises:
            KeyboardInterrupt: Ctrl-C came since the last rollout.
        """
        state = self._running()
        if self.stop_requested:
            raise KeyboardInterrupt
        if state.env_steps >= self.config.env_steps:
            return None
        rollout = collect(
            self.envs,
            act,
            seed=self.seeds.envs if state.env_steps == 0 else None,
            keep_rows=self.scorer is not None,
        )
        state.env_steps += rollout.env_steps
        self._lap("perf/collect_s")
        return rollout

    def label(self, rollout: Rollout | None) -> Labelled | None:
        """Have a rollout labelled, and wait for one.

        With `compute.overlap` what comes back is the rollout before, so that this one
        is scored while the agent learns and the next one is simulated.

        Args:
            rollout: None when there is no more: wait for the last one.

        Returns:
            None only for the first rollout of an overlapped run.

        Raises:
            FloatingPointError: a reward is not a finite number.
        """
        state = self._running()
        before, before_ticket = state.in_flight, self._ticket
        if before is not None and before_ticket is None:  # the state was loaded
            before_ticket = self._submit(before)
        ticket = None if rollout is None else self._submit(rollout)
        if self._overlap:
            state.in_flight, self._ticket = rollout, ticket
            rollout, ticket = before, before_ticket
        if rollout is None:
            return None
        reward = receive(self.scorer, ticket, rollout, self._every)
        labelled = Labelled(rollout, reward)
        self._lap("perf/label_wait_s")
        return labelled

    def _submit(self, rollout: Rollout) -> int | None:
        return submit(self.scorer, rollout, self._every)

    def report(
        self, labelled: Labelled | None, metrics: Sequence[dict[str, torch.Tensor]]
    ) -> None:
        """Log what was labelled and learned; evaluate when it is time.

        Args:
            labelled: the rollout just learned from.
            metrics: their mean is that over the gradient steps; on the device.

        Raises:
            FloatingPointError: a loss is not a finite number.
        """
        if labelled is None:
            return
        state = self._running()
        rollout, reward = labelled
        means = _means(metrics)  # the only wait for the device in the loop
        self._lap("perf/learn_s")
        state.labelled_steps += rollout.env_steps
        figures = {"return": float(rollout.env_reward.sum(0).mean())}
        if rollout.goal is not None:
            success = self.envs.episode_success(rollout.goal)
            figures["success"] = float(success.mean())
        figures["reward"] = float(reward.mean(dtype=np.float64))
        values = {
            "train/reward_mean": figures["reward"],
            "train/return_mean": figures["return"],
            "train/gradient_steps": state.gradient_steps,
            **means,
        }
        if "success" in figures:
            values["train/success_rate"] = figures["success"]
        if state.labelled_steps >= state.next_evaluation or self.finished():
            values |= self._evaluate()
            every = self.config.evaluation.every
            state.next_evaluation = (state.labelled_steps // every + 1) * every
            self._lap("perf/evaluate_s")
        if (rate := self.env_steps_per_s()) is not None:
            self._laps["perf/env_steps_per_s"] = rate
        if self._warm is None:
            self._warm = time.perf_counter(), state.labelled_steps
        self.log.metrics(state.labelled_steps, values | self._laps)
        self._laps = {}
        if self._progress is not None:
            self._progress.update(state.labelled_steps, figures)

    def env_steps_per_s(self) -> float | None:
        """The rate since the first report, all included; None before the second."""
        steps = self._running().labelled_steps
        if self._warm is None or steps == self._warm[1]:
            return None
        return (steps - self._warm[1]) / (time.perf_counter() - self._warm[0])

    def _evaluate(self) -> dict[str, float]:
        """Try the present policy, and keep it if none had a higher reward.

        Of equals the latest: where all rewards are the same, the most trained one.
        """
        state = self._running()
        checkpoint = self._checkpoint(state)
        trial = try_policy(
            self.eval_envs,
            Policy(checkpoint, self.device).act,
            self.scorer,
            self.config.evaluation.episodes,
            self.seeds.evaluation,
        )
        values = judge(trial)
        reward = values["eval/reward_mean"]
        assert reward is not None
        save_policy(self.folder / "checkpoints" / "last.pt", checkpoint)
        if reward >= state.best_reward:
            state.best, state.best_reward = checkpoint, reward
            save_policy(self.folder / "checkpoints" / "best.pt", checkpoint)
        logged = ("eval/success_rate", "eval/reward_mean", "eval/return_mean")
        return {k: v for k in logged if (v := values[k]) is not None}

    def finish(self, interrupted: bool) -> dict[str, Any]:
        """Judge the kept policy, draw it, and write the summary.

        Args:
            interrupted: fewer episodes are played, so that it is over soon.

        Returns:
            What summary.json holds.
        """
        train_wall_s = time.perf_counter() - self._started
        if self._progress is not None:
            self._progress.close()
        config, state = self.config, self.state
        summary: dict[str, Any] = {
            "task": config.task.name,
            "clip": config.clip.name,
            "reward": config.reward,
            "algo": config.algo.name,
            "prompt": config.prompts,
            "baseline": config.baselines,
            "alpha": config.alpha,
            "seed": config.seed,
            "interrupted": interrupted,
            "env_steps": 0,
            "gradient_steps": 0,
            "perf/env_steps_per_s": None,
            **dict.fromkeys(EVAL_KEYS),
            "best_env_steps": None,
        }
        if state is not None:
            summary |= {
                "env_steps": state.labelled_steps,
                "gradient_steps": state.gradient_steps,
                "perf/env_steps_per_s": self.env_steps_per_s(),
                **self._judge_best(state, interrupted),
            }
        summary["train_wall_s"] = train_wall_s
        summary["wall_s"] = time.perf_counter() - self._made
        summary["perf/peak_memory_gb"] = peak_memory_gb()
        self.log.summary(summary)
        print(summary_text(summary, self.folder))
        return summary

    def _judge_best(self, state: State, interrupted: bool) -> dict[str, Any]:
        last = self._checkpoint(state)
        best = state.best or last
        checkpoints = self.folder / "checkpoints"
        save_policy(checkpoints / "last.pt", last)
        save_policy(checkpoints / "best.pt", best)
        evaluation = self.config.evaluation
        episodes = evaluation.final_episodes
        if interrupted:
            episodes = min(episodes, evaluation.episodes)
        trial = try_policy(
            self.eval_envs,
            Policy(best, self.device).act,
            self.scorer,
            episodes,
            self.seeds.final,
            keep_rows=min(evaluation.video_episodes, episodes),
        )
        if trial.rows:
            video = self.folder / "videos" / "eval.mp4"
            title = " / ".join(self.config.prompts)
            write_video(video, self.config.task, self.config.clip, trial, title)
            self.log.video(state.labelled_steps, "eval/video", video)
        return {**judge(trial), "best_env_steps": best["env_steps"]}

    def _checkpoint(self, state: State) -> dict[str, Any]:
        return {**state.agent.checkpoint(), "env_steps": state.labelled_steps}

    def _running(self) -> State:
        assert self.state is not None, "start() comes first"
        return self.state

    def _lap(self, name: str) -> None:
        now = time.perf_counter()
        self._laps[name] = now - self._lap_started
        self._lap_started = now


def train(run: Run) -> None:
    """Train by the configured algorithm.

    Raises:
        KeyboardInterrupt: after Ctrl-C; `run.finish` can still be called.
        FloatingPointError: a reward or a loss is not a finite number.
    """
    with interrupts_between_rollouts(run):
        match run.config.algo.name:
            case "sac":
                sac.train(run)
            case "dqn":
                dqn.train(run)
            case other:
                raise ValueError(other)


@contextlib.contextmanager
def interrupts_between_rollouts(run: Run) -> Iterator[None]:
    """Hold a Ctrl-C back until the rollout is over; a second one takes effect at once.

    Else it could strike halfway through a gradient step, or a message to a scorer.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return

    def on_signal(number: int, frame: object) -> None:
        if run.stop_requested:
            raise KeyboardInterrupt
        run.stop_requested = True
        # Not print: the signal may have come in the middle of one.
        os.write(2, b"\nStopping after this rollout; Ctrl-C again stops at once.\n")

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, on_signal) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _means(metrics: Sequence[dict[str, torch.Tensor]]) -> dict[str, float]:
    """Average each key.

    Raises:
        FloatingPointError: a mean is not a finite number.
    """
    if not metrics:
        return {}
    keys = list(metrics[0])
    # (gradient steps x keys,) -> (keys,): one copy to the CPU for all of them
    flat = torch.stack([values[key] for values in metrics for key in keys])
    means = flat.view(len(metrics), len(keys)).mean(0).tolist()
    for key, mean in zip(keys, means, strict=True):
        if not math.isfinite(mean):
            raise FloatingPointError(
                f"{key} became {mean}: learning diverged; try a lower "
                "algo.learning_rate."
            )
    return dict(zip(keys, means, strict=True))
