"""Goal predicates against states built by hand, and what must not change a verdict."""

import mujoco
import numpy as np
import pytest

from goal_states import AGAINST, FOR, Example
from vlmrm_exp.envs import goals as goals_module
from vlmrm_exp.envs.goals import GOALS, HumanoidGoal
from vlmrm_exp.envs.humanoid_model import NUM_QPOS, STATE_SIZE
from vlmrm_exp.envs.poses import Pose, PoseLibrary, quaternion

pytestmark = pytest.mark.slow

EXCLUSIVE = ("kneeling", "lotus", "standing_up", "splits")
ON_FEET = ("arms_raised", "hands_on_hips", "arms_crossed", "one_leg")
# One task's states are other tasks' too: all of them together.
EXAMPLES = {
    f"{task}: {example.caption}": example
    for examples in (FOR, AGAINST)
    for task in GOALS
    for example in examples[task]
}


def cases(examples: dict[str, tuple[Example, ...]]) -> list:
    return [
        pytest.param(task, example, id=f"{task}: {example.caption}")
        for task in GOALS
        for example in examples[task]
    ]


@pytest.fixture(scope="module")
def library() -> PoseLibrary:
    return PoseLibrary()


@pytest.fixture(scope="module")
def goals() -> dict[str, HumanoidGoal]:
    return {name: HumanoidGoal(name) for name in GOALS}


@pytest.fixture(scope="module")
def states(library) -> np.ndarray:
    return np.stack([example.state(library) for example in EXAMPLES.values()])


@pytest.fixture(scope="module")
def verdicts(goals, states) -> dict[str, np.ndarray]:
    return {name: goal(states) for name, goal in goals.items()}


def only_differences(a: np.ndarray, b: np.ndarray) -> list[str]:
    return [name for name, differs in zip(EXAMPLES, a != b, strict=True) if differs]


@pytest.mark.parametrize(("task", "example"), cases(FOR))
def test_goal_holds(goals, library, task, example):
    assert goals[task](example.state(library)[None]) == [True]


@pytest.mark.parametrize(("task", "example"), cases(AGAINST))
def test_goal_does_not_hold(goals, library, task, example):
    assert goals[task](example.state(library)[None]) == [False]


HIGH, LOW = 1e9, -1e9
# Each task's limits, and a value with which they reject nothing; tasks on feet have
# those of standing_up besides.
LIMITS = {
    "kneeling": {
        "ON_FLOOR": 0.2,  # not more: hands have to be above it
        "KNEELING_THIGH": 180,
        "LOW_LEAN": 180,
        "FALLING": HIGH,
    },
    "lotus": {
        "SEAT_ON_FEET": HIGH,
        "FOLDED_KNEE": HIGH,
        "KNEE_OUT": LOW,
        "FOOT_IN": HIGH,
        "LOW_LEAN": 180,
    },
    "standing_up": {
        "ON_FLOOR": HIGH,
        "STANDING_PELVIS": LOW,
        "STANDING_LEAN": 180,
        "FALLING": HIGH,
    },
    "splits": {
        "SEAT_ON_FLOOR": HIGH,
        "STRETCHED_LEG": HIGH,
        "STRAIGHT_KNEE": HIGH,
        "LEGS_APART": 0,
        "FEET_LINE": 180,
        "LOW_LEAN": 180,
    },
    "hands_on_hips": {"HAND_AT_HIP": HIGH, "ELBOW_OUT": LOW},
    "arms_crossed": {
        "HAND_ACROSS": LOW,
        "CROSSED_LOW": LOW,
        "CROSSED_HIGH": HIGH,
        "CROSSED_FAR": HIGH,
    },
    "one_leg": {"OFF_FLOOR": LOW, "BALANCED": HIGH},
}


@pytest.mark.parametrize(
    ("task", "limit"),
    [(task, name) for task, names in LIMITS.items() for name in names],
)
def test_each_limit_of_a_task_has_a_near_miss_of_its_own(
    library, goals, monkeypatch, task, limit
):
    against = np.stack([example.state(library) for example in AGAINST[task]])
    monkeypatch.setattr(goals_module, limit, LIMITS[task][limit])
    assert goals[task](against).any()


def test_no_limit_is_left_out():
    numbers = {
        name
        for name, value in vars(goals_module).items()
        if name.isupper() and isinstance(value, float)
    }
    assert numbers == {name for names in LIMITS.values() for name in names}


def test_every_task_has_states_for_and_against():
    for examples in (FOR, AGAINST):
        assert set(examples) == set(GOALS)
        assert all(len(of_task) >= 6 for of_task in examples.values())


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_state_is_one_that_the_body_can_take(library, example):
    model = library.model
    angles = library.angles(Pose("", example.pose))
    low, high = model.jnt_range[1:].T
    assert (angles >= low - 1e-9).all()
    assert (angles <= high + 1e-9).all()
    data = mujoco.MjData(model)
    data.qpos[:] = example.state(library)[:NUM_QPOS]
    mujoco.mj_forward(model, data)
    floor = [c.dist for c in data.contact if c.geom1 == 0]
    assert bool(floor) == (example.lift == 0), (
        "it touches the floor unless it is lifted"
    )
    # Soft contacts let a limb sink a little into the body; no arm goes through another.
    deepest = min((c.dist for c in data.contact if c.geom1 != 0), default=0)
    assert deepest > -0.025


@pytest.mark.parametrize("task", GOALS)
def test_where_the_body_stands_and_faces_does_not_matter(goals, states, verdicts, task):
    for yaw, x, y in ((90, 3, -2), (180, 0, 0), (-37, -8, 5)):
        moved = states.copy()
        turn, turned = quaternion(yaw, 0, 0), np.empty(4)
        rotation = np.empty(9)
        mujoco.mju_quat2Mat(rotation, turn)
        for state in moved:
            mujoco.mju_mulQuat(turned, turn, state[3:7])
            state[3:7] = turned
            state[:3] = rotation.reshape(3, 3) @ state[:3] + (x, y, 0)
        assert only_differences(goals[task](moved), verdicts[task]) == []


@pytest.mark.parametrize("task", GOALS)
def test_speed_does_not_matter(goals, states, verdicts, task):
    moving = states.copy()
    moving[:, NUM_QPOS:] = 1.5
    assert only_differences(goals[task](moving), verdicts[task]) == []


def mirrored(library: PoseLibrary, state: np.ndarray) -> np.ndarray:
    """The state as in a mirror: left and right, of body and world, change places."""
    out = state.copy()
    out[1] *= -1
    out[[4, 6]] *= -1  # turns about x and z change direction
    model = library.model
    for j in range(1, model.njnt):
        name = model.joint(j).name
        side = {"right": "left", "left": "right"}
        other = "_".join(side.get(word, word) for word in name.split("_"))
        # The axes of hips, knees and elbows are mirrored themselves.
        sign = -1 if "shoulder" in name or name in ("abdomen_x", "abdomen_z") else 1
        out[model.joint(other).qposadr[0]] = sign * state[model.jnt_qposadr[j]]
    return out


def test_mirror_swaps_the_hands(library, goals, states):
    """The mirror itself, on points that no predicate's formula is used for."""
    bodies = goals["kneeling"].bodies
    one = bodies(states)
    other = bodies(np.stack([mirrored(library, state) for state in states]))
    for name in ("hands", "knees", "feet"):
        expected = getattr(one, name)[:, ::-1] * (1, -1, 1)
        np.testing.assert_allclose(getattr(other, name), expected, atol=1e-9)


@pytest.mark.parametrize("task", GOALS)
def test_left_and_right_are_alike(library, goals, states, verdicts, task):
    other = np.stack([mirrored(library, state) for state in states])
    assert only_differences(goals[task](other), verdicts[task]) == []


def test_no_state_is_two_exclusive_goals(goals, library, states):
    rng = np.random.default_rng(0)
    many = np.concatenate((states, [library.sample(rng) for _ in range(100)]))
    met = np.stack([goals[name](many) for name in EXCLUSIVE])
    assert met.sum(axis=0).max() == 1
    assert met.sum(axis=1).min() >= 6


@pytest.mark.parametrize("task", ON_FEET)
def test_goals_on_feet_imply_standing(verdicts, task):
    assert verdicts[task].sum() >= 6
    assert (
        only_differences(verdicts[task] & verdicts["standing_up"], verdicts[task]) == []
    )


@pytest.mark.parametrize("task", GOALS)
def test_batch_equals_one_by_one(goals, states, verdicts, task):
    goal = goals[task]
    one_by_one = np.concatenate([goal(state[None]) for state in states[::-1]])[::-1]
    assert only_differences(one_by_one, verdicts[task]) == []
    assert verdicts[task].dtype == bool
    assert goal(np.empty((0, STATE_SIZE))).shape == (0,)


@pytest.mark.parametrize("task", GOALS)
def test_a_state_that_blew_up_is_no_success(goals, task):
    for value in (np.nan, np.inf):
        assert goals[task](np.full((1, STATE_SIZE), value)) == [False]


def test_heights_equal_the_solvers_distances(library, goals, states):
    """Against MuJoCo's own: the distance of geoms to the floor."""
    model, data = library.model, mujoco.MjData(library.model)
    bodies = goals["kneeling"].bodies(states)
    legs = ("thigh", "shin", "foot")
    names = [model.geom(g).name for g in range(1, model.ngeom)]
    upper = [n for n in names if not any(leg in n for leg in legs)]
    for i, state in enumerate(states):
        data.qpos[:] = state[:NUM_QPOS]
        mujoco.mj_forward(model, data)

        def above(*parts: str, data=data) -> float:
            ids = [model.geom(part).id for part in parts]
            return min(mujoco.mj_geomDistance(model, data, 0, g, 9, None) for g in ids)

        np.testing.assert_allclose(bodies.upper_low[i], above(*upper), atol=1e-6)
        np.testing.assert_allclose(bodies.seat_low[i], above("butt"), atol=1e-6)
        feet = [above("right_foot"), above("left_foot")]
        np.testing.assert_allclose(bodies.feet_low[i], feet, atol=1e-6)
