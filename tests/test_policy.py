import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.evaluation import evaluate_policy

from vlmrm_exp.config import AlgoConfig, ConfigError
from vlmrm_exp.rl.checkpoint import save_policy
from vlmrm_exp.rl.dqn import DQN
from vlmrm_exp.rl.policy import Policy, load_policy
from vlmrm_exp.rl.sac import SAC

CPU = torch.device("cpu")
SPACE = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
OBSERVATION = np.float32([[1, -20, 0.5], [0, 300, -1]])


def make_agent(name: str):
    algo = AlgoConfig(name=name, hidden=[8, 4], squash_observations=True)
    if name == "sac":
        actions = gym.spaces.Box(np.float32([-1, 0]), np.float32([1, 4]))
        return SAC(algo, SPACE, actions, 0, CPU)
    return DQN(algo, SPACE, gym.spaces.Discrete(4), 0, CPU)


def squashed() -> torch.Tensor:
    observation = torch.from_numpy(OBSERVATION)
    return observation.sign() * (1 + observation.abs()).log()


def test_sac_policy_takes_the_mean_within_the_bounds(tmp_path):
    agent = make_agent("sac")
    save_policy(tmp_path / "best.pt", {**agent.checkpoint(), "env_steps": 12})
    policy = load_policy(tmp_path / "best.pt")
    mean = agent.actor.net(squashed())[:, :2].tanh().detach().numpy()
    expected = mean * [1, 2] + [0, 2]
    np.testing.assert_allclose(policy.act(OBSERVATION), expected, rtol=1e-5)
    assert policy.act(OBSERVATION).dtype == np.float32
    assert (policy.env_steps, policy.observation_dim) == (12, 3)


def test_dqn_policy_takes_the_best_action(tmp_path):
    agent = make_agent("dqn")
    save_policy(tmp_path / "best.pt", {**agent.checkpoint(), "env_steps": 12})
    action = load_policy(tmp_path / "best.pt").act(OBSERVATION)
    expected = agent.network.net(squashed()).argmax(1)
    assert action.dtype == np.int64
    np.testing.assert_array_equal(action, expected.numpy())


def test_checkpoint_does_not_change_with_the_agent():
    agent = make_agent("sac")
    checkpoint = agent.checkpoint()
    before = checkpoint["policy"]["net.0.weight"].clone()
    with torch.no_grad():
        agent.actor.net[0].weight.add_(1)
    assert torch.equal(checkpoint["policy"]["net.0.weight"], before)


def test_saving_leaves_no_partial_file(tmp_path):
    checkpoint = {**make_agent("sac").checkpoint(), "env_steps": 1}
    save_policy(tmp_path / "best.pt", checkpoint)
    with pytest.raises(AttributeError):  # what cannot be pickled
        save_policy(tmp_path / "best.pt", {"policy": lambda: None})
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"]
    assert load_policy(tmp_path / "best.pt").env_steps == 1


def test_a_missing_policy_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"no policy at .*best\.pt"):
        load_policy(tmp_path / "best.pt")


def test_a_damaged_policy_is_one_sentence(tmp_path):
    path = tmp_path / "best.pt"
    save_policy(path, {**make_agent("sac").checkpoint(), "env_steps": 1})
    whole = path.read_bytes()
    for content in (b"", b"not a checkpoint", whole[: len(whole) // 2], b"\x80\x02h"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"not a policy .* can read: it is dam"):
            load_policy(path)
    torch.save(torch.zeros(3), path)
    with pytest.raises(ConfigError, match="is not a policy"):
        load_policy(path)


@pytest.mark.parametrize(
    "change", [{"hidden": [9]}, {"algo": "ppo"}, {"action": {}}, {"env_steps": print}]
)
def test_a_foreign_policy_is_one_sentence(tmp_path, change):
    checkpoint = {**make_agent("sac").checkpoint(), "env_steps": 1, **change}
    torch.save(checkpoint, tmp_path / "best.pt")
    with pytest.raises(ConfigError, match="is not a policy"):
        load_policy(tmp_path / "best.pt")


def run_folder(tmp_path, name: str):
    """What a run leaves that a policy is read from."""
    checkpoint = {**make_agent(name).checkpoint(), "env_steps": 1}
    save_policy(tmp_path / "run" / "checkpoints" / "best.pt", checkpoint)
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["sac", "dqn"])
def test_predict_is_that_of_stable_baselines3(tmp_path, name):
    """One observation gives one action, several give several; a state is handed on."""
    policy = load_policy(run_folder(tmp_path, name))
    several, state = policy.predict(OBSERVATION, state=("any",))
    assert state == ("any",)
    np.testing.assert_array_equal(several, policy.act(OBSERVATION))
    for observation, expected in zip(OBSERVATION, several, strict=True):
        action, state = policy.predict(observation.astype(np.float64))
        assert state is None
        assert action.shape == expected.shape
        np.testing.assert_allclose(action, expected, rtol=1e-6)


def test_stable_baselines3_evaluates_it(tmp_path):
    algo = AlgoConfig(name="sac", hidden=[8])
    actions = gym.spaces.Box(-2, 2, (1,), np.float32)
    checkpoint = SAC(algo, SPACE, actions, 0, CPU).checkpoint()
    policy = Policy({**checkpoint, "env_steps": 1})
    env = gym.make("Pendulum-v1", max_episode_steps=20)
    env.reset(seed=3)
    found, _ = evaluate_policy(policy, env, n_eval_episodes=1, warn=False)
    env.reset(seed=3)
    observation, _ = env.reset()  # as in there
    total = 0.0
    for _ in range(20):
        observation, reward, *_ = env.step(policy.act(observation[None])[0])
        total += reward
    assert found == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("shape", [(), (2,), (4,), (3, 2), (1, 1, 3), (0,)])
def test_observations_of_another_shape_are_one_sentence(tmp_path, shape):
    policy = load_policy(run_folder(tmp_path, "sac"))
    with pytest.raises(ConfigError, match=r"has the shape .* must have \(3,\), or"):
        policy.predict(np.zeros(shape))
    assert policy.predict(np.zeros((0, 3)))[0].shape == (0, 2)


def test_exploration_is_refused(tmp_path):
    policy = load_policy(run_folder(tmp_path, "sac"))
    with pytest.raises(ConfigError, match="acts without exploration"):
        policy.predict(OBSERVATION, deterministic=False)


def test_a_folder_without_a_policy_is_one_sentence(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError, match=r"no policy at .*: give the folder of a"):
            load_policy(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sac", "dqn"])
def test_onnx_computes_the_same(tmp_path, name):
    import onnxruntime

    policy = load_policy(run_folder(tmp_path, name))
    policy.to_onnx(tmp_path / "policy.onnx")
    cpu = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx", providers=cpu)
    observations = np.random.default_rng(0).normal(0, 100, (50, 3)).astype(np.float32)
    for batch in (observations, observations[:1]):  # any number of them
        [action] = session.run(["action"], {"observation": batch})
        expected, _ = policy.predict(batch)
        assert action.dtype == expected.dtype
        np.testing.assert_allclose(action, expected, rtol=1e-5, atol=1e-6)
    assert np.ptp(policy.act(observations)) > 0


def test_onnx_without_its_packages_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    policy = load_policy(run_folder(tmp_path, "sac"))
    with pytest.raises(ConfigError, match=r"needs the package onnxscript.*\[onnx\]"):
        policy.to_onnx(tmp_path / "policy.onnx")
    assert not (tmp_path / "policy.onnx").exists()
