"""actnorm: the channels in any dimension of images that lie in memory in any order."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from accuracy import KERNELS, device_of, using
from torch import Tensor

import flowkern as fk

SHAPE = (2, 3, 4, 3)


def laid_out() -> list[Tensor]:
    """Numbers with their dimensions in every order, between others, and with dimensions that are repeated."""
    orders = [
        torch.randn([SHAPE[i] for i in order]).permute(*torch.tensor(order).argsort()) for order in permutations(range(4))
    ]
    small = [[1 if i in repeated else n for i, n in enumerate(SHAPE)] for repeated in ((0,), (1,), (3,), (2, 3), (0, 1, 2, 3))]
    return [*orders, *(torch.randn(shape).expand(SHAPE) for shape in small), torch.randn(3, 4, 5, 4)[1:, 1:, 1:, 1:]]


@KERNELS
@pytest.mark.parametrize("dim", [-1, -2, -3, -4])
def test_channels_in_any_dimension_of_any_layout(kernels: str, dim: int) -> None:
    layouts = laid_out()
    for x in layouts if kernels == "native" else layouts[::10]:
        x = x.to(device_of(kernels), torch.float64)
        bias, log_scale = torch.randn(2, SHAPE[dim]).to(x)
        found = []
        for backend in (kernels, "reference"):
            leaves = [t.detach().requires_grad_() for t in (x, bias, log_scale)]
            with using(backend):
                z, log_det = fk.ops.actnorm(*leaves, dim=dim)
            g_log_det = torch.arange(1.0, log_det.numel() + 1).view(log_det.shape).to(x)
            found.append([z, log_det, *torch.autograd.grad((z, log_det), leaves, (x, g_log_det))])
        torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
