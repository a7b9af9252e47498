"""What holds for every task: each file in conf/task is found, composed and played."""

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from vlmrm_exp.config import Config, conf_dir
from worlds import make_envs, make_renderer

TASKS = sorted(
    path.stem
    for path in (conf_dir() / "task").glob("*.yaml")
    if not path.stem.startswith("_")
)
# What a task leaves to the user.
NEEDED = {"gym": ["task.env_id=Pendulum-v1"]}
NUM_ENVS = 2


def compose_task(name):
    ConfigStore.instance().store("schema", node=Config)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", [f"task={name}", *NEEDED.get(name, [])])
    return OmegaConf.to_object(cfg.task)


@pytest.fixture(scope="module", params=TASKS)
def task(request):
    return compose_task(request.param)


@pytest.fixture
def envs(task):
    envs = make_envs(task, NUM_ENVS)
    yield envs
    envs.close()


def random_actions(envs, steps, seed=0):
    envs.action_space.seed(seed)
    draw = envs.action_space.sample
    return np.array([[draw() for _ in range(NUM_ENVS)] for _ in range(steps)])


def play(envs, actions):
    """Observations, rewards and states of some steps, stacked over time."""
    observations, rewards, goals, rows = [], [], [], []
    for action in actions:
        step = envs.step(action)
        observations.append(step.observation)
        rewards.append(step.env_reward)
        goals.append(np.zeros(NUM_ENVS, bool) if step.goal is None else step.goal)
        rows.append(envs.states())
    return [np.stack(part) for part in (observations, rewards, goals, rows)]


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_tasks_are_found():
    assert {"mountaincar", "cartpole", "kneeling", "gym"} <= set(TASKS)


def test_spaces_hold_what_is_seen(envs):
    space = envs.observation_space
    assert space.dtype == np.float32
    observation = envs.reset(seed=0)
    for action in random_actions(envs, 20):
        assert observation.shape == (NUM_ENVS, *space.shape)
        assert observation.dtype == np.float32
        assert all(space.contains(one) for one in observation)
        observation, env_reward, goal = envs.step(action)[:3]
        assert env_reward.shape == (NUM_ENVS,)
        assert env_reward.dtype == np.float32
        assert goal is None or (goal.shape, goal.dtype) == ((NUM_ENVS,), bool)
    rows = envs.states()
    assert rows.dtype == (np.uint8 if rows.ndim == 4 else np.float64)


def test_seeds_decide_every_start(envs):
    first = envs.reset(seed=3)
    later = envs.reset()
    assert not np.array_equal(first[0], first[1])  # environments differ
    assert not np.array_equal(later, first)  # their streams go on
    np.testing.assert_array_equal(envs.reset(seed=3), first)
    np.testing.assert_array_equal(envs.reset(), later)
    assert not np.array_equal(envs.reset(seed=4), first)


def test_an_environments_start_does_not_depend_on_their_number(task, envs):
    more = make_envs(task, NUM_ENVS + 1)
    np.testing.assert_array_equal(
        more.reset(seed=3)[:NUM_ENVS], envs.reset(seed=3)[:NUM_ENVS]
    )
    more.close()


def test_nothing_ends_or_restarts_before_the_callers_reset(envs):
    start = last = envs.reset(seed=0)
    for action in random_actions(envs, envs.episode_length + 3):
        previous, last = last, envs.step(action).observation
        assert np.isfinite(last).all()
        # A restart is a jump back to the start.
        assert not np.array_equal(last, start)
        assert not np.array_equal(last, previous)


def test_reset_clears_what_the_last_episode_left(task, envs):
    actions = random_actions(envs, 30)
    envs.reset(seed=1)
    play(envs, actions)
    fresh = make_envs(task, NUM_ENVS)
    starts = [one.reset(seed=5) for one in (envs, fresh)]
    assert_same(*[[start] for start in starts])
    assert_same(play(envs, actions[:5]), play(fresh, actions[:5]))
    fresh.close()


def test_states_given_out_do_not_change_later(envs):
    observation = envs.reset(seed=0)
    rows = envs.states()
    kept = observation.copy(), rows.copy()
    step = envs.step(random_actions(envs, 1)[0])
    kept_step = [np.copy(part) for part in step if part is not None]
    play(envs, random_actions(envs, 3))
    envs.reset()
    assert_same((observation, rows), kept)
    assert_same([part for part in step if part is not None], kept_step)


def test_states_go_on_after_loading(task, envs):
    if task.env == "gym":
        return  # goes on with a new episode: see test_resume
    actions = random_actions(envs, 12)
    envs.reset(seed=2)
    play(envs, actions[:4])
    state = envs.state_dict()
    expected = [*play(envs, actions), envs.reset()]
    other = make_envs(task, NUM_ENVS)
    other.load_state_dict(state)
    assert_same([*play(other, actions), other.reset()], expected)


@pytest.mark.slow
@pytest.mark.usefixtures("one_by_one")
def test_frames_of_stored_states_equal_those_drawn_at_once(task, envs):
    renderer = make_renderer(task, 64, effects=False)
    envs.reset(seed=0)
    rows, frames = [], []
    for actions in np.split(random_actions(envs, 40), 4):
        play(envs, actions)
        rows.append(envs.states())
        frames.append(renderer.render(rows[-1]))
    frames, rows = np.concatenate(frames), np.concatenate(rows)
    # The same bits: nothing of an earlier drawing is left when the next one starts.
    np.testing.assert_array_equal(renderer.render(rows[::-1])[::-1], frames)
    renderer.close()
    assert renderer.drawn_by
    assert frames.dtype == np.uint8
    assert frames.ndim == 4
    assert frames.shape[3] == 3
    assert frames.shape[1] == 64 or task.env == "gym"
    assert len({frame.tobytes() for frame in frames}) > 1
