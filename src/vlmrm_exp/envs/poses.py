"""A library of humanoid body poses, and the features that tell them apart.

The eight tasks' poses stand here among many others. Angles were set by hand within the
joint limits and looked at in the picture. The embedded models learn from states drawn
around these poses, and captions say how near a state is to each.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import mujoco
import numpy as np
import yaml

from vlmrm_exp.envs.humanoid_model import (
    NUM_QPOS,
    STATE_SIZE,
    humanoid_spec,
)

MOMENT = 5  # physics steps of 3 ms
VISITED = Path(__file__).with_name("visited.npz")
"""Positions (B, 24) that agents passed through, by scripts/visited_states.py."""

# Degrees. A plain name means both sides alike; left and right mirror each other.
Angles = dict[str, float]


@dataclass(frozen=True)
class Legs:
    """Trunk and legs: joint angles in degrees and how the torso is turned."""

    name: str = ""
    angles: Angles = field(default_factory=dict)
    pitch: float = 0.0
    """Degrees; 90 is face down."""
    roll: float = 0.0
    """Degrees; 90 is on the right side."""


@dataclass(frozen=True)
class Arms:
    """Both arms: joint angles in degrees."""

    name: str
    angles: Angles = field(default_factory=dict)


POSES_FILE = Path(__file__).with_name("poses.yaml")
_HELD = yaml.safe_load(POSES_FILE.read_text(encoding="utf-8"))
LEGS = tuple(Legs(**pose) for pose in _HELD["legs"])
ARMS = tuple(Arms(**pose) for pose in _HELD["arms"])
GOAL_POSES = {
    task: tuple(Legs(**pose) for pose in poses)
    for task, poses in _HELD["goals"].items()
}
"""Poses that meet the predicates, by task; set by hand."""

Pose = TypeVar("Pose", Legs, Arms)

LEG_NAMES = tuple(dict.fromkeys(legs.name for legs in LEGS))
ARM_NAMES = tuple(dict.fromkeys(arms.name for arms in ARMS))
TASK_LEGS = ("standing", "one_leg", "kneeling", "lotus", "splits")
"""Leg poses that the eight tasks ask for."""

# What a state looks like, whichever way the body faces on the floor. A unit of each
# feature is a difference that a person would remark on: 0.2 m, a third of a right
# angle's sine, 40 degrees.
_HEIGHT, _SLOPE, _ANGLE, _HAND = 0.2, 0.35, 0.7, 0.2


class PoseLibrary:
    """Builds states from poses, and measures states against poses."""

    def __init__(self) -> None:
        self.model = humanoid_spec().compile()
        self._data = mujoco.MjData(self.model)
        names = [self.model.joint(i).name for i in range(1, self.model.njnt)]
        self._right = np.array([name.startswith("right_") for name in names])
        self._mirror = _mirror(names)
        self._leg_features = self._prototypes(LEGS)
        self._arm_features = self._prototypes(ARMS)

    def angles(self, pose: Legs | Arms) -> np.ndarray:
        """Joint angles (17,) in radians, in the order of qpos[7:]."""
        out = np.zeros(NUM_QPOS - 7)
        for key, degrees in pose.angles.items():
            joint = key.removeprefix("right_").removeprefix("left_")
            sides = [key[: -len(joint)]] if joint != key else ["right_", "left_"]
            for side in sides if not joint.startswith("abdomen") else [""]:
                # The left shoulders' axes are mirrored, the other joints' are not.
                sign = -1 if side == "left_" and joint.startswith("shoulder") else 1
                address = self.model.joint(side + joint).qposadr[0] - 7
                out[address] = sign * np.deg2rad(degrees)
        return out

    def state(self, legs: Legs, arms: Arms) -> np.ndarray:
        """The state (47,) of a pose at rest on the floor, facing forward."""
        return self.place(
            self.angles(legs) + self.angles(arms), quaternion(0, legs.pitch, legs.roll)
        )

    def place(self, angles: np.ndarray, quaternion: np.ndarray) -> np.ndarray:
        """A state with the body's lowest point on the floor; angles are clipped."""
        low, high = self.model.jnt_range[1:].T
        state = np.zeros(STATE_SIZE)
        state[3:7] = quaternion
        state[7:NUM_QPOS] = np.clip(angles, low, high)
        self._data.qpos[:] = state[:NUM_QPOS]
        mujoco.mj_kinematics(self.model, self._data)
        state[2] = -self._lowest()
        return state

    def settle(self, state: np.ndarray, torque: np.ndarray, moments: int) -> np.ndarray:
        """The state after as many moments of 15 ms under constant torque (17,)."""
        mujoco.mj_resetData(self.model, self._data)
        self._data.qpos[:], self._data.qvel[:] = state[:NUM_QPOS], state[NUM_QPOS:]
        self._data.ctrl[:] = torque
        mujoco.mj_step(self.model, self._data, nstep=moments * MOMENT)
        return np.concatenate((self._data.qpos, self._data.qvel))

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """A varied state: a pose, something between two, or a fall.

        Half of the varied poses are caught while physics settles them, so that states
        which an agent passes through are covered and not only those a person would set.
        """
        kind = rng.random()
        if kind < 0.20:
            return self.fall(rng)
        if kind > 0.75:
            return self.still(rng)
        # Every episode starts standing, and half of the tasks end on both feet.
        legs = LEGS[0 if rng.random() < 0.25 else rng.integers(len(LEGS))]
        # The way to a goal is what an agent has to find.
        if rng.random() < 0.4:
            legs = _of_name(LEGS, str(rng.choice(TASK_LEGS)), rng)
        arms = ARMS[rng.integers(len(ARMS))]
        angles = self.angles(legs) + self.angles(arms)
        # An agent moves its sides apart: a third of the right legs, and of the right
        # arms, are of another pose (and go beyond it where the pose is a mixture).
        for pose, poses in ((legs, LEGS), (arms, ARMS)):
            if rng.random() < 1 / 3:
                other = self.angles(poses[rng.integers(len(poses))])
                angles += self._right * (other - self.angles(pose))
        pitch, roll = legs.pitch, legs.roll
        if kind < 0.40:
            other, share = LEGS[rng.integers(len(LEGS))], rng.random()
            angles += share * (self.angles(other) - self.angles(legs))
            pitch += share * (other.pitch - pitch)
            roll += share * (other.roll - roll)
        angles += rng.normal(0, rng.choice([0.03, 0.1, 0.2, 0.35]), len(angles))
        yaw = rng.normal(0, 15) if rng.random() < 0.7 else rng.uniform(-180, 180)
        tilt = rng.normal(0, 6, 2)
        state = self.place(angles, quaternion(yaw, pitch + tilt[0], roll + tilt[1]))
        state[:2] += rng.normal(0, 0.25, 2).clip(-0.7, 0.7)
        state[2] += rng.uniform(0, 0.06)
        if rng.random() < 0.5:
            torque = rng.normal(0, 0.1, len(angles)).clip(-0.4, 0.4)
            state = self.settle(state, torque, int(rng.integers(1, 40)))
        return state

    def still(self, rng: np.random.Generator) -> np.ndarray:
        """A pose as a person would set it, on the floor and nearly exact.

        Half of them have legs that a task asks for: those goals are narrow, and varied
        poses hardly ever meet them.
        """
        legs = LEGS[rng.integers(len(LEGS))]
        if rng.random() < 0.5:
            legs = _of_name(LEGS, str(rng.choice(TASK_LEGS)), rng)
        arms = _of_name(ARMS, str(rng.choice(ARM_NAMES)), rng)
        angles = self.angles(legs) + self.angles(arms)
        angles += rng.normal(0, rng.choice([0.01, 0.03, 0.06]), len(angles))
        yaw = rng.normal(0, 15) if rng.random() < 0.7 else rng.uniform(-180, 180)
        tilt = rng.normal(0, 1.5, 2)
        state = self.place(
            angles, quaternion(yaw, legs.pitch + tilt[0], legs.roll + tilt[1])
        )
        state[:2] += rng.normal(0, 0.25, 2).clip(-0.7, 0.7)
        if rng.random() < 0.3:
            torque = rng.normal(0, 0.1, len(angles)).clip(-0.4, 0.4)
            state = self.settle(state, torque, int(rng.integers(1, 10)))
        return state

    def visited(self, rng: np.random.Generator) -> np.ndarray:
        """A state that an agent passed through, or its mirror image, varied a little.

        Agents find poses that no person would set and noise does not meet, and stay
        where a model that has never seen them takes them for a goal.
        """
        qpos = self._visited[rng.integers(len(self._visited))].astype(float)
        if rng.random() < 0.5:
            qpos = self._mirrored(qpos)
        angles = qpos[7:] + rng.normal(0, rng.choice([0.0, 0.05, 0.15]), len(qpos) - 7)
        yaw = rng.normal(0, 15) if rng.random() < 0.7 else rng.uniform(-180, 180)
        turned = np.empty(4)
        mujoco.mju_mulQuat(turned, quaternion(yaw, 0, 0), qpos[3:7])
        mujoco.mju_normalize4(turned)  # half precision
        state = self.place(angles, turned)
        state[:2] += rng.normal(0, 0.25, 2).clip(-0.7, 0.7)
        return state

    def _mirrored(self, qpos: np.ndarray) -> np.ndarray:
        """The mirror image of a position (24,), left for right."""
        angles = qpos[7:]
        mirrored = np.concatenate((qpos[:7], self._mirror @ angles))
        mirrored[[1, 4, 6]] *= -1  # to the left; turned about ahead and about up
        return mirrored

    @cached_property
    def _visited(self) -> np.ndarray:
        return np.load(VISITED)["qpos"]

    def fall(self, rng: np.random.Generator) -> np.ndarray:
        """What random torques, changed a few times, make of a standing body."""
        state = self.place(self.angles(LEGS[0]), quaternion(0, 0, 0))
        state[:NUM_QPOS] += rng.uniform(-0.01, 0.01, NUM_QPOS)
        for _ in range(rng.integers(1, 5)):
            torque = rng.uniform(-0.4, 0.4, NUM_QPOS - 7) * rng.random()
            state = self.settle(state, torque, int(rng.integers(1, 25)))
        return state

    def leg_distances(self, states: np.ndarray) -> np.ndarray:
        """Squared distance of states (B, 47) to each of LEG_NAMES: (B, L)."""
        features = np.stack([self._leg_feature(state) for state in states])
        return _nearest(features, self._leg_features, [p.name for p in LEGS], LEG_NAMES)

    def arm_distances(self, states: np.ndarray) -> np.ndarray:
        """Squared distance of states (B, 47) to each of ARM_NAMES: (B, A)."""
        features = np.stack([self._arm_feature(state) for state in states])
        return _nearest(features, self._arm_features, [p.name for p in ARMS], ARM_NAMES)

    def _prototypes(self, poses: Sequence[Legs] | Sequence[Arms]) -> np.ndarray:
        states = [
            self.state(p, ARMS[0]) if isinstance(p, Legs) else self.state(LEGS[0], p)
            for p in poses
        ]
        feature = self._leg_feature if isinstance(poses[0], Legs) else self._arm_feature
        return np.stack([feature(state) for state in states])

    def _leg_feature(self, state: np.ndarray) -> np.ndarray:
        """Heights, the direction of gravity in the torso, and the legs' angles."""
        data = self._forward(state)
        angle = {j: state[self.model.joint(j).qposadr[0]] for j in _LEG_JOINTS}
        heights = [data.body(b).xpos[2] for b in ("torso", "pelvis")]
        heights += [
            data.body(f"{side}_{part}").xpos[2]
            for part in ("shin", "foot")
            for side in ("right", "left")
        ]
        gravity = data.body("torso").xmat.reshape(3, 3)[2]
        return np.concatenate(
            (
                np.array(heights) / _HEIGHT,
                gravity / _SLOPE,
                np.array([angle[j] for j in _LEG_JOINTS]) / _ANGLE,
            )
        )

    def _arm_feature(self, state: np.ndarray) -> np.ndarray:
        """Hands and elbows in the torso's frame."""
        data = self._forward(state)
        torso, turn = data.body("torso").xpos, data.body("torso").xmat.reshape(3, 3)
        points = [
            data.geom(f"{side}_hand").xpos
            if part == "hand"
            else data.body(f"{side}_lower_arm").xpos
            for part in ("hand", "elbow")
            for side in ("right", "left")
        ]
        return ((np.array(points) - torso) @ turn / _HAND).ravel()

    def _forward(self, state: np.ndarray) -> mujoco.MjData:
        self._data.qpos[:] = state[:NUM_QPOS]
        mujoco.mj_kinematics(self.model, self._data)
        return self._data

    def _lowest(self) -> float:
        """Height of the body's lowest point; every part is a sphere or a capsule."""
        lowest = np.inf
        for g in range(1, self.model.ngeom):
            radius, half = self.model.geom_size[g, :2]
            capsule = self.model.geom_type[g] == mujoco.mjtGeom.mjGEOM_CAPSULE
            reach = radius + half * abs(self._data.geom_xmat[g, 8]) * capsule
            lowest = min(lowest, self._data.geom_xpos[g, 2] - reach)
        return lowest


_LEG_JOINTS = tuple(
    f"{side}_{joint}"
    for side in ("right", "left")
    for joint in ("hip_x", "hip_z", "hip_y", "knee")
)


def _mirror(names: Sequence[str]) -> np.ndarray:
    """What turns joint angles (17,) into those of the mirrored body: (17, 17)."""
    matrix = np.zeros((len(names), len(names)))
    swap = {"right": "left", "left": "right"}
    for i, name in enumerate(names):
        side, _, joint = name.partition("_")
        # Hips, knees and elbows are built as mirror images, shoulders and trunk not.
        alike = joint == "y" or (side in swap and not joint.startswith("shoulder"))
        other = f"{swap[side]}_{joint}" if side in swap else name
        matrix[names.index(other), i] = 1 if alike else -1
    return matrix


def _of_name(poses: Sequence[Pose], name: str, rng: np.random.Generator) -> Pose:
    """One of the poses of that name."""
    same = [pose for pose in poses if pose.name == name]
    return same[rng.integers(len(same))]


def _nearest(
    features: np.ndarray,
    prototypes: np.ndarray,
    owners: Sequence[str],
    names: Sequence[str],
) -> np.ndarray:
    squared = ((features[:, None] - prototypes[None]) ** 2).sum(axis=-1)
    columns = [
        squared[:, [i for i, o in enumerate(owners) if o == n]].min(1) for n in names
    ]
    return np.stack(columns, axis=1)


def quaternion(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """Turn by roll, then pitch, then yaw, in degrees: (4,)."""
    quaternion = np.empty(4)
    mujoco.mju_euler2Quat(quaternion, np.deg2rad([yaw, pitch, roll]), "zyx")
    return quaternion
