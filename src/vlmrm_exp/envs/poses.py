"""A library of humanoid body poses, and the features that tell them apart.

The eight tasks' poses stand here among many others. Angles were set by hand within the
joint limits and looked at in the picture. The embedded models learn from states drawn
around these poses, and captions say how near a state is to each.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import mujoco
import numpy as np
import yaml

from vlmrm_exp.envs.humanoid_model import NUM_QPOS, STATE_SIZE, humanoid_spec

MOMENT = 5  # physics steps of 3 ms
VISITED = Path(__file__).with_name("visited.npz")
"""Positions (B, 24) that agents passed through, by scripts/visited_states.py."""


@dataclass(frozen=True)
class Pose:
    """Joint angles and, of legs, how the torso is turned: all in degrees."""

    name: str = ""
    angles: dict[str, float] = field(default_factory=dict)
    """By joint; one without a side means both sides, mirrored."""
    pitch: float = 0.0  # 90 is face down
    roll: float = 0.0  # 90 is on the right side


POSES_FILE = Path(__file__).with_name("poses.yaml")
_HELD = yaml.safe_load(POSES_FILE.read_text(encoding="utf-8"))
LEGS = tuple(Pose(**pose) for pose in _HELD["legs"])
ARMS = tuple(Pose(**pose) for pose in _HELD["arms"])
GOAL_POSES = {k: tuple(Pose(**p) for p in v) for k, v in _HELD["goals"].items()}
"""Poses that meet the predicates, by task; set by hand."""

LEG_NAMES = tuple(dict.fromkeys(legs.name for legs in LEGS))
ARM_NAMES = tuple(dict.fromkeys(arms.name for arms in ARMS))
TASK_LEGS = ("standing", "one_leg", "kneeling", "lotus", "splits")
"""Leg poses that the eight tasks ask for."""

# What a state looks like, whichever way the body faces on the floor. A unit of each
# feature is a difference that a person would remark on: 0.2 m, a third of a right
# angle's sine, 40 degrees.
_HEIGHT, _SLOPE, _ANGLE, _HAND = 0.2, 0.35, 0.7, 0.2
_SIDES = ("right", "left")
_LEG_PARTS = ["torso", "pelvis", "right_shin", "left_shin", "right_foot", "left_foot"]
_LEG_JOINTS = [f"{s}_{j}" for s in _SIDES for j in ("hip_x", "hip_z", "hip_y", "knee")]


class PoseLibrary:
    """Builds states from poses, and measures states against poses."""

    def __init__(self) -> None:
        self.model = humanoid_spec().compile()
        self._data = mujoco.MjData(self.model)
        names = [self.model.joint(i).name for i in range(1, self.model.njnt)]
        self._right = np.array([name.startswith("right_") for name in names])
        self._mirror = _mirror(names)
        self._legs = self._leg_features([self.state(legs, ARMS[0]) for legs in LEGS])
        self._arms = self._arm_features([self.state(LEGS[0], arms) for arms in ARMS])

    def angles(self, pose: Pose) -> np.ndarray:
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

    def state(self, legs: Pose, arms: Pose) -> np.ndarray:
        """The state (47,) of a pose at rest on the floor, facing forward."""
        angles = self.angles(legs) + self.angles(arms)
        return self.place(angles, quaternion(0, legs.pitch, legs.roll))

    def place(self, angles: np.ndarray, quaternion: np.ndarray) -> np.ndarray:
        """A state with the body's lowest point on the floor; angles are clipped."""
        low, high = self.model.jnt_range[1:].T
        state = np.zeros(STATE_SIZE)
        state[3:7] = quaternion
        state[7:NUM_QPOS] = np.clip(angles, low, high)
        data = self._forward(state)
        # Every part is a sphere or a capsule, which lies along its z axis.
        radius, half, _ = self.model.geom_size[1:].T
        capsule = self.model.geom_type[1:] == mujoco.mjtGeom.mjGEOM_CAPSULE
        reach = radius + half * np.abs(data.geom_xmat[1:, 8]) * capsule
        state[2] = -(data.geom_xpos[1:, 2] - reach).min()
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

        Half of the poses are caught while physics settles them, as agents pass them.
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
        state = self._put(rng, angles, _turn(rng, pitch, roll, 6))
        state[2] += rng.uniform(0, 0.06)
        return self._settled(rng, state, 40) if rng.random() < 0.5 else state

    def still(self, rng: np.random.Generator) -> np.ndarray:
        """A pose as a person would set it, on the floor and nearly exact.

        Half have legs that a task asks for: varied poses hardly ever meet those goals.
        """
        legs = LEGS[rng.integers(len(LEGS))]
        if rng.random() < 0.5:
            legs = _of_name(LEGS, str(rng.choice(TASK_LEGS)), rng)
        arms = _of_name(ARMS, str(rng.choice(ARM_NAMES)), rng)
        angles = self.angles(legs) + self.angles(arms)
        angles += rng.normal(0, rng.choice([0.01, 0.03, 0.06]), len(angles))
        state = self._put(rng, angles, _turn(rng, legs.pitch, legs.roll, 1.5))
        return self._settled(rng, state, 10) if rng.random() < 0.3 else state

    def near_goal(self, i: int, rng: np.random.Generator) -> np.ndarray:
        """A state at or near the goal of the i-th of the eight tasks, in turns.

        Those that miss it are kept: near misses are what a reward has to tell apart.
        """
        poses = list(GOAL_POSES.values())[i % len(GOAL_POSES)]
        pose = poses[rng.integers(len(poses))]
        angles = self.angles(pose)
        angles += rng.normal(0, rng.choice([0.01, 0.03, 0.06, 0.15]), len(angles))
        yaw, tilt = _yaw(rng), rng.normal(0, rng.choice([1, 4]), 2)
        turned = quaternion(yaw, pose.pitch + tilt[0], pose.roll + tilt[1])
        state = self._put(rng, angles, turned)
        return self._settled(rng, state, 20) if rng.random() < 0.3 else state

    def visited(self, rng: np.random.Generator) -> np.ndarray:
        """A state that an agent passed through, or its mirror image, varied a little.

        Agents stay in odd poses that a model which never saw them takes for a goal.
        """
        qpos = self._visited[rng.integers(len(self._visited))].astype(float)
        if rng.random() < 0.5:
            qpos = self._mirrored(qpos)
        angles = qpos[7:] + rng.normal(0, rng.choice([0.0, 0.05, 0.15]), len(qpos) - 7)
        turned = np.empty(4)
        mujoco.mju_mulQuat(turned, quaternion(_yaw(rng), 0, 0), qpos[3:7])
        mujoco.mju_normalize4(turned)  # half precision
        return self._put(rng, angles, turned)

    def _put(
        self, rng: np.random.Generator, angles: np.ndarray, turned: np.ndarray
    ) -> np.ndarray:
        """A state anywhere on the floor."""
        state = self.place(angles, turned)
        state[:2] += rng.normal(0, 0.25, 2).clip(-0.7, 0.7)
        return state

    def _settled(
        self, rng: np.random.Generator, state: np.ndarray, moments: int
    ) -> np.ndarray:
        """The state after fewer than so many moments under weak torque."""
        torque = rng.normal(0, 0.1, NUM_QPOS - 7).clip(-0.4, 0.4)
        return self.settle(state, torque, int(rng.integers(1, moments)))

    def _mirrored(self, qpos: np.ndarray) -> np.ndarray:
        """The mirror image of a position (24,), left for right."""
        mirrored = np.concatenate((qpos[:7], self._mirror @ qpos[7:]))
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
        return _nearest(self._leg_features(states), self._legs, LEGS)

    def arm_distances(self, states: np.ndarray) -> np.ndarray:
        """Squared distance of states (B, 47) to each of ARM_NAMES: (B, A)."""
        return _nearest(self._arm_features(states), self._arms, ARMS)

    def _leg_features(self, states: Iterable[np.ndarray]) -> np.ndarray:
        """Heights, the direction of gravity in the torso, and the legs' angles."""
        features = []
        for state in states:
            data = self._forward(state)
            heights = np.array([data.body(part).xpos[2] for part in _LEG_PARTS])
            gravity = data.body("torso").xmat[6:]
            angles = np.array([data.joint(joint).qpos[0] for joint in _LEG_JOINTS])
            parts = heights / _HEIGHT, gravity / _SLOPE, angles / _ANGLE
            features.append(np.concatenate(parts))
        return np.stack(features)

    def _arm_features(self, states: Iterable[np.ndarray]) -> np.ndarray:
        """Hands and elbows in the torso's frame."""
        features = []
        for state in states:
            data = self._forward(state)
            torso = data.body("torso")
            points = [data.geom(f"{side}_hand").xpos for side in _SIDES]
            points += [data.body(f"{side}_lower_arm").xpos for side in _SIDES]
            placed = (np.array(points) - torso.xpos) @ torso.xmat.reshape(3, 3)
            features.append((placed / _HAND).ravel())
        return np.stack(features)

    def _forward(self, state: np.ndarray) -> mujoco.MjData:
        self._data.qpos[:] = state[:NUM_QPOS]
        mujoco.mj_kinematics(self.model, self._data)
        return self._data


def _yaw(rng: np.random.Generator) -> float:
    """Degrees: mostly forward."""
    return rng.normal(0, 15) if rng.random() < 0.7 else rng.uniform(-180, 180)


def _turn(
    rng: np.random.Generator, pitch: float, roll: float, tilt: float
) -> np.ndarray:
    """Mostly forward, and tilted by so many degrees: (4,)."""
    yaw, more = _yaw(rng), rng.normal(0, tilt, 2)
    return quaternion(yaw, pitch + more[0], roll + more[1])


def _mirror(names: Sequence[str]) -> np.ndarray:
    """What turns joint angles (17,) into those of the mirrored body: (17, 17)."""
    matrix = np.zeros((len(names), len(names)))
    swap = {"right": "left", "left": "right"}
    for i, name in enumerate(names):
        side, _, joint = name.partition("_")
        # Hips, knees and elbows are built as mirror images, shoulders and trunk not.
        opposite = "shoulder" in joint or name in ("abdomen_x", "abdomen_z")
        other = names.index(f"{swap.get(side, side)}_{joint}")
        matrix[other, i] = -1 if opposite else 1
    return matrix


def _of_name(poses: Sequence[Pose], name: str, rng: np.random.Generator) -> Pose:
    """One of the poses of that name."""
    same = [pose for pose in poses if pose.name == name]
    return same[rng.integers(len(same))]


def _nearest(
    features: np.ndarray, of_poses: np.ndarray, poses: Sequence[Pose]
) -> np.ndarray:
    """Squared distance of features (B, F) to the nearest pose of each name, (B, K)."""
    squared = ((features[:, None] - of_poses[None]) ** 2).sum(axis=-1)
    names = [pose.name for pose in poses]
    same = [np.array(names) == name for name in dict.fromkeys(names)]
    return np.stack([squared[:, each].min(axis=1) for each in same], axis=1)


def quaternion(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """Turn by roll, then pitch, then yaw, in degrees: (4,)."""
    quaternion = np.empty(4)
    mujoco.mju_euler2Quat(quaternion, np.deg2rad([yaw, pitch, roll]), "zyx")
    return quaternion
