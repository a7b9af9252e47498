"""Sets of states with labels, on which rewards are compared with the truth.

CartPole and MountainCar: a uniform grid, as in the paper (section 3). The humanoid: a
seeded mixture of poses, falls, random actions and, where runs are given, what their
policies visit. The paper pools the states of all checkpoints of one run, early ones
too; a run here keeps its best and its last policy, and the mixture stands in for the
early ones. States are kept as rows and drawn when they are needed.

A label says whether a state is the task's goal, by the task's predicate. States and
labels that people bring are read in state_files.py.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vlmrm_exp.config import Config, ConfigError, TaskConfig
from vlmrm_exp.study import cache
from vlmrm_exp.study.metrics import check_classes
from vlmrm_exp.study.progress import progress_bar

if TYPE_CHECKING:
    from vlmrm_exp.envs import VectorEnv
    from vlmrm_exp.envs.poses import Legs, PoseLibrary
    from vlmrm_exp.rl.policy import Policy
    from vlmrm_exp.rl.rollout import Act

POSITIONS = 9  # of the cart in CartPole's grid
STEPS_KEPT = 25  # of an episode, on average
# Shares of the humanoid's states by where they come from; half of each makes room for
# `policies` where runs are given.
SHARES = {"tasks": 0.4, "poses": 0.3, "falls": 0.1, "random": 0.2}


@dataclass(frozen=True)
class StateSet:
    """B states of one world: state rows, or the files of pictures."""

    world: str
    """The kind of environment, as TaskConfig.env, or the folder of pictures."""
    source: np.ndarray
    """(B,) str: where each comes from."""
    rows: np.ndarray | None = None
    """(B, S) float64."""
    files: tuple[Path, ...] = ()
    group: np.ndarray | None = None
    """(B,) int: states of one episode have one number, as they are not independent;
    every other state has its own. None: a grid, which is no sample of anything."""

    def __len__(self) -> int:
        """B."""
        return len(self.source)


PREDICATE = "predicate"
"""What labels states where no person did."""


@dataclass(frozen=True)
class Truth:
    """What is true of B states for one task."""

    goal: np.ndarray
    """(B,) bool."""
    labelled_by: str
    graded: np.ndarray | None = None
    """(B,) float: what a good reward orders states by, where that is known."""
    graded_by: str | None = None


def draw_states(
    task: TaskConfig,
    count: int,
    seed: int = 0,
    runs: Sequence[Path] = (),
    kept: Path | None = None,
) -> StateSet:
    """The states that rewards of a task are examined on.

    Args:
        task: of one of the three worlds; all tasks of the humanoid share their states.
        count: how many; CartPole's grid may have a few less.
        seed: of the humanoid's.
        runs: folders of finished humanoid runs, whose checkpoints are played.
        kept: folder in which the humanoid's rows are kept for the next time.

    Raises:
        ConfigError: as `check_drawing`, or a checkpoint is damaged.
    """
    check_drawing(task, count, runs)
    match task.env:
        case "cartpole":
            rows = _cart_pole_grid(count)
        case "mountain_car":
            rows = _mountain_car_grid(count)
        case _:
            return _humanoid_states(task, count, seed, runs, kept)
    return StateSet(task.env, np.full(len(rows), "grid"), rows)


def check_drawing(task: TaskConfig, count: int, runs: Sequence[Path] = ()) -> None:
    """Refuse what `draw_states` could not draw; reads no checkpoint.

    Raises:
        ConfigError: too few states, or a run that is not of a humanoid task, is not
            there, or has no checkpoint.
    """
    if count < 100:
        raise ConfigError(f"states is {count}: give at least 100.")
    if runs and task.env != "humanoid":
        raise ConfigError(
            f"runs adds states of policies to a humanoid task's, but {task.name}'s are "
            "a uniform grid: leave runs out."
        )
    for run in runs:
        _run_task(run)
        _checkpoints(run)


def truth_of(config: Config, states: StateSet) -> Truth:
    """Label states with the task's own predicate.

    The graded truths are minus the pole's angle from upright, and the car's position.

    Raises:
        ConfigError: the task has no predicate, or all states are of one class.
    """
    task, rows = config.task, states.rows
    if rows is None or (task.env == "humanoid" and not task.goal):
        raise ConfigError(
            f"task={task.name} has no predicate for its goal: give labels=FILE.csv."
        )
    if task.env == "cartpole":
        from vlmrm_exp.envs.cartpole import in_bounds, wrap_angle

        truth = Truth(
            in_bounds(rows),
            PREDICATE,
            -np.abs(wrap_angle(rows[:, 2])),
            "minus the pole's angle",
        )
    elif task.env == "mountain_car":
        from vlmrm_exp.envs.mountain_car import GOAL

        x = rows[:, 0]
        truth = Truth(x >= GOAL, PREDICATE, x, "the car's position")
    else:
        from vlmrm_exp.envs.goals import HumanoidGoal

        truth = Truth(HumanoidGoal(task.goal)(rows), PREDICATE)
    check_classes(truth.goal, f"task={task.name}")
    return truth


def _cart_pole_grid(count: int) -> np.ndarray:
    """All pairs of angles, all the way round, and positions: cell centres, at rest."""
    from vlmrm_exp.envs.cartpole import WALL

    angles = (np.arange(count // POSITIONS) + 0.5) / (count // POSITIONS) * 2 - 1
    positions = (np.arange(POSITIONS) + 0.5) / POSITIONS * 2 - 1
    rows = np.zeros((len(angles) * POSITIONS, 4))
    rows[:, 0] = np.tile(positions * WALL, len(angles))
    rows[:, 2] = np.repeat(angles * np.pi, POSITIONS)
    return rows


def _mountain_car_grid(count: int) -> np.ndarray:
    from vlmrm_exp.envs.mountain_car import LEFT, RIGHT

    rows = np.zeros((count, 2))
    rows[:, 0] = np.linspace(LEFT, RIGHT, count)
    return rows


def _humanoid_states(
    task: TaskConfig, count: int, seed: int, runs: Sequence[Path], kept: Path | None
) -> StateSet:
    checkpoints = [file for run in runs for file in _checkpoints(run)]
    key = cache.key_of(
        {
            "count": count,
            "seed": seed,
            "version": task.version,
            "episode_length": task.episode_length,
            "frame_skip": task.frame_skip,
            "runs": [asdict(_run_task(run)) for run in runs],
            "libraries": cache.libraries(("gymnasium", "mujoco", "numpy")),
            "sources": cache.sources(
                (
                    "study/state_sets.py",
                    "envs/humanoid.py",
                    "envs/poses.py",
                    "rl/rollout.py",
                    *(("rl/policy.py", "rl/sac.py") if runs else ()),
                )
            ),
        },
        *(file.read_bytes() for file in checkpoints),
    )
    path = None if kept is None else kept / f"{key}.npz"
    if path and (held := cache.load(path)):
        return StateSet(task.env, held["source"], held["rows"], group=held["group"])
    # First of all, as a damaged checkpoint is to be refused before anything is drawn.
    policies = [(_run_task(run), policy) for run in runs for policy in _policies(run)]
    mixed = round(count / 2) if runs else count
    # Differences of a rounded running sum, so that they add up.
    ends = np.round(np.cumsum([0, *SHARES.values()]) * mixed).astype(int)
    parts = dict(zip(SHARES, np.diff(ends).tolist(), strict=True))
    drawn = _drawn_states(task, parts, np.random.default_rng([seed, len(SHARES)]))
    if runs:
        drawn["policies"] = _policy_states(policies, count - mixed, seed)
    rows, group = _joined(list(drawn.values()))
    source = np.repeat(list(drawn), [len(part) for part, _ in drawn.values()])
    if path:
        cache.store(path, rows=rows, source=source, group=group)
    return StateSet(task.env, source, rows, group=group)


def _drawn_states(
    task: TaskConfig, parts: dict[str, int], rng: np.random.Generator
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Rows and their groups by source: `parts` says how many of each."""
    from vlmrm_exp.envs.poses import PoseLibrary

    library = PoseLibrary()
    draw = {
        "tasks": lambda i: _around_a_goal(library, i, rng),
        "poses": lambda i: library.sample(rng),
        "falls": lambda i: library.fall(rng),
    }
    drawn = {}
    total = sum(parts[name] for name in draw)
    with progress_bar(total, "state", "drawing poses") as progress:
        for name, one in draw.items():
            rows = []
            for i in range(parts[name]):
                rows.append(one(i))
                progress.update()
            drawn[name] = np.stack(rows), np.arange(len(rows))
    drawn["random"] = _random_states(task, parts["random"], rng)
    return drawn


def _around_a_goal(
    library: "PoseLibrary", i: int, rng: np.random.Generator
) -> np.ndarray:
    """A state at or near the goal of the i-th of the eight tasks, in turns.

    Those that miss it are kept: near misses are what a reward has to tell apart.
    """
    from vlmrm_exp.envs.poses import quaternion

    poses = list(_goal_poses().values())[i % len(_goal_poses())]
    pose = poses[rng.integers(len(poses))]
    angles = library.angles(pose)
    angles += rng.normal(0, rng.choice([0.01, 0.03, 0.06, 0.15]), len(angles))
    yaw = rng.normal(0, 15) if rng.random() < 0.7 else rng.uniform(-180, 180)
    tilt = rng.normal(0, rng.choice([1, 4]), 2)
    row = library.place(
        angles, quaternion(yaw, pose.pitch + tilt[0], pose.roll + tilt[1])
    )
    row[:2] += rng.normal(0, 0.25, 2).clip(-0.7, 0.7)
    if rng.random() < 0.3:
        torque = rng.normal(0, 0.1, len(angles)).clip(-0.4, 0.4)
        row = library.settle(row, torque, int(rng.integers(1, 20)))
    return row


def _goal_poses() -> "dict[str, tuple[Legs, ...]]":
    """Poses in degrees that meet the predicates, by task; set by hand."""
    from vlmrm_exp.envs.poses import Angles, Legs

    raised: Angles = {"shoulder1": -85, "shoulder2": 30, "elbow": -60}
    on_hips: Angles = {"shoulder1": 50, "shoulder2": -80, "elbow": -15}
    crossed: Angles = {
        "shoulder1": 60,
        "shoulder2": 0,
        "right_elbow": -20,
        "left_elbow": -50,
    }
    lotus: Angles = {
        "hip_x": -10,
        "hip_z": -47,
        "hip_y": -50,
        "knee": -158,
        "abdomen_y": -8,
    }
    splits: Angles = {
        "hip_x": -25,
        "hip_z": -60,
        "hip_y": -66,
        "knee": -4,
        "abdomen_y": -12,
    }
    apart: Angles = {"hip_x": -22}
    return {
        "kneeling": (Legs("", {"knee": -95}), Legs("", {"knee": -120, "hip_y": -25})),
        "lotus": (Legs("", lotus, -5), Legs("", {**lotus, "shoulder1": 20}, -5)),
        "standing_up": (Legs(""), Legs("", {"shoulder1": 30, "shoulder2": -60})),
        "arms_raised": (Legs("", raised), Legs("", raised | apart)),
        "splits": (Legs("", splits, -8), Legs("", splits | raised, -8)),
        "hands_on_hips": (Legs("", on_hips), Legs("", on_hips | apart)),
        "arms_crossed": (Legs("", crossed), Legs("", crossed | apart)),
        "one_leg": (
            Legs("", {"left_hip_y": -80, "left_knee": -100}, roll=5),
            Legs("", {"right_hip_y": -80, "right_knee": -100}, roll=-5),
        ),
    }


def _random_states(
    task: TaskConfig, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """States of episodes of uniformly random actions, from the standing start."""
    import gymnasium as gym

    envs = _envs_for(task, count)
    space = envs.action_space
    assert isinstance(space, gym.spaces.Box)
    low, high = space.low, space.high

    def act(observation: np.ndarray) -> np.ndarray:
        size = (len(observation), *low.shape)
        return rng.uniform(low, high, size).astype(np.float32)

    return _visited(envs, act, count, rng)


def _policy_states(
    policies: "Sequence[tuple[TaskConfig, Policy]]", count: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """States that policies visit, each from starts of its own, pooled."""
    rng = np.random.default_rng([seed, 1])
    sizes = [len(part) for part in np.array_split(np.arange(count), len(policies))]
    return _joined(
        [
            _visited(_envs_for(task, size), policy.act, size, rng)
            for (task, policy), size in zip(policies, sizes, strict=True)
        ]
    )


def _run_task(run: Path) -> TaskConfig:
    from vlmrm_exp.cli import load_run_config

    task = load_run_config(run).task
    if task.env != "humanoid":
        raise ConfigError(
            f"The run {run} is of {task.name}, which is no humanoid task: give runs of "
            "humanoid tasks."
        )
    return task


def _checkpoints(run: Path) -> list[Path]:
    """The files of a run's best and last policy, or of the one that there is."""
    files = [run / "checkpoints" / f"{name}.pt" for name in ("best", "last")]
    files = [file for file in files if file.is_file()]
    if not files:
        raise ConfigError(
            f"There is no checkpoint in {run / 'checkpoints'}: give folders of "
            "finished runs, as runs=[outputs/kneeling/NAME]."
        )
    return files


def _policies(run: Path) -> "list[Policy]":
    """A run's best and last policy; one where it ended at its best."""
    from vlmrm_exp.rl.policy import load_policy

    policies = [load_policy(file) for file in _checkpoints(run)]
    return list({policy.env_steps: policy for policy in policies}.values())


def _envs_for(task: TaskConfig, count: int) -> "VectorEnv":
    """As many environments as one episode of each needs for `count` states."""
    from vlmrm_exp.envs import make_envs

    assert task.episode_length is not None
    steps = min(STEPS_KEPT, task.episode_length)
    return make_envs(replace(task, goal=""), max(1, -(-count // steps)))


def _visited(
    envs: "VectorEnv", act: "Act", count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Some states of one episode of each environment, each at most once.

    Returns:
        Rows (count, S), and the number of each one's episode, (count,) int.
    """
    from vlmrm_exp.rl.rollout import collect

    rows = collect(envs, act, seed=int(rng.integers(2**31))).rows
    envs.close()
    assert rows is not None
    flat = rows.reshape(-1, rows.shape[-1])
    chosen = rng.choice(len(flat), count, replace=False)
    return flat[chosen], chosen % rows.shape[1]


def _joined(
    parts: Sequence[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and groups of all parts; groups of different parts stay different."""
    groups, first = [], 0
    for _, group in parts:
        groups.append(group + first)
        first += int(group.max(initial=-1)) + 1
    return np.concatenate([rows for rows, _ in parts]), np.concatenate(groups)
