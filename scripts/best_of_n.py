"""What does choosing by a reward get, and what does learning from it?

    python scripts/best_of_n.py outputs/kneeling/A outputs/kneeling/B [--policies 1000]

The folders are of finished runs of one world with `judge=predicate`. For each: the
reward and the share of steps in the goal over gradient steps, as its evaluations found
them; and the same of the policy with the highest reward among n, of random ones and of
those that were evaluated (Gao et al. 2022, arXiv 2210.10760). Prints a Markdown table
and writes best_of_n.png and .svg.

A random policy is linear, tanh(W observation) with W from a normal distribution (the
largest of W observation where actions are discrete), and plays one episode. All runs
judge the same episodes, each by its own reward.
"""

import argparse
import contextlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import Discrete

from vlmrm_exp import figures
from vlmrm_exp.config import Config, ConfigError
from vlmrm_exp.envs import world_of
from vlmrm_exp.reporting.run_folders import Run
from vlmrm_exp.reporting.statistics import best_of_n
from vlmrm_exp.reward import Episodes, make_model, reward_class, rewards_of
from vlmrm_exp.reward.clip import ClipReward
from vlmrm_exp.rl import network_input
from vlmrm_exp.rl.rollout import collect
from vlmrm_exp.rl.sac import to_bounds
from vlmrm_exp.run_folder import load_run_config

COUNTS = (1, 10, 100, 1000)
RESAMPLES = 200  # of policies, for the interval
KEYS = ["eval/reward_mean", "judge/predicate"]


def random_episodes(config: Config, policies: int) -> Episodes:
    """One episode of each policy: states (T, N, S)."""
    rng = np.random.default_rng(0)
    make_envs = world_of(config.task).make_envs
    with contextlib.closing(make_envs(config.task, policies, 1)) as envs:
        space, size = envs.action_space, envs.observation_space.shape[0]
        actions = space.n if isinstance(space, Discrete) else space.shape[0]
        weights = rng.normal(0, size**-0.5, (policies, int(actions), size))

        def act(observation: np.ndarray) -> np.ndarray:
            seen = network_input(observation, config.algo.squash_observations)
            found = np.einsum("nao,no->na", weights, seen)
            if isinstance(space, Discrete):
                return found.argmax(axis=1)
            unit = np.tanh(found)
            return to_bounds(unit, space.low, space.high).astype(np.float32)

        return collect(envs, act, seed=0)


def judged(configs: list[Config], episodes: Episodes) -> list[np.ndarray]:
    """For each run, rewards and shares of steps in the goal of episodes: (2, N)."""
    rewards: list[np.ndarray] = [np.empty(0)] * len(configs)
    clips = [k for k, config in enumerate(configs) if config.reward.model == "clip"]
    if clips:  # each picture is made once for all of them
        of_clip = [configs[k] for k in clips]
        with contextlib.closing(ClipReward(of_clip[0], of_clip)) as model:
            scores = model.scores(episodes.flat)
        for k, found in zip(clips, scores.T, strict=True):
            rewards[k] = found.reshape(episodes.shape)
    for k in {*range(len(configs))} - {*clips}:
        with contextlib.closing(make_model(configs[k])) as model:
            rewards[k] = rewards_of(model, episodes)
    pairs = []
    for config, reward in zip(configs, rewards, strict=True):
        predicate = world_of(config.task).predicate(config.task)
        assert predicate is not None
        met = predicate(episodes.flat).reshape(episodes.shape)
        pairs.append(np.stack([reward.mean(0), met.mean(0)]))
    return pairs


def chosen(pair: np.ndarray) -> np.ndarray:
    """Reward and goal (2, N) -> those of the highest reward among n: (2, N)."""
    return np.stack([best_of_n(pair[0], values) for values in pair])


def interval(pair: np.ndarray) -> np.ndarray:
    """Low and high end of `chosen`, 95 %, for n up to N / 10: (2, 2, N // 10).

    By resampling policies, which says nothing of the best of nearly all of them.
    """
    rng, count = np.random.default_rng(0), pair.shape[1]
    drawn = [
        chosen(pair[:, rng.integers(count, size=count)])[:, : count // 10]
        for _ in range(RESAMPLES)
    ]
    return np.quantile(drawn, [0.025, 0.975], axis=0)


def refuse_unlike(configs: dict[Path, Config]) -> None:
    """Refuse runs that cannot judge the same episodes, or not from their states."""
    first, *others = configs
    for folder, config in configs.items():
        if world_of(config.task).predicate(config.task) is None:
            raise ConfigError(f"{folder} has a task without a predicate: leave it out.")
        if (kind := reward_class(config)).online or kind.remembers:
            raise ConfigError(
                f"{folder} has reward={config.reward.name}, which is not of states "
                "alone: leave it out."
            )
    for folder in others:
        for name in ("task", "clip", "frame_height"):
            own, other = (getattr(configs[x], name) for x in (folder, first))
            if name == "task":
                own, other = (
                    replace(task, name="", goal="", before=[], hold=1)
                    for task in (own, other)
                )
            if own != other:
                raise ConfigError(
                    f"{folder} has another {name} than {first}, so other episodes or "
                    "pictures: compare them one by one."
                )


def panel(
    axes: Any, pair: Any, x: Any, style: dict[str, Any], bars: Any = None
) -> None:
    """Plot reward (left axis) and goal (right axis) over x, intervals if known."""
    for k, one in enumerate(axes):
        one.plot(x, pair[k], color=figures.COLORS[k], **style)
        if bars is not None:
            ends = {"color": figures.COLORS[k], "alpha": 0.2, "lw": 0}
            one.fill_between(x[: bars.shape[2]], bars[0, k], bars[1, k], **ends)
        one.tick_params(axis="y", colors=figures.COLORS[k])
    axes[1].set_ylim(-0.03, 1.03)
    axes[1].grid(False)


def main() -> None:
    """Measure, print, plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--policies", type=int, default=1000, help="random ones")
    given = parser.parse_args()
    if given.policies < 1:
        raise ConfigError(f"--policies is {given.policies}: give one at least.")
    configs = {folder: load_run_config(folder) for folder in given.folders}
    refuse_unlike(configs)
    trained = []
    for folder in configs:
        found: Any = Run(folder, folder.name, {}, []).reports
        keys = ["train/gradient_steps", *KEYS]
        found = found.reindex(columns=keys).dropna()
        if not len(found):
            raise ConfigError(
                f"{folder} has no evaluations with judge=predicate: leave it out."
            )
        trained.append(found.to_numpy().T)

    of_all = [*configs.values()]
    random = judged(of_all, random_episodes(of_all[0], given.policies))
    with figures.figure(8, 0.4 + 2.3 * len(configs)) as figure:
        rows = figure.subplots(
            len(configs), 2, squeeze=False, sharex="col", sharey="row"
        )
        for row, config, (steps, *learned), by_chance in zip(
            rows, of_all, trained, random, strict=True
        ):
            name = config.task.name
            said = (
                " / ".join(config.prompts)
                if config.reward.model == "clip"
                else config.reward.name
            )
            print(f"\n{name}: {said}\n")
            bars = interval(by_chance)
            table(chosen(by_chance), bars, np.array(learned))
            over, best = ((left, left.twinx()) for left in row)
            panel(over, learned, steps, {"marker": "."})
            counts = np.arange(1, given.policies + 1)
            panel(best, chosen(by_chance), counts, {"ls": ":"}, bars)
            of_learned = chosen(np.array(learned))
            panel(best, of_learned, np.arange(len(steps)) + 1, {"marker": "."})
            for axes in (over, best):
                axes[1].spines["right"].set_visible(True)
            over[0].set_ylabel("reward", color=figures.COLORS[0])
            best[1].set_ylabel("steps in the goal", color=figures.COLORS[1])
            over[0].set_title(figures.wrap(f"{name}: {said}", 58), loc="left")
        rows[-1, 0].set_xlabel("gradient steps")
        rows[-1, 1].set(
            xscale="log", xlabel="highest reward of n (dotted: random policies)"
        )
        figures.save(figure, Path("best_of_n"))


def table(by_chance: np.ndarray, bars: np.ndarray, learned: np.ndarray) -> None:
    """Print random policies' best of some n, and what was learned."""
    print("| policy | reward | steps in the goal |\n|---|---|---|")
    for n in [n for n in COUNTS if n <= by_chance.shape[1]]:
        cells = [f"{value:.3f}" for value in by_chance[:, n - 1]]
        if n <= bars.shape[2]:
            ends = bars[:, :, n - 1].T
            cells = [
                f"{cell} ({low:.3f} to {high:.3f})"
                for cell, (low, high) in zip(cells, ends, strict=True)
            ]
        print(f"| best of {n:,} random | {cells[0]} | {cells[1]} |")
    best, count = learned[:, learned[0].argmax()], learned.shape[1]
    print(f"| learned, best of {count} | {best[0]:.3f} | {best[1]:.3f} |")


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        sys.exit(f"best_of_n: {error}")
