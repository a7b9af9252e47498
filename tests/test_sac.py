import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from point_mass import point_mass, read_metrics
from vlmrm_exp.config import AlgoConfig
from vlmrm_exp.rl import Batch, make_seeds, sac

CPU = torch.device("cpu")


def make_agent(seed: int = 0, **changes) -> sac.SAC:
    algo = AlgoConfig(**{"name": "sac", "hidden": [16, 16], **changes})
    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gym.spaces.Box(np.float32([-1, 0]), np.float32([1, 4]))
    return sac.SAC(algo, observation_space, action_space, seed, CPU)


def make_batch(size: int = 32) -> Batch:
    rng = np.random.default_rng(0)
    numbers = [
        torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
        for shape in ((size, 3), (size, 2), (size,), (size, 3))
    ]
    return Batch(numbers[0], numbers[1].tanh(), *numbers[2:], torch.arange(size) > 20)


def weights(module: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def test_squashed_gaussian_has_the_density_of_a_tanh_normal():
    rng = torch.Generator().manual_seed(0)
    mean, log_std, noise = torch.randn(3, 100, 2, generator=rng, dtype=torch.float64)
    log_std = log_std / 3  # their inverse of tanh is infinite where it saturates
    action, log_prob = sac.squashed_gaussian(mean, log_std, noise)
    normal = Normal(mean, log_std.exp())
    truth = TransformedDistribution(normal, [TanhTransform()])
    expected = truth.log_prob(action).sum(-1)
    torch.testing.assert_close(action, torch.tanh(mean + log_std.exp() * noise))
    torch.testing.assert_close(log_prob, expected, rtol=1e-6, atol=1e-6)


def test_squashed_gaussian_stays_finite_where_tanh_saturates():
    mean = torch.tensor([[50.0]], requires_grad=True)
    zero = torch.zeros(1, 1)
    _, log_prob = sac.squashed_gaussian(mean, zero, zero)
    # log N(0) = -0.9189; log(1 - tanh(50)^2) = log 4 - 100 to within float precision.
    assert log_prob.item() == pytest.approx(-0.9189 - (math.log(4) - 100), abs=1e-3)
    log_prob.sum().backward()
    assert mean.grad is not None
    assert mean.grad.item() == pytest.approx(2)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_critics_equal_two_separate_networks(layer_norm):
    critics = sac.TwinCritics(3, 2, [8, 5], layer_norm)
    observation, action = torch.randn(7, 3), torch.randn(7, 2)
    for k in range(2):
        x = torch.cat([observation, action], dim=1)
        matrices = [torch.cat([critics.weights[0][k], critics.action_weight[k]])]
        matrices += [weight[k] for weight in critics.weights[1:]]
        for layer, (matrix, bias) in enumerate(
            zip(matrices, critics.biases, strict=True)
        ):
            if layer > 0 and layer_norm:
                mean, variance = x.mean(1, True), x.var(1, correction=0, keepdim=True)
                x = (x - mean) / (variance + 1e-5).sqrt()
            x = (x if layer == 0 else x.clamp(min=0)) @ matrix + bias[k, 0]
        torch.testing.assert_close(critics(observation, action)[k], x[:, 0])


@pytest.mark.parametrize(("bootstrap", "second"), [(True, 2.35), (False, 2.0)])
def test_critic_target_equals_the_hand_computed(bootstrap, second):
    nothing = torch.zeros(2, 1)
    batch = Batch(
        observation=nothing,
        action=nothing,
        reward=torch.tensor([1.0, 2.0]),
        next_observation=nothing,
        last=torch.tensor([False, True]),
    )
    value = torch.tensor([[3.0, 1.0], [2.0, 4.0]])
    log_prob = torch.tensor([-2.0, 3.0])
    target = sac.critic_target(
        batch, value, log_prob, torch.tensor(0.1), 0.5, bootstrap
    )
    # 1 + .5 (min(3, 2) + .1 * 2) = 2.1;  2 + .5 (min(1, 4) - .1 * 3) = 2.35
    torch.testing.assert_close(target, torch.tensor([2.1, second]))


def test_losses_equal_the_hand_computed():
    value = torch.tensor([[1.0, 3.0], [2.0, 5.0]])
    log_prob = torch.tensor([-1.0, 2.0])
    # (1 + 4) / 2 + (4 + 16) / 2
    assert sac.critic_loss(value, torch.tensor([0.0, 1.0])).item() == 12.5
    # ((-.5 - 1) + (1 - 3)) / 2
    assert sac.actor_loss(value, log_prob, torch.tensor(0.5)).item() == -1.75
    # -.2 * ((-1 - 3) + (2 - 3)) / 2
    loss = sac.temperature_loss(torch.tensor(0.2), log_prob, target_entropy=-3.0)
    assert loss.item() == pytest.approx(0.5)


@pytest.mark.parametrize(("target_entropy", "sign"), [(50.0, 1), (-50.0, -1)])
def test_temperature_moves_entropy_towards_its_target(target_entropy, sign):
    agent = make_agent(temperature=0.1, target_entropy=target_entropy)
    agent.update(make_batch())
    assert sign * (agent.log_temperature.item() - math.log(0.1)) > 0


def test_temperature_stays_when_it_is_not_learned():
    agent = make_agent(temperature=0.1, learn_temperature=False)
    metrics = agent.update(make_batch())
    assert agent.log_temperature.item() == pytest.approx(math.log(0.1))
    assert "loss/temperature" not in metrics


def test_update_equals_a_plain_implementation():
    agent, plain = make_agent(learning_rate=1e-2), make_agent(learning_rate=1e-2)
    batch, temperature = make_batch(), torch.tensor(0.2)
    agent.update(batch)
    noise = [torch.randn(32, 2, generator=plain.generator) for _ in range(2)]

    def act(observation, noise):
        return sac.squashed_gaussian(*plain.actor(observation), noise)

    with torch.no_grad():
        action, log_prob = act(batch.next_observation, noise[0])
        value = plain.targets(batch.next_observation, action).min(0).values
        target = batch.reward + 0.99 * (value - temperature * log_prob)
    optimiser = torch.optim.Adam(plain.critics.parameters(), 1e-2, foreach=False)
    errors = plain.critics(batch.observation, batch.action) - target
    (errors**2).mean(1).sum().backward()
    optimiser.step()
    optimiser = torch.optim.Adam(plain.actor.parameters(), 1e-2, foreach=False)
    action, log_prob = act(batch.observation, noise[1])
    value = plain.critics(batch.observation, action).min(0).values
    (temperature * log_prob - value).mean().backward()
    optimiser.step()
    for ours, theirs in ((agent.critics, plain.critics), (agent.actor, plain.actor)):
        torch.testing.assert_close(weights(ours), weights(theirs))


def test_update_moves_targets_by_tau():
    agent = make_agent(tau=0.25)
    before = weights(agent.targets)
    agent.update(make_batch())
    for old, new, online in zip(
        before, weights(agent.targets), weights(agent.critics), strict=True
    ):
        assert not torch.equal(old, online)
        torch.testing.assert_close(new, old + 0.25 * (online - old))


def test_update_leaves_no_graph_behind():
    metrics = make_agent().update(make_batch())
    assert set(metrics) >= {"loss/critic", "loss/actor", "train/temperature"}
    assert not any(value.requires_grad for value in metrics.values())


def test_actions_lie_in_the_bounds():
    agent = make_agent()
    observation = 10 * np.random.default_rng(0).standard_normal((500, 3))
    for action in (agent.act(observation.astype(np.float32)), agent.random_action(500)):
        assert action.dtype == np.float32
        assert (action >= [-1, 0]).all()
        assert (action <= [1, 4]).all()
        np.testing.assert_allclose(action.max(0), [1, 4], atol=0.1)
        np.testing.assert_allclose(action.min(0), [-1, 0], atol=0.1)


def test_random_actions_are_held_across_a_saved_state():
    agent, other = make_agent(0, random_action_repeat=3), make_agent(1)
    actions = [agent.random_action(4) for _ in range(5)]
    for held in (actions[1], actions[2]):
        np.testing.assert_array_equal(held, actions[0])
    assert not (actions[3] == actions[0]).any()
    assert len(np.unique(actions[0])) == 8  # each environment its own
    other.algo.random_action_repeat = 3
    other.load_state_dict(agent.state_dict())
    np.testing.assert_array_equal(other.random_action(4), actions[4])
    agent.random_action(4)
    np.testing.assert_array_equal(other.random_action(4), agent.random_action(4))


def test_unit_box_and_bounds_are_inverse():
    low, high = np.float32([-1, 0]), np.float32([1, 4])
    unit = np.float32([[-1, -1], [0, 0.5], [1, 1]])
    action = sac.to_bounds(unit, low, high)
    np.testing.assert_array_equal(action, [[-1, 0], [0, 3], [1, 4]])
    np.testing.assert_allclose(sac.to_unit(action, low, high), unit)


def test_agent_leaves_the_global_random_stream_alone():
    before = torch.get_rng_state()
    agent = make_agent(seed=5)
    agent.act(np.zeros((4, 3), np.float32))
    agent.update(make_batch())
    assert torch.equal(torch.get_rng_state(), before)


def test_agent_seed_decides_its_weights():
    assert torch.equal(weights(make_agent(0).actor)[0], weights(make_agent(0).actor)[0])
    one, other = make_agent(0).critics, make_agent(1).critics
    assert not torch.equal(weights(one)[0], weights(other)[0])


def test_agent_goes_on_from_a_saved_state(tmp_path):
    agent, other = make_agent(0), make_agent(1)
    for _ in range(3):
        agent.update(make_batch())
    torch.save(agent.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(3):
        ours, theirs = agent.update(make_batch()), other.update(make_batch())
        assert ours == theirs
    observation = np.ones((4, 3), np.float32)
    np.testing.assert_array_equal(agent.act(observation), other.act(observation))
    assert torch.equal(weights(agent.targets)[0], weights(other.targets)[0])


def test_training_moves_every_weight_and_raises_the_reward(tmp_path):
    algo = {
        "gradient_steps": 40,
        "batch_size": 64,
        "learning_rate": 3e-3,
        "hidden": [32, 32],
        "temperature": 0.02,
        "random_steps": 160,
    }
    with point_mass(tmp_path, "sac", env_steps=3200, algo=algo) as parts:
        spaces = parts.envs.observation_space, parts.envs.action_space
        start = sac.SAC(parts.config.algo, *spaces, make_seeds(0).agent, CPU)
        state = parts.train()
    assert state.gradient_steps == 20 * 40
    for name in ("actor", "critics", "targets"):
        old, new = (weights(getattr(a, name)) for a in (start, state.agent))
        assert not any(map(torch.equal, old, new))
    metrics = read_metrics(tmp_path)
    # Uniform actions drift to the wall; the best policy is there after a few steps.
    assert metrics[0]["train/reward_mean"] < -0.6
    assert metrics[-1]["eval/reward_mean"] > -0.12


def test_settings_reach_the_networks_and_the_update():
    assert make_agent().target_entropy == -2  # minus the number of actions
    assert make_agent(target_entropy=-3.5).target_entropy == -3.5
    for layer_norm in (True, False):
        critics = make_agent(layer_norm=layer_norm).critics
        alike, unlike = (
            sac.TwinCritics(3, 2, [16, 16], n) for n in (layer_norm, not layer_norm)
        )
        values = []
        for one in (critics, alike, unlike):
            one.load_state_dict(critics.state_dict())
            values.append(one(make_batch().observation, make_batch().action))
        assert torch.equal(values[0], values[1])
        assert not torch.equal(values[0], values[2])
    for last in (True, False):
        batch = make_batch()._replace(last=torch.full((32,), last))
        losses = [
            make_agent(bootstrap_at_time_limit=b).update(batch)["loss/critic"]
            for b in (True, False)
        ]
        assert torch.equal(*losses) == (not last)
