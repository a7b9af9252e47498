"""Any Gymnasium id: held ends, goals from infos, and one sentence for what is unfit."""

import sys

import gymnasium as gym
import numpy as np
import pytest
import torch

from vlmrm_exp.config import ConfigError, ForeignError, TaskConfig
from vlmrm_exp.envs import check_algo
from vlmrm_exp.rl.replay import Replay
from vlmrm_exp.rl.rollout import collect
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


class Faulty(Counter):
    """Does one thing as others' environments do."""

    def __init__(self, fault, render_mode=None, at=3):
        super().__init__(render_mode)
        self.fault, self.at = fault, at
        if fault == "make":
            raise RuntimeError("no licence\nin two lines")

    def reset(self, *, seed=None, options=None):
        if self.fault == "reset":
            raise KeyError("level")
        return super().reset(seed=seed)

    def step(self, action):
        observation, reward, *rest, info = super().step(action)
        if self.count >= self.at:
            match self.fault:
                case "step":
                    sys.exit(3)
                case "nan":
                    observation["count"][0] = np.nan
                case "shape":
                    observation["count"] = np.zeros(2)
                case "reward":
                    reward = np.inf
        if self.fault == "four":
            return observation, reward, False, info
        return observation, reward, *rest, {} if self.fault else info

    def render(self):
        frame = super().render()
        match self.fault:
            case "render":
                raise OSError("no display")
            case "size" if self.count >= self.at:
                return frame[:3]
            case "float":
                return frame / 255
            case "alpha":
                return np.concatenate([frame, np.full((4, 6, 1), 255, "u1")], axis=2)
            case "clear":
                return np.concatenate([frame, np.zeros((4, 6, 1), "u1")], axis=2)
            case "none":
                return None
        return frame


class Old(Counter):
    """Gym's signatures of before 2022."""

    def reset(self):
        return super().reset()[0]


class Late(Counter):
    """Tells of success in the last step alone."""

    def step(self, action):
        *result, info = super().step(action)
        return *result, info if self.count == 4 else {}


def uninstalled(render_mode=None):
    raise gym.error.DependencyNotInstalled("box is not installed.")


FAULTS = (
    "make reset step four nan shape reward render size float alpha clear none".split()
)
UNFIT = {
    "pictures": {"observations": gym.spaces.Box(0, 255, (96, 96, 3), np.uint8)},
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
    gym.register("test/Faulty-v0", Faulty, max_episode_steps=4)
    gym.register("test/Old-v0", Old, max_episode_steps=4)
    gym.register("test/Late-v0", Late, max_episode_steps=4)
    for name in FAULTS:
        kwargs = {"fault": name}
        gym.register(f"test/{name}-v0", Faulty, max_episode_steps=4, kwargs=kwargs)
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
        ("test/pictures-v0", r"27,648 numbers \(Box\(0, 255, \(96, 96, 3\)"),
        ("test/none-v0", "cannot draw itself"),
    ],
)
def test_unfit_gym_ids_are_refused_in_one_sentence(env_id, sentence):
    with pytest.raises(ConfigError, match=sentence) as refusal:
        gym_envs(env_id)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("env_id", "sentence"),
    [
        ("test/Faulty-v0", r"made \(TypeError: .*'fault'.*: .*register an id"),
        ("test/make-v0", r"made \(RuntimeError: no licence\)"),
        ("test/reset-v0", r"in reset, at step 0 of an episode \(KeyError: 'level'\)"),
        ("test/Old-v0", r"in reset, .* expected reset\(seed=...\)"),
        ("test/four-v0", r"in step, .* got 4.* expected .*terminated, truncated"),
        ("test/step-v0", r"in step, at step 3 of an episode \(SystemExit: 3\)"),
        ("test/nan-v0", "step 3 of an episode .*an observation with nan"),
        ("test/shape-v0", r"step 3 .*observation of shape \(11,\), though .*\(10,\)"),
        ("test/reward-v0", "step 3 of an episode .*a reward of inf"),
        ("test/render-v0", r"in render, at step 0 .*no display.* \(height, width, 3\)"),
        ("test/size-v0", r"in render, at step 3 .*first \(4, 6, 3\), now \(3, 6, 3\)"),
        ("test/float-v0", r"an array \(4, 6, 3\) of float64"),
        ("test/clear-v0", r"an array \(4, 6, 4\) of uint8"),
    ],
)
def test_what_an_environment_does_wrong_is_one_sentence(env_id, sentence):
    with pytest.raises(ForeignError, match=sentence) as told:
        collect(gym_envs(env_id), lambda _: np.zeros(2, np.int64))
    assert str(told.value).startswith(env_id)
    assert "\n" not in str(told.value)
    assert told.value.__cause__ is not None


def test_frames_with_an_alpha_that_hides_nothing_are_taken():
    assert gym_envs("test/alpha-v0").states().shape == (2, 4, 6, 3)


def test_success_may_be_told_in_the_last_step_alone():
    envs = gym_envs("test/Late-v0")
    rollout = collect(envs, lambda _: np.zeros(2, np.int64))
    assert rollout.goal.tolist() == [[False, False]] * 4
    silent = gym_envs("test/alpha-v0")
    assert collect(silent, lambda _: np.zeros(2, np.int64)).goal is None


def test_a_replay_that_does_not_fit_is_refused_with_its_size():
    envs = gym_envs("test/Counter-v0")
    with pytest.raises(ConfigError, match=r"000,000 transitions takes 4,000 GB"):
        Replay(10**11, envs, 0, torch.device("cpu"))


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
    for space in (
        gym.spaces.Discrete(3, start=1),
        gym.spaces.MultiDiscrete([2, 3]),
        gym.spaces.Box(-1, 1, (1, 2)),
        gym.spaces.Box(-np.inf, np.inf, (2,)),
        gym.spaces.Box(np.float32([0, 1]), np.float32([1, 1])),
    ):
        with pytest.raises(ConfigError, match=r"own:WORLD's actions are .* must be"):
            check_algo(space, "sac", "own:WORLD")
