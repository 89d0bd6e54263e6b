"""affine and iaf_step, forward and inverse, against their float64 oracle."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from accuracy import KERNELS, check_rule, device_of
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import strided

import flowkern as fk
from flowkern import reference
from flowkern.univariate import PLACEMENTS, SCALES, default_constants

Case = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def evaluate(options: dict[str, Any], how: str, case: Case, dtype: torch.dtype, backend: str) -> dict[str, torch.Tensor]:
    leaves = [strided(t.to(device_of(backend), dtype, copy=True), how).requires_grad_() for t in case]
    inputs = leaves[:2] if options["scale"] == "none" else leaves
    with fk.backend(backend):
        z, log_det = fk.ops.affine(*inputs, **options)
    generator = torch.Generator().manual_seed(3)
    total = (z * torch.randn(z.shape, generator=generator).to(z)).sum()
    total = total + (log_det * torch.randn(log_det.shape, generator=generator).to(z)).sum()
    grads = torch.autograd.grad(total, inputs)
    names = ("gradient of x", "gradient of shift", "gradient of raw")
    found = {"z": z.detach(), "log_det": log_det.detach(), **dict(zip(names, grads, strict=False))}
    return {name: value.cpu() for name, value in found.items()}


def check(
    options: dict[str, Any],
    shape: tuple[int, int],
    dtype: torch.dtype,
    how: str = "contiguous",
    most: int = 300,
    kernels: str = "native",
) -> None:
    def cases() -> Iterator[Case]:
        for seed in range(most):
            generator = torch.Generator().manual_seed(seed)
            yield tuple(torch.randn(3, *shape, generator=generator, dtype=torch.float64).unbind(0))  # type: ignore[misc]

    check_rule(cases(), lambda *a: evaluate(options, how, *a), dtype, kernels)


@KERNELS
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(("scale", "placement"), list(itertools.product(SCALES, PLACEMENTS)))
def test_every_map(scale: str, placement: str, inverse: bool, dtype: torch.dtype, kernels: str) -> None:
    check({"scale": scale, "placement": placement, "inverse": inverse}, (40, 19), dtype, kernels=kernels)


@given(data=st.data())
def test_any_shape_and_stride(data: st.DataObject) -> None:
    any_shape_and_stride("native", data.draw)


@pytest.mark.gpu
@settings(max_examples=20)
@given(data=st.data())
def test_any_shape_and_stride_on_a_gpu(data: st.DataObject) -> None:
    any_shape_and_stride("triton", data.draw)


def any_shape_and_stride(kernels: str, draw: Callable[..., Any]) -> None:
    options = {
        "scale": draw(st.sampled_from(SCALES)),
        "placement": draw(st.sampled_from(PLACEMENTS)),
        "inverse": draw(st.booleans()),
    }
    shape = draw(st.integers(0, 40)), draw(st.sampled_from([0, 1, 2, 7, 8, 9, 63, 1000]))
    check(
        options,
        shape,
        draw(st.sampled_from([torch.float32, torch.float64])),
        draw(st.sampled_from(["contiguous", "transposed", "sliced"])),
        kernels=kernels,
    )


@KERNELS
def test_many_features_and_many_rows(dtype: torch.dtype, kernels: str) -> None:
    # In float64 a sum of a million terms is no more exact in the oracle than in the kernel: 20,000 there.
    check({"scale": "exp"}, (1, 1_000_000 if dtype == torch.float32 else 20_000), dtype, most=2, kernels=kernels)
    check({"scale": "exp"}, (200_000, 1), dtype, kernels=kernels)


@pytest.mark.parametrize("scale", SCALES[1:])
def test_extreme_raw_scales_stay_finite_where_the_oracle_does(scale: str, dtype: torch.dtype) -> None:
    raw = torch.tensor([[-80.0, -30.0, -8.0, -1e-8, 0.0, 1e-8, 8.0, 30.0, 80.0]], dtype=dtype)
    x, shift = torch.ones_like(raw), torch.zeros_like(raw)
    options = {"scale": scale, "placement": "scale_shift"}
    z, log_det = fk.ops.affine(x, shift, raw, **options)
    exact = reference.affine(x.double(), shift.double(), raw.double(), constants=default_constants(scale), **options)
    torch.testing.assert_close(z.double(), exact[0], rtol=4 * torch.finfo(dtype).eps, atol=0)
    torch.testing.assert_close(log_det.double(), exact[1], rtol=1e-6, atol=1e-6)


def test_broadcasting_and_half_precision() -> None:
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


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("scale", [s for s in SCALES if s != "clamped_exp"])
def test_gradcheck_and_gradgradcheck(scale: str, placement: str, inverse: bool) -> None:
    inputs = [torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2 if scale == "none" else 3)]

    def call(*t: torch.Tensor) -> tuple[torch.Tensor, ...]:
        z, log_det = fk.ops.affine(*t, scale=scale, placement=placement, inverse=inverse)
        return (z,) if scale == "none" else (z, log_det)

    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


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


def test_iaf_step_is_the_formula_of_the_paper(dtype: torch.dtype) -> None:
    def cases() -> Iterator[Case]:
        for _ in range(9):
            yield tuple(torch.randn(3, 40, 9, dtype=torch.float64).unbind(0))  # type: ignore[misc]

    def run(case: Case, t: torch.dtype, backend: str) -> dict[str, torch.Tensor]:
        function = reference.iaf_step if backend == "reference" else fk.ops.iaf_step
        x, log_det = function(*(v.to(t) for v in case), bias=1.5)
        return {"x": x, "log_det": log_det}

    check_rule(cases(), run, dtype)


def test_a_row_that_is_not_finite_shows_it() -> None:
    for placement, inverse in itertools.product(PLACEMENTS, (False, True)):
        for bad in (float("nan"), float("inf")):
            x = torch.zeros(3, 9)
            x[1, 4] = bad
            _, log_det = fk.ops.affine(x, torch.zeros(9), torch.zeros(9), placement=placement, inverse=inverse)
            assert torch.isfinite(log_det).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fk.ops.affine(torch.ones(2, 3).long(), torch.ones(3), torch.ones(3)), TypeError, "x: expected a floating"),
        (lambda: fk.ops.affine(torch.ones(2, 3), torch.ones(3)), ValueError, "raw: the scale map 'exp' takes a raw"),
        (lambda: fk.ops.affine(torch.ones(2, 3), torch.ones(3), torch.ones(3), scale="none"), ValueError, "takes no raw"),
        (lambda: fk.ops.affine(torch.ones(2, 3), torch.ones(4), torch.ones(3)), ValueError, "do not broadcast"),
        (lambda: fk.ops.affine(torch.ones(2, 3), torch.ones(3).double(), torch.ones(3)), TypeError, "shift: expected dtype"),
        (
            lambda: fk.ops.affine(torch.ones(2, 3), torch.ones(3), torch.ones(3, device="meta")),
            ValueError,
            "raw: expected device",
        ),
        (lambda: fk.ops.affine(torch.tensor(1.0), torch.ones(()), torch.ones(())), ValueError, "x: expected shape"),
    ],
)
def test_bad_arguments_are_named(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_opcheck_and_compile() -> None:
    x, shift, raw = (torch.randn(5, 4) for _ in range(3))
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    namespaces = [torch.ops.flowkern]
    if device_of("triton").type == "cpu":
        namespaces.append(torch.ops.flowkern_triton)
    for namespace in namespaces:
        rest = (None, 0, 0, 0, False, 1, 1, 0.0, 0.0)
        torch.library.opcheck(namespace.coupling, (x, shift, raw, *rest), test_utils=checks)
        backward = (x, torch.randn(5), x, shift, raw, *rest[:4], True, *rest[4:])
        torch.library.opcheck(namespace.coupling_backward, backward, test_utils=checks)
    raw.requires_grad_()

    def call() -> torch.Tensor:
        z, log_det = fk.ops.affine(x, shift, raw)
        return z.square().sum() + log_det.sum()

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(), raw), torch.autograd.grad(call(), raw))
    rows = torch.func.vmap(lambda a, b, c: fk.ops.affine(a, b, c)[0])(x, shift, raw)
    torch.testing.assert_close(rows, fk.ops.affine(x, shift, raw)[0])
