"""States built by hand for and against each humanoid goal, near misses among them.

An example is joint angles in degrees, how the body is turned, and where it stands; it
lies on the floor with its lowest point, unless lifted.
"""

from dataclasses import dataclass, field

import numpy as np

from vlmrm_exp.envs.poses import Pose, PoseLibrary, quaternion


@dataclass(frozen=True)
class Example:
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

    def state(self, library: PoseLibrary) -> np.ndarray:
        """(47,), at rest."""
        angles = library.angles(Pose("", self.pose))
        if self.noise:
            rng = np.random.default_rng(0)
            angles += np.deg2rad(rng.normal(0, self.noise, angles.shape))
        turned = quaternion(self.yaw, self.pitch, self.roll)
        state = library.place(angles, turned)
        state[:2] = self.at
        state[2] += self.lift
        return state


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
ON_ONE_KNEE = {"right_knee": -95, "left_hip_y": -90, "left_knee": -92}
HEELS = {"knee": -150, "hip_y": -60}

FOR: dict[str, tuple[Example, ...]] = {
    "kneeling": (
        Example("thighs upright", KNEEL),
        Example("hands raised", KNEEL | RAISED),
        Example("seat a little back", {"knee": -120, "hip_y": -25}, -4),
        Example("half way to the heels", {"knee": -140, "hip_y": -40}),
        Example("knees apart", {"knee": -95, "hip_x": -22}),
        Example("bowing a little", {"knee": -110, "hip_y": -40}, 22),
        Example("noise, turned by 90", KNEEL, yaw=90, noise=2),
        Example("facing away, elsewhere", KNEEL | HANGING, yaw=180, at=(-1, 0.5)),
    ),
    "lotus": (
        Example("feet together", LOTUS, -5),
        Example("knees wide", LOTUS | {"hip_z": -60, "hip_y": -64, "abdomen_y": 0}),
        Example(
            "leaning back",
            {"hip_x": -22, "hip_z": -60, "hip_y": -39, "knee": -160, "abdomen_y": -10},
            -12,
        ),
        Example("hands on knees", LOTUS | {"shoulder1": 20, "elbow": -60}, -5),
        Example("arms raised", LOTUS | RAISED, -5),
        Example("bowing", LOTUS | {"abdomen_y": -25}, 5),
        Example("noise, turned by 90", LOTUS, -5, yaw=90, noise=2),
        Example("facing away, elsewhere", LOTUS | HANGING, -5, yaw=180, at=(2, 1)),
    ),
    "standing_up": (
        Example("straight"),
        Example("arms hanging", HANGING),
        Example("legs apart", {"hip_x": -22}),
        Example("knees softly bent", {"knee": -35, "hip_y": -18}),
        Example("a step", STEP),
        Example("leaning 8 degrees", pitch=8),
        Example("on one leg", LEFT_UP, roll=4),
        Example("noise, elsewhere", HANGING, yaw=90, at=(-2, 1), noise=3),
    ),
    "arms_raised": (
        Example("up, elbows bent", RAISED),
        Example("up and out", {"shoulder1": -85, "shoulder2": 0, "elbow": -60}),
        Example("to the front", {"shoulder1": -60, "shoulder2": 25, "elbow": -55}),
        Example("hands together", {"shoulder1": -85, "shoulder2": 40, "elbow": -40}),
        Example("legs apart", RAISED | {"hip_x": -22}),
        Example("high", {"shoulder1": -85, "shoulder2": 20, "elbow": -90}),
        Example("noise, turned by 90", RAISED, yaw=90, noise=4),
        Example("facing away, elsewhere", RAISED, yaw=180, at=(1, 1)),
    ),
    "splits": (
        Example("upright", SPLITS, -8),
        Example("arms raised", SPLITS | RAISED, -8),
        Example("leaning forward", SPLITS | {"hip_y": -75, "abdomen_y": 0}, 10),
        Example("knees a little bent", SPLITS | {"knee": -18, "hip_y": -72}, -6),
        Example("legs 104 degrees apart", SPLITS | {"hip_z": -52}, -8),
        Example("hands on hips", SPLITS | ON_HIPS, -8),
        Example("legs turned about the pelvis", TURNED_SPLITS, 4, 6, 45),
        Example("noise, turned by 90", SPLITS, -8, yaw=90, noise=2),
        Example("facing away, elsewhere", SPLITS, -8, yaw=180, at=(-1, -1)),
    ),
    "hands_on_hips": (
        Example("at the hip joints", {"shoulder1": 50, "shoulder2": -70, "elbow": -30}),
        Example("on the pelvis", ON_HIPS),
        Example("at the waist", {"shoulder1": 58, "shoulder2": -85, "elbow": -5}),
        Example("legs apart", ON_HIPS | {"hip_x": -22}),
        Example("knees softly bent", ON_HIPS | {"knee": -30, "hip_y": -15}),
        Example("trunk turned", ON_HIPS | {"abdomen_z": 12}),
        Example("noise, turned by 90", ON_HIPS, yaw=90, noise=3),
        Example("facing away, elsewhere", ON_HIPS, yaw=180, at=(1, -1)),
    ),
    "arms_crossed": (
        Example("right over left", CROSSED),
        Example(
            "left over right",
            CROSSED | {"right_elbow": -50, "left_elbow": -20},
        ),
        Example(
            "high before the chest",
            CROSSED | {"right_shoulder2": 15, "left_shoulder2": -5},
        ),
        Example(
            "low, at the belly",
            CROSSED
            | {"left_shoulder1": 55, "left_elbow": -60}
            | {"right_shoulder2": -5, "right_elbow": -30},
        ),
        Example("legs apart", CROSSED | {"hip_x": -22}),
        Example("trunk turned", CROSSED | {"abdomen_z": -25}),
        Example("noise, turned by 90", CROSSED, yaw=90, noise=2),
        Example("facing away, elsewhere", CROSSED, yaw=180, at=(0, 2)),
    ),
    "one_leg": (
        Example("thigh up, weight moved", LEFT_UP, roll=5),
        Example("right thigh up", RIGHT_UP, roll=-5),
        Example("shank back", {"left_hip_y": 5, "left_knee": -95}, 6, roll=5),
        Example("foot 13 cm up", {"left_hip_y": -40, "left_knee": -60}, roll=5),
        Example("leg out to the side", {"left_hip_x": -25, "left_knee": -40}, roll=8),
        Example("arms out", LEFT_UP | {"shoulder1": -60, "shoulder2": -60}, roll=5),
        Example("noise, turned by 90", LEFT_UP, roll=5, yaw=90, noise=3),
        Example("facing away", RIGHT_UP | HANGING, roll=-5, yaw=180, at=(1, 1)),
    ),
}

AGAINST: dict[str, tuple[Example, ...]] = {
    "kneeling": (
        Example("standing"),
        Example("crouching", CROUCH),
        Example(
            "on one knee", {"right_knee": -95, "left_hip_y": -90, "left_knee": -92}
        ),
        Example("sitting on the heels", HEELS),
        Example("on all fours", {"hip_y": -90, "knee": -90}, 80),
        Example("bowing deeply", {"hip_y": -90, "knee": -122}, 60),
        Example(
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
        Example("in the air", KNEEL, lift=0.12),
        Example("falling forward, stiff", KNEEL, 30),
        Example("falling sideways", KNEEL, roll=50),
        Example("lying, knees bent", {"hip_y": -60, "knee": -90}, -90),
        Example("lying on the front, knees bent", {"knee": -95}, 90),
        Example("sitting, knees up", {"hip_y": -110, "knee": -110}, -10),
        Example("lotus", LOTUS, -5),
    ),
    "lotus": (
        Example("sitting, legs forward", SIT),
        Example("sitting, knees up", {"hip_y": -110, "knee": -120}, -30),
        Example(
            "knees up and out",
            {"hip_x": 5, "hip_z": -34, "hip_y": -96, "knee": -97},
            -16,
        ),
        Example(
            "squatting wide", {"knee": -140, "hip_y": -95, "hip_z": -60, "hip_x": -25}
        ),
        Example("sitting on the heels", HEELS),
        Example("on the heels, knees wide", HEELS | {"hip_x": -25}),
        Example("straddle", SPLITS | {"hip_z": -40, "knee": -25}, -8),
        Example("butterfly, knees up", LOTUS | {"hip_y": -95, "hip_x": 5}, -25),
        Example(
            "kneeling wide, seat high",
            {"hip_x": -25, "hip_z": -32, "knee": -122, "hip_y": -30},
        ),
        Example("splits", SPLITS, -8),
        Example("lotus in the air", LOTUS, -5, lift=0.2),
        Example("lotus lying back", LOTUS, -75),
        Example("lotus tipped sideways", LOTUS, roll=60),
        Example("bowing deeply", LOTUS | {"hip_y": -64, "abdomen_y": -74}, 86),
        Example("kneeling", KNEEL),
        Example("standing"),
    ),
    "standing_up": (
        Example("half squat", HALF_SQUAT, 10),
        Example("crouching", CROUCH),
        Example("tipping forward", pitch=45),
        Example("tipping back", {"knee": -25, "hip_y": -15}, -42),
        Example("tipping sideways", roll=30),
        Example("leaning 20 degrees, stiff", pitch=20),
        Example("jumping", lift=0.1),
        Example("bending over", {"abdomen_y": -60, "hip_y": -40}, 75),
        Example("kneeling", KNEEL),
        Example("sitting", SIT),
        Example("lying on the back", {}, -90),
        Example("upside down", {}, 180),
        Example("lotus", LOTUS, -5),
    ),
    "arms_raised": (
        Example("arms down", HANGING),
        Example("right arm only", {f"right_{k}": v for k, v in RAISED.items()}),
        Example("left arm only", {f"left_{k}": v for k, v in RAISED.items()}),
        Example("out to the sides", {"shoulder1": -60, "shoulder2": -60, "elbow": -60}),
        Example("half raised", {"shoulder1": -60, "shoulder2": -60}),
        Example("straight ahead", {"shoulder1": 30, "shoulder2": 30, "elbow": -90}),
        Example("hands at the face", {"shoulder1": 20, "shoulder2": 30}),
        Example("hands before the face", {"shoulder1": -85, "shoulder2": 30}),
        Example("kneeling", KNEEL | RAISED),
        Example("half squat", HALF_SQUAT | RAISED, 10),
        Example("tipping over", RAISED, 45),
        Example("jumping", RAISED, lift=0.12),
        Example("lying on the back", RAISED, -90),
    ),
    "splits": (
        Example("legs straight forward", SIT),
        Example("straddle, 60 degrees", {"hip_z": -30, "hip_y": -85}, -4),
        Example("legs 90 degrees apart", SPLITS | {"hip_z": -44}, -8),
        Example("legs wide apart, one ahead", CONTORTED, -9, 3, 15),
        Example("straddle, knees bent", SPLITS | {"knee": -60}, -8),
        Example("one knee bent", SPLITS | {"left_knee": -70}, -8),
        Example("one leg forward", SPLITS | {"left_hip_z": 0, "left_hip_x": 0}, -8),
        Example(
            "front split",
            {"right_hip_y": -105, "left_hip_y": 20, "abdomen_y": 30},
            15,
        ),
        Example("feet high", SPLITS | {"hip_y": -105}, -8),
        Example("feet 19 cm up", SPLITS | {"hip_y": -85, "abdomen_y": 0}),
        Example("seated, knees bent", SPLITS | {"hip_y": -88, "knee": -45}, -8),
        Example("pelvis high, legs apart", {"hip_x": -25, "hip_z": -60, "hip_y": -35}),
        Example("splits in the air", SPLITS, -8, lift=0.15),
        Example("lying back", SPLITS, -70),
        Example("lying on the front", SPLITS | {"hip_y": -10}, 90),
        Example(
            "bowing deeply",
            SPLITS
            | {"hip_y": -76, "abdomen_y": -74}
            | {"shoulder1": -20, "shoulder2": -60},
            84,
        ),
        Example("standing, legs apart", {"hip_x": -25}),
        Example("lotus", LOTUS, -5),
    ),
    "hands_on_hips": (
        Example("arms hanging", HANGING),
        Example("straight down", {"shoulder1": 30, "shoulder2": -45, "elbow": -75}),
        Example("beside the hips", {"shoulder1": 35, "shoulder2": -75, "elbow": -30}),
        Example("on the chest", {"shoulder1": 50, "shoulder2": -20, "elbow": 15}),
        Example("on the belly", {"shoulder1": 55, "shoulder2": -45}),
        Example(
            "right hand only",
            {f"right_{k}": v for k, v in ON_HIPS.items()}
            | {f"left_{k}": v for k, v in HANGING.items()},
        ),
        Example("on the ribs", {"shoulder1": 60, "shoulder2": -85, "elbow": 40}),
        Example("behind the back", {"shoulder1": 60, "shoulder2": -85, "elbow": -60}),
        Example("crossed", CROSSED),
        Example("raised", RAISED),
        Example("kneeling", KNEEL | ON_HIPS),
        Example("half squat", HALF_SQUAT | ON_HIPS, 10),
        Example("tipping over", ON_HIPS, 45),
        Example("jumping", ON_HIPS, lift=0.12),
    ),
    "arms_crossed": (
        Example("hands on the chest", {"shoulder1": 50, "shoulder2": -20, "elbow": 15}),
        Example("hands touching", {"shoulder1": 50, "shoulder2": -20, "elbow": 0}),
        Example("hands at the face", {"shoulder1": 20, "shoulder2": 30}),
        Example(
            "right arm only",
            {k: v for k, v in CROSSED.items() if k.startswith("right")}
            | {f"left_{k}": v for k, v in HANGING.items()},
        ),
        Example(
            "crossed before the hips",
            {"shoulder1": 60, "right_shoulder2": -5, "right_elbow": -85}
            | {"left_shoulder2": -5, "left_elbow": -50},
        ),
        Example("arms ahead, apart", {"shoulder1": 20, "shoulder2": 10, "elbow": -80}),
        Example(
            "crossed, stretched out",
            {
                "shoulder1": 60,
                "elbow": -90,
                "right_shoulder2": 50,
                "left_shoulder2": 30,
            },
        ),
        Example(
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
        Example("on the hips", ON_HIPS),
        Example("hanging", HANGING),
        Example("kneeling", KNEEL | CROSSED),
        Example("half squat", HALF_SQUAT | CROSSED, 10),
        Example("tipping over", CROSSED, 45),
        Example("lying on the back", CROSSED, -90),
    ),
    "one_leg": (
        Example("on both feet"),
        Example("foot 2 cm up", {"left_hip_y": -15, "left_knee": -30}, roll=4),
        Example("foot 6 cm up", {"left_hip_y": -28, "left_knee": -45}, roll=4),
        Example("a step", STEP),
        Example("falling to the lifted side", LEFT_UP, roll=-10),
        Example("leaning to the lifted side", LEFT_UP, roll=-3),
        Example("falling forward", LEFT_UP, 20, roll=4),
        Example("tipping over", LEFT_UP, 45),
        Example("hopping", LEFT_UP, roll=4, lift=0.08),
        Example("squat on one leg", HALF_SQUAT | {"left_hip_y": -100}, 10, roll=4),
        Example(
            "on one knee", {"right_knee": -95, "left_hip_y": -90, "left_knee": -92}
        ),
        Example("on a knee, leg out", {"right_knee": -95, "left_hip_y": -70}),
        Example("kneeling", KNEEL),
        Example("lying, one leg up", LEFT_UP, -90),
    ),
}
