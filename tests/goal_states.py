"""States built by hand for and against each humanoid goal, near misses among them.

A state is joint angles in degrees, how the body is turned, and where it stands; it
lies on the floor with its lowest point, unless lifted.
"""

from dataclasses import dataclass, field

import numpy as np

from vlmrm_exp.envs.poses import Legs, PoseLibrary, quaternion


@dataclass(frozen=True)
class State:
    caption: str
    angles: dict[str, float] = field(default_factory=dict)
    """Degrees, as in PoseLibrary: a plain name is both sides alike."""
    pitch: float = 0.0
    roll: float = 0.0
    yaw: float = 0.0
    at: tuple[float, float] = (0.0, 0.0)
    lift: float = 0.0
    """Metres above the floor."""
    noise: float = 0.0
    """Degrees, standard deviation, on every joint; cut to the limits."""

    @property
    def pose(self) -> dict[str, float]:
        """Degrees, on top of a straight body; knees have no 0."""
        return {"knee": -2} | self.angles

    def row(self, library: PoseLibrary) -> np.ndarray:
        angles = library.angles(Legs("", self.pose))
        if self.noise:
            rng = np.random.default_rng(0)
            angles += np.deg2rad(rng.normal(0, self.noise, angles.shape))
        row = library.place(angles, quaternion(self.yaw, self.pitch, self.roll))
        row[:2] = self.at
        row[2] += self.lift
        return row


# Arms, which most states share.
HANGING = {"shoulder1": 30, "shoulder2": -60, "elbow": -50}
RAISED = {"shoulder1": -85, "shoulder2": 30, "elbow": -60}
ON_HIPS = {"shoulder1": 50, "shoulder2": -80, "elbow": -15}
CROSSED = {
    "shoulder1": 60,
    "shoulder2": 0,
    "right_elbow": -20,
    "left_elbow": -50,
}
# Legs.
KNEEL = {"knee": -95}
LOTUS = {"hip_x": -10, "hip_z": -47, "hip_y": -50, "knee": -158, "abdomen_y": -8}
SPLITS = {"hip_x": -25, "hip_z": -60, "hip_y": -66, "knee": -4, "abdomen_y": -12}
# As agents sat, trunk and hips at their limits.
TURNED_SPLITS = {
    "abdomen_z": -45,
    "abdomen_y": 29,
    "abdomen_x": -25,
    "hip_x": -25,
    "hip_z": -59,
    "right_hip_y": -60,
    "left_hip_y": -110,
}
CONTORTED = {
    "abdomen_z": -35,
    "abdomen_y": 15,
    "abdomen_x": 35,
    "hip_x": -25,
    "right_hip_z": -30,
    "right_hip_y": -110,
    "left_hip_z": 35,
    "left_hip_y": 20,
}
LEFT_UP = {"left_hip_y": -80, "left_knee": -100}
RIGHT_UP = {"right_hip_y": -80, "right_knee": -100}
CROUCH = {"knee": -110, "hip_y": -90, "abdomen_y": -30}
HALF_SQUAT = {"knee": -70, "hip_y": -45}
STEP = {"right_hip_y": -19, "left_hip_y": 17}
SIT = {"hip_y": -90}
HEELS = {"knee": -150, "hip_y": -60}

FOR: dict[str, tuple[State, ...]] = {
    "kneeling": (
        State("thighs upright", KNEEL),
        State("hands raised", KNEEL | RAISED),
        State("seat a little back", {"knee": -120, "hip_y": -25}, -4),
        State("half way to the heels", {"knee": -140, "hip_y": -40}),
        State("knees apart", {"knee": -95, "hip_x": -22}),
        State("bowing a little", {"knee": -110, "hip_y": -40}, 22),
        State("noise, turned by 90", KNEEL, yaw=90, noise=2),
        State("facing away, elsewhere", KNEEL | HANGING, yaw=180, at=(-1, 0.5)),
    ),
    "lotus": (
        State("feet together", LOTUS, -5),
        State("knees wide", LOTUS | {"hip_z": -60, "hip_y": -64, "abdomen_y": 0}),
        State(
            "leaning back",
            {"hip_x": -22, "hip_z": -60, "hip_y": -39, "knee": -160, "abdomen_y": -10},
            -12,
        ),
        State("hands on knees", LOTUS | {"shoulder1": 20, "elbow": -60}, -5),
        State("arms raised", LOTUS | RAISED, -5),
        State("bowing", LOTUS | {"abdomen_y": -25}, 5),
        State("noise, turned by 90", LOTUS, -5, yaw=90, noise=2),
        State("facing away, elsewhere", LOTUS | HANGING, -5, yaw=180, at=(2, 1)),
    ),
    "standing_up": (
        State("straight"),
        State("arms hanging", HANGING),
        State("legs apart", {"hip_x": -22}),
        State("knees softly bent", {"knee": -35, "hip_y": -18}),
        State("a step", STEP),
        State("leaning 8 degrees", pitch=8),
        State("on one leg", LEFT_UP, roll=4),
        State("noise, elsewhere", HANGING, yaw=90, at=(-2, 1), noise=3),
    ),
    "arms_raised": (
        State("up, elbows bent", RAISED),
        State("up and out", {"shoulder1": -85, "shoulder2": 0, "elbow": -60}),
        State("to the front", {"shoulder1": -60, "shoulder2": 25, "elbow": -55}),
        State("hands together", {"shoulder1": -85, "shoulder2": 40, "elbow": -40}),
        State("legs apart", RAISED | {"hip_x": -22}),
        State("high", {"shoulder1": -85, "shoulder2": 20, "elbow": -90}),
        State("noise, turned by 90", RAISED, yaw=90, noise=4),
        State("facing away, elsewhere", RAISED, yaw=180, at=(1, 1)),
    ),
    "splits": (
        State("upright", SPLITS, -8),
        State("arms raised", SPLITS | RAISED, -8),
        State("leaning forward", SPLITS | {"hip_y": -75, "abdomen_y": 0}, 10),
        State("knees a little bent", SPLITS | {"knee": -18, "hip_y": -72}, -6),
        State("legs 104 degrees apart", SPLITS | {"hip_z": -52}, -8),
        State("hands on hips", SPLITS | ON_HIPS, -8),
        State("legs turned about the pelvis", TURNED_SPLITS, 4, 6, 45),
        State("noise, turned by 90", SPLITS, -8, yaw=90, noise=2),
        State("facing away, elsewhere", SPLITS, -8, yaw=180, at=(-1, -1)),
    ),
    "hands_on_hips": (
        State("at the hip joints", {"shoulder1": 50, "shoulder2": -70, "elbow": -30}),
        State("on the pelvis", ON_HIPS),
        State("at the waist", {"shoulder1": 58, "shoulder2": -85, "elbow": -5}),
        State("legs apart", ON_HIPS | {"hip_x": -22}),
        State("knees softly bent", ON_HIPS | {"knee": -30, "hip_y": -15}),
        State("trunk turned", ON_HIPS | {"abdomen_z": 12}),
        State("noise, turned by 90", ON_HIPS, yaw=90, noise=3),
        State("facing away, elsewhere", ON_HIPS, yaw=180, at=(1, -1)),
    ),
    "arms_crossed": (
        State("right over left", CROSSED),
        State(
            "left over right",
            CROSSED | {"right_elbow": -50, "left_elbow": -20},
        ),
        State(
            "high before the chest",
            CROSSED | {"right_shoulder2": 15, "left_shoulder2": -5},
        ),
        State(
            "low, at the belly",
            CROSSED
            | {"left_shoulder1": 55, "left_elbow": -60}
            | {"right_shoulder2": -5, "right_elbow": -30},
        ),
        State("legs apart", CROSSED | {"hip_x": -22}),
        State("trunk turned", CROSSED | {"abdomen_z": -25}),
        State("noise, turned by 90", CROSSED, yaw=90, noise=2),
        State("facing away, elsewhere", CROSSED, yaw=180, at=(0, 2)),
    ),
    "one_leg": (
        State("thigh up, weight moved", LEFT_UP, roll=5),
        State("right thigh up", RIGHT_UP, roll=-5),
        State("shank back", {"left_hip_y": 5, "left_knee": -95}, 6, roll=5),
        State("foot 13 cm up", {"left_hip_y": -40, "left_knee": -60}, roll=5),
        State("leg out to the side", {"left_hip_x": -25, "left_knee": -40}, roll=8),
        State("arms out", LEFT_UP | {"shoulder1": -60, "shoulder2": -60}, roll=5),
        State("noise, turned by 90", LEFT_UP, roll=5, yaw=90, noise=3),
        State("facing away", RIGHT_UP | HANGING, roll=-5, yaw=180, at=(1, 1)),
    ),
}

AGAINST: dict[str, tuple[State, ...]] = {
    "kneeling": (
        State("standing"),
        State("crouching", CROUCH),
        State("on one knee", {"right_knee": -95, "left_hip_y": -90, "left_knee": -92}),
        State("sitting on the heels", HEELS),
        State("on all fours", {"hip_y": -90, "knee": -90}, 80),
        State("bowing deeply", {"hip_y": -90, "knee": -122}, 60),
        State(
            "one hand on the floor",
            {
                "knee": -140,
                "hip_y": -88,
                "abdomen_y": 12,
                "abdomen_z": -45,
                "right_hip_x": -8,
                "left_hip_x": -10,
                "right_shoulder1": 19,
                "right_shoulder2": -22,
                "right_elbow": -90,
            },
            24,
            27,
        ),
        State("in the air", KNEEL, lift=0.12),
        State("falling forward, stiff", KNEEL, 30),
        State("falling sideways", KNEEL, roll=50),
        State("lying, knees bent", {"hip_y": -60, "knee": -90}, -90),
        State("lying on the front, knees bent", {"knee": -95}, 90),
        State("sitting, knees up", {"hip_y": -110, "knee": -110}, -10),
        State("lotus", LOTUS, -5),
    ),
    "lotus": (
        State("sitting, legs forward", SIT),
        State("sitting, knees up", {"hip_y": -110, "knee": -120}, -30),
        State(
            "knees up and out",
            {"hip_x": 5, "hip_z": -34, "hip_y": -96, "knee": -97},
            -16,
        ),
        State(
            "squatting wide", {"knee": -140, "hip_y": -95, "hip_z": -60, "hip_x": -25}
        ),
        State("sitting on the heels", HEELS),
        State("on the heels, knees wide", HEELS | {"hip_x": -25}),
        State("straddle", SPLITS | {"hip_z": -40, "knee": -25}, -8),
        State("butterfly, knees up", LOTUS | {"hip_y": -95, "hip_x": 5}, -25),
        State(
            "kneeling wide, seat high",
            {"hip_x": -25, "hip_z": -32, "knee": -122, "hip_y": -30},
        ),
        State("splits", SPLITS, -8),
        State("lotus in the air", LOTUS, -5, lift=0.2),
        State("lotus lying back", LOTUS, -75),
        State("lotus tipped sideways", LOTUS, roll=60),
        State("bowing deeply", LOTUS | {"hip_y": -64, "abdomen_y": -74}, 86),
        State("kneeling", KNEEL),
        State("standing"),
    ),
    "standing_up": (
        State("half squat", HALF_SQUAT, 10),
        State("crouching", CROUCH),
        State("tipping forward", pitch=45),
        State("tipping back", {"knee": -25, "hip_y": -15}, -42),
        State("tipping sideways", roll=30),
        State("leaning 20 degrees, stiff", pitch=20),
        State("jumping", lift=0.1),
        State("bending over", {"abdomen_y": -60, "hip_y": -40}, 75),
        State("kneeling", KNEEL),
        State("sitting", SIT),
        State("lying on the back", {}, -90),
        State("upside down", {}, 180),
        State("lotus", LOTUS, -5),
    ),
    "arms_raised": (
        State("arms down", HANGING),
        State("right arm only", {f"right_{k}": v for k, v in RAISED.items()}),
        State("left arm only", {f"left_{k}": v for k, v in RAISED.items()}),
        State("out to the sides", {"shoulder1": -60, "shoulder2": -60, "elbow": -60}),
        State("half raised", {"shoulder1": -60, "shoulder2": -60}),
        State("straight ahead", {"shoulder1": 30, "shoulder2": 30, "elbow": -90}),
        State("hands at the face", {"shoulder1": 20, "shoulder2": 30}),
        State("hands before the face", {"shoulder1": -85, "shoulder2": 30}),
        State("kneeling", KNEEL | RAISED),
        State("half squat", HALF_SQUAT | RAISED, 10),
        State("tipping over", RAISED, 45),
        State("jumping", RAISED, lift=0.12),
        State("lying on the back", RAISED, -90),
    ),
    "splits": (
        State("legs straight forward", SIT),
        State("straddle, 60 degrees", {"hip_z": -30, "hip_y": -85}, -4),
        State("legs 90 degrees apart", SPLITS | {"hip_z": -44}, -8),
        State("legs wide apart, one ahead", CONTORTED, -9, 3, 15),
        State("straddle, knees bent", SPLITS | {"knee": -60}, -8),
        State("one knee bent", SPLITS | {"left_knee": -70}, -8),
        State("one leg forward", SPLITS | {"left_hip_z": 0, "left_hip_x": 0}, -8),
        State(
            "front split",
            {"right_hip_y": -105, "left_hip_y": 20, "abdomen_y": 30},
            15,
        ),
        State("feet high", SPLITS | {"hip_y": -105}, -8),
        State("feet 19 cm up", SPLITS | {"hip_y": -85, "abdomen_y": 0}),
        State("seated, knees bent", SPLITS | {"hip_y": -88, "knee": -45}, -8),
        State("pelvis high, legs apart", {"hip_x": -25, "hip_z": -60, "hip_y": -35}),
        State("splits in the air", SPLITS, -8, lift=0.15),
        State("lying back", SPLITS, -70),
        State("lying on the front", SPLITS | {"hip_y": -10}, 90),
        State(
            "bowing deeply",
            SPLITS
            | {"hip_y": -76, "abdomen_y": -74}
            | {"shoulder1": -20, "shoulder2": -60},
            84,
        ),
        State("standing, legs apart", {"hip_x": -25}),
        State("lotus", LOTUS, -5),
    ),
    "hands_on_hips": (
        State("arms hanging", HANGING),
        State("straight down", {"shoulder1": 30, "shoulder2": -45, "elbow": -75}),
        State("beside the hips", {"shoulder1": 35, "shoulder2": -75, "elbow": -30}),
        State("on the chest", {"shoulder1": 50, "shoulder2": -20, "elbow": 15}),
        State("on the belly", {"shoulder1": 55, "shoulder2": -45}),
        State(
            "right hand only",
            {f"right_{k}": v for k, v in ON_HIPS.items()}
            | {f"left_{k}": v for k, v in HANGING.items()},
        ),
        State("on the ribs", {"shoulder1": 60, "shoulder2": -85, "elbow": 40}),
        State("behind the back", {"shoulder1": 60, "shoulder2": -85, "elbow": -60}),
        State("crossed", CROSSED),
        State("raised", RAISED),
        State("kneeling", KNEEL | ON_HIPS),
        State("half squat", HALF_SQUAT | ON_HIPS, 10),
        State("tipping over", ON_HIPS, 45),
        State("jumping", ON_HIPS, lift=0.12),
    ),
    "arms_crossed": (
        State("hands on the chest", {"shoulder1": 50, "shoulder2": -20, "elbow": 15}),
        State("hands touching", {"shoulder1": 50, "shoulder2": -20, "elbow": 0}),
        State("hands at the face", {"shoulder1": 20, "shoulder2": 30}),
        State(
            "right arm only",
            {k: v for k, v in CROSSED.items() if k.startswith("right")}
            | {f"left_{k}": v for k, v in HANGING.items()},
        ),
        State(
            "crossed before the hips",
            {"shoulder1": 60, "right_shoulder2": -5, "right_elbow": -85}
            | {"left_shoulder2": -5, "left_elbow": -50},
        ),
        State("arms ahead, apart", {"shoulder1": 20, "shoulder2": 10, "elbow": -80}),
        State(
            "crossed, stretched out",
            {
                "shoulder1": 60,
                "elbow": -90,
                "right_shoulder2": 50,
                "left_shoulder2": 30,
            },
        ),
        State(
            "crossed over the face",
            {
                "right_shoulder1": -55,
                "right_shoulder2": 60,
                "right_elbow": 20,
                "left_shoulder1": -85,
                "left_shoulder2": 55,
                "left_elbow": 0,
            },
        ),
        State("on the hips", ON_HIPS),
        State("hanging", HANGING),
        State("kneeling", KNEEL | CROSSED),
        State("half squat", HALF_SQUAT | CROSSED, 10),
        State("tipping over", CROSSED, 45),
        State("lying on the back", CROSSED, -90),
    ),
    "one_leg": (
        State("on both feet"),
        State("foot 2 cm up", {"left_hip_y": -15, "left_knee": -30}, roll=4),
        State("foot 6 cm up", {"left_hip_y": -28, "left_knee": -45}, roll=4),
        State("a step", STEP),
        State("falling to the lifted side", LEFT_UP, roll=-10),
        State("leaning to the lifted side", LEFT_UP, roll=-3),
        State("falling forward", LEFT_UP, 20, roll=4),
        State("tipping over", LEFT_UP, 45),
        State("hopping", LEFT_UP, roll=4, lift=0.08),
        State("squat on one leg", HALF_SQUAT | {"left_hip_y": -100}, 10, roll=4),
        State("on one knee", {"right_knee": -95, "left_hip_y": -90, "left_knee": -92}),
        State("on a knee, leg out", {"right_knee": -95, "left_hip_y": -70}),
        State("kneeling", KNEEL),
        State("lying, one leg up", LEFT_UP, -90),
    ),
}
