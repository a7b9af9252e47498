"""The states that rewards are examined on, and the truth about them.

CartPole and MountainCar: a uniform grid, as in the paper (section 3). The humanoid: a
seeded mixture of poses, falls, random actions and, where runs are given, what their
policies visit. The paper pools the states of all checkpoints of one run, early ones
too; a run here keeps its best and its last policy, and the mixture stands in for the
early ones. States are rendered when they are needed.

States and labels that people bring are read in state_files.py.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmrm_exp.config import Config, ConfigError, TaskConfig
from vlmrm_exp.envs import world_of
from vlmrm_exp.measures import agreement, check_classes
from vlmrm_exp.run_folder import load_run_config
from vlmrm_exp.studies import cache

if TYPE_CHECKING:
    from vlmrm_exp.rl.policy import Policy

FEWEST = 100  # states


@dataclass(frozen=True)
class StateSet:
    """B states of one world, or the files of pictures."""

    world: str
    """The kind of environment, as TaskConfig.env, or the folder of pictures."""
    source: np.ndarray
    """(B,) str: where each comes from."""
    states: np.ndarray | None = None
    """(B, S) float64."""
    files: tuple[Path, ...] = ()
    group: np.ndarray | None = None
    """(B,) int, as `envs.Samples` has it; None: a grid."""

    def __len__(self) -> int:
        """B."""
        return len(self.source)

    def arrays(self) -> dict[str, Any]:
        """What is kept of states: their numbers, sources, and groups if there are."""
        group = {} if self.group is None else {"group": self.group}
        return {"states": self.states, "source": self.source, **group}

    def part(self, which: slice) -> "StateSet":
        """Some of them."""
        states = None if self.states is None else self.states[which]
        group = None if self.group is None else self.group[which]
        return StateSet(
            self.world, self.source[which], states, self.files[which], group
        )


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


@dataclass(frozen=True)
class Examined:
    """A task with the states it is examined on."""

    config: Config
    states: StateSet
    truth: Truth

    def agreement(self, reward: np.ndarray, resamples: int) -> dict[str, float]:
        """All measures of a reward (B,); with intervals if the states are a sample."""
        goal, graded, group = self.truth.goal, self.truth.graded, self.states.group
        resamples = 0 if group is None else resamples
        return agreement(reward, goal, graded, resamples, self.config.seed, group)

    def about(self) -> dict[str, Any]:
        """For the record."""
        sources, counts = np.unique(self.states.source, return_counts=True)
        goals = int(self.truth.goal.sum())
        group = self.states.group
        return {
            "prompt": self.config.prompts,
            "baseline": self.config.baselines,
            "textures": None if self.states.files else self.config.task.textures,
            "camera": None if self.states.files else self.config.task.camera,
            "world": self.states.world,
            "states": len(self.states),
            "independent_groups": None if group is None else len(np.unique(group)),
            "goal_states": goals,
            "goal_share": goals / len(self.states),
            "labelled_by": self.truth.labelled_by,
            "graded_by": self.truth.graded_by,
            "sources": dict(zip(sources.tolist(), counts.tolist(), strict=True)),
        }


def sample(
    task: TaskConfig,
    count: int,
    seed: int = 0,
    runs: Sequence[Path] = (),
    kept: Path | None = None,
) -> StateSet:
    """The states that rewards of a task are examined on.

    Args:
        task: tasks of one world share their states.
        count: how many; a grid may have a few less.
        seed: of the mixture.
        runs: folders of finished runs, whose checkpoints are played for half of them.
        kept: folder in which states are kept for the next time.

    Raises:
        ConfigError: as `check_sampling`, or a checkpoint is damaged.
    """
    check_sampling(task, count, runs)
    world = world_of(task)
    assert world.sample_states is not None
    checkpoints = [file for run in runs for file in _checkpoints(run)]
    sources: list[Any] = [*world.sources]
    if runs:  # here, as --help is immediate
        from vlmrm_exp import rl
        from vlmrm_exp.rl import policy, sac

        sources += [rl.__file__, policy.__file__, sac.__file__]
    key = cache.key_of(
        {
            "task": asdict(task) | {"name": None, "goal": None},
            "count": count,
            "seed": seed,
            "runs": [asdict(load_run_config(run).task) for run in runs],
            "libraries": cache.libraries(("gymnasium", "mujoco", "numpy")),
            "sources": cache.sources(sources),
        },
        *(file.read_bytes() for file in checkpoints),
    )
    path = None if kept is None else kept / f"{key}.npz"
    held = cache.load(path) if path else {}
    shape = held.get("source", np.empty(0)).size, world.state_size
    if "states" in held and held["states"].shape == shape:
        return StateSet(task.env, held["source"], held["states"], (), held.get("group"))
    # First of all, as a damaged checkpoint is to be refused before anything is played.
    policies = [
        (load_run_config(run).task, policy) for run in runs for policy in _policies(run)
    ]
    mixed = round(count / 2) if runs else count
    states, source, group = world.sample_states(task, mixed, seed)
    if runs:
        assert group is not None
        visited, episode = _policy_states(policies, count - mixed, seed)
        states = np.concatenate((states, visited))
        source = np.concatenate((source, np.full(len(visited), "policies")))
        group = np.concatenate((group, group.max() + 1 + episode))
    found = StateSet(task.env, source, states, (), group)
    if path:
        cache.store(path, **found.arrays())
    return found


def check_sampling(task: TaskConfig, count: int, runs: Sequence[Path] = ()) -> None:
    """Refuse, with a ConfigError, what `sample` could not do; reads no checkpoint."""
    world = world_of(task)
    if world.sample_states is None:
        raise ConfigError(
            f"task={task.name} is of a world that has no states for studies: give "
            "frames and labels, or state_set."
        )
    if count < FEWEST:
        raise ConfigError(f"states is {count}: give at least {FEWEST}.")
    if runs and world.grid:
        raise ConfigError(
            f"runs adds to samples, but {task.name} has a grid: leave runs out."
        )
    for run in runs:
        if (other := load_run_config(run).task).env != task.env:
            raise ConfigError(
                f"The run {run} is of {other.name}, which is of another world than "
                f"{task.name}: give runs of {task.env} tasks."
            )
        _checkpoints(run)


def truth_of(config: Config, states: StateSet) -> Truth:
    """Label states with the task's predicate.

    A ConfigError if it has none, or all states are of one class.
    """
    world = world_of(config.task)
    predicate = world.predicate(config.task)
    if states.states is None or predicate is None:
        raise ConfigError(
            f"task={config.task.name} has no predicate for its goal: give "
            "labels=FILE.csv."
        )
    order = world.graded_of(config.task)
    graded = None if order is None else order(states.states)
    goal = np.asarray(predicate(states.states))
    check_classes(goal, f"task={config.task.name}")
    return Truth(goal, PREDICATE, graded, world.graded_by or None)


def _policy_states(
    policies: "Sequence[tuple[TaskConfig, Policy]]", count: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """States that policies visit, each from starts of its own, and their episodes."""
    # Late, as MuJoCo's import fails without OpenGL, which `world_of` tells.
    from vlmrm_exp.envs import humanoid

    rng = np.random.default_rng([seed, 1])
    sizes = [len(part) for part in np.array_split(np.arange(count), len(policies))]
    states, episodes, first = [], [], 0
    for (task, played), size in zip(policies, sizes, strict=True):
        num_envs = humanoid.episodes_for(task, size)
        envs = world_of(task).make_envs(replace(task, goal=""), num_envs, 1)
        if played.observation_dim != envs.observation_space.shape[0]:
            raise ConfigError(
                f"A policy of task={task.name} acts on {played.observation_dim} "
                f"numbers, but its world shows {envs.observation_space.shape[0]}: give "
                "runs of another reward than stages."
            )
        seen, episode = humanoid.visited(envs, played.act, size, rng)
        states.append(seen)
        episodes.append(first + episode)
        first += int(episode.max(initial=-1)) + 1
    return np.concatenate(states), np.concatenate(episodes)


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
    from vlmrm_exp.rl.policy import load_policy  # here, as --help is immediate

    policies = [load_policy(file) for file in _checkpoints(run)]
    return list({policy.env_steps: policy for policy in policies}.values())
