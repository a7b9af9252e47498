"""What states are worth: the protocol that every reward model follows.

    states of whole episodes -> [RewardModel] -> rewards

A reward model is chosen by name (`reward=clip`) or by `module:Class`; where it runs is
`workers.py`'s business. Letters: T steps, N episodes, S numbers in a state.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from vlmrm_exp.config import Config, ConfigError
from vlmrm_exp.envs import VectorEnv, load, world_of
from vlmrm_exp.files import plain
from vlmrm_exp.foreign import blaming

if TYPE_CHECKING:
    import torch

BUILT_IN = {
    "clip": "vlmrm_exp.reward.clip:ClipReward",
    "predicate": "vlmrm_exp.reward.ground_truth:PredicateReward",
    "environment": "vlmrm_exp.reward.ground_truth:EnvironmentReward",
    "video": "vlmrm_exp.reward.over_time:VideoReward",
    "xclip": "vlmrm_exp.reward.xclip:XClipReward",
    "by_hand": "vlmrm_exp.reward.by_hand:HandWrittenReward",
    "stages": "vlmrm_exp.reward.stages:StagesReward",
    "ensemble": "vlmrm_exp.reward.ensemble:EnsembleReward",
}
OF_CLASS = ("window", "needs_states", "cheap", "online", "remembers")
"""What is read of a reward model's class as well as of an instance."""


@dataclass(kw_only=True)
class Episodes:
    """N whole episodes of T steps."""

    states: np.ndarray | None
    """(T, N, S) float64, or frames (T, N, H, W, 3) uint8: the state after each step, so
    that states[T - 1] still belongs to the episode that ends. None: not kept."""
    env_reward: np.ndarray | None = None
    """(T, N) float32: the environment's own reward; None: nothing was simulated, or
    states are old ones of replay, shown in `update` or to be rewarded again."""
    online: np.ndarray | None = None
    """(T, N) float32: rewards that came with the steps (`RewardModel.around`)."""

    @property
    def shape(self) -> tuple[int, int]:
        """T and N."""
        given = self.env_reward if self.states is None else self.states
        assert given is not None
        return given.shape[0], given.shape[1]

    @property
    def flat(self) -> np.ndarray:
        """All states under each other: (T * N, S), or frames."""
        assert self.states is not None
        return self.states.reshape(-1, *self.states.shape[2:])

    def column(self) -> "Episodes":
        """All steps of all episodes under each other: (T * N, 1)."""
        return self._each(lambda x: x.reshape(-1, 1, *x.shape[2:]))

    def thinned(self, steps: np.ndarray) -> "Episodes":
        """Some of the steps."""
        return self._each(lambda x: x[steps])

    def split(self, ends: np.ndarray, axis: int) -> "list[Episodes]":
        """Parts that end before each of `ends`, and the rest."""
        return [
            self._each(lambda x, k=k: np.split(x, ends, axis)[k])
            for k in range(len(ends) + 1)
        ]

    def _each(self, change: Callable[[np.ndarray], np.ndarray]) -> "Episodes":
        given = {each.name: getattr(self, each.name) for each in fields(Episodes)}
        return Episodes(
            **{k: None if v is None else change(v) for k, v in given.items()}
        )


class Memory(Protocol):
    """What learning rewards needs of the replay buffer."""

    def newest(self) -> tuple[np.ndarray, np.ndarray]:
        """The newest rollout: states (T, N, S), rewards (T, N) that came, or NaN."""
        ...

    def draw_rewarded(
        self, count: int, rng: np.random.Generator
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        """Stored states whose reward came, with replacement: (B, S), (B,)."""
        ...

    def relabel(
        self, reward: Callable[[np.ndarray, np.ndarray], np.ndarray], newest: bool
    ) -> float:
        """Replace rewards of all rollouts, or of the newest alone.

        `reward` takes what `newest` gives. Returns the standard deviation of all
        rewards that are stored now.
        """
        ...

    @property
    def size(self) -> int:
        """How many states are stored."""
        ...

    def episodes(self) -> Episodes:
        """All that is stored."""
        ...

    def set_rewards(self, reward: np.ndarray) -> None:
        """Replace the rewards of all that is stored: (T, N)."""


class RewardModel(Protocol):
    """Gives rewards to episodes. Subclass it to inherit what most models share.

    It is made by `Model(config)`, in the process that will use it: by each worker, and,
    if it learns, by the training process too, which alone calls `update`. `window`,
    `needs_states`, `cheap`, `online` and `remembers` are set in the class, not in
    `__init__`: they are read before it is made.
    """

    window: int = 1
    """States in a row, in time, that one reward depends on; 1: each state by itself, so
    that any set of states can be rewarded. Others are given whole episodes."""
    batch_size: int = 64
    """States that it computes at once, if `window` is 1: a worker's share is a multiple
    of it, but for the last. The model itself splits a share that is larger."""
    needs_states: bool = True
    """Whether it looks at states at all."""
    cheap: bool = False
    """Whether its rewards cost next to nothing, so that no process should wait."""
    sees_pictures: bool = False
    """Whether it shows rendered states and the sentences to the model that `clip`
    names. If it does not, a run tells who sets `clip`, `baseline` or `alpha` that this
    changes nothing."""
    has_options: bool = False
    """Whether a built-in one reads `reward.options`; one's own may always."""
    online: bool = False
    """Whether it is asked while episodes are played, by what `around` gives; then it is
    `cheap` afterwards, and must say so."""
    remembers: bool = False
    """Whether it learns, and wants all states in replay again in `update`; then it
    `needs_states`."""
    version: int = 0
    """Grows with each change of what it would answer; workers then get `state_dict`."""

    @classmethod
    def check_config(cls, config: Config) -> None:
        """Refuse, with a ConfigError, what cannot be; before anything is loaded.

        Who inherits from a built-in one and reads other options replaces this.
        """

    def __init__(self, config: Config) -> None:
        """Load, in the process that will use it; may raise ConfigError."""

    def rewards(self, episodes: Episodes) -> np.ndarray:
        """Rewards of each step: (T, N) float32."""
        ...

    def update(self, episodes: Episodes) -> dict[str, float]:
        """Learn from the states in replay, after each rollout.

        Their `env_reward` is None. Returns metrics, whose names begin with `reward/`.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What learning changes: tensors, arrays and primitives."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""

    def around(self, envs: VectorEnv) -> VectorEnv:
        """What an agent acts in: for a model that is `online`, with what it tells."""
        return envs

    def about(self) -> dict[str, Any]:
        """What the rewards depend on, in JSON's types, for the run's record."""
        return {}

    def close(self) -> None:
        """Release what is open."""


def reward_class(config: Config) -> type[RewardModel]:
    """The class that `reward.model` names.

    Raises:
        ConfigError: there is none, or it says of itself what cannot be.
    """
    name, own = config.reward.model, "module:Class of a RewardModel"
    found = load(name, "reward.model", BUILT_IN, own)
    if RewardModel not in getattr(found, "__mro__", ()):
        raise ConfigError(
            f"reward.model is {name!r}, which is no subclass of "
            "vlmrm_exp.reward.RewardModel: give one."
        )
    for fact in OF_CLASS:
        said, usual = getattr(found, fact), getattr(RewardModel, fact)
        if type(said) is not type(usual):
            raise ConfigError(
                f"reward.model is {name!r}, whose {fact} is of type "
                f"{type(said).__name__}, not {type(usual).__name__}: set it in the "
                f"class, as {fact} = {usual}."
            )
    return found


def checked_class(config: Config) -> type[RewardModel]:
    """The class that `reward.model` names, if it can be made so.

    Raises:
        ConfigError: as `reward_class` and `RewardModel.check_config`.
        ForeignError: one's own failed otherwise.
    """
    kind = reward_class(config)
    with blaming(kind, "in check_config"):
        kind.check_config(config)
    return kind


def class_of_run(config: Config) -> type[RewardModel]:
    """As `checked_class`, of what training learns from: `query_share` is read too.

    Raises:
        ConfigError: besides, rewards are to be estimated and cannot or are not, or it
            lacks what one that is `online` or `remembers` must have.
    """
    kind = checked_class(config)
    for fact, needed in (("online", "cheap"), ("remembers", "needs_states")):
        if getattr(kind, fact) and not getattr(kind, needed):
            raise ConfigError(
                f"reward.model is {config.reward.model!r}, which says {fact}=True and "
                f"{needed}=False: set {needed} = True in the class."
            )
    share, why = config.reward.query_share, ""
    if kind.window > 1:
        why = f"reward={config.reward.name} looks at several states in a row"
    elif kind.remembers:
        why = f"reward={config.reward.name} learns itself"
    elif not kind.needs_states:
        why = f"reward={config.reward.name} looks at no states"
    elif world_of(config.task).state_size is None:
        why = f"task={config.task.name} renders itself, and gives frames for states"
    if share < 1 and why and not kind.cheap:
        raise ConfigError(
            f"reward.query_share is {share}, but {why}: give reward.query_share=1."
        )
    if config.reward.pessimism > 0 and share == 1:
        raise ConfigError(
            f"reward.pessimism is {config.reward.pessimism}, but no reward is "
            "estimated: give reward=learned, or leave it out."
        )
    return kind


def make_model(config: Config) -> RewardModel:
    """The configured reward model, made in this process.

    Raises:
        ConfigError: as `checked_class` and its constructor; or that changes what is
            read of the class.
        ForeignError: one's own failed otherwise.
    """
    kind = checked_class(config)
    with blaming(kind, "when it was made"):
        model = kind(config)
    for fact in OF_CLASS:
        said, first = getattr(model, fact), getattr(kind, fact)
        if said != first:
            raise ConfigError(
                f"reward.model is {config.reward.model!r}, which says {fact}={said!r} "
                f"in its instance and {fact}={first} in its class: set it in the class."
            )
    return model


def rewards_of(model: RewardModel, episodes: Episodes) -> np.ndarray:
    """Ask a reward model: (T, N) float32 of our own, of which it keeps nothing.

    Raises:
        ForeignError: one's own failed, or gave something else.
    """
    with blaming(model, "in rewards"):
        given = model.rewards(episodes)
        if not isinstance(given, np.ndarray) or given.dtype.kind not in "fiu":
            kind = getattr(given, "dtype", None) or type(given).__name__
            raise TypeError(f"it gave {kind}, not an array of real numbers")
        if given.shape != episodes.shape:
            raise ValueError(
                f"it gave rewards of shape {given.shape} for {episodes.shape[0]} steps "
                f"of {episodes.shape[1]} episodes"
            )
        if isinstance(given, np.ma.MaskedArray):
            raise TypeError("it gave a masked array")
        with np.errstate(over="ignore"):  # told as not finite
            return np.array(given, np.float32)


def facts_of(model: RewardModel) -> dict[str, Any]:
    """What a reward model says of itself, which must fit into JSON."""
    with blaming(model, "in about"):
        about = model.about()
        json.dumps(plain(about))
        return about
