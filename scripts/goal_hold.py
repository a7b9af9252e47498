"""Measure whether the humanoid can do its tasks, and whether chance can.

    python scripts/goal_hold.py            # five minutes on one idle core
    python scripts/goal_hold.py 10         # physics steps of 3 ms per env step

For each goal: from a state that meets it (the first in tests/goal_states.py; on feet,
turned until its weight is over them), a simple controller within the actuators' limits
is to hold the goal for an episode. A small random search sets it; other start states,
with the noise of a reset, try it. Then, from the standing start: random actions, and
none at all. Prints Markdown tables; without an argument (the paper's 5 physics steps)
it draws docs/images/goals_held.png.
"""

import argparse
import sys
from collections.abc import Callable

import numpy as np
from goal_sheet import COLUMNS, ROOT, cell, markdown, renderer, save, stack, two_views

sys.path.insert(0, str(ROOT / "tests"))
import mujoco  # after vlmrm_exp.envs, which chooses how it draws

from goal_states import FOR
from vlmrm_exp.envs.goals import GOALS, HumanoidGoal
from vlmrm_exp.envs.humanoid import RESET_NOISE
from vlmrm_exp.envs.humanoid_model import NUM_QPOS, STATE_SIZE
from vlmrm_exp.envs.poses import PoseLibrary, quaternion

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("frame_skip", nargs="?", type=int, default=5)
FRAME_SKIP = parser.parse_args().frame_skip  # physics steps of 3 ms
STEPS = 500 // FRAME_SKIP  # env steps of an episode of 1.5 s
TORQUE = 0.4  # limit of every action
TRIES = 150  # candidates of the search, each on TRAIN_STARTS starts
TRAIN_STARTS, TEST_STARTS, ROLLOUTS = 4, 20, 200
LOW = ("kneeling", "lotus", "splits")  # all other tasks are done on feet
TOP = 48  # upper edge of the pictures

Act = Callable[[mujoco.MjData], np.ndarray]


class Springs:
    """Springs to a state's joint angles; hips and trunk counter a shift of weight.

    What it uses stands in a state, and the torque is set once per env step, as an
    agent's is. Its parameters, in this order: logarithms of stiffness (1/rad) and
    damping (s/rad) of legs and trunk, then of the arms, in units of an action; hip
    angle per distance (rad/m) and per speed (rad s/m) of the centre of mass beside the
    feet, ahead and then to the left; and what is added to the 17 joint angles (rad).
    """

    START = np.concatenate((np.log([4, 0.1, 1.5, 0.05]), np.zeros(4 + 17)))
    STEP = np.array([*[0.5] * 4, 1.5, 0.5, 1.5, 0.5, *[0.05] * 17])
    """How far a step of the search goes in each."""

    def __init__(self, model: mujoco.MjModel, state: np.ndarray) -> None:
        joints = model.actuator_trnid[:, 0]
        self._model = model
        self._angle, self._speed = model.jnt_qposadr[joints], model.jnt_dofadr[joints]
        self._rest = state[self._angle]
        names = [model.joint(j).name for j in joints]
        self._arms = np.array(["shoulder" in n or "elbow" in n for n in names])
        self._swing = [names.index(f"{s}_hip_y") for s in ("right", "left")]
        self._tilt = [names.index(f"{s}_hip_x") for s in ("right", "left")]
        self._bend = names.index("abdomen_x")
        self._feet = feet_of(model)

    def act(self, parameters: np.ndarray, data: mujoco.MjData) -> np.ndarray:
        """The action (17,) in the present state."""
        leg_stiffness, leg_damping, arm_stiffness, arm_damping = np.exp(parameters[:4])
        target = self._rest + parameters[8:]
        ahead = data.body("torso").xmat.reshape(3, 3)[:2, 0]
        ahead = ahead / max(np.linalg.norm(ahead), 1e-6)
        axes = np.array([ahead, [-ahead[1], ahead[0]]])
        mujoco.mj_subtreeVel(self._model, data)
        offset = axes @ weight_beside_feet(data, self._feet)
        speed = axes @ data.subtree_linvel[1, :2]
        forward, left = parameters[4:8:2] * offset + parameters[5:8:2] * speed
        target[self._swing] += forward
        # The hips' axes are mirrored: this moves both legs to the same side.
        target[self._tilt] += left, -left
        target[self._bend] += left
        spring = target - data.qpos[self._angle]
        torque = np.where(self._arms, arm_stiffness, leg_stiffness) * spring
        damping = np.where(self._arms, arm_damping, leg_damping)
        torque -= damping * data.qvel[self._speed]
        return np.clip(torque, -TORQUE, TORQUE)


def feet_of(model: mujoco.MjModel) -> list[int]:
    """The feet's geoms, right and left."""
    return [model.geom(f"{side}_foot").id for side in ("right", "left")]


def weight_beside_feet(data: mujoco.MjData, feet: list[int]) -> np.ndarray:
    """From the middle of the lowest feet to the centre of mass, horizontally: (2,)."""
    places = data.geom_xpos[feet]
    down = places[:, 2] <= places[:, 2].min() + 0.04
    return data.subtree_com[1, :2] - places[down, :2].mean(axis=0)


def balanced(library: PoseLibrary, state: np.ndarray) -> np.ndarray:
    """The state (47,), turned until the weight is over the feet (Newton)."""
    data, feet = mujoco.MjData(library.model), feet_of(library.model)

    def turned(tilt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        out = library.place(state[7:NUM_QPOS], quaternion(0, *tilt))
        data.qpos[:] = out[:NUM_QPOS]
        mujoco.mj_forward(library.model, data)
        return out, weight_beside_feet(data, feet)

    tilt, small = np.zeros(2), 0.5  # degrees: pitch and roll
    for _ in range(20):
        beside = turned(tilt)[1]
        slopes = [(turned(tilt + e)[1] - beside) / small for e in small * np.eye(2)]
        # Rolling on two feet moves nothing but up and down; the smallest turn will do.
        turn = np.linalg.lstsq(np.transpose(slopes), beside, rcond=1e-3)[0]
        tilt = tilt - turn.clip(-5, 5)
    return turned(tilt)[0]


def rollout(
    model: mujoco.MjModel,
    start: np.ndarray,
    act: Act,
    goal: HumanoidGoal | None = None,
) -> np.ndarray:
    """States (T, 47) after each env step from a start state (47,).

    Args:
        model: the humanoid.
        start: where the episode begins.
        act: the action in a state.
        goal: if given, the episode ends when this has been lost for ten steps, as it
            seldom comes back.
    """
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = start[:NUM_QPOS], start[NUM_QPOS:]
    mujoco.mj_forward(model, data)
    states = np.empty((STEPS, STATE_SIZE))
    for i, state in enumerate(states):
        data.ctrl[:] = act(data)
        mujoco.mj_step(model, data, nstep=FRAME_SKIP)
        state[:NUM_QPOS], state[NUM_QPOS:] = data.qpos, data.qvel
        if goal is not None and i % 10 == 9 and not goal(states[i - 9 : i + 1]).any():
            return states[: i + 1]
    return states


def near(state: np.ndarray, rng: np.random.Generator, count: int) -> np.ndarray:
    """Start states (count, 47) around a state, with a reset's noise."""
    return state + rng.uniform(-RESET_NOISE, RESET_NOISE, (count, STATE_SIZE))


def hold(
    library: PoseLibrary, task: str, guess: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Search from a guess at the parameters, then try.

    Returns:
        The parameters, and the states (STEPS, 47) of 1 + TEST_STARTS episodes, the
        first from the state itself.
    """
    rng = np.random.default_rng(0)
    model, goal = library.model, HumanoidGoal(task)
    state = FOR[task][0].state(library)
    state = state if task in LOW else balanced(library, state)
    springs = Springs(model, state)

    def episode(parameters: np.ndarray, start: np.ndarray, cut: bool) -> np.ndarray:
        act = lambda data: springs.act(parameters, data)  # noqa: E731
        return rollout(model, start, act, goal if cut else None)

    starts = [state, *near(state, rng, TRAIN_STARTS - 1)]

    def share(parameters: np.ndarray) -> float:
        held = [goal(episode(parameters, start, cut=True)).sum() for start in starts]
        return float(np.mean(held)) / STEPS

    best, held, step = guess, share(guess), 0.6
    for _ in range(TRIES):
        change = rng.normal(0, step, len(best)) * Springs.STEP
        candidate = best + change * (rng.random(len(best)) < 0.4)
        found = share(candidate)
        step = min(step * 1.2, 1.5) if found > held else max(step * 0.97, 0.1)
        if found >= held:
            best, held = candidate, found
    tests = [state, *near(state, rng, TEST_STARTS)]
    return best, [episode(best, start, cut=False) for start in tests]


def from_standing(library: PoseLibrary, random: bool) -> list[np.ndarray]:
    """ROLLOUTS episodes of random actions, or of none, from where the tasks start."""
    rng = np.random.default_rng(1)
    model = library.model
    standing = np.concatenate((model.qpos0, np.zeros(STATE_SIZE - NUM_QPOS)))

    def act(data: mujoco.MjData) -> np.ndarray:
        return rng.uniform(-TORQUE, TORQUE, data.ctrl.shape) * random

    return [rollout(model, start, act) for start in near(standing, rng, ROLLOUTS)]


def main() -> None:
    """Measure, print, draw."""
    library, draw = PoseLibrary(), renderer()
    lines, blocks, stance = {}, {}, Springs.START
    # What holds the body on its feet is where the search begins for its arms.
    for task in sorted(GOALS, key="standing_up".__ne__):
        guess = Springs.START if task in LOW else stance
        found, tried = hold(library, task, guess)
        stance = found if task == "standing_up" else stance
        goal = HumanoidGoal(task)
        exact, *shares = [float(goal(states).mean()) for states in tried]
        lines[task] = [
            task,
            f"{exact:.2f}",
            f"{np.mean(shares):.2f}",
            f"{min(shares):.2f} to {max(shares):.2f}",
            f"{sum(share >= 0.5 for share in shares)} of {TEST_STARTS}",
        ]
        print(*lines[task], sep="  ", file=sys.stderr)
        typical = int(np.argsort(shares)[len(shares) // 2])
        states = tried[1 + typical]
        cells = []
        for step in np.linspace(0, STEPS - 1, COLUMNS).astype(int):
            met = bool(goal(states[step][None])[0])
            views = two_views(draw, states[step], TOP)
            cells.append(cell(views, f"env step {step + 1}", met, met))
        title = f"{task}: an episode that holds at {shares[typical]:.0%} of its steps"
        blocks[task] = title, cells
    draw.close()
    if len(sys.argv) == 1:
        save(stack([blocks[task] for task in GOALS]), "goals_held.png")
    head = ["task", "from the state", "with noise", "worst to best", "held for half"]
    print(markdown(head, [lines[task] for task in GOALS]), end="\n\n")

    by_chance = [from_standing(library, random) for random in (True, False)]
    chances = []
    for task in GOALS:
        goal, line = HumanoidGoal(task), [task]
        for episodes in by_chance:
            shares = np.array([goal(states).mean() for states in episodes])
            line += [f"{shares.mean():.4f}", f"{(shares >= 0.5).sum()} of {ROLLOUTS}"]
        chances.append(line)
    head = ["task", "random actions: steps", "episodes", "no torque: steps", "episodes"]
    print(markdown(head, chances))


if __name__ == "__main__":
    main()
