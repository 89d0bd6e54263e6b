"""log_det and normal_log_prob: values by hand, and more elements than 32 bits count."""

from __future__ import annotations

import pytest
import torch

import flowkern as fk


def test_values_by_hand() -> None:
    assert fk.ops.normal_log_prob(torch.zeros(1)).item() == pytest.approx(-0.9189385)
    assert fk.ops.normal_log_prob(torch.tensor([1.0, 2.0]), torch.tensor(0.5)).item() == pytest.approx(-2.5 - 1.8378771 + 0.5)
    assert fk.ops.log_det(torch.tensor([1.0, 2.5])).item() == 3.5


def test_a_density_without_a_log_det() -> None:
    z = torch.randn(5, 7, requires_grad=True)
    alone = fk.ops.normal_log_prob(z)
    assert torch.equal(alone, fk.ops.normal_log_prob(z, torch.zeros(5)))
    torch.testing.assert_close(torch.autograd.grad(alone.sum(), z)[0], -z)


@pytest.mark.slow
def test_more_than_two_to_the_31_elements() -> None:
    many = torch.ones(1, 1).expand(3, 2**30)
    assert fk.ops.log_det(many).tolist() == [2.0**30] * 3
