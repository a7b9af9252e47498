"""Find what a reward wants: python -m vlmrm_exp.peak task=... clip=...

An agent goes where the reward is highest, and that is rarely among the states that a
correlation is measured on. So humanoid poses of highest reward are searched for, by the
cross-entropy method (Rubinstein 1999), and judged by the task's predicate. Nothing is
trained.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.config_store import ConfigStore

from vlmrm_exp import app, figures
from vlmrm_exp.checks import at_least
from vlmrm_exp.composition import Composed
from vlmrm_exp.config import Config, ConfigError
from vlmrm_exp.envs import world_of
from vlmrm_exp.files import table
from vlmrm_exp.log.progress import progress_bar
from vlmrm_exp.log.versions import versions
from vlmrm_exp.measures import check_finite
from vlmrm_exp.reward import Episodes, RewardModel, facts_of, make_model, rewards_of
from vlmrm_exp.studies import state_sets
from vlmrm_exp.studies.settings import PLURAL, Study, StudyConfig, resolve

POPULATION, ELITE = 96, 12  # poses of a round, and how many shape the next round
KEPT = 0.3  # share of the former mean and spread that stays, against settling too soon
TURNS = (100.0, 100.0, 30.0)
"""Degrees by which the body may pitch, roll and yaw, from facing the front camera."""
GOAL_STATES = 2000  # sampled as by epic; those that meet the task count
SHOWN = 3  # pictures of either kind
PICTURE_HEIGHT = 160  # px


@dataclass
class PeakConfig(StudyConfig):
    """See conf/peak.yaml."""

    searches: int = 3
    rounds: int = 30


ConfigStore.instance().store(name="peak_schema", node=PeakConfig)


def check(composed: Composed) -> Study:
    """What is to be searched for, or a ConfigError."""
    study = resolve(composed)
    for task in study.tasks:
        world = world_of(task.task)
        if task.task.env != "humanoid" or world.predicate(task.task) is None:
            raise ConfigError(
                f"task={task.task.name} is no humanoid task with a goal: give one, or "
                "see vlmrm_exp.landscape for cartpole and mountaincar."
            )
    at_least("searches", study.asked.searches, 1)
    at_least("rounds", study.asked.rounds, 1)
    return study


def measure(study: Study) -> dict[str, Any]:
    """Search, print, plot, write and return what peak.json holds.

    A ConfigError if a model cannot be had, a reward is not finite, or nothing can be
    rendered.
    """
    from vlmrm_exp.studies.rewards import rewarders  # here, as --help is immediate

    renders_with = world_of(study.tasks[0].task).renders_with()
    rewarders(study, study.tasks)  # refuses models and sentences before any search
    goals = {}  # states of the studies' own sample that meet the task, (G, 47)
    for task in study.tasks:
        kept = study.cache / "states"
        sampled = state_sets.sample(task.task, GOAL_STATES, task.seed, (), kept)
        assert sampled.states is not None
        meets = state_sets.truth_of(task, sampled).goal
        goals[task.task.name] = sampled.states[meets]
    by_model = study.tasks[0].reward.model == "clip"
    models = study.models if by_model else [study.tasks[0].clip]
    pairs = [(task, model) for model in models for task in study.tasks]
    jobs = [job for pair in pairs for job in study.jobs(*pair)]
    rows, pictures, facts = [], [], {}
    total = len(jobs) * study.asked.searches
    with progress_bar(total, "search", "searching poses") as progress:
        for job in jobs:
            name = job.clip.name if by_model else job.reward.name
            with contextlib.closing(make_model(job)) as model:
                about = facts_of(model)
                facts[name] = about.get("encoder", about)
                of_goals = goals[job.task.name]
                row, shown = _search(study, job, model, of_goals, progress.update)
            rows.append({"task": job.task.name, "clip": name, **row})
            renderer = world_of(job.task).make_renderer(job.task, PICTURE_HEIGHT, False)
            with contextlib.closing(renderer):
                pictures.append(renderer.render(shown))
    result = {
        "settings": study.settings(),
        "models": facts,
        "rows": rows,
        "versions": versions({"drawn_by": renders_with}),
    }
    study.save("peak", result, report(rows), lambda path: plot(rows, pictures, path))
    return result


def reward_of(model: RewardModel, states: np.ndarray) -> np.ndarray:
    """Rewards (B,) of states (B, 47); a ConfigError if one is not finite."""
    rewards = rewards_of(model, Episodes(states=states[:, None]))[:, 0]
    check_finite(rewards)
    return rewards


def search(
    reward: Callable[[np.ndarray], np.ndarray],
    rounds: int,
    rng: np.random.Generator,
    upright: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Find poses of high reward by the cross-entropy method.

    `reward` (B,) of states (B, 47) is maximised in rounds of POPULATION poses, at first
    around a standing body (`upright`) or around any pose. Gives the best states
    (ELITE, 47), best first, and their rewards (ELITE,).
    """
    # Late, as MuJoCo's import fails without OpenGL, which `check` tells.
    from vlmrm_exp.envs.poses import STATE_SIZE, PoseLibrary, quaternion

    library = PoseLibrary()
    # 17 joint angles in radians, then pitch, roll and yaw in degrees.
    low, high = library.model.jnt_range[1:].T
    low = np.concatenate((low, np.negative(TURNS)))
    high = np.concatenate((high, TURNS))
    spread = (high - low) / 4
    mean = np.zeros(len(low)) if upright else rng.uniform(low, high)
    poses, states = np.empty((0, len(low))), np.empty((0, STATE_SIZE))
    rewards = np.empty(0)
    for _ in range(rounds):
        noise = rng.normal(size=(POPULATION, len(low)))
        sampled = np.clip(mean + spread * noise, low, high)
        placed = np.stack(
            [library.place(p[:-3], quaternion(p[-1], p[-3], p[-2])) for p in sampled]
        )
        # The best so far stay among the candidates.
        poses = np.concatenate((poses, sampled))
        states = np.concatenate((states, placed))
        rewards = np.concatenate((rewards, reward(placed)))
        best = np.argsort(-rewards)[:ELITE]
        poses, states, rewards = poses[best], states[best], rewards[best]
        mean = KEPT * mean + (1 - KEPT) * poses.mean(axis=0)
        spread = KEPT * spread + (1 - KEPT) * poses.std(axis=0)
    return states, rewards


def _search(
    study: Study,
    job: Config,
    model: RewardModel,
    goal_states: np.ndarray,
    done: Callable[[], object],
) -> tuple[dict[str, Any], np.ndarray]:
    """Search several times, and compare the best search with goal states (G, 47).

    A row of the table, and states to show: SHOWN found ones, then goal states. Calls
    `done` after each search.
    """
    reward, found = partial(reward_of, model), []
    for number in range(study.asked.searches):
        rng = np.random.default_rng([job.seed, number])
        found.append(search(reward, study.asked.rounds, rng, number == 0))
        done()
    of_goals = reward(goal_states)
    states, rewards = max(found, key=lambda one: one[1][0])
    meets = world_of(job.task).predicate(job.task)
    assert meets is not None
    best_goals = goal_states[np.argsort(-of_goals)[:SHOWN]]
    row = {
        "alpha": job.alpha,
        "textures": job.task.textures,
        "camera": job.task.camera,
        "prompt": job.prompts,
        "baseline": job.baselines,
        "reward_peak": float(rewards[0]),
        "meets": float(meets(states).mean()),
        "reward_each_search": [float(rewards[0]) for _, rewards in found],
        "meets_each_search": [float(meets(states).mean()) for states, _ in found],
        "reward_goal_states": float(of_goals.max()),
        "fell_short": bool(rewards[0] < of_goals.max()),
        "goal_states": len(goal_states),
        "rewards": rewards.tolist(),
        "states": states.tolist(),
    }
    return row, np.concatenate((states[:SHOWN], best_goals))


def report(rows: Sequence[dict[str, Any]]) -> str:
    """A table for people."""
    columns = {
        "task": "{task}",
        "model": "{clip}",
        "alpha": "{alpha:g}",
        "highest reward": "{reward_peak:.3f}",
        "meets the task": "{meets:.2f}",
        "each search": "{each}",
        "highest of goal states": "{reward_goal_states:.3f}",
    }
    cells = []
    for row in rows:
        each = " ".join(f"{share:.2f}" for share in row["meets_each_search"])
        cells.append([cell.format(**row, each=each) for cell in columns.values()])
    text = table(list(columns), cells)
    said = "{task} ({clip}, alpha {alpha:g})"
    if short := [said.format(**row) for row in rows if row["fell_short"]]:
        text += (
            "\n\nThe search did not even reach the goal states' reward, and says "
            f"nothing there: {', '.join(short)}; give more searches or rounds."
        )
    return text


def plot(
    rows: Sequence[dict[str, Any]], pictures: Sequence[np.ndarray], path: Path
) -> None:
    """Plot a line for each row: poses of highest reward, then goal states."""
    wide = 1.25 * pictures[0].shape[2] / PICTURE_HEIGHT  # views side by side
    with figures.figure(wide * 2 * SHOWN + 1.6, 0.4 + 1.35 * len(rows)) as made:
        bare = {"xticks": [], "yticks": []}
        axes = made.subplots(len(rows), 2 * SHOWN, squeeze=False, subplot_kw=bare)
        for line, row, shown in zip(axes, rows, pictures, strict=True):
            for ax, picture in zip(line, shown, strict=False):
                # Sky above and floor beside the body say nothing.
                edge = len(picture) // 6
                views = np.split(picture, picture.shape[1] // len(picture), axis=1)
                cut = [view[edge:, edge // 2 : -edge // 2] for view in views]
                ax.imshow(np.concatenate(cut, axis=1))
            alpha = f", alpha {row['alpha']:g}" if row["alpha"] else ""
            line[0].set_ylabel(f"{row['task']}\n{row['clip']}{alpha}", fontsize=8)
            said = f"{row['meets']:.0%} meet the task"
            if row["fell_short"]:
                said = "the search fell short"
            of_peak = f"reward {row['reward_peak']:.2f}, {said}"
            of_goals = f"reward {row['reward_goal_states']:.2f}"
            line[SHOWN - 1].set_xlabel(of_peak, fontsize=7, loc="right")
            line[-1].set_xlabel(of_goals, fontsize=7, loc="right")
        axes[0, 0].set_title("highest reward", loc="left")
        axes[0, SHOWN].set_title("states that meet the task", loc="left")
        figures.save(made, path)


if __name__ == "__main__":
    app.start(lambda composed: measure(check(composed)), "peak", check, PLURAL)
