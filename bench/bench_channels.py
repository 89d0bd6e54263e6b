"""Operators on the channels of images, alone: flowkern and torch's own operations, at the sizes of a Glow of 3x32x32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import measure_operator
from torch import Tensor

import flowkern as fk
from flowkern.nn import InvertibleConv1x1

BATCH = 16
SHAPES = [(3, 32, 32), (12, 16, 16), (24, 8, 8), (48, 4, 4)]


def actnorm(bias: Tensor, log_scale: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """By torch's own operations."""

    def call(x: Tensor) -> tuple[Tensor, Tensor]:
        z = (x + bias[:, None, None]) * log_scale.exp()[:, None, None]
        return z, (log_scale.sum() * x[0, 0].numel()).expand(len(x))

    return call


def convolution(layer: InvertibleConv1x1) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The same in the LU form."""
    one = torch.eye(len(layer.sign))

    def call(x: Tensor) -> tuple[Tensor, Tensor]:
        upper = layer.upper.triu(1) + torch.diag(layer.sign * layer.log_scale.exp())
        weight = ((layer.lower.tril(-1) + one) @ upper)[layer.order]
        z = torch.nn.functional.conv2d(x, weight[:, :, None, None])
        return z, (layer.log_scale.sum() * x[0, 0].numel()).expand(len(x))

    return call


@pytest.mark.parametrize("implementation", ["flowkern", "torch"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("operator", ["actnorm", "invertible_conv1x1"])
def test_channels(benchmark: Any, operator: str, shape: tuple[int, ...], implementation: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(BATCH, *shape, requires_grad=True)
    if operator == "actnorm":
        parameters = [(0.1 * torch.randn(shape[0])).requires_grad_() for _ in range(2)]
        theirs = actnorm(*parameters)

        def ours(x: Tensor) -> tuple[Tensor, Tensor]:
            return fk.ops.actnorm(x, *parameters, dim=1)

    else:
        layer = InvertibleConv1x1(shape)
        parameters = list(layer.parameters())
        theirs = convolution(layer)

        def ours(x: Tensor) -> tuple[Tensor, Tensor]:
            return fk.ops.invertible_conv1x1(x, layer.lower, layer.upper, layer.log_scale, layer.order, layer.sign, dim=1)

    (z, log_det), expected = ours(x), theirs(x)
    torch.testing.assert_close((z.reshape(x.shape), log_det), expected, rtol=1e-3, atol=1e-3)
    call = ours if implementation == "flowkern" else theirs
    group = f"{operator} forward + backward: {BATCH} x {' x '.join(map(str, shape))}"
    measure_operator(benchmark, lambda: call(x), [x, *parameters], group, implementation)
