"""CartPole and MountainCar against Gymnasium's own objects, step by step."""

import math
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.envs.classic_control.continuous_mountain_car import (
    Continuous_MountainCarEnv,
)
from PIL import Image

from vlmrm_exp.config import TaskConfig
from vlmrm_exp.envs import toy_renderers
from vlmrm_exp.envs.cartpole import MAX_ANGLE, WALL, in_bounds, wrap_angle
from worlds import composed, make_envs, make_renderer

GYMNASIUM = {"cartpole": CartPoleEnv, "mountain_car": Continuous_MountainCarEnv}


def toy_task(env, **changes):
    return TaskConfig(name=env, env=env, episode_length=200, **changes)


def envs_at(env, states):
    """Environments that have just been reset to these states."""
    envs = make_envs(toy_task(env), len(states))
    envs.reset(seed=0)
    envs.load_state_dict({**envs.state_dict(), "states": states})
    return envs


def random_rows(env, count):
    rng = np.random.default_rng(0)
    if env == "cartpole":
        return rng.uniform(-1, 1, (count, 4)) * [WALL, 3, 7, 3]
    return rng.uniform([-1.2, -0.07], [0.6, 0.07], (count, 2))


def test_cartpole_equals_gymnasium_until_it_terminates():
    envs = make_envs(toy_task("cartpole"), 4)
    envs.reset(seed=1)
    rng = np.random.default_rng(1)
    references = [CartPoleEnv() for _ in range(4)]
    for reference, row in zip(references, envs.states(), strict=True):
        reference.reset()
        reference.state = row
    running = np.ones(4, bool)
    while running.any():
        action = rng.integers(2, size=4)
        step, rows = envs.step(action), envs.states()
        for i in np.flatnonzero(running):
            observation, _, terminated, _, _ = references[i].step(action[i])
            np.testing.assert_array_equal(step.observation[i], observation)
            np.testing.assert_array_equal(rows[i], references[i].state)
            assert step.goal[i] == (step.env_reward[i] == 1) == (not terminated)
            running[i] = not terminated


def test_cartpole_swings_on_after_the_fall():
    envs = make_envs(toy_task("cartpole"), 2)
    envs.reset(seed=0)
    observed, angles = [], []
    for step in range(200):
        observed.append(envs.step(np.full(2, step // 20 % 2)).observation[:, 2])
        angles.append(envs.states()[:, 2])
    assert np.abs(angles).max() > math.pi  # it has swung past the bottom
    assert np.abs(observed).max() <= np.float32(math.pi)
    np.testing.assert_allclose(np.cos(observed), np.cos(angles), atol=1e-6)
    np.testing.assert_allclose(np.sin(observed), np.sin(angles), atol=1e-6)


@pytest.mark.parametrize("side", [-1, 1])
def test_cartpole_stops_at_the_wall_and_leaves_it(side):
    envs = envs_at("cartpole", [[side * 2.39, side * 2.0, 0.0, 0.0]])
    towards, away = np.array([(side + 1) // 2]), np.array([(1 - side) // 2])
    for _ in range(3):
        step = envs.step(towards)
        np.testing.assert_array_equal(envs.states()[0, :2], [side * WALL, 0])
        assert step.env_reward[0] == 0
        assert not step.goal[0]
    envs.step(away)
    envs.step(away)
    assert abs(envs.states()[0, 0]) < WALL


def test_in_bounds_has_gymnasiums_limits():
    reference = CartPoleEnv()
    assert (WALL, MAX_ANGLE) == (
        reference.x_threshold,
        reference.theta_threshold_radians,
    )
    inside = [[0, 9, MAX_ANGLE, 9], [2.399, 0, -MAX_ANGLE, 0], [0, 0, math.tau, 0]]
    outside = [[WALL, 0, 0, 0], [-WALL, 0, 0, 0], [0, 0, 0.21, 0], [0, 0, math.pi, 0]]
    assert in_bounds(np.array(inside)).all()
    assert not in_bounds(np.array(outside)).any()


def test_wrap_angle_keeps_what_is_inside_and_the_direction():
    angles = np.random.default_rng(0).uniform(-20, 20, 1000)
    wrapped = wrap_angle(angles)
    np.testing.assert_allclose(wrapped, np.arctan2(np.sin(angles), np.cos(angles)))
    inside = np.abs(angles) < math.pi
    np.testing.assert_array_equal(wrapped[inside], angles[inside])
    np.testing.assert_array_equal(
        wrap_angle(np.array([-math.pi, math.pi])), [math.pi, math.pi]
    )


def test_cartpole_success_is_every_step_and_mountain_car_any():
    goal = np.array([[True, True, False], [True, False, False]])
    cartpole = make_envs(toy_task("cartpole"), 3)
    mountain_car = make_envs(toy_task("mountain_car"), 3)
    assert cartpole.episode_success(goal).tolist() == [True, False, False]
    assert mountain_car.episode_success(goal).tolist() == [True, True, False]


def test_mountain_car_equals_gymnasium_until_the_goal():
    reference = Continuous_MountainCarEnv()
    reference.reset(seed=4)
    envs = envs_at("mountain_car", [reference.state.tolist()])
    returns, own_return, terminated = 0.0, 0.0, False
    for _ in range(200):
        velocity = envs.states()[0, 1]
        action = np.array([[math.copysign(0.9, velocity)]], np.float32)
        step = envs.step(action)
        own_return += step.env_reward[0]
        if not terminated:
            observation, reward, terminated, _, _ = reference.step(action[0])
            returns += reward
            assert step.goal[0] == terminated
            # The state freezes on the goal; Gymnasium's keeps its speed.
            expected = [observation[0], 0 if terminated else observation[1]]
            np.testing.assert_array_equal(step.observation[0], expected)
    assert terminated
    assert own_return == pytest.approx(returns, abs=1e-3)


@pytest.mark.parametrize(
    "words",
    [["task.goal=left_hilltop"], ["task.before=[flag,left_hilltop]", "task.goal=flag"]],
)
def test_a_car_with_the_left_hilltop_to_go_to_passes_the_flag(words):
    task = composed("task=mountaincar", *words).task
    envs = make_envs(task, 1)
    envs.load_state_dict(
        envs.state_dict() | {"states": [[0.44, 0.05]], "dtype": "float64"}
    )
    steps = []
    for t in range(300):  # over the flag, back, then so that it swings higher
        push = np.sign(envs.states()[:, 1:]) if t > 80 else np.array([[-1.0]])
        steps.append(envs.step((-push if t == 0 else push).astype(np.float32)))
    paid = np.array([step.env_reward[0] for step in steps])
    assert paid[0] == pytest.approx(100 - 0.1)
    assert not paid[1:].any()
    assert np.array([step.goal[0] for step in steps]).any()
    assert min(step.observation[0, 0] for step in steps) < -1.1


def test_mountain_car_stays_on_the_goal_until_reset():
    envs = envs_at("mountain_car", [[0.44, 0.05], [-0.5, 0.0]])
    drive = np.array([[1.0], [0.5]], np.float32)
    first = envs.step(drive)
    reached = envs.states()
    assert first.env_reward[0] == pytest.approx(100 - 0.1)
    for _ in range(5):
        step = envs.step(-drive)
        assert step.goal.tolist() == [True, False]
        assert step.env_reward[0] == 0
    np.testing.assert_array_equal(envs.states()[0], [reached[0, 0], 0])
    assert reached[0, 0] >= 0.45
    assert envs.states()[1, 0] != reached[1, 0]
    envs.reset()
    step = envs.step(drive)
    assert not step.goal.any()
    assert (step.observation[:, 1] != 0).all()
    assert first.goal.tolist() == [True, False]


@pytest.mark.parametrize(
    ("env", "action"),
    [
        ("cartpole", np.ones(16, np.int64)),
        ("mountain_car", np.full((16, 1), 0.7, np.float32)),
    ],
)
@pytest.mark.parametrize("steps_before", [0, 7])
def test_states_go_on_after_a_checkpoint_on_disk(env, action, steps_before, tmp_path):
    envs = envs_at(env, random_rows(env, 16).tolist())
    for _ in range(steps_before):
        envs.step(action)
    torch.save(envs.state_dict(), tmp_path / "state.pt")
    expected = [*(envs.step(action).observation for _ in range(20)), envs.reset()]
    other = make_envs(toy_task(env), 16)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    found = [*(other.step(action).observation for _ in range(20)), other.reset()]
    np.testing.assert_array_equal(np.stack(found), np.stack(expected))


@pytest.mark.parametrize("env", GYMNASIUM)
def test_plain_frames_equal_gymnasiums_to_the_pixel(env, monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")  # for Gymnasium's display.init
    reference = GYMNASIUM[env](render_mode="rgb_array")
    rows = random_rows(env, 50)
    frames = make_renderer(toy_task(env), 400, effects=False).render(rows)
    for row, frame in zip(rows, frames, strict=True):
        reference.state = row
        np.testing.assert_array_equal(frame, reference.render())
    assert len({frame.tobytes() for frame in frames}) == 50


@pytest.mark.parametrize(
    ("env", "textures"),
    [("cartpole", "plain"), ("mountain_car", "plain"), ("mountain_car", "realistic")],
)
def test_small_frames_are_area_averages_of_large_ones(env, textures):
    task, rows = toy_task(env, textures=textures), random_rows(env, 5)
    large = make_renderer(task, 400, effects=False).render(rows)
    small = make_renderer(task, 96, effects=False).render(rows)
    assert small.shape == (5, 96, 144, 3)
    for full, frame in zip(large, small, strict=True):
        box = Image.fromarray(full).resize((144, 96), Image.Resampling.BOX)
        difference = np.asarray(box, int) - frame - 2  # pygame's rounding
        assert np.abs(difference).mean() < 1.5
        assert np.abs(difference).max() < 45


@pytest.mark.parametrize("x", [-1.0, -0.5, 0.0, 0.45])
def test_realistic_car_is_where_gymnasium_puts_it(x):
    task = toy_task("mountain_car", textures="realistic")
    frame = make_renderer(task, 400, effects=False).render(np.array([[x, 0.0]]))[0]
    red, green, blue = frame.astype(int).transpose(2, 0, 1)
    rows, columns = np.nonzero((red > 150) & (green < 60) & (blue < 60))
    track = 400 - (math.sin(3 * x) * 0.45 + 0.55) / 1.8 * 600
    assert len(rows) > 300  # a body of about 56 x 25 px, less windows and wheels
    # The body's middle lies 14 px above the axles, perpendicular to the slope.
    tilt = math.cos(3 * x)
    center_x = (x + 1.2) / 1.8 * 600 - 14 * math.sin(tilt)
    center_y = track - 9 / math.cos(tilt) - 14 * math.cos(tilt)
    assert columns.mean() == pytest.approx(center_x, abs=4)
    assert rows.mean() == pytest.approx(center_y, abs=4)


@pytest.mark.parametrize("frame_height", [96, 400])
def test_realistic_flag_is_yellow_and_in_sight_at_the_goal(frame_height):
    task = toy_task("mountain_car", textures="realistic")
    frames = make_renderer(task, frame_height, effects=False).render(
        np.array([[-0.5, 0.0], [0.45, 0.0]])
    )
    red, green, blue = frames.astype(int).transpose(3, 0, 1, 2)
    yellow = (red > 200) & (green > 170) & (blue < 90)
    _, rows, columns = np.nonzero(yellow)
    scale = frame_height / 400
    assert (yellow.sum(axis=(1, 2)) > 400 * scale**2).all()
    assert (rows < 60 * scale).all()
    assert (np.abs(columns - 567 * scale) < 25 * scale).all()  # goal at 550 px


def test_drawing_needs_no_display_and_says_nothing():
    program = (
        "import numpy as np\n"
        "from vlmrm_exp.config import TaskConfig\n"
        "from vlmrm_exp.envs import world_of\n"
        "task = TaskConfig(name='t', env='mountain_car', textures='realistic')\n"
        "renderer = world_of(task).make_renderer(task, 96, False)\n"
        "assert renderer.render(np.zeros((1, 2))).any()\n"
    )
    keep = ("PATH", "PYTHONPATH", "HOME")
    env = {name: os.environ[name] for name in keep if name in os.environ}
    result = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_shipped_pictures_are_what_their_script_paints():
    path = Path(__file__).parents[1] / "scripts" / "paint_mountain.py"
    for name, pixels in runpy.run_path(str(path))["pictures"]().items():
        shipped = np.asarray(Image.open(Path(toy_renderers.__file__).with_name(name)))
        np.testing.assert_array_equal(shipped, pixels)
