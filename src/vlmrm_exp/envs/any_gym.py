"""Any Gymnasium id that draws `rgb_array` frames.

Its state cannot be set from outside, so frames stand in for states: each
environment draws itself, and the renderer hands the frames through. Gymnasium's time
limit is taken off; an environment that ends by itself is held as it ended (same
observation, same frame, reward 0) until the common reset.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from PIL import Image

from vlmrm_exp.config import ConfigError, ForeignError, TaskConfig
from vlmrm_exp.envs import Step, World
from vlmrm_exp.files import reason

# Classic control draws with pygame, which would look for a display.
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

NOT_INSTALLED = (gym.error.DependencyNotInstalled, ImportError)
MOST_NUMBERS = 10_000
"""In an observation: more are pictures, of which dense networks learn nothing."""
CALLS = {
    "reset": "reset(seed=...) to give (observation, info)",
    "step": "step(action) to give (observation, reward, terminated, truncated, info)",
    "render": "render() to give pictures (height, width, 3) of uint8, all of one size",
}
"""What is expected of each call."""


class GymEnvs:
    """N environments of one Gymnasium id; frames (N, H, W, 3) for states.

    The goal is what a step's info calls `is_success` or `success`; there is none as
    long as no step had either. Environments are other people's: what fails in a call,
    or is not what Gymnasium promises, is a ForeignError that says when.
    """

    def __init__(self, task: TaskConfig, num_envs: int) -> None:
        self._env_id = task.env_id
        self._frame_height = task.frame_height
        first = _make(task.env_id)
        self.num_envs = num_envs
        assert first.spec is not None
        length = task.episode_length or gym.spec(first.spec.id).max_episode_steps
        if length is None:
            raise ConfigError(
                f"{task.env_id} has no time limit of its own: give one in env steps, "
                "as task.episode_length=200."
            )
        self.episode_length = length
        self.observation_space = _observation_space(task.env_id, first)
        self.action_space = _action_space(task.env_id, first)
        self._gives_goal = False
        self._size: tuple[int, ...] | None = None  # of a frame as it was drawn
        # First see in one of them whether it draws itself and can be stepped.
        self._t, self._envs = 0, [first]
        with self._calling("reset"):
            first.reset(seed=0)
        self._render(0)
        first.action_space.seed(0)
        with self._calling("step"):
            _, reward, _, _, info = first.step(first.action_space.sample())
            float(reward)
            _goal(info)
        self._envs += [_make(task.env_id) for _ in range(num_envs - 1)]
        self.reset(seed=0)

    def reset(self, seed: int | None = None) -> np.ndarray:
        """Start new episodes; (N, O) float32. A seed restarts the random stream."""
        seeds: list[int | None] = [None] * self.num_envs
        if seed is not None:
            streams = np.random.SeedSequence(seed).spawn(self.num_envs)
            seeds = [int(stream.generate_state(1)[0]) for stream in streams]
        self._t = 0
        shape = self.num_envs, *self.observation_space.shape
        self._observation = np.zeros(shape, np.float32)
        self._goal = np.zeros(self.num_envs, bool)
        self._ended = np.zeros(self.num_envs, bool)
        self._frames: dict[int, np.ndarray] = {}
        for i, (env, own) in enumerate(zip(self._envs, seeds, strict=True)):
            with self._calling("reset"):
                observation, _ = env.reset(seed=own)
                self._observe(i, observation)
        return self._observation.copy()

    def step(self, action: np.ndarray) -> Step:
        """Advance those that have not ended: (N, A) float32, or (N,) int64."""
        reward = np.zeros(self.num_envs, np.float32)
        self._t += 1
        for i, env in enumerate(self._envs):
            if self._ended[i]:
                continue
            with self._calling("step"):
                result = env.step(self._gym_action(action[i]))
                observation, gained, terminated, truncated, info = result
                reward[i] = float(gained)
                if not np.isfinite(reward[i]):
                    raise ValueError(f"a reward of {gained}")
                self._observe(i, observation)
                goal = _goal(info)
                self._ended[i] = terminated or truncated
            self._gives_goal |= goal is not None
            self._goal[i] = goal or False
            self._frames.pop(i, None)
        goals = self._goal.copy() if self._gives_goal else None
        return Step(self._observation.copy(), reward, goals)

    def states(self) -> np.ndarray:
        """The present frames (N, H, W, 3) uint8."""
        for i in range(self.num_envs):
            if i not in self._frames:
                self._frames[i] = self._render(i)
        return np.stack([self._frames[i] for i in range(self.num_envs)])

    def _render(self, i: int) -> np.ndarray:
        """One environment's frame, no taller than the task's, as all are kept."""
        with self._calling("render"):
            frame = self._envs[i].render()
        if frame is None or isinstance(frame, str):
            raise _draws_nothing(self._env_id)
        with self._calling("render"):
            frame = np.array(frame)
            if frame.shape[2:] == (4,) and (frame[..., 3] == 255).all():
                frame = frame[..., :3]
            self._size = self._size or frame.shape
            if (frame.dtype, *frame.shape[2:]) != (np.uint8, 3):
                raise ValueError(f"an array {frame.shape} of {frame.dtype}")
            if frame.shape != self._size:
                raise ValueError(f"first {self._size}, now {frame.shape}")
            height, width = frame.shape[:2]
            if height <= self._frame_height:
                return frame
            size = round(width * self._frame_height / height), self._frame_height
            resized = Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)
            return np.asarray(resized)

    def _observe(self, i: int, observation: np.ndarray) -> None:
        if observation.shape != self.observation_space.shape:
            raise ValueError(
                f"an observation of shape {observation.shape}, though its space has "
                f"{self.observation_space.shape}"
            )
        self._observation[i] = observation
        if not np.isfinite(self._observation[i]).all():
            bad = observation[~np.isfinite(self._observation[i])][0]
            raise ValueError(f"an observation with {bad}")

    @contextlib.contextmanager
    def _calling(self, call: str) -> Iterator[None]:
        """Say of what fails in here which environment it was, where, and why."""
        try:
            yield
        except (Exception, SystemExit) as error:
            if isinstance(error, NOT_INSTALLED):
                raise _refusal(self._env_id, error) from error
            raise ForeignError(
                f"{self._env_id} failed in {call}, at step {self._t} of an episode "
                f"({reason(error, named=True)}): expected {CALLS[call]}."
            ) from error

    def episode_success(self, goal: np.ndarray) -> np.ndarray:
        """At any time: (T, N) bool -> (N,) bool."""
        return np.asarray(goal.any(axis=0))

    def state_dict(self) -> dict[str, Any]:
        """Their random generators: Gymnasium has no way to save the simulators.

        That is enough between two episodes, if an environment has no other memory.
        """
        bits = [
            getattr(env.unwrapped.np_random, "bit_generator", None)
            for env in self._envs
        ]
        states = [bit and bit.state for bit in bits]  # None: of an old kind
        return {"generators": states, "gives_goal": self._gives_goal}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`, from a fresh episode."""
        print(
            f"{self._env_id}'s simulators cannot be saved: going on with new episodes."
        )
        for env, saved in zip(self._envs, state["generators"], strict=True):
            if saved is not None:
                env.unwrapped.np_random.bit_generator.state = saved
        self._gives_goal = state["gives_goal"]

    def close(self) -> None:
        """Close every environment."""
        for env in self._envs:
            env.close()

    def _gym_action(self, action: np.ndarray) -> Any:
        space = self._envs[0].action_space
        if isinstance(space, gym.spaces.Discrete):
            return int(space.start + action)
        return np.asarray(action, space.dtype)


class FrameRenderer:
    """Hands frames through: the environments have drawn them already."""

    drawn_by = f"gymnasium {gym.__version__}, each environment itself"

    def render(self, states: np.ndarray) -> np.ndarray:
        """Frames (B, H, W, 3) uint8, as they came."""
        return states

    def close(self) -> None:
        """Nothing is held."""


def _make(env_id: str) -> gym.Env:
    """Make one environment without a time limit, its observations flat."""
    try:
        with warnings.catch_warnings():
            # Said below, as an error.
            warnings.filterwarnings("ignore", ".*render_mode='rgb_array'")
            options = {"render_mode": "rgb_array", "disable_env_checker": True}
            env = gym.make(env_id, max_episode_steps=-1, **options)  # no TimeLimit
    except (Exception, SystemExit) as error:
        raise _refusal(env_id, error) from error
    if "rgb_array" not in env.metadata.get("render_modes", []):
        env.close()
        raise _draws_nothing(env_id)
    if not env.observation_space.is_np_flattenable:
        env.close()
        raise ConfigError(
            f"{env_id}'s observations ({type(env.observation_space).__name__}) have no "
            "fixed number of values: choose an environment whose observations have."
        )
    return gym.wrappers.FlattenObservation(env)


def _float32(space: gym.Space) -> gym.spaces.Box:
    assert isinstance(space, gym.spaces.Box)
    with np.errstate(over="ignore"):  # float64's greatest number becomes infinity
        low, high = space.low.astype(np.float32), space.high.astype(np.float32)
    return gym.spaces.Box(low, high, dtype=np.float32)


def _observation_space(env_id: str, env: gym.Env) -> gym.spaces.Box:
    space = _float32(env.observation_space)
    if space.shape[0] > MOST_NUMBERS:
        raise ConfigError(
            f"{env_id}'s observations have {space.shape[0]:,} numbers "
            f"({env.unwrapped.observation_space}), of which the agents' dense networks "
            f"learn nothing (at most {MOST_NUMBERS:,}): choose an environment whose "
            "observations are no pictures."
        )
    return space


def _action_space(env_id: str, env: gym.Env) -> gym.spaces.Box | gym.spaces.Discrete:
    match env.action_space:
        case gym.spaces.Discrete(n=n):
            return gym.spaces.Discrete(n)
        case gym.spaces.Box(shape=[_], dtype=dtype) as box if (
            np.issubdtype(dtype, np.floating) and box.is_bounded()
        ):
            return _float32(box)
    raise ConfigError(
        f"{env_id}'s actions are {env.action_space}, but must be Discrete or a bounded "
        "one-dimensional Box of floats: choose another environment."
    )


def _goal(info: Mapping[str, Any]) -> bool | None:
    keys = ("is_success", "success")
    return next((bool(info[key]) for key in keys if key in info), None)


def _refusal(env_id: str, error: BaseException) -> ConfigError | ForeignError:
    """What is said of an environment that cannot be made."""
    if "unexpected keyword argument 'render_mode'" in str(error):
        return _draws_nothing(env_id)
    why = reason(error, named=not isinstance(error, gym.error.Error))
    if isinstance(error, NOT_INSTALLED):
        return ConfigError(
            f"{env_id} needs a package that is not installed ({reason(error)}): "
            "install it, or choose another task.env_id."
        )
    if isinstance(error, gym.error.Error):
        return ConfigError(
            f"{env_id} cannot be made ({why}): choose another task.env_id; "
            "`gymnasium.pprint_registry()` lists those there are."
        )
    return ForeignError(
        f"{env_id} failed when it was made ({why}): where it needs arguments, register "
        "an id that holds them (gymnasium.register, kwargs)."
    )


def _draws_nothing(env_id: str) -> ConfigError:
    return ConfigError(
        f"{env_id} cannot draw itself as rgb_array, which the reward needs: choose "
        "another task.env_id."
    )


WORLD = World(
    make_envs=lambda task, num_envs, threads: GymEnvs(task, num_envs),
    make_renderer=lambda task, frame_height, effects: FrameRenderer(),
    algorithms=("sac", "dqn"),
    state_size=None,
    reads=("env_id",),
)
