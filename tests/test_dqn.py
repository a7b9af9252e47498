import gymnasium as gym
import numpy as np
import pytest
import torch

from point_mass import point_mass, read_metrics
from vlmrm_exp.config import AlgoConfig
from vlmrm_exp.rl import Batch, dqn, make_seeds

CPU = torch.device("cpu")
SPACE = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)


def make_agent(seed: int = 0, **changes) -> dqn.DQN:
    algo = AlgoConfig(**{"name": "dqn", "hidden": [16, 16], **changes})
    return dqn.DQN(algo, SPACE, gym.spaces.Discrete(4), seed, CPU)


def make_batch(size: int = 32) -> Batch:
    rng = np.random.default_rng(0)
    observation, next_observation = torch.from_numpy(
        rng.standard_normal((2, size, 3), dtype=np.float32)
    )
    action = torch.from_numpy(rng.integers(0, 4, size))
    reward = torch.from_numpy(rng.standard_normal(size, dtype=np.float32))
    last = torch.arange(size) > 20
    return Batch(observation, action, reward, next_observation, last)


def weights(agent: dqn.DQN, name: str = "network") -> list[torch.Tensor]:
    return [p.detach().clone() for p in getattr(agent, name).parameters()]


@pytest.mark.parametrize(("bootstrap", "second"), [(True, 4.5), (False, 2.0)])
def test_q_target_equals_the_hand_computed(bootstrap, second):
    batch = make_batch(2)._replace(
        reward=torch.tensor([1.0, 2.0]), last=torch.tensor([False, True])
    )
    chooses = torch.tensor([[1.0, 3.0], [2.0, 0.0]])
    judges = torch.tensor([[9.0, 4.0], [5.0, 9.0]])
    target = dqn.q_target(batch, chooses, judges, 0.5, bootstrap)
    # 1 + .5 * 4 and 2 + .5 * 5: not the 9 that the judge itself would choose.
    torch.testing.assert_close(target, torch.tensor([3.0, second]))


def test_q_loss_is_quadratic_then_linear():
    loss = dqn.q_loss(torch.tensor([0.5, -3.0]), torch.tensor([0.0, 0.0]))
    # (.5 ** 2 / 2 + (3 - .5)) / 2
    assert loss.item() == pytest.approx(1.3125)


def test_epsilon_falls_linearly_then_stays():
    algo = AlgoConfig(
        name="dqn",
        exploration_start=1.0,
        exploration_end=0.2,
        exploration_steps=1000,
    )
    values = [dqn.epsilon(algo, steps) for steps in (0, 250, 500, 1000, 5000)]
    assert values == pytest.approx([1.0, 0.8, 0.6, 0.2, 0.2])


def test_epsilon_without_exploration_steps_is_the_end():
    algo = AlgoConfig(name="dqn", exploration_end=0.1, exploration_steps=0)
    assert dqn.epsilon(algo, 1) == pytest.approx(0.1)


def test_act_is_greedy_but_for_epsilon():
    agent = make_agent()
    observation = np.tile(np.float32([1, -1, 0.5]), (4000, 1))
    value = agent.network(torch.from_numpy(observation[:1]))[0]
    best = int(value.argmax())
    assert (agent.act(observation, 0.0) == best).all()
    # With epsilon .4 over four actions: .6 + .4 / 4 = .7, standard deviation .007.
    assert (agent.act(observation, 0.4) == best).mean() == pytest.approx(0.7, abs=0.03)
    assert set(agent.act(observation, 1.0)) == {0, 1, 2, 3}


def test_update_equals_a_plain_implementation():
    agent, plain = make_agent(learning_rate=1e-2), make_agent(learning_rate=1e-2)
    with torch.no_grad():  # else network and target would be the same
        for either in (agent, plain):
            either.target.net[0].weight.mul_(2)
    batch = make_batch()
    agent.update(batch)
    with torch.no_grad():
        choice = plain.network(batch.next_observation).argmax(1)
        value = plain.target(batch.next_observation)[torch.arange(32), choice]
    optimiser = torch.optim.Adam(plain.network.parameters(), 1e-2, foreach=False)
    chosen = plain.network(batch.observation)[torch.arange(32), batch.action]
    error = (chosen - (batch.reward + 0.99 * value)).abs()
    torch.where(error < 1, error**2 / 2, error - 0.5).mean().backward()
    optimiser.step()
    torch.testing.assert_close(weights(agent), weights(plain))


def test_update_moves_the_target_by_tau():
    agent = make_agent(tau=0.25)
    before = weights(agent, "target")
    agent.update(make_batch())
    after, online = weights(agent, "target"), weights(agent)
    for old, new, towards in zip(before, after, online, strict=True):
        assert not torch.equal(old, towards)
        torch.testing.assert_close(new, old + 0.25 * (towards - old))


def test_agent_leaves_the_global_random_stream_alone():
    before = torch.get_rng_state()
    agent = make_agent(seed=5)
    agent.act(np.zeros((4, 3), np.float32), 0.5)
    agent.update(make_batch())
    assert torch.equal(torch.get_rng_state(), before)


def test_agent_goes_on_from_a_saved_state(tmp_path):
    agent, other = make_agent(0), make_agent(1)
    for _ in range(3):
        agent.update(make_batch())
    torch.save(agent.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(3):
        assert agent.update(make_batch()) == other.update(make_batch())
    observation = np.ones((50, 3), np.float32)
    ours, theirs = agent.act(observation, 0.5), other.act(observation, 0.5)
    np.testing.assert_array_equal(ours, theirs)
    assert all(map(torch.equal, weights(agent, "target"), weights(other, "target")))


def test_training_moves_every_weight_and_raises_the_reward(tmp_path):
    algo = {
        "gradient_steps": 40,
        "batch_size": 64,
        "learning_rate": 3e-3,
        "tau": 0.05,
        "hidden": [32, 32],
        "exploration_steps": 1600,
    }
    with point_mass(tmp_path, "dqn", env_steps=3200, algo=algo) as parts:
        spaces = parts.envs.observation_space, parts.envs.action_space
        start = dqn.DQN(parts.config.algo, *spaces, make_seeds(0).agent, CPU)
        state = parts.train()
    assert state.gradient_steps == 20 * 40
    for name in ("network", "target"):
        old, new = (weights(a, name) for a in (start, state.agent))
        assert not any(map(torch.equal, old, new))
    metrics = read_metrics(tmp_path)
    # A random walk stays far away; the best reaches its nearest point within 5 steps.
    assert metrics[0]["train/reward_mean"] < -0.4
    assert metrics[-1]["eval/reward_mean"] > -0.2


@pytest.mark.parametrize("last", [True, False])
def test_whether_time_limits_bootstrap_reaches_the_update(last):
    batch = make_batch()._replace(last=torch.full((32,), last))
    agents = [make_agent(bootstrap_at_time_limit=b) for b in (True, False)]
    losses = [agent.update(batch)["loss/q"] for agent in agents]
    assert torch.equal(*losses) == (not last)
