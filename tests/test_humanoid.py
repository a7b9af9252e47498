"""The humanoid against Gymnasium's own, and its pictures against a direct render."""

import threading

import gymnasium as gym
import mujoco
import numpy as np
import pytest

from vlmrm_exp.config import TaskConfig
from vlmrm_exp.envs.humanoid_model import NUM_QPOS, humanoid_spec
from vlmrm_exp.envs.humanoid_renderer import (
    FLOOR_SQUARE,
    HumanoidRenderer,
    camera_of,
)
from vlmrm_exp.envs.poses import (
    ARM_NAMES,
    ARMS,
    LEG_NAMES,
    LEGS,
    VISITED,
    PoseLibrary,
    quaternion,
)
from worlds import make_envs, make_renderer

pytestmark = pytest.mark.slow


def task(**changes) -> TaskConfig:
    return TaskConfig("humanoid", "humanoid", episode_length=100, **changes)


@pytest.mark.parametrize(("version", "frame_skip"), [("v5", 5), ("v4", 5), ("v5", 10)])
@pytest.mark.filterwarnings("ignore:.*out of date.*:DeprecationWarning")
def test_humanoid_equals_gymnasium_step_by_step(version, frame_skip):
    held = {"frame_skip": frame_skip} if version == "v5" else {}  # v4 cannot be told
    reference = gym.make(
        f"Humanoid-{version}", terminate_when_unhealthy=False, **held
    ).unwrapped
    envs = make_envs(task(version=version, frame_skip=frame_skip), 1)
    np.testing.assert_array_equal(envs.action_space.high, reference.action_space.high)
    envs.reset(seed=3)
    row = envs.states()[0]
    reference.reset(seed=0)
    reference.set_state(row[:NUM_QPOS], row[NUM_QPOS:])
    rng = np.random.default_rng(0)
    for _ in range(100):  # long enough to fall: contacts and their forces are compared
        action = rng.uniform(-0.4, 0.4, (1, 17)).astype(np.float32)
        expected, reward, _, _, _ = reference.step(action[0])
        step = envs.step(action)
        np.testing.assert_array_equal(step.observation[0], expected.astype(np.float32))
        assert step.env_reward[0] == np.float32(reward)
    assert row[2] > 1.3
    assert envs.states()[0, 2] < 0.7, "it was to fall"
    reference.close()


def drawn(spec: mujoco.MjSpec, state: np.ndarray, camera: mujoco.MjvCamera | str):
    """A picture by MuJoCo's own renderer, without effects."""
    spec.visual.quality.offsamples = 0
    model = spec.compile()
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = np.split(state, [NUM_QPOS])
    mujoco.mj_forward(model, data)
    with mujoco.Renderer(model, 96, 96) as direct:
        direct.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
        direct.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        direct.update_scene(data, camera)
        return direct.render()


@pytest.mark.parametrize("camera", ["fixed", "track", "side"])
def test_frame_from_state_row_equals_frame_in_place(camera):
    """Bit-equal: the same positions give the same draw calls to the same driver."""
    envs = make_envs(task(), 1)
    envs.reset(seed=0)
    for _ in range(30):
        envs.step(np.full((1, 17), 0.3, np.float32))
    renderer = make_renderer(task(camera=camera), 96, effects=False)
    renderer.render(make_envs(task(), 1).states())  # another state in between
    frame = renderer.render(envs.states())[0]
    renderer.close()

    spec = humanoid_spec()
    spec.visual.quality.numslices = 16
    spec.visual.quality.numstacks, spec.visual.quality.numquads = 8, 1
    spec.geom("floor").size[2] = FLOOR_SQUARE
    view = "track" if camera == "track" else camera_of(camera, spec.compile())
    np.testing.assert_array_equal(frame, drawn(spec, envs.states()[0], view))


@pytest.mark.parametrize(
    ("textures", "effects"),
    [("plain", False), ("realistic", False), ("realistic", True)],
)
def test_pictures_read_as_one_sheet_are_those_read_one_by_one(textures, effects):
    """As on a GPU, also over the end of a full sheet; rounding may change a pixel."""
    envs = make_envs(task(), 7)
    envs.reset(seed=0)
    action = np.random.default_rng(0).uniform(-0.4, 0.4, (7, 17)).astype(np.float32)
    for _ in range(20):
        envs.step(action)
    frames = []
    for columns in (1, 3):
        renderer = HumanoidRenderer(
            task(camera="fixed+side", textures=textures), 96, effects, columns
        )
        frames.append(renderer.render(envs.states()).astype(int))
        renderer.close()
    one_by_one, sheet = frames
    assert np.abs(one_by_one - sheet).mean() < 0.02
    others = np.roll(one_by_one, 1, axis=0)  # as if in a wrong place
    assert np.abs(one_by_one - others).mean() > 1


@pytest.mark.parametrize(
    ("opengl", "look", "columns"),
    [
        ("NVIDIA H200/PCIe/SSE2", {}, 8),
        ("NVIDIA H200/PCIe/SSE2", {"effects": True, "textures": "realistic"}, 8),
        ("NVIDIA H200/PCIe/SSE2", {"height": 480}, 4),
        ("NVIDIA H200/PCIe/SSE2", {"height": 3000}, 1),
        ("NVIDIA H200/PCIe/SSE2", {"effects": True, "textures": "plain"}, 1),
        ("llvmpipe (LLVM 15.0.6, 256 bits)", {}, 1),
    ],
)
def test_a_sheet_is_for_gpus_and_not_for_reflections(
    monkeypatch, opengl, look, columns
):
    """How often pictures are read says it, whatever draws them here."""
    monkeypatch.setattr(
        "vlmrm_exp.envs.humanoid_renderer.opengl_names", lambda: (opengl, "")
    )
    read = mujoco.mjr_readPixels
    readings = []
    monkeypatch.setattr(
        mujoco,
        "mjr_readPixels",
        lambda rgb, depth, place, context: (
            readings.append((place.width, place.height)),
            read(rgb, depth, place, context),
        ),
    )
    height = look.get("height", 32)
    renderer = HumanoidRenderer(
        task(textures=look.get("textures", "plain")),
        height,
        look.get("effects", False),
    )
    row = make_envs(task(), 1).states()
    renderer.render(np.repeat(row, columns**2 + 1, axis=0))
    renderer.close()
    sheets = [(columns * height, columns * height)] * (1 if columns > 1 else 2)
    last = [(columns * height, height)] if columns > 1 else []
    assert readings == sheets + last


def test_each_renderer_keeps_to_its_own_context():
    row = make_envs(task(), 1).states()
    first, second = (
        make_renderer(task(textures=look), 64, effects=False)
        for look in ("plain", "realistic")
    )
    frames = [renderer.render(row) for renderer in (first, second, first)]
    np.testing.assert_array_equal(frames[0], frames[2])
    second.render(row)
    first.close()
    np.testing.assert_array_equal(second.render(row), frames[1])
    with pytest.raises(RuntimeError, match="closed"):
        first.render(row)
    second.close()


def test_physics_is_the_same_in_any_number_of_threads():
    action = np.random.default_rng(0).uniform(-0.4, 0.4, (20, 5, 17)).astype(np.float32)
    results = []
    for threads in (1, 3):
        before = threading.active_count()
        envs = make_envs(task(), 5, threads)
        envs.reset(seed=0)
        steps = [envs.step(a) for a in action]
        assert threading.active_count() - before == (0 if threads == 1 else threads)
        envs.close()
        assert threading.active_count() == before
        results.append([(s.observation, s.env_reward) for s in steps])
    for one, several in zip(*results, strict=True):
        np.testing.assert_array_equal(one[0], several[0])
        np.testing.assert_array_equal(one[1], several[1])


def test_coarse_capsules_and_floor_look_the_same():
    """What drawing without effects saves is not seen: 1 of 255 on average at most."""
    rows = make_envs(task(), 1).states()
    renderer = make_renderer(task(), 96, effects=False)
    frame = renderer.render(rows)[0].astype(int)
    renderer.close()
    spec = humanoid_spec()
    fine = drawn(spec, rows[0], camera_of("fixed", spec.compile()))
    assert np.abs(frame - fine).mean() < 1


def test_observation_of_joints_is_the_first_part_of_gymnasiums():
    full, joints = (make_envs(task(observation=o), 2) for o in ("full", "joints"))
    assert joints.observation_space.shape == (45,)
    starts = [envs.reset(seed=3) for envs in (full, joints)]
    np.testing.assert_array_equal(starts[0][:, :45], starts[1])
    action = np.full((2, 17), 0.1, np.float32)
    steps = [envs.step(action).observation for envs in (full, joints)]
    np.testing.assert_array_equal(steps[0][:, :45], steps[1])


@pytest.mark.usefixtures("one_by_one")
def test_views_stand_side_by_side_in_one_frame():
    library = PoseLibrary()
    rows = np.stack([library.state(LEGS[11], ARMS[4]), library.state(LEGS[0], ARMS[0])])
    frames = {}
    for camera in ("fixed", "side", "track", "side+track+fixed"):
        renderer = make_renderer(task(camera=camera), 64, effects=False)
        frames[camera] = renderer.render(rows)
        renderer.close()
    several = frames["side+track+fixed"]
    assert several.shape == (2, 64, 192, 3)
    np.testing.assert_array_equal(several[:, :, :64], frames["side"])
    np.testing.assert_array_equal(several[:, :, 64:128], frames["track"])
    np.testing.assert_array_equal(several[:, :, 128:], frames["fixed"])


def test_side_camera_sees_the_right_side_of_a_body_that_faces_forward():
    """Turned to its right by a right angle, the body shows it what the front shows."""
    library = PoseLibrary()
    angles = library.angles(LEGS[3]) + library.angles(ARMS[22])  # right leg, right arm
    rows = np.stack([library.place(angles, quaternion(y, 0, 0)) for y in (0, -90)])
    frames = {}
    for camera in ("fixed", "side"):
        look = task(camera=camera, textures="realistic")
        renderer = make_renderer(look, 64, effects=False)
        frames[camera] = renderer.render(rows).astype(int)
        renderer.close()
    same = np.abs(frames["fixed"][0] - frames["side"][1]).mean()
    assert same < 0.7 * np.abs(frames["fixed"][0] - frames["side"][0]).mean()


def test_looks_and_cameras_differ():
    rows = make_envs(task(), 1).states()
    frames = []
    for textures in ("plain", "realistic"):
        for camera in ("fixed", "track", "side"):
            renderer = make_renderer(
                task(textures=textures, camera=camera), 64, effects=False
            )
            frames.append(renderer.render(rows)[0].astype(int))
            renderer.close()
    for i, a in enumerate(frames):
        for b in frames[i + 1 :]:
            assert np.abs(a - b).mean() > 4


def test_poses_rest_on_the_floor_within_joint_limits():
    library = PoseLibrary()
    data = mujoco.MjData(library.model)
    low, high = library.model.jnt_range[1:].T
    for pose in LEGS:
        row = library.state(pose, ARMS[0])
        data.qpos[:] = row[:NUM_QPOS]
        mujoco.mj_forward(library.model, data)
        floor = [c for c in data.contact if 0 in (c.geom1, c.geom2)]
        assert floor, f"{pose.name} touches nothing"
        assert min(c.dist for c in floor) > -1e-6, f"{pose.name} is in the floor"
        assert (row[7:NUM_QPOS] <= high + 1e-9).all()
        assert (row[7:NUM_QPOS] >= low - 1e-9).all()


def test_visited_states_and_their_mirror_images():
    library = PoseLibrary()
    data = mujoco.MjData(library.model)
    geoms = [library.model.geom(i).name for i in range(library.model.ngeom)]
    swap = {"right": "left", "left": "right"}
    partner = [
        geoms.index(swap.get(name.split("_")[0], "") + name[name.find("_") :])
        if name.split("_")[0] in swap
        else i
        for i, name in enumerate(geoms)
    ]
    qpos = np.load(VISITED)["qpos"].astype(float)
    assert qpos.shape[1] == NUM_QPOS
    assert len(qpos) > 10_000
    for one in qpos[:: len(qpos) // 20]:
        places = []
        for position in (one, library._mirrored(one)):
            data.qpos[:] = position
            mujoco.mj_forward(library.model, data)
            places.append(data.geom_xpos.copy())
        np.testing.assert_allclose(
            places[1][partner], places[0] * (1, -1, 1), atol=2e-3
        )
    rng = np.random.default_rng(0)
    rows = np.stack([library.visited(rng) for _ in range(100)])
    low, high = library.model.jnt_range[1:].T
    assert (rows[:, 7:NUM_QPOS] >= low).all()
    assert (rows[:, 7:NUM_QPOS] <= high).all()
    np.testing.assert_allclose(np.linalg.norm(rows[:, 3:7], axis=1), 1, atol=1e-6)


def test_pose_distances_find_each_pose():
    library = PoseLibrary()
    legs = np.stack([library.state(p, ARMS[3]) for p in LEGS])
    found = library.leg_distances(legs).argmin(axis=1)
    assert [LEG_NAMES[i] for i in found] == [p.name for p in LEGS]
    arms = np.stack([library.state(LEGS[11], p) for p in ARMS])
    found = library.arm_distances(arms).argmin(axis=1)
    assert [ARM_NAMES[i] for i in found] == [p.name for p in ARMS]


def test_pose_distances_ignore_where_the_body_faces():
    library = PoseLibrary()
    row = library.state(LEGS[5], ARMS[2])
    turned = library.place(row[7:NUM_QPOS], np.array([0.6, 0, 0, 0.8]))
    turned[:2] = 0.5, -0.5
    np.testing.assert_allclose(
        library.leg_distances(row[None]), library.leg_distances(turned[None]), atol=1e-9
    )
    np.testing.assert_allclose(
        library.arm_distances(row[None]), library.arm_distances(turned[None]), atol=1e-9
    )


def test_an_episode_succeeds_with_the_goal_in_half_of_its_steps():
    envs = make_envs(task(), 3)
    goal = np.zeros((50, 3), bool)
    goal[:24, 0] = goal[25:, 1] = goal[:, 2] = True
    assert envs.episode_success(goal).tolist() == [False, True, True]
