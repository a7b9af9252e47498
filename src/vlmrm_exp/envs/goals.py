"""Whether a humanoid state meets its task: predicates after the paper's rater.

The criteria are those of the paper's Table 2, put into heights, directions and places
of body parts. They are the truth that rewards are measured against, so they share
nothing with the poses that the embedded models learn from (`poses.py`).

A predicate sees what a rater sees in one frame: where the body's parts are, not how
fast they move. What passes through a pose on the way down is sorted out by the half of
an episode's steps for which the goal must hold.

Touching the floor is judged by height, not by the solver's contacts, which flicker as a
body at rest sinks in and hops by some millimetres.
"""

from collections.abc import Callable
from dataclasses import dataclass

import mujoco
import numpy as np
from numpy.linalg import norm

from vlmrm_exp.envs.humanoid_model import NUM_QPOS, humanoid_spec

# Metres above the floor, of a part's lowest point.
ON_FLOOR = 0.03  # touches, for the eye: a foot's radius is 0.075 and a shin's 0.049
OFF_FLOOR = 0.10  # clearly lifted: more than a shuffling or bouncing foot
FOLDED_KNEE = 0.12
"""A knee that is down in the lotus position: about a shin's width. Hips turn out by 25
degrees only, so that a lower seat lifts the knees."""
SEAT_ON_FEET = 0.20
"""Seated in the lotus position: on the own feet, which are 0.15 thick. With both knees
down this body cannot bring its seat below 0.12."""
SEAT_ON_FLOOR = 0.06  # seated in the splits: nothing is under the seat
STRETCHED_LEG = 0.10  # a foot in the splits: the heel of a stretched leg may hover

# Metres.
STANDING_PELVIS = 0.78
"""Height of the pelvis's centre, 0.87 when straight: knees bent by 55 degrees at most,
where a half squat begins."""
FALLING = 0.20
"""Centre of mass beside what supports it: a stiff standing body leans by 12 degrees,
and from there falls past 30 in half a second."""
BALANCED = 0.15
"""The same on one foot: a lean of 9 degrees. Feet are round and nothing rests on one
for good. A foot that is only pulled up, without a shift of weight, gives 0.12."""
HAND_AT_HIP = 0.14
"""From a hand's centre to the side of the hip: the hand (radius 0.04) rests on the
pelvis (height 0.18) or just above it."""
ELBOW_OUT = 0.05  # further out than hands on hips; hanging arms' elbows are not
HAND_ACROSS = 0.04
"""A hand's centre beyond the body's middle plane: its radius, so that all of it is on
the other side. Hands that touch each other in the middle are not across."""
CROSSED_LOW, CROSSED_HIGH = -0.36, 0.06
"""Height of crossed hands above the chest's centre: from the waist to the shoulders."""
CROSSED_FAR = 0.45
"""Crossed hands ahead of the chest's centre. Shoulders turn inwards so little that both
hands are across at 0.35 at the nearest; at 0.53 the arms are stretched, held out."""
KNEE_OUT = 0.25  # beside the middle plane in the lotus position; hips are at 0.10
FOOT_IN = 0.15  # the same of a foot's centre: the feet (radius 0.075) nearly meet

# Degrees.
STANDING_LEAN = 30.0  # of the trunk while standing; more is bending or falling over
LOW_LEAN = 45.0  # the same on the knees or seated, where a lean is no fall
KNEELING_THIGH = 50.0  # from the vertical; sitting on the heels begins at 60
STRAIGHT_KNEE = 30.0  # flexion of a stretched leg's knee; its joint has 2 at the least
LEGS_APART = 100.0  # hip to foot, in the splits; the joints allow 120 to the sides
FEET_LINE = 45.0
"""From one leg's direction to the other's, rather sideways than ahead, as the pelvis
has it: side splits."""

HIP_SIDE = np.array((-0.02, 0.18, 0.05))
"""The side of the hip in the pelvis's frame (ahead, outwards, up), in metres: on the
pelvis's surface, between the hip joint (at -0.04) and the waist (at 0.165)."""

_SIDES = ("right", "left")
# y points to the left in the body's frames; with this it points outwards on both sides.
_OUTWARD = np.array(((1.0, -1.0, 1.0), (1.0, 1.0, 1.0)))


@dataclass(frozen=True)
class Bodies:
    """Where the parts of B bodies are, in metres.

    Places are (B, 3), or (B, 2, 3) of a right and a left part; heights above the floor
    are (B,) or (B, 2). A name that ends in `_at_pelvis` or `_at_chest` is a place in
    that part's frame: ahead, outwards to the own side, up. All others are the world's.
    """

    head: np.ndarray
    pelvis: np.ndarray
    mass_center: np.ndarray
    hips: np.ndarray
    knees: np.ndarray
    feet: np.ndarray
    hands: np.ndarray
    crown: np.ndarray  # height of the head's top
    seat_low: np.ndarray  # of the pelvis's lowest point
    knees_low: np.ndarray
    feet_low: np.ndarray
    upper_low: np.ndarray  # of the lowest point of trunk, head and arms
    flexion: np.ndarray  # of the knees, in degrees, (B, 2)
    hips_at_pelvis: np.ndarray
    knees_at_pelvis: np.ndarray
    feet_at_pelvis: np.ndarray
    hands_at_pelvis: np.ndarray
    hands_at_chest: np.ndarray
    elbows_at_chest: np.ndarray


def kneeling(b: Bodies) -> np.ndarray:
    """On both knees, thighs and trunk up, not falling over, hands off the floor."""
    knees_down = b.knees_low <= ON_FLOOR
    thighs_up = _upright(b.hips - b.knees, KNEELING_THIGH)
    # Knees and feet carry, whether the toes are down or not.
    offset = _offset(b.mass_center, b.knees.mean(axis=1), b.feet.mean(axis=1))
    above = _trunk_up(b, LOW_LEAN) & (b.upper_low > ON_FLOOR) & (offset <= FALLING)
    return (knees_down & thighs_up).all(axis=1) & above


def lotus(b: Bodies) -> np.ndarray:
    """Seated upright on folded legs: knees down and outwards, feet inwards."""
    knees = (b.knees_low <= FOLDED_KNEE) & (b.knees_at_pelvis[..., 1] >= KNEE_OUT)
    feet_in = np.abs(b.feet_at_pelvis[..., 1]) <= FOOT_IN
    seated = (b.seat_low <= SEAT_ON_FEET) & _trunk_up(b, LOW_LEAN)
    return seated & (knees & feet_in).all(axis=1)


def standing_up(b: Bodies) -> np.ndarray:
    """On one foot or both, legs nearly straight, trunk upright, not falling over."""
    # With the pelvis this high nothing but feet reaches the floor.
    high = b.pelvis[:, 2] >= STANDING_PELVIS
    return high & _trunk_up(b, STANDING_LEAN) & (_feet_offset(b) <= FALLING)


def arms_raised(b: Bodies) -> np.ndarray:
    """Standing, both hands higher than the head."""
    return standing_up(b) & (b.hands[..., 2] >= b.crown[:, None]).all(axis=1)


def splits(b: Bodies) -> np.ndarray:
    """Seated on the floor, legs straight, on the floor, and far out to the sides."""
    # Out of places that point outwards on both sides, directions in one frame.
    legs = np.moveaxis(b.feet_at_pelvis - b.hips_at_pelvis, 1, 0) * _OUTWARD[:, None]
    right, left = legs / norm(legs, axis=-1, keepdims=True)
    apart = (right * left).sum(axis=1) <= np.cos(np.deg2rad(LEGS_APART))
    line = left - right
    sideways = line[:, 1] >= np.cos(np.deg2rad(FEET_LINE)) * norm(line, axis=-1)
    stretched = (b.feet_low <= STRETCHED_LEG) & (b.flexion <= STRAIGHT_KNEE)
    seated = (b.seat_low <= SEAT_ON_FLOOR) & _trunk_up(b, LOW_LEAN)
    return seated & stretched.all(axis=1) & apart & sideways


def hands_on_hips(b: Bodies) -> np.ndarray:
    """Standing, each hand at the base of its hip, elbows out."""
    near = norm(b.hands_at_pelvis - HIP_SIDE, axis=-1) <= HAND_AT_HIP
    out = b.elbows_at_chest[..., 1] >= b.hands_at_chest[..., 1] + ELBOW_OUT
    return standing_up(b) & (near & out).all(axis=1)


def arms_crossed(b: Bodies) -> np.ndarray:
    """Standing, forearms crossed before the chest: each hand is on the other side.

    Elbows cannot pass the middle plane, so forearms whose hands have passed it cross.
    """
    ahead, outwards, up = np.moveaxis(b.hands_at_chest, -1, 0)
    crossed = (outwards <= -HAND_ACROSS) & (ahead <= CROSSED_FAR)
    crossed &= (up >= CROSSED_LOW) & (up <= CROSSED_HIGH)
    return standing_up(b) & crossed.all(axis=1)


def one_leg(b: Bodies) -> np.ndarray:
    """Standing balanced on one foot, the other clearly off the floor."""
    lifted = (b.feet_low >= OFF_FLOOR).any(axis=1)
    return standing_up(b) & lifted & (_feet_offset(b) <= BALANCED)


_PREDICATES: dict[str, Callable[[Bodies], np.ndarray]] = {
    predicate.__name__: predicate
    for predicate in (
        *(kneeling, lotus, standing_up, arms_raised),
        *(splits, hands_on_hips, arms_crossed, one_leg),
    )
}
GOALS: tuple[str, ...] = tuple(_PREDICATES)
"""The humanoid tasks that have a predicate: the paper's eight."""


class HumanoidGoal:
    """Judges humanoid states by one of GOALS; not to be shared by threads."""

    def __init__(self, name: str) -> None:
        self._predicate = _PREDICATES[name]
        self._model = model = humanoid_spec().compile()
        self._data = mujoco.MjData(model)
        self._mass = model.body_mass / model.body_mass.sum()
        self._radius = model.geom_size[:, 0]
        # Half the length of a capsule's axis; spheres have none.
        capsule = model.geom_type == mujoco.mjtGeom.mjGEOM_CAPSULE
        self._half = model.geom_size[:, 1] * capsule
        self._torso, self._pelvis = model.body("torso").id, model.body("pelvis").id
        self._head, self._butt = model.geom("head").id, model.geom("butt").id
        self._hips, self._shins, self._elbows, feet = (
            [model.body(f"{side}_{part}").id for side in _SIDES]
            for part in ("thigh", "shin", "lower_arm", "foot")
        )
        self._feet, self._hands = (
            [model.geom(f"{side}_{part}").id for side in _SIDES]
            for part in ("foot", "hand")
        )
        self._shin_radius = self._radius[model.geom("right_shin1").id]
        legs = [*self._hips, *self._shins, *feet]
        self._upper = np.flatnonzero(~np.isin(model.geom_bodyid, [0, *legs]))
        self._knees = [model.joint(f"{side}_knee").qposadr[0] for side in _SIDES]

    def __call__(self, states: np.ndarray) -> np.ndarray:
        """States (B, 47) -> whether each meets the goal, (B,) bool."""
        return self._predicate(self.bodies(states))

    def bodies(self, states: np.ndarray) -> Bodies:
        """Place the parts of each state (B, 47)."""
        data, names = self._data, ("xpos", "xipos", "xmat", "geom_xpos", "geom_xmat")
        places, mass_places, turns, geoms, geom_turns = found = [
            np.empty((len(states), *getattr(data, name).shape)) for name in names
        ]
        for i, state in enumerate(states):
            data.qpos[:] = state[:NUM_QPOS]
            mujoco.mj_kinematics(self._model, data)
            for values, name in zip(found, names, strict=True):
                values[i] = getattr(data, name)
        # Entry 8 is the height of the turned z axis, along which capsules lie.
        reach = self._radius + self._half * np.abs(geom_turns[..., 8])
        lowest = geoms[..., 2] - reach

        def within(part: int, points: np.ndarray) -> np.ndarray:
            """Points (B, 2, 3) in a body part's frame, y outwards."""
            turn = turns[:, part].reshape(-1, 3, 3)
            return ((points - places[:, None, part]) @ turn) * _OUTWARD

        hips, knees = places[:, self._hips], places[:, self._shins]
        feet, hands = geoms[:, self._feet], geoms[:, self._hands]
        return Bodies(
            head=geoms[:, self._head],
            pelvis=geoms[:, self._butt],
            mass_center=self._mass @ mass_places,
            hips=hips,
            knees=knees,
            feet=feet,
            hands=hands,
            crown=geoms[:, self._head, 2] + self._radius[self._head],
            seat_low=lowest[:, self._butt],
            knees_low=knees[..., 2] - self._shin_radius,
            feet_low=lowest[:, self._feet],
            upper_low=lowest[:, self._upper].min(axis=1),
            flexion=-np.rad2deg(states[:, self._knees]),
            hips_at_pelvis=within(self._pelvis, hips),
            knees_at_pelvis=within(self._pelvis, knees),
            feet_at_pelvis=within(self._pelvis, feet),
            hands_at_pelvis=within(self._pelvis, hands),
            hands_at_chest=within(self._torso, hands),
            elbows_at_chest=within(self._torso, places[:, self._elbows]),
        )


def _trunk_up(b: Bodies, degrees: float) -> np.ndarray:
    """Whether the line from pelvis to head is within degrees of upright, (B,)."""
    return _upright(b.head - b.pelvis, degrees)


def _upright(vectors: np.ndarray, degrees: float) -> np.ndarray:
    """Whether vectors (..., 3) are within degrees of straight up."""
    return vectors[..., 2] >= np.cos(np.deg2rad(degrees)) * norm(vectors, axis=-1)


def _feet_offset(b: Bodies) -> np.ndarray:
    """How far the mass is beside the feet on the floor, (B,); inf: none is."""
    down = b.feet_low <= ON_FLOOR
    right, left = b.feet[:, 0], b.feet[:, 1]
    start = np.where(down[:, :1], right, left)
    end = np.where(down[:, 1:], left, right)
    return np.where(down.any(axis=1), _offset(b.mass_center, start, end), np.inf)


def _offset(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Horizontal distance of points (B, 3) to the lines from start to end, (B,)."""
    along, to = (end - start)[:, :2], (points - start)[:, :2]
    # Tiny: where start is end, the distance is to that point.
    square = np.maximum((along**2).sum(axis=1), 1e-12)
    share = np.clip((along * to).sum(axis=1) / square, 0, 1)
    return norm(to - share[:, None] * along, axis=-1)
