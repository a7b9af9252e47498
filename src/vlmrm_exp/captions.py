"""Captions for states of the three worlds, as people speak: vaguely.

A phrase is drawn with a probability that falls off smoothly with the distance between
the state and what the phrase describes, at several levels of detail. Then the optimum
of contrastive training, the log-probability ratio of phrase and state, is a smooth
function of the state, and so is the reward (hard boundaries gave a flat one).

The sentences in `HELD_OUT` are never drawn: they are the paper's prompts and the
paraphrases that the report is made with.
"""

from collections.abc import Sequence

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
_FORBIDDEN = {s for sentences in HELD_OUT.values() for s in sentences}

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
    "behind_head": ("with hands behind its head", "holding the back of its head"),
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
}
_UPRIGHT = ("standing", "legs_apart", "one_leg", "stepping", "half_squat")
_GROUPS: dict[str, tuple[str, ...]] = {
    "upright": _UPRIGHT,
    "on the ground": tuple(n for n in LEG_NAMES if n.startswith(("lying", "sitting"))),
    "falling down": tuple(n for n in LEG_NAMES if n.startswith("falling")),
    "lying on the floor": tuple(n for n in LEG_NAMES if n.startswith("lying")),
    "low, near the floor": ("kneeling", "one_knee", "crouching", "lotus", "splits"),
}


def humanoid_probabilities(
    leg_distances: np.ndarray, arm_distances: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances (B, L), (B, A) -> probabilities of poses (B, L), (B, A).

    Two widths are mixed: the narrow one tells neighbours apart, the wide one gives
    the reward a slope far from the goal.
    """
    return (
        _mix(leg_distances, narrow=1.0, wide=3.0),
        _mix(arm_distances, narrow=0.7, wide=2.0),
    )


def humanoid_caption(
    legs: np.ndarray, arms: np.ndarray, rng: np.random.Generator
) -> str:
    """Draw a caption from a state's pose probabilities (L,), (A,)."""
    who = rng.choice(_ROBOT)
    leg = LEG_NAMES[rng.choice(len(LEG_NAMES), p=legs)]
    arm_phrase = rng.choice(_ARM_PHRASES[ARM_NAMES[rng.choice(len(ARM_NAMES), p=arms)]])
    level = rng.random()
    if level < 0.05:
        return str(who)
    if level < 0.12:
        groups = [name for name, members in _GROUPS.items() if leg in members]
        if groups:
            return f"{who} {rng.choice(groups)}"
    leg_phrase = rng.choice(_LEG_PHRASES[leg])
    if level < 0.50:
        return f"{who} {leg_phrase}"
    if level < 0.60:
        return f"{who} {arm_phrase}"
    comma = "," if rng.random() < 0.5 else ""
    return f"{who} {leg_phrase}{comma} {arm_phrase}"


# Pole angles in degrees from upright (0) to hanging (180), with their vagueness.
_POLE = (
    (0, 5, ("upright", "vertical", "standing straight up", "perfectly balanced")),
    (0, 14, ("balanced", "standing up", "nearly vertical", "upright")),
    (12, 7, ("leaning slightly to the {side}", "tilted a little to the {side}")),
    (30, 14, ("leaning to the {side}", "tilted to the {side}", "falling {side}")),
    (65, 25, ("leaning far to the {side}", "almost fallen over to the {side}")),
    (95, 25, ("lying flat to the {side}", "horizontal", "fallen over")),
    (180, 45, ("hanging down", "upside down below the cart", "pointing down")),
)
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


def cartpole_caption(row: np.ndarray, rng: np.random.Generator) -> str:
    """Draw a caption for a state row (x, x_dot, theta, theta_dot)."""
    x, theta = row[0], np.rad2deg((row[2] + np.pi) % (2 * np.pi) - np.pi)
    pole = _draw(abs(theta), _POLE, "right" if theta > 0 else "left", rng)
    cart = _draw(abs(x), _CART, "right" if x > 0 else "left", rng)
    level = rng.random()
    if level < 0.06:
        return str(rng.choice(("a pole and a cart", "a cart with a pole", "cart pole")))
    if level < 0.15:
        return f"a cart {cart}"
    sentence = str(rng.choice(_POLE_FORMS)).format(pole=pole)
    return sentence if level < 0.75 else f"{sentence}, {cart}"


def mountain_car_caption(row: np.ndarray, rng: np.random.Generator) -> str:
    """Draw a caption for a state row (position, velocity)."""
    where = _draw(row[0], _CAR, "", rng)
    if rng.random() < 0.06:
        return str(rng.choice(("a car and a mountain", "a car in the mountains", "car")))
    who = rng.choice(("a car", "the car", "a small car", "a vehicle", "car"))
    return f"{who} {where}"


def allowed(caption: str) -> bool:
    """Whether a caption may be used in training."""
    return caption not in _FORBIDDEN and caption not in BASELINES.values()


def _draw(
    value: float,
    phrases: Sequence[tuple[float, float, Sequence[str]]],
    side: str,
    rng: np.random.Generator,
) -> str:
    centres = np.array([c for c, _, _ in phrases])
    widths = np.array([w for _, w, _ in phrases])
    # Narrow phrases are the likelier ones where they fit: they say more.
    narrow = np.exp(-(((value - centres) / widths) ** 2) / 2) / widths
    wide = np.exp(-(((value - centres) / (3 * widths)) ** 2) / 2) / (3 * widths)
    weights = narrow + wide
    options = phrases[rng.choice(len(phrases), p=weights / weights.sum())][2]
    return str(rng.choice(np.array(options))).format(side=side)


def _mix(squared: np.ndarray, narrow: float, wide: float) -> np.ndarray:
    total = np.zeros_like(squared)
    for width in (narrow, wide):
        logits = -squared / (2 * width**2)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        total += weights / weights.sum(axis=1, keepdims=True)
    return total / 2
