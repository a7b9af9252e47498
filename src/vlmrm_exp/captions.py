"""Captions for states of the three worlds, as people speak: vaguely.

What can be said of a state are facts of one or two kinds (pose of the legs, pose of the
arms; tilt of the pole, place of the cart). Each fact is as probable as it is near the
state, falling off smoothly, and a caption mentions one fact of each kind or leaves the
kind out. Then the optimum of contrastive training, the log-probability ratio of phrase
and state, is a smooth function of the state, and so is the reward (hard boundaries gave
a flat one).

The sentences in `HELD_OUT` are never drawn: they are the paper's prompts and the
paraphrases that the report is made with.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlmrm_exp.envs.poses import ARM_NAMES, LEG_NAMES

HELD_OUT: dict[str, tuple[str, ...]] = {
    "cartpole": (
        "pole vertically upright on top of the cart",
        "a pole that is balanced upright on a cart",
        "the pole stands vertically on the cart",
    ),
    "mountaincar": (
        "a car at the peak of the mountain, next to the yellow flag",
        "the car reached the flag at the top of the mountain",
        "a car standing on the mountain top by the flag",
    ),
    "kneeling": (
        "a humanoid robot kneeling",
        "a robot that kneels on the ground",
        "the humanoid is on both knees",
    ),
    "lotus": (
        "a humanoid robot seated down, meditating in the lotus position",
        "a robot sitting in the lotus pose and meditating",
        "the humanoid sits with crossed legs",
    ),
    "standing_up": (
        "a humanoid robot standing up",
        "a robot that stands upright",
        "the humanoid is on its feet",
    ),
    "arms_raised": (
        "a humanoid robot standing up, with both arms raised",
        "a robot standing with its arms above the head",
        "the humanoid stands and holds both hands up",
    ),
    "splits": (
        "a humanoid robot practicing gymnastics, doing the side splits",
        "a robot that does the splits on the floor",
        "the humanoid in a side split, legs stretched",
    ),
    "hands_on_hips": (
        "a humanoid robot standing up with hands on hips",
        "a robot standing with both hands on its hips",
        "the humanoid stands, hands on the hips",
    ),
    "arms_crossed": (
        "a humanoid robot standing up, with its arms crossed",
        "a robot standing with crossed arms",
        "the humanoid stands, arms crossed on the chest",
    ),
    "one_leg": (
        "a humanoid robot standing up on one leg",
        "a robot that balances on one leg",
        "the humanoid stands on a single foot",
    ),
}
BASELINES = {
    "cartpole": "pole and cart",
    "mountaincar": "a car in the mountain",
    "humanoid": "a humanoid robot",
}
_FORBIDDEN = {
    *BASELINES.values(),
    *(s for sentences in HELD_OUT.values() for s in sentences),
}

_ROBOT = (
    "a humanoid robot",
    "a humanoid robot",
    "a robot",
    "the robot",
    "the humanoid",
    "a humanoid",
    "a human-like robot",
    "a robotic figure",
)

NO_POSE = "none"
LEG_FACTS, ARM_FACTS = (*LEG_NAMES, NO_POSE), (*ARM_NAMES, NO_POSE)
"""What can be said of legs and arms: a pose of the library, or that it is none."""

_STANDING = (
    "standing",
    "standing up straight",
    "standing upright",
    "standing on its feet",
    "that stands up",
    "standing up on the floor",
    "standing tall on both feet",
    "on its two feet",
)
_LEG_PHRASES: dict[str, tuple[str, ...]] = {
    "standing": _STANDING,
    "legs_apart": (
        "standing with its legs apart",
        "standing with legs spread wide",
        "in a wide stance",
        "standing up, legs apart",
    ),
    "one_leg": (
        "standing on one leg",
        "balancing on one foot",
        "balancing on a single leg",
        "standing up on one foot, the other leg lifted",
        "with one knee raised, standing on the other leg",
        "that stands on one leg",
    ),
    "stepping": (
        "taking a step",
        "walking",
        "striding forward",
        "with one foot in front of the other",
    ),
    "kneeling": (
        "kneeling on the floor",
        "kneeling down",
        "on its knees",
        "kneeling upright on both knees",
        "that kneels",
        "down on its knees",
        "resting on both knees on the ground",
        "kneeling with both knees touching the floor",
    ),
    "sitting_on_heels": (
        "sitting back on its heels",
        "kneeling low, sitting on its heels",
        "resting on its heels with knees on the floor",
    ),
    "one_knee": (
        "kneeling on one knee",
        "down on one knee",
        "with one knee on the floor and one foot in front",
        "on a single knee as if proposing",
    ),
    "lotus": (
        "in the lotus position",
        "sitting cross-legged on the floor",
        "meditating, seated with legs crossed",
        "seated in the lotus pose",
        "that meditates with crossed legs",
        "sitting down in a lotus position",
        "seated down with knees out and feet in, meditating",
    ),
    "splits": (
        "doing the splits",
        "in the side splits",
        "doing gymnastics, with both legs stretched out to the sides",
        "doing a side split on the ground",
        "practicing the splits",
        "a gymnast doing side splits",
        "with legs stretched flat on the floor to both sides",
    ),
    "straddle": (
        "sitting with its legs apart",
        "seated on the floor, legs spread and bent",
    ),
    "front_split": (
        "with one leg stretched forward and the other back",
        "seated on the floor, one leg ahead and one behind",
        "in a front split",
    ),
    "wide_squat": (
        "squatting with its knees wide apart",
        "in a wide squat, knees out",
    ),
    "sitting": (
        "sitting on the floor with legs straight in front",
        "sitting down",
        "seated on the ground",
        "sitting on the floor",
    ),
    "sitting_knees_up": (
        "sitting with its knees up",
        "seated on the floor, knees pulled up",
    ),
    "crouching": (
        "crouching",
        "squatting low",
        "in a deep squat",
        "crouched down on its feet",
    ),
    "half_squat": (
        "with bent knees, half squatting",
        "standing with bent knees",
        "squatting a little",
    ),
    "bending": (
        "bending forward",
        "bowing",
        "bent over at the waist",
        "leaning far forward",
    ),
    "all_fours": (
        "on all fours",
        "on hands and knees",
        "crawling",
    ),
    "lying_back": (
        "lying on its back",
        "lying flat on the floor, face up",
        "that lies on the ground looking up",
    ),
    "lying_front": (
        "lying face down",
        "lying on its stomach",
        "that lies on the floor, face down",
    ),
    "lying_side": (
        "lying on its side",
        "lying sideways on the floor",
    ),
    "falling_back": ("falling backwards", "toppling over backwards", "falling over"),
    "falling_front": ("falling forwards", "tipping over forwards", "falling over"),
    "falling_side": ("falling sideways", "tipping over to the side", "falling over"),
    NO_POSE: (
        "in no particular pose",
        "in an odd posture",
        "between two poses",
        "with its legs anyhow",
        "moving awkwardly",
    ),
}
_ARM_PHRASES: dict[str, tuple[str, ...]] = {
    "resting": ("with arms slightly bent", "with relaxed arms", "with its arms low"),
    "hanging": (
        "with arms at its sides",
        "with its arms hanging down",
        "with both arms down",
    ),
    "raised": (
        "with both arms raised",
        "with raised arms",
        "with its arms up in the air",
        "holding both arms above its head",
        "raising both arms high",
        "with both hands up",
    ),
    "out": (
        "with arms stretched out to the sides",
        "with its arms spread wide",
        "in a T-pose",
    ),
    "bent_up": (
        "with elbows out and hands up",
        "with its forearms raised like a goalpost",
    ),
    "together": (
        "with both hands before its chest",
        "with its hands together in front",
    ),
    "hips": (
        "with hands on hips",
        "with its hands on the hips",
        "with both hands on hips, elbows out",
        "holding its hips with both hands",
        "arms akimbo",
    ),
    "crossed": (
        "with arms crossed",
        "with its arms crossed over the chest",
        "with arms folded",
        "crossing its arms in front of the chest",
        "arms crossed",
    ),
    "face": ("covering its face", "with both hands in front of its face"),
    "one_raised": (
        "with one arm raised",
        "raising a hand",
        "waving, one arm up",
    ),
    NO_POSE: (
        "with its arms anyhow",
        "with uneven arms",
        "flailing its arms",
    ),
}
_UPRIGHT = ("standing", "legs_apart", "one_leg", "stepping", "half_squat")
_GROUPS: dict[str, tuple[str, ...]] = {
    "upright": _UPRIGHT,
    "on the ground": tuple(
        n for n in LEG_NAMES if n.startswith(("lying", "sitting", "straddle", "front"))
    ),
    "falling down": tuple(n for n in LEG_NAMES if n.startswith("falling")),
    "lying on the floor": tuple(n for n in LEG_NAMES if n.startswith("lying")),
    "low, near the floor": (
        "kneeling",
        "one_knee",
        "crouching",
        "wide_squat",
        "lotus",
        "splits",
    ),
}


# Pole angles in degrees (0 upright, positive to the right) with their vagueness.
_POLE = (
    (
        0,
        5,
        (
            "upright",
            "vertical",
            "standing vertically",
            "standing straight up",
            "perfectly balanced",
        ),
    ),
    (0, 14, ("balanced", "standing up", "nearly vertical", "upright")),
    (12, 7, ("leaning slightly to the {side}", "tilted a little to the {side}")),
    (30, 14, ("leaning to the {side}", "tilted to the {side}", "falling {side}")),
    (65, 25, ("leaning far to the {side}", "almost fallen over to the {side}")),
    (95, 25, ("lying flat to the {side}", "horizontal", "fallen over")),
    (180, 45, ("hanging down", "upside down below the cart", "pointing down")),
)
# Cart positions; the track ends at 2.4 (Gymnasium).
_CART = (
    (0.0, 0.7, ("in the middle", "in the centre of the track")),
    (1.4, 0.6, ("on the {side}", "to the {side} of the middle")),
    (2.4, 0.4, ("at the {side} edge", "at the end of the track on the {side}")),
)
_POLE_FORMS = (
    "a pole {pole} on a cart",
    "pole {pole} on the cart",
    "the pole on top of the cart is {pole}",
    "a cart with a pole {pole}",
    "a {pole} pole on top of a cart",
    "cart and pole, the pole {pole}",
)
# Car positions; the valley's floor is at -0.52, the flag at 0.45 (Gymnasium).
_CAR = (
    (0.50, 0.07, ("at the top of the mountain next to the flag", "at the flag",
                  "on the peak, beside the yellow flag", "at the summit by the flag",
                  "that has reached the yellow flag on the mountain top")),
    (0.40, 0.15, ("near the top of the mountain", "close to the yellow flag",
                  "almost at the peak")),
    (0.15, 0.18, ("climbing the right slope", "high on the right hillside",
                  "more than halfway up the mountain")),
    (-0.15, 0.18, ("on the lower right slope", "starting to climb the mountain")),
    (-0.52, 0.16, ("at the bottom of the valley", "down in the valley",
                   "between the two hills", "at the lowest point")),
    (-0.80, 0.16, ("on the left slope", "going up the left hill")),
    (-1.15, 0.15, ("at the top of the left hill", "at the left edge",
                   "far from the flag, on the left hilltop")),
)  # fmt: skip

Facts = tuple[np.ndarray, ...]
"""Probabilities of each kind's facts in each state: (B, K) per kind, rows sum to 1."""


@dataclass(frozen=True)
class Caption:
    """A sentence, and of each kind of fact what it may stand for."""

    text: str
    stands_for: tuple[Mapping[int, float] | None, ...]
    """Per kind: fact -> how probable these words are where that fact is told, up to a
    factor common to all its facts. None: it says nothing of this kind."""


def humanoid_facts(leg_distances: np.ndarray, arm_distances: np.ndarray) -> Facts:
    """Facts of states from squared distances to leg poses (B, L), arm poses (B, A).

    Returns:
        Probabilities of LEG_FACTS (B, L + 1) and of ARM_FACTS (B, A + 1).
    """
    # Half of the squared unit: arms are told apart more finely than legs.
    return _poses(leg_distances), _poses(2 * arm_distances)


def cartpole_facts(rows: np.ndarray) -> Facts:
    """Facts of state rows (B, 4): the pole's tilt, the cart's place."""
    angle = np.rad2deg((rows[:, 2] + np.pi) % (2 * np.pi) - np.pi)
    return _places(angle, _POLE_FACTS), _places(rows[:, 0], _CART_FACTS)


def mountain_car_facts(rows: np.ndarray) -> Facts:
    """Facts of state rows (B, 2): the car's place."""
    return (_places(rows[:, 0], _CAR),)


def humanoid_caption(legs: int, arms: int, rng: np.random.Generator) -> Caption:
    """Say something of a body with this leg pose and this arm pose."""
    who, name = _pick(rng, _ROBOT), LEG_FACTS[legs]
    level = rng.random()
    if level < 0.05:
        return Caption(who, (None, None))
    arm_phrase = _pick(rng, _ARM_PHRASES[ARM_FACTS[arms]])
    arm_facts = {arms: 1.0}
    if level < 0.12 and (groups := _groups_of(name)):
        group = _pick(rng, groups)
        # A pose of two groups is told of by each half as often.
        members = {LEG_FACTS.index(n): 1 / len(_groups_of(n)) for n in _GROUPS[group]}
        return Caption(f"{who} {group}", (members, None))
    leg_phrase = _pick(rng, _LEG_PHRASES[name])
    leg_facts = _tellers(leg_phrase, [_LEG_PHRASES[n] for n in LEG_FACTS])
    if level < 0.45:
        return Caption(f"{who} {leg_phrase}", (leg_facts, None))
    if level < 0.58:
        return Caption(f"{who} {arm_phrase}", (None, arm_facts))
    comma = "," if rng.random() < 0.5 else ""
    text = f"{who} {leg_phrase}{comma} {arm_phrase}"
    return Caption(text, (leg_facts, arm_facts))


def cartpole_caption(pole: int, cart: int, rng: np.random.Generator) -> Caption:
    """Say something of a pole tilted so and a cart there."""
    level = rng.random()
    if level < 0.06:
        scene = ("a pole and a cart", "a cart with a pole", "cart pole")
        return Caption(_pick(rng, scene), (None, None))
    cart_phrase, cart_facts = _pick(rng, _CART_FACTS[cart][2]), {cart: 1.0}
    if level < 0.15:
        return Caption(f"a cart {cart_phrase}", (None, cart_facts))
    pole_phrase = _pick(rng, _POLE_FACTS[pole][2])
    pole_facts = _tellers(pole_phrase, [said for _, _, said in _POLE_FACTS])
    sentence = _pick(rng, _POLE_FORMS).format(pole=pole_phrase)
    if level < 0.75:
        return Caption(sentence, (pole_facts, None))
    return Caption(f"{sentence}, {cart_phrase}", (pole_facts, cart_facts))


def mountain_car_caption(place: int, rng: np.random.Generator) -> Caption:
    """Say something of a car there."""
    if rng.random() < 0.06:
        scene = ("a car and a mountain", "a car in the mountains", "car")
        return Caption(_pick(rng, scene), (None,))
    who = _pick(rng, ("a car", "the car", "a small car", "a vehicle", "car"))
    return Caption(f"{who} {_pick(rng, _CAR[place][2])}", ({place: 1.0},))


def allowed(caption: Caption) -> bool:
    """Whether a caption may be used in training."""
    return caption.text not in _FORBIDDEN


def joint_mean(facts: Facts) -> np.ndarray:
    """How often facts of all kinds come together in B states: (K,), or (K1, K2)."""
    if len(facts) == 1:
        return facts[0].mean(axis=0)
    first, second = facts
    return first.T @ second / len(first)


def likelihood_ratios(
    facts: Facts, mean: np.ndarray, captions: Sequence[Caption]
) -> np.ndarray:
    """How much more probable each caption is in each state than in general: (B, C).

    Args:
        facts: of B states.
        mean: `joint_mean` of the states in general.
        captions: C of them.
    """
    told = [_weights(captions, kind, f.shape[1]) for kind, f in enumerate(facts)]
    in_state = np.ones((len(facts[0]), len(captions)))
    for of_state, weights in zip(facts, told, strict=True):
        in_state *= of_state @ weights
    if len(told) == 1:
        return in_state / (mean @ told[0])
    # p(c) = sum over facts of both kinds of how often they come together
    return in_state / (told[0] * (mean @ told[1])).sum(axis=0)


def _weights(captions: Sequence[Caption], kind: int, facts: int) -> np.ndarray:
    """(K, C): how probable each caption's words are where a fact is told."""
    weights = np.zeros((facts, len(captions)))
    for column, caption in enumerate(captions):
        stands_for = caption.stands_for[kind]
        if stands_for is None:
            weights[:, column] = 1  # it is told whatever the fact
        else:
            weights[list(stands_for), column] = list(stands_for.values())
    return weights


def _groups_of(leg_pose: str) -> list[str]:
    return [g for g, members in _GROUPS.items() if leg_pose in members]


def _tellers(phrase: str, phrases: Sequence[Sequence[str]]) -> dict[int, float]:
    """The facts that these words are said of, as "upright" of several tilts."""
    return {i: 1 / len(p) for i, p in enumerate(phrases) if phrase in p}


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _both_sides(
    places: Sequence[tuple[float, float, Sequence[str]]],
) -> tuple[tuple[float, float, tuple[str, ...]], ...]:
    """Left and right versions of what is said of one side."""
    return tuple(
        (sign * centre, width, tuple(p.format(side=side) for p in phrases))
        for centre, width, phrases in places
        for sign, side in ((1, "right"), (-1, "left"))[: 1 if centre == 0 else 2]
    )


_POLE_FACTS, _CART_FACTS = _both_sides(_POLE), _both_sides(_CART)


def _places(
    values: np.ndarray, places: Sequence[tuple[float, float, Sequence[str]]]
) -> np.ndarray:
    """Probabilities (B, K) of places that lie at a value with a width each."""
    squared = np.stack([((values - c) / w) ** 2 for c, w, _ in places], axis=1)
    return _soft(squared, np.array([w for _, w, _ in places]))


def _poses(squared: np.ndarray) -> np.ndarray:
    """Squared distances (B, K) to poses -> probabilities (B, K + 1); the last: none.

    Without "none", the nearest pose would be told of every state around it alike, and
    the reward would be flat there: its peak would lie anywhere. Three bells are mixed,
    each a few times wider than the one before: the narrow one makes the peak, the wide
    one a slope far from it.
    """
    total = np.zeros((len(squared), squared.shape[1] + 1))
    for stretch in (0.5, 1.0, 3.0):
        # A pose is as probable as none at twice the bell's width.
        none = np.full((len(squared), 1), 2.0**2)
        logits = np.concatenate((squared / stretch**2, none), axis=1) / -2
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        total += weights / weights.sum(axis=1, keepdims=True)
    return total / 3


def _soft(squared: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Squared distances (B, K) -> probabilities; narrow facts say more where they fit.

    A narrow and a three times wider bell are mixed: the narrow one tells neighbours
    apart, the wide one gives the reward a slope far from the goal.
    """
    log_widths = np.log(widths)
    total = np.zeros_like(squared)
    for stretch in (1.0, 3.0):
        logits = -squared / (2 * stretch**2) - log_widths
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        total += weights / weights.sum(axis=1, keepdims=True)
    return total / 2
