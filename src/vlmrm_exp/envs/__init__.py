"""Worlds: how a state moves, looks and is judged.

    action -> [simulate] -> state -> [render] -> frame

Each world is described once, by a `World` in its own module. Letters: N environments, T
steps, B states, S numbers in a state, O in an observation.
"""

import contextlib
import functools
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np

from vlmrm_exp.checks import check_effect, did_you_mean, no_effect, one_of
from vlmrm_exp.config import Config, ConfigError, ForeignError, TaskConfig
from vlmrm_exp.files import reason
from vlmrm_exp.foreign import blaming

# MuJoCo reads this when it is imported, later. Its own first choice needs a screen.
os.environ["MUJOCO_GL"] = os.environ.get("MUJOCO_GL") or "egl"
# PyOpenGL tells of a missing optional accelerator at every start.
logging.getLogger("OpenGL").setLevel(logging.WARNING)

BUILT_IN = {
    "cartpole": "vlmrm_exp.envs.cartpole:WORLD",
    "mountain_car": "vlmrm_exp.envs.mountain_car:WORLD",
    "humanoid": "vlmrm_exp.envs.humanoid:WORLD",
    "gym": "vlmrm_exp.envs.any_gym:WORLD",
}


class Step(NamedTuple):
    """What one step of all environments gives."""

    observation: np.ndarray
    """(N, O) float32."""
    env_reward: np.ndarray
    """(N,) float32: the environment's own reward."""
    goal: np.ndarray | None
    """(N,) bool: whether the state meets the task's goal; None: no predicate."""
    online: np.ndarray | None = None
    """(N,) float32: the reward, of a model that is asked while episodes are played."""
    passed: Mapping[str, np.ndarray] = MappingProxyType({})
    """Which parts of a task are done, where it has some: (N, K) bool, of each "goal" by
    predicates and of each "stage" by the reward."""


class VectorEnv(Protocol):
    """N environments with episodes of one fixed length, reset together.

    Nothing terminates: an early end would tell the agent about the task (paper C.1).
    After `episode_length` steps the caller resets; that is a truncation.
    """

    num_envs: int
    episode_length: int

    @property
    def observation_space(self) -> gym.spaces.Box:
        """Of one environment: (O,) float32."""
        ...

    @property
    def action_space(self) -> gym.spaces.Box | gym.spaces.Discrete:
        """Of one environment."""
        ...

    def reset(self, seed: int | None = None) -> np.ndarray:
        """Start new episodes; (N, O) float32. A seed restarts the random stream."""
        ...

    def step(self, action: np.ndarray) -> Step:
        """Advance all environments: action (N, A) float32, or (N,) int64."""
        ...

    def states(self) -> np.ndarray:
        """The present states: (N, S) float64, or frames (N, H, W, 3) uint8."""
        ...

    def episode_success(self, goal: np.ndarray) -> np.ndarray:
        """Judge whole episodes: goal flags (T, N) bool -> (N,) bool.

        Here N is any number of episodes: an evaluation asks about all of its own.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on from here, random generators included."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""

    def close(self) -> None:
        """Release simulators."""


class Renderer(Protocol):
    """Renders states, wherever they came from."""

    drawn_by: str
    """The drawing library and, for MuJoCo, the OpenGL renderer; goes on record."""

    def render(self, states: np.ndarray) -> np.ndarray:
        """States (B, S) float64 -> frames (B, H, W, 3) uint8.

        Several views of a state (`TaskConfig.views`) are side by side in its frame. On
        a GPU a humanoid's frame differs with its place in the batch, by rounding.
        """
        ...

    def close(self) -> None:
        """Release the drawing context."""


def frames_of(renderer: Renderer, states: np.ndarray) -> np.ndarray:
    """Ask a renderer: states (B, S) -> frames (B, H, W, 3) uint8.

    Raises:
        ForeignError: one's own failed, or gave something else.
    """
    with blaming(renderer, "in render"):
        frames = renderer.render(states)
        if not isinstance(frames, np.ndarray) or (
            frames.dtype, frames.ndim, len(frames), frames.shape[3:],
        ) != (np.uint8, 4, len(states), (3,)):  # fmt: skip
            shape = getattr(frames, "shape", type(frames).__name__)
            dtype = getattr(frames, "dtype", "no array")
            raise TypeError(
                f"it gave {shape} of {dtype}, not ({len(states)}, H, W, 3) of uint8"
            )
    return frames


Predicate = Callable[[np.ndarray], np.ndarray]
"""States (B, S) -> whether each meets the goal, (B,) bool."""


class Samples(NamedTuple):
    """States to examine a reward on."""

    states: np.ndarray
    """(B, S) float64."""
    source: np.ndarray
    """(B,) str: where each comes from."""
    group: np.ndarray | None
    """(B,) int: states of one episode have one number, as they are not independent;
    every other state has its own. None: a grid, which is no sample of anything."""


@dataclass(frozen=True)
class World:
    """All that the rest of the program knows of a world.

    A new world is a module with one of these, and a file in `conf/task` that names it:
    `env: module:NAME`.
    """

    make_envs: Callable[[TaskConfig, int, int], VectorEnv]
    """Simulators of a task: task, how many, threads that physics may use. Opens no
    drawing context. May raise ConfigError."""
    make_renderer: Callable[[TaskConfig, int, bool], Renderer]
    """What renders a task's states, in the process that will render: task, height of
    a frame in px (its width follows), whether with shadows and reflections."""
    algorithms: tuple[str, ...]
    """Those that can choose such actions."""
    state_size: int | None
    """S; None: states cannot be set from outside, and frames stand in for them."""
    textures: tuple[str, ...] = ("plain",)
    cameras: tuple[str, ...] = ("fixed",)
    reads: tuple[str, ...] = ()
    """Fields of `TaskConfig` that this world reads, of those that not all worlds do."""
    goals: tuple[str, ...] = ()
    """Names of predicates, chosen by `task.goal` and `task.before`."""
    predicate: Callable[[TaskConfig], Predicate | None] = lambda task: None
    """Whether states meet the task's goal; None: this task has no predicate."""
    graded: Callable[[np.ndarray], np.ndarray] | None = None
    """States (B, S) -> what a good reward orders them by, (B,), where it is known: of
    the first of `goals`, if there are several. See `graded_of`."""
    graded_by: str = ""
    sample_states: Callable[[TaskConfig, int, int], Samples] | None = None
    """States for studies: task, how many (a grid may have a few less), seed."""
    grid: bool = False
    """Whether `sample_states` gives a uniform grid."""
    renders_with: Callable[[], str] = lambda: "unknown"
    """The drawing library, and the driver behind it; goes into caches' keys."""
    sources: tuple[str, ...] = ()
    """Python files that decide the picture; go into caches' keys, as does the module of
    a world of one's own."""

    def graded_of(self, task: TaskConfig) -> Callable[[np.ndarray], np.ndarray] | None:
        """`graded`, if it is of this task's goal."""
        return self.graded if task.goal in ("", *self.goals[:1]) else None


def world_of(task: TaskConfig) -> World:
    """The description of a task's world; a ConfigError if there is no such world."""
    world = load(task.env, "task.env", BUILT_IN, "module:NAME of a World")
    if not isinstance(world, World):
        raise ConfigError(
            f"task.env is {task.env!r}, which is no vlmrm_exp.envs.World: give one."
        )
    module, own, _ = task.env.partition(":")
    if not own:
        return world
    file = getattr(sys.modules[module], "__file__", None)
    sources = (*world.sources, file) if file else world.sources  # a notebook has none
    calls: dict[str, Any] = {
        field.name: _named(task.env, field.name, getattr(world, field.name))
        for field in fields(World)
        if callable(getattr(world, field.name))
    }
    calls["predicate"] = _named(
        task.env, "predicate", _checked(world.predicate, task.env)
    )
    return replace(world, sources=sources, **calls)


def _named(world: str, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a world of one's own, which is named where it fails."""

    @functools.wraps(call)
    def called(*given: Any, **more: Any) -> Any:
        with blaming(world, f"in {name}"):
            return call(*given, **more)

    return called


def _checked(predicate: Callable[..., Any], world: str) -> Callable[..., Any]:
    """`World.predicate` of one's own, whose predicates are held to what they say."""

    def made(task: TaskConfig) -> Predicate | None:
        found = predicate(task)

        def judged(states: np.ndarray) -> np.ndarray:
            met = found(states)
            shape = getattr(met, "shape", type(met).__name__)
            if shape != (len(states),):
                raise TypeError(f"it gave {shape} for {len(states)} states")
            return met

        return None if found is None else _named(world, "its predicate", judged)

    return made


def load(path: str, setting: str, built_in: Mapping[str, str], own_one: str) -> Any:
    """What a name of `built_in` or a `module:NAME` of one's own names.

    Raises:
        ConfigError: there is no such module or name.
        ForeignError: the module fails when it is imported.
    """
    if ":" not in path and path not in built_in:
        raise ConfigError(
            f"{setting} is {path!r}, but must be one of {', '.join(built_in)}, or "
            f"{own_one} of your own.{did_you_mean(path, built_in)}"
        )
    path = built_in.get(path, path)
    module, _, name = path.partition(":")
    own = f"give {setting}=module:NAME, with the module's folder in PYTHONPATH"
    if not module or not name:
        raise ConfigError(f"{setting} is {path!r}, which is no module:NAME: {own}.")
    try:
        with opengl() if module.startswith("vlmrm_exp.") else contextlib.nullcontext():
            found = importlib.import_module(module)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # a module of one's own may raise anything
        absent = isinstance(error, ModuleNotFoundError) and error.name
        if absent and f"{module}.".startswith(f"{absent}."):
            raise ConfigError(
                f"{setting} is {path!r}, but there is no module {absent}: {own}."
            ) from error
        where = ""
        for frame in traceback.extract_tb(error.__traceback__):
            if "importlib" not in frame.filename:
                where = f" at {frame.filename}:{frame.lineno}"
        raise ForeignError(
            f"{setting} is {path!r}, whose module failed when it was imported "
            f"({reason(error, named=True)}){where}."
        ) from error
    if not hasattr(found, name):
        raise ConfigError(
            f"{setting} is {path!r}, but {module} has no {name}: {own}."
            f"{did_you_mean(name, vars(found))}"
        )
    return getattr(found, name)


@contextlib.contextmanager
def opengl() -> Iterator[None]:
    """Say in one sentence which OpenGL does not work, if what MuJoCo draws with fails.

    Raises:
        ConfigError: with the environment variables that chose it.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # libraries raise nearly anything where one is missing
        chosen = os.environ["MUJOCO_GL"]
        others = {
            name: value
            for name in ("PYOPENGL_PLATFORM", "MUJOCO_EGL_DEVICE_ID")
            if (value := os.environ.get(name, chosen)) != chosen
        }
        told = "".join(f" {name}={value}" for name, value in others.items())
        unset = f"; unset {' and '.join(others)}" if others else ""
        raise ConfigError(
            f"The humanoid cannot be rendered with MUJOCO_GL={chosen}{told} "
            f"({reason(error)}): install that OpenGL library (make setup), or set "
            f"MUJOCO_GL to another of egl, osmesa, glfw{unset}."
        ) from error


def check_world(config: Config) -> None:
    """Refuse, with a ConfigError, what the task's world or algorithm does not read."""
    task, algorithm = config.task, config.algo.name
    world = world_of(task)
    if algorithm not in world.algorithms:
        raise ConfigError(
            f"task={task.name} has actions that algo={algorithm} cannot choose from: "
            f"use algo={' or '.join(world.algorithms)}."
        )
    one_of("task.textures", task.textures, world.textures, f" for {task.env}")
    cameras = world.cameras
    if len(task.views) == 1 or len(cameras) == 1:
        several = ", or several as fixed+side," if len(cameras) > 1 else ""
        one_of("task.camera", task.camera, cameras, f"{several} for {task.env}")
    elif unknown := set(task.views) - set(cameras):
        raise ConfigError(
            f"task.camera is {task.camera!r}, but {min(unknown)!r} is none of "
            f"{', '.join(cameras)}: join those with +, as fixed+side."
        )
    if task.goal and not world.goals:
        raise ConfigError(
            f"task.goal is {task.goal!r}, but {task.env} has no such predicate: leave "
            "it out."
        )
    if task.goal:
        one_of("task.goal", task.goal, world.goals)
    for goal in task.before:
        if not world.goals or world.predicate(task) is None:
            raise ConfigError(
                f"task.before is {list(task.before)}, but task={task.name} has no "
                "predicates to tell them by, or no task.goal after them: leave it out."
            )
        one_of("task.before", goal, world.goals, f" for {task.env}")
    check_effect(config.algo)
    for name in ("env_id", "version", "observation", "frame_skip"):
        value = getattr(task, name)
        if name not in world.reads and value != getattr(TaskConfig(), name):
            raise no_effect(f"task.{name}", value, f"task={task.name}")


def check_algo(action_space: gym.Space, algo_name: str, env: str) -> None:
    """Refuse, with a ConfigError, an algorithm that cannot choose such actions.

    `env` names whose actions these are.
    """
    kind, other, needed = "continuous", "discrete", "sac"
    match action_space:
        case gym.spaces.Discrete(start=0):
            kind, other, needed = other, kind, "dqn"
        case gym.spaces.Box(shape=(_,)) if (
            action_space.is_bounded() and (action_space.low < action_space.high).all()
        ):
            pass
        case _:
            raise ConfigError(
                f"{env}'s actions are {action_space}, but must be Discrete(n), or a "
                "Box of one axis whose bounds are finite and not equal."
            )
    if algo_name != needed:
        raise ConfigError(
            f"{algo_name.upper()} needs {other} actions, but {env}'s are {kind}: "
            f"use algo={needed}."
        )
