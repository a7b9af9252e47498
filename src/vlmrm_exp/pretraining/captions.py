"""Captions for states of the three worlds, as people speak: vaguely.

What can be said of a state are facts of one or two kinds (pose of the legs, pose of the
arms; tilt of the pole, place of the cart). Each fact is as probable as it is near the
state, falling off smoothly, and a caption mentions one fact of each kind or leaves the
kind out. Then the optimum of contrastive training, the log-probability ratio of phrase
and state, is a smooth function of the state, and so is the reward (hard boundaries gave
a flat one).

The words are in phrases.yaml. Its sentences under `held_out` are never drawn: the
finished model is examined with them.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml
from scipy.special import softmax

from vlmrm_exp.envs.poses import ARM_NAMES, LEG_NAMES, PoseLibrary

PHRASES = yaml.safe_load(Path(__file__).with_name("phrases.yaml").read_text("utf-8"))
HELD_OUT: dict[str, list[str]] = PHRASES["held_out"]  # by task
BASELINES: dict[str, str] = PHRASES["baselines"]  # by world
_FORBIDDEN = {*BASELINES.values(), *(s for said in HELD_OUT.values() for s in said)}

NO_POSE = "none"
LEG_FACTS, ARM_FACTS = (*LEG_NAMES, NO_POSE), (*ARM_NAMES, NO_POSE)
"""What can be said of legs and arms: a pose of the library, or that it is none."""
_LEGS = [PHRASES["legs"][name] for name in LEG_FACTS]
_ARMS = [PHRASES["arms"][name] for name in ARM_FACTS]
_GROUPS = {
    said: [LEG_FACTS.index(name) for name in names]
    for said, names in PHRASES["groups"].items()
}
_GROUPS_OF = [
    [said for said, members in _GROUPS.items() if legs in members]
    for legs in range(len(LEG_FACTS))
]


class _Place(NamedTuple):
    """What is said near a value of one coordinate."""

    centre: float
    width: float
    phrases: Sequence[str]


def _both_sides(name: str) -> list[_Place]:
    """The places of that name, on the right and on the left."""
    return [
        _Place(sign * centre, width, [p.format(side=side) for p in phrases])
        for centre, width, phrases in PHRASES[name]
        for sign, side in ((1, "right"), (-1, "left"))[: 1 if centre == 0 else 2]
    ]


POLE, CART = _both_sides("pole"), _both_sides("cart")
CAR = [_Place(*place) for place in PHRASES["car"]]
"""Where the pole, the cart and the car can be said to be."""

Facts = tuple[np.ndarray, ...]
"""Probabilities of each kind's facts in each state: (B, K) per kind, rows sum to 1."""


class Caption(NamedTuple):
    """A sentence, and of each kind of fact what it may stand for.

    That is fact -> how probable these words are where that fact is told, up to a factor
    common to all its facts. None: it says nothing of this kind.
    """

    text: str
    stands_for: tuple[Mapping[int, float] | None, ...]


def humanoid_facts(states: np.ndarray) -> Facts:
    """Probabilities of LEG_FACTS (B, L) and of ARM_FACTS (B, A) in states (B, 47)."""
    library = PoseLibrary()
    parts = np.array_split(states, 1 + len(states) // 10_000)  # 50 MB each
    legs, arms = (
        np.concatenate([distances(part) for part in parts])
        for distances in (library.leg_distances, library.arm_distances)
    )
    return pose_facts(legs, arms)


def pose_facts(legs: np.ndarray, arms: np.ndarray) -> Facts:
    """The same from squared distances to LEG_NAMES and to ARM_NAMES."""
    # Half of the squared unit: arms are told apart more finely than legs.
    return _poses(legs), _poses(2 * arms)


def cartpole_facts(states: np.ndarray) -> Facts:
    """Facts of states (B, 4): the pole's tilt, the cart's place."""
    angle = np.rad2deg((states[:, 2] + np.pi) % (2 * np.pi) - np.pi)
    return _places(angle, POLE), _places(states[:, 0], CART)


def mountain_car_facts(states: np.ndarray) -> Facts:
    """Facts of states (B, 2): the car's place."""
    return (_places(states[:, 0], CAR),)


def humanoid_caption(legs: int, arms: int, rng: np.random.Generator) -> Caption:
    """Say something of a body with this leg pose and this arm pose."""
    who = _pick(rng, PHRASES["robot"])
    level = rng.random()
    if level < 0.05:
        return Caption(who, (None, None))
    arm_phrase, arm_facts = _pick(rng, _ARMS[arms]), {arms: 1.0}
    if level < 0.12 and _GROUPS_OF[legs]:
        group = _pick(rng, _GROUPS_OF[legs])
        # A pose of two groups is told of by each half as often.
        members = {leg: 1 / len(_GROUPS_OF[leg]) for leg in _GROUPS[group]}
        return Caption(f"{who} {group}", (members, None))
    leg_phrase = _pick(rng, _LEGS[legs])
    leg_facts = _tellers(leg_phrase, _LEGS)
    if level < 0.45:
        return Caption(f"{who} {leg_phrase}", (leg_facts, None))
    if level < 0.58:
        return Caption(f"{who} {arm_phrase}", (None, arm_facts))
    comma = "," if rng.random() < 0.5 else ""
    return Caption(f"{who} {leg_phrase}{comma} {arm_phrase}", (leg_facts, arm_facts))


def cartpole_caption(pole: int, cart: int, rng: np.random.Generator) -> Caption:
    """Say something of a pole tilted so and a cart there."""
    level = rng.random()
    if level < 0.06:
        return Caption(_pick(rng, PHRASES["pole_scenes"]), (None, None))
    cart_phrase, cart_facts = _pick(rng, CART[cart].phrases), {cart: 1.0}
    if level < 0.15:
        return Caption(f"a cart {cart_phrase}", (None, cart_facts))
    pole_phrase = _pick(rng, POLE[pole].phrases)
    pole_facts = _tellers(pole_phrase, [place.phrases for place in POLE])
    sentence = _pick(rng, PHRASES["pole_forms"]).format(pole=pole_phrase)
    if level < 0.75:
        return Caption(sentence, (pole_facts, None))
    return Caption(f"{sentence}, {cart_phrase}", (pole_facts, cart_facts))


def mountain_car_caption(place: int, rng: np.random.Generator) -> Caption:
    """Say something of a car there."""
    if rng.random() < 0.06:
        return Caption(_pick(rng, PHRASES["car_scenes"]), (None,))
    said = f"{_pick(rng, PHRASES['cars'])} {_pick(rng, CAR[place].phrases)}"
    return Caption(said, ({place: 1.0},))


_SAID: dict[str, tuple[Callable[..., Facts], Callable[..., Caption]]] = {
    "humanoid": (humanoid_facts, humanoid_caption),
    "cartpole": (cartpole_facts, cartpole_caption),
    "mountaincar": (mountain_car_facts, mountain_car_caption),
}
"""By world: the facts of its states, and a caption of one fact of each kind."""


class Captioner:
    """Draws captions for states (B, S) of a world, or of given facts of them."""

    def __init__(
        self, world: str, states: np.ndarray, facts: Facts | None = None
    ) -> None:
        facts_of, self._say = _SAID[world]
        self._facts = facts_of(states) if facts is None else facts
        self._mean = joint_mean(self._facts)

    def __len__(self) -> int:
        return len(self._facts[0])

    def draw(
        self, index: np.ndarray, rng: np.random.Generator
    ) -> tuple[list[str], np.ndarray]:
        """Caption the states with these indices: C = B sentences, and their ratios."""
        facts = tuple(kind[index] for kind in self._facts)
        drawn = []
        for of_state in zip(*facts, strict=True):
            told = [_draw(kind, rng) for kind in of_state]
            while (caption := self._say(*told, rng=rng)).text in _FORBIDDEN:
                pass
            drawn.append(caption)
        ratios = likelihood_ratios(facts, self._mean, drawn)
        return [caption.text for caption in drawn], ratios


def joint_mean(facts: Facts) -> np.ndarray:
    """How often facts of all kinds come together in B states: (K,), or (K1, K2)."""
    if len(facts) == 1:
        return facts[0].mean(axis=0)
    first, second = facts
    return first.T @ second / len(first)


def likelihood_ratios(
    facts: Facts, mean: np.ndarray, captions: Sequence[Caption]
) -> np.ndarray:
    """How much more probable C captions are in B states than in general: (B, C).

    `mean` is `joint_mean` of the states in general.
    """
    told = [_weights(captions, kind, f.shape[1]) for kind, f in enumerate(facts)]
    in_state = np.prod([f @ w for f, w in zip(facts, told, strict=True)], axis=0)
    if len(told) == 1:
        return in_state / (mean @ told[0])
    # p(c) = sum over facts of both kinds of how often they come together
    return in_state / (told[0] * (mean @ told[1])).sum(axis=0)


def _weights(captions: Sequence[Caption], kind: int, facts: int) -> np.ndarray:
    """(K, C): how probable each caption's words are where a fact is told."""
    weights = np.zeros((facts, len(captions)))
    for column, caption in enumerate(captions):
        # None: it is told whatever the fact.
        of_facts = caption.stands_for[kind] or dict.fromkeys(range(facts), 1.0)
        weights[list(of_facts), column] = list(of_facts.values())
    return weights


def _tellers(phrase: str, phrases: Sequence[Sequence[str]]) -> dict[int, float]:
    """The facts that these words are said of, as "upright" of several tilts."""
    return {i: 1 / len(p) for i, p in enumerate(phrases) if phrase in p}


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _draw(probabilities: np.ndarray, rng: np.random.Generator) -> int:
    """An index with these probabilities (K,)."""
    cumulated = np.cumsum(probabilities)
    return int(np.searchsorted(cumulated, rng.random() * cumulated[-1], side="right"))


def _places(values: np.ndarray, places: Sequence[_Place]) -> np.ndarray:
    """Probabilities (B, K) of places; narrow ones say more where they fit.

    The narrow bell tells neighbours apart, the wide one is a slope far from the goal.
    """
    centres, widths = np.array([(p.centre, p.width) for p in places]).T
    squared = ((values[:, None] - centres) / widths) ** 2
    return _mixed([-squared / (2 * s**2) - np.log(widths) for s in (1.0, 3.0)])


def _poses(squared: np.ndarray) -> np.ndarray:
    """Squared distances (B, K) to poses -> probabilities (B, K + 1); the last: none.

    Without "none" the reward would be flat around a pose, of which the nearest is told.
    The narrow bell makes a peak, the wide one a slope far from it.
    """
    # A pose is as probable as none at twice the bell's width.
    none = np.full((len(squared), 1), 2.0**2)
    widths = (0.5, 1.0, 3.0)
    return _mixed([np.concatenate((squared / w**2, none), axis=1) / -2 for w in widths])


def _mixed(logits: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of the softmaxes of several logits (B, K)."""
    return np.mean([softmax(each, axis=1) for each in logits], axis=0)
