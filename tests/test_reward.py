"""Rewards against a loop written from the paper's equations, and their properties."""

import math

import numpy as np
import pytest
import torch

from vlmrm_exp.reward.clip import goal_baseline_reward, mean_embedding


def unit(seed: int, *shape: int) -> torch.Tensor:
    vectors = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=-1)


def loop_reward(states, goal, baseline, alpha):
    """Equation 3, one state and one number at a time, in float64."""
    rewards = []
    g, b = goal.double().tolist(), baseline.double().tolist()
    for s in states.double().tolist():
        d = [gi - bi for gi, bi in zip(g, b, strict=True)]
        step = sum((si - bi) * di for si, bi, di in zip(s, b, d, strict=True))
        step /= sum(di * di for di in d)
        on_line = [bi + step * di for bi, di in zip(b, d, strict=True)]
        mixed = [alpha * p + (1 - alpha) * si for p, si in zip(on_line, s, strict=True)]
        squared = sum((mi - gi) ** 2 for mi, gi in zip(mixed, g, strict=True))
        rewards.append(1 - squared / 2)
    return rewards


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
def test_reward_equals_loop_over_equation_3(alpha):
    states, goal, baseline = unit(0, 20, 32), unit(1, 32), unit(2, 32)
    rewards = goal_baseline_reward(states, goal, baseline, alpha)
    expected = loop_reward(states, goal, baseline, alpha)
    np.testing.assert_allclose(rewards.numpy(), expected, atol=1e-6)


def test_reward_at_alpha_zero_is_the_cosine():
    states, goal = unit(0, 20, 32), unit(1, 32)
    rewards = goal_baseline_reward(states, goal, goal, alpha=0.0)
    cosine = torch.nn.functional.cosine_similarity(states, goal[None])
    torch.testing.assert_close(rewards, cosine, atol=1e-6, rtol=0)


def test_reward_by_hand_in_two_dimensions():
    goal, baseline = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    state = torch.tensor([[-1.0, 0.0]])
    # The line is x + y = 1; the state's projection on it is (0, 1): squared distance 2.
    reward = goal_baseline_reward(state, goal, baseline, alpha=1.0)
    assert reward.item() == pytest.approx(0.0, abs=1e-6)
    # Half way between (0, 1) and (-1, 0) is (-0.5, 0.5): squared distance 2.5.
    reward = goal_baseline_reward(state, goal, baseline, alpha=0.5)
    assert reward.item() == pytest.approx(-0.25, abs=1e-6)


def test_reward_at_alpha_one_is_blind_off_the_line():
    goal, baseline, states = unit(1, 8), unit(2, 8), unit(0, 5, 8)
    direction = torch.nn.functional.normalize(goal - baseline, dim=0)
    off = unit(3, 8)
    off = off - (off @ direction) * direction
    rewards = goal_baseline_reward(states, goal, baseline, 1.0)
    moved = goal_baseline_reward(states + off, goal, baseline, 1.0)
    torch.testing.assert_close(rewards, moved, atol=1e-5, rtol=0)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_reward_is_largest_at_the_goal(alpha):
    goal, baseline = unit(1, 16), unit(2, 16)
    states = torch.cat((goal[None], unit(0, 100, 16)))
    rewards = goal_baseline_reward(states, goal, baseline, alpha)
    assert rewards.argmax() == 0
    assert rewards[0].item() == pytest.approx(1.0, abs=1e-6)


def test_reward_of_half_precision_embeddings_is_float32():
    states, goal, baseline = unit(0, 4, 16), unit(1, 16), unit(2, 16)
    halves = (t.bfloat16() for t in (states, goal, baseline))
    assert goal_baseline_reward(*halves, 0.5).dtype == torch.float32


def test_reward_without_a_line_is_refused():
    goal = unit(1, 8)
    with pytest.raises(ValueError, match="same embedding"):
        goal_baseline_reward(unit(0, 2, 8), goal, goal, alpha=0.5)


def test_mean_embedding_by_hand():
    prompts = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    half = 1 / math.sqrt(2)
    torch.testing.assert_close(mean_embedding(prompts), torch.tensor([half, half]))
    left = mean_embedding(prompts, renormalise=False)
    torch.testing.assert_close(left, torch.tensor([0.5, 0.5]))
