import gymnasium as gym
import numpy as np
import pytest
import torch

from vlmrm_exp.config import AlgoConfig, ConfigError
from vlmrm_exp.rl.dqn import DQN
from vlmrm_exp.rl.experience import save_policy
from vlmrm_exp.rl.policy import load_policy
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
