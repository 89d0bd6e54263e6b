"""coupling: features that pass, broadcasting, the round trip."""

from __future__ import annotations

from typing import Any

import torch
from accuracy import device_of
from cases.coupling import CASE, TABLE
from contract import on_each_kernel

import flowkern as fk


@on_each_kernel(cases=[CASE])
def test_features_that_pass_are_the_same_bits(case: Any, kernels: str) -> None:
    x = torch.randn(5, 9, device=device_of(kernels))
    with fk.backend(kernels):
        z, log_det = fk.ops.coupling(x, x[:, :0], x[:, :0], transformed=slice(9, None))
        assert torch.equal(z, x)
        assert (log_det == 0).all()
        z, _ = fk.ops.coupling(x, x[:, :4], x[:, :4], transformed=slice(5, None))
    assert torch.equal(z[:, :5], x[:, :5])


@on_each_kernel(cases=[CASE])
def test_a_feature_that_passes_shows_that_it_is_not_finite(case: Any, kernels: str) -> None:
    for inverse in (False, True):
        x = torch.zeros(3, 9, device=device_of(kernels))
        x[1, 0] = float("inf")
        zeros = torch.zeros(3, 4, device=x.device)
        with fk.backend(kernels):
            _, log_det = fk.ops.coupling(x, zeros, zeros, transformed=slice(5, None), inverse=inverse)
        assert torch.isfinite(log_det).tolist() == [True, False, True]


def test_broadcasting_round_trip_and_half_precision() -> None:
    table = torch.tensor(TABLE)
    x, shift, raw = torch.randn(4, 1, 9), torch.randn(3, 5), torch.randn(4, 3, 5)
    for low in (torch.float32, torch.bfloat16):
        z, log_det = fk.ops.coupling(x.to(low), shift.to(low), raw.to(low), transformed=table)
        assert z.shape == (4, 3, 9)
        assert (z.dtype, log_det.dtype, log_det.shape) == (low, low, (4, 3))
    z, log_det = fk.ops.coupling(x, shift, raw, transformed=table)
    back, inverse = fk.ops.coupling(z, shift, raw, transformed=table, inverse=True)
    torch.testing.assert_close(back, x.expand(4, 3, 9))
    torch.testing.assert_close(inverse, -log_det)
    passing = table < 0
    assert torch.equal(z[..., passing], x.expand(4, 3, 9)[..., passing])
