"""affine: maps by hand, many rows and features, extreme raw scales, broadcasting."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accuracy import LONG_DOUBLES, device_of, using
from cases.affine import CASE
from contract import check, check_registered, on_each_kernel

import flowkern as fk
from flowkern import reference
from flowkern.univariate import SCALES, default_constants


@on_each_kernel(cases=[CASE])
@pytest.mark.parametrize("wide", [False, True], ids=["many rows", "many features"])
def test_many_features_and_many_rows(case: object, kernels: str, wide: bool) -> None:
    if not wide:
        check(CASE, kernels, rows=200_000, most=1, variation={"features": 1, "scale": "exp"})
        return
    # In float64 a sum of a million terms is no more exact in the oracle than in the kernel: 20,000 there.
    for dtype, features in ((torch.float32, 1_000_000), (torch.float64, 20_000)):
        check(CASE, kernels, rows=1, most=2, variation={"features": features, "scale": "exp"}, dtypes=(dtype,))


@pytest.mark.parametrize("scale", SCALES[1:])
def test_extreme_raw_scales_stay_finite_where_the_oracle_does(scale: str, dtype: torch.dtype) -> None:
    raw = torch.tensor([[-80.0, -30.0, -8.0, -1e-8, 0.0, 1e-8, 8.0, 30.0, 80.0]], dtype=dtype)
    x, shift = torch.ones_like(raw), torch.zeros_like(raw)
    options = {"scale": scale, "placement": "scale_shift"}
    z, log_det = fk.ops.affine(x, shift, raw, **options)
    exact = reference.affine(x.double(), shift.double(), raw.double(), constants=default_constants(scale), **options)
    torch.testing.assert_close(z.double(), exact[0], rtol=4 * torch.finfo(dtype).eps, atol=0)
    torch.testing.assert_close(log_det.double(), exact[1], rtol=1e-6, atol=1e-6)


def units(found: np.ndarray, exact: np.ndarray) -> float:
    """The largest error, in units in the last place of the numbers' own precision."""
    return (np.abs(found - exact) / np.spacing(np.abs(exact).astype(found.dtype))).max()


@LONG_DOUBLES
@on_each_kernel(cases=[CASE])
def test_the_arctangent_in_units_in_the_last_place(case: object, kernels: str, dtype: torch.dtype) -> None:
    """log s is that of the raw scale itself, in all ranges that it is reduced by: at most 1 on the CPU, 3 elsewhere."""
    sizes = torch.cat([torch.logspace(-37, 37, 1000), torch.linspace(0.2, 4, 3000)])
    raw = torch.cat([sizes, -sizes, torch.tensor([0.0, torch.inf, -torch.inf])]).to(dtype)[:, None]
    x, shift, given = (t.to(device_of(kernels)) for t in (torch.zeros_like(raw), torch.zeros_like(raw), raw))
    with using(kernels):
        _, log_det = fk.ops.affine(x, shift, given, scale="atan", placement="scale_shift", constants=(1, 1))
    exact = np.arctan(raw[:, 0].numpy().astype(np.longdouble))
    assert units(log_det.cpu().numpy(), exact) <= (1 if kernels == "native" else 3)


FUNCTIONS = {  # a scale, its constants, raw numbers, what becomes of them, units in the last place
    "exp": ((), np.linspace(-745.1, 709.7, 40_000), np.exp, 1),  # to the last denormal number
    "softplus": ((0,), np.linspace(-700, 40, 40_000), lambda a: np.log1p(np.exp(a)), 2),
    "sigmoid": ((0, 0), np.linspace(-700, 40, 40_000), lambda a: 1 / (1 + np.exp(-a)), 2),
    "tanh": ((1, 1), np.concatenate([np.geomspace(1e-300, 30, 20_000), -np.geomspace(1e-300, 30, 20_000)]), np.tanh, 2.5),
}


def scales_of(raw: np.ndarray, scale: str, constants: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """s and log s of raw numbers."""
    a = torch.from_numpy(raw)[:, None]
    z, log_det = fk.ops.affine(
        torch.ones_like(a), torch.zeros_like(a), a, scale=scale, placement="scale_shift", constants=constants
    )
    return z[:, 0].numpy(), log_det.numpy()


@LONG_DOUBLES
@pytest.mark.parametrize("scale", FUNCTIONS)
def test_functions_of_doubles_in_units_in_the_last_place(scale: str) -> None:
    constants, raw, function, most = FUNCTIONS[scale]
    s, log_s = scales_of(raw, scale, constants)
    assert units(log_s if scale == "tanh" else s, function(raw.astype(np.longdouble))) <= most


@LONG_DOUBLES
def test_logarithms_of_doubles_in_units_in_the_last_place() -> None:
    raw = np.concatenate([np.linspace(-740, 40, 40_000), np.geomspace(40, 1e300, 1000)])  # denormal scales included
    s, log_s = scales_of(raw, "softplus", (0,))
    assert units(log_s, np.log(s.astype(np.longdouble))) <= 1


def test_broadcasting() -> None:
    x = torch.randn(4, 3, 5)
    shift, raw = torch.randn(5, requires_grad=True), torch.randn(3, 1, requires_grad=True)
    z, log_det = fk.ops.affine(x, shift, raw)
    with fk.backend("reference"):
        torch.testing.assert_close(fk.ops.affine(x, shift, raw), (z, log_det))
    z.sum().backward()
    assert shift.grad is not None
    assert raw.grad is not None
    assert raw.grad.shape == raw.shape
    low = fk.ops.affine(x.bfloat16(), shift.bfloat16(), raw.bfloat16())
    assert low[0].dtype == torch.bfloat16
    torch.testing.assert_close(low[0].float(), z, rtol=0.05, atol=0.05)


def test_the_gradient_passes_straight_through_the_clamp() -> None:
    raw = torch.tensor([[-9.0, 0.0, 9.0]], requires_grad=True)
    _, log_det = fk.ops.affine(torch.zeros(1, 3), torch.zeros(3), raw, scale="clamped_exp", placement="scale_shift")
    assert log_det.item() == -2.0
    log_det.sum().backward()
    assert raw.grad is not None
    assert raw.grad.tolist() == [[1.0, 1.0, 1.0]]


def test_maps_by_hand() -> None:
    x, t, a = torch.tensor([[2.0]]), torch.tensor([[0.5]]), torch.tensor([[0.0]])
    expected = {
        ("exp", "scale_shift"): (2.5, 0.0),
        ("exp", "standardize"): (1.5, 0.0),
        ("sigmoid", "gate"): (0.8807971 * 2 + 0.1192029 * 0.5, -0.126928),
        ("softplus", "scale_shift"): (2 * (0.6931472 + 1e-3) + 0.5, -0.3650711),
        ("sigmoid", "shift_scale"): (2.5 * 0.8807971, -0.126928),
    }
    for backend in ("native", "reference"):
        for (scale, placement), (z, log_det) in expected.items():
            with fk.backend(backend):
                found = fk.ops.affine(x, t, a, scale=scale, placement=placement)
            torch.testing.assert_close(torch.stack([v.flatten() for v in found]).flatten(), torch.tensor([z, log_det]))


@on_each_kernel(cases=[CASE])
def test_opcheck_of_an_additive_map(case: object, kernels: str) -> None:
    check_registered(CASE, kernels, {"features": 4, "scale": "none"})


def test_an_additive_map_compiles_with_gradients() -> None:
    x, shift = torch.randn(5, 4), torch.randn(5, 4, requires_grad=True)

    def call() -> torch.Tensor:
        return fk.ops.affine(x, shift, scale="none")[0].square().sum()

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(), shift), torch.autograd.grad(call(), shift))
