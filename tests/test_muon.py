"""Muon against singular values, and against torch's own."""

import pytest
import torch

from vlmrm_exp.pretraining.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(5, 12), (12, 5), (8, 8)])
def test_singular_values_become_one_and_directions_stay(shape):
    generator = torch.Generator().manual_seed(0)
    u, _, vt = torch.linalg.svd(
        torch.randn(shape, generator=generator), full_matrices=False
    )
    values = torch.logspace(-1.5, 1, min(shape))  # of a norm that must not matter
    found = u.T @ orthogonal(u @ torch.diag(values) @ vt) @ vt.T
    assert (found - torch.diag(found.diagonal())).abs().max() < 1e-4
    # The range that the iteration's coefficients are made for.
    assert 0.65 < found.diagonal().min()
    assert found.diagonal().max() < 1.25


def test_steps_are_those_of_torch():
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch has Muon from 2.9 on")
    generator = torch.Generator().manual_seed(1)
    for shape in ((6, 10), (10, 6)):
        start = torch.randn(shape, generator=generator)
        ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
        one = Muon([ours], lr=0.1)
        other = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.0)
        for _ in range(4):
            gradient = torch.randn(shape, generator=generator)
            ours.grad, theirs.grad = gradient.clone(), gradient.clone()
            one.step()
            other.step()
        average = other.state[theirs]["momentum_buffer"]
        torch.testing.assert_close(one.state[ours]["average"], average)
        # Torch iterates in bfloat16, of 8 bits.
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.02)
        assert (ours - start).abs().max() > 0.1


def test_a_convolution_is_the_matrix_of_its_filters():
    generator = torch.Generator().manual_seed(2)
    start = torch.randn(4, 3, 3, 3, generator=generator)
    gradient = torch.randn(4, 3, 3, 3, generator=generator)
    matrix = torch.nn.Parameter(start.flatten(1).clone())
    matrix.grad = gradient.flatten(1)
    Muon([matrix], lr=0.1).step()
    for layout in (torch.contiguous_format, torch.channels_last):
        filters = torch.nn.Parameter(start.clone(memory_format=layout))
        filters.grad = gradient.clone(memory_format=layout)
        Muon([filters], lr=0.1).step()
        torch.testing.assert_close(filters.flatten(1), matrix)
