"""Any Gymnasium id: held ends, goals from infos, and one sentence for what is unfit."""

import gymnasium as gym
import numpy as np
import pytest

from vlmrm_exp.config import ConfigError, TaskConfig
from vlmrm_exp.envs import check_algo
from worlds import make_envs, make_renderer


class Counter(gym.Env):
    """Counts steps up to 5, then terminates; its goal is the count 2."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012

    def __init__(self, render_mode=None, actions=None, observations=None):
        self.render_mode = render_mode
        self.action_space = actions or gym.spaces.Discrete(3, start=5)
        self.observation_space = observations or gym.spaces.Dict(
            count=gym.spaces.Box(0, 9, (1,), np.float64),
            action=gym.spaces.Discrete(9),
        )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self.observe(0), {}

    def step(self, action):
        self.count += 1
        info = {"is_success": self.count == 2}
        return self.observe(action), 1.0, self.count == 5, False, info

    def observe(self, action):
        return {"count": np.array([self.count], np.float64), "action": int(action)}

    def render(self):
        return np.full((4, 6, 3), self.count, np.uint8)


class Undrawn(Counter):
    metadata = {"render_modes": ["ansi"], "render_fps": 30}  # noqa: RUF012


class Silent(Counter):
    def __init__(self):
        super().__init__()


def uninstalled(render_mode=None):
    raise gym.error.DependencyNotInstalled("box is not installed.")


UNFIT = {
    "matrix": {"actions": gym.spaces.Box(-1, 1, (2, 2), np.float32)},
    "unbounded": {"actions": gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)},
    "integer": {"actions": gym.spaces.Box(0, 3, (2,), np.int64)},
    "several": {"actions": gym.spaces.MultiDiscrete([2, 2])},
    "sequence": {"observations": gym.spaces.Sequence(gym.spaces.Discrete(2))},
}


@pytest.fixture(autouse=True)
def registered():
    """Register the environments above, for one test."""
    before = dict(gym.registry)
    gym.register("test/Counter-v0", Counter, max_episode_steps=4)
    gym.register("test/Endless-v0", Counter)
    gym.register("test/Undrawn-v0", Undrawn, max_episode_steps=4)
    gym.register("test/Silent-v0", Silent, max_episode_steps=4)
    gym.register("test/Uninstalled-v0", uninstalled, max_episode_steps=4)
    for name, kwargs in UNFIT.items():
        gym.register(f"test/{name}-v0", Counter, max_episode_steps=4, kwargs=kwargs)
    yield
    gym.registry.clear()
    gym.registry.update(before)


def gym_envs(env_id, num_envs=2, **changes):
    task = TaskConfig(name="gym", env="gym", env_id=env_id, **changes)
    return make_envs(task, num_envs)


def test_gym_env_equals_gymnasiums_step_by_step():
    envs = gym_envs("Pendulum-v1", 2, episode_length=230)
    start = envs.reset(seed=1)
    reference = gym.make("Pendulum-v1", max_episode_steps=230)
    reference.reset()
    cos, sin, speed = start[1]
    reference.unwrapped.state = np.array([np.arctan2(sin, cos), speed])
    actions = np.random.default_rng(0).uniform(-2, 2, (230, 2, 1)).astype(np.float32)
    for action in actions[:40]:  # so few that float32's start does not yet matter
        step = envs.step(action)
        observation, reward, *_ = reference.step(action[1])
        np.testing.assert_allclose(step.observation[1], observation, atol=1e-3)
        assert step.env_reward[1] == pytest.approx(reward, abs=1e-2)
        assert step.goal is None
    for action in actions[40:]:  # past Gymnasium's limit of 200
        assert (envs.step(action).env_reward != 0).all()
    envs.close()


def test_gym_env_has_flat_spaces_and_the_ids_own_limit():
    envs = gym_envs("test/Counter-v0")
    assert envs.episode_length == 4
    assert envs.observation_space.shape == (10,)
    assert envs.action_space == gym.spaces.Discrete(3)
    step = envs.step(np.array([0, 2]))
    one_hot = step.observation[:, 1:]  # after the count
    assert one_hot.argmax(axis=1).tolist() == [5, 7]
    assert step.observation[:, 0].tolist() == [1, 1]
    assert gym_envs("test/Counter-v0", episode_length=9).episode_length == 9


def test_gym_env_that_ends_is_held_until_reset():
    envs = gym_envs("test/Counter-v0", episode_length=8)
    renderer = make_renderer(TaskConfig(name="gym", env="gym"), 96, effects=False)
    for episode in range(2):
        envs.reset()
        assert (envs.states() == 0).all()
        steps, counts = [], []
        for _ in range(8):
            steps.append(envs.step(np.zeros(2, np.int64)))
            counts.append(int(renderer.render(envs.states())[0].max()))
        assert counts == [1, 2, 3, 4, 5, 5, 5, 5], episode
        assert [step.observation[0, 0] for step in steps] == counts
        assert [step.env_reward[0] for step in steps] == [1] * 5 + [0] * 3
        goal = np.stack([step.goal for step in steps])
        assert goal[:, 0].tolist() == [False, True] + [False] * 6
        assert envs.episode_success(goal).all()


def test_gym_env_frames_are_stacked_copies():
    envs = gym_envs("test/Counter-v0", 3)
    frames = envs.states()
    assert frames.shape == (3, 4, 6, 3)
    assert frames.dtype == np.uint8
    envs.step(np.zeros(3, np.int64))
    assert (frames == 0).all()
    assert (envs.states() == 1).all()


def test_frame_renderer_refuses_what_is_no_frame():
    renderer = make_renderer(TaskConfig(name="gym", env="gym"), 96, effects=False)
    for wrong in (np.zeros((2, 47)), np.zeros((2, 4, 6, 3)), np.zeros((2, 4, 6), "u1")):
        with pytest.raises(ValueError, match="expected frames"):
            renderer.render(wrong)


@pytest.mark.parametrize(
    ("env_id", "sentence"),
    [
        ("pendulum-v1", "Did you mean: `Pendulum`"),
        ("Pendulumm-v0", "Did you mean: `Pendulum`"),
        ("Pendulum-v77", r"versioned environments: \[ `v1` \]"),
        ("test/Countr-v0", "Did you mean: `Counter`"),
        ("Zzzzzz-v0", "pprint_registry"),
        ("no_such_module:Zzz-v0", "not installed .*no_such_module"),
        ("test/Uninstalled-v0", r"not installed \(box is not installed\)"),
        ("test/Undrawn-v0", "cannot draw itself"),
        ("test/Silent-v0", "cannot draw itself"),
        ("test/Endless-v0", "no time limit .* task.episode_length=200"),
        ("test/matrix-v0", "actions are Box"),
        ("test/unbounded-v0", "actions are Box"),
        ("test/integer-v0", "actions are Box"),
        ("test/several-v0", "actions are MultiDiscrete"),
        ("test/sequence-v0", r"observations \(Sequence\)"),
    ],
)
def test_unfit_gym_ids_are_refused_in_one_sentence(env_id, sentence):
    with pytest.raises(ConfigError, match=sentence) as refusal:
        gym_envs(env_id)
    assert "\n" not in str(refusal.value)


def test_gym_env_says_that_it_cannot_be_saved():
    envs = gym_envs("test/Counter-v0")
    with pytest.raises(ConfigError, match=r"test/Counter-v0.* cannot be saved"):
        envs.state_dict()
    with pytest.raises(ConfigError, match="cannot be saved"):
        envs.load_state_dict({})


def test_check_algo_refuses_actions_it_cannot_choose():
    box, discrete = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(3)
    check_algo(box, "sac", "Pendulum-v1")
    check_algo(discrete, "dqn", "Acrobot-v1")
    with pytest.raises(ConfigError) as refusal:
        check_algo(box, "dqn", "Pendulum-v1")
    assert str(refusal.value) == (
        "DQN needs discrete actions, but Pendulum-v1's are continuous: use algo=sac."
    )
    with pytest.raises(ConfigError, match=r"SAC .* Acrobot-v1's .* use algo=dqn"):
        check_algo(discrete, "sac", "Acrobot-v1")
