"""coupling, forward and inverse, against its float64 oracle."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accuracy import KERNELS, check_rule, device_of
from networks import strided

import flowkern as fk
from flowkern.univariate import PLACEMENTS, SCALES

TABLE = torch.tensor([3, -1, 0, -1, -1, 2, 1, -1, 4])
TRANSFORMED = {
    "half": slice(5, None),
    "alternating": slice(1, None, 2),
    "none": slice(9, None),
    "all": slice(None),
    "table": TABLE,
}
Case = tuple[torch.Tensor, torch.Tensor]


def columns(transformed: slice | torch.Tensor, features: int) -> int:
    return len(range(features)[transformed]) if isinstance(transformed, slice) else int((transformed >= 0).sum())


def check(
    transformed: slice | torch.Tensor,
    dtype: torch.dtype,
    kernels: str,
    how: str = "contiguous",
    rows: int = 40,
    features: int = 9,
    **options: Any,
) -> None:
    count = columns(transformed, features)

    def cases() -> Iterator[Case]:
        for seed in range(300):
            generator = torch.Generator().manual_seed(seed)
            x = torch.randn(rows, features, generator=generator, dtype=torch.float64)
            yield x, torch.randn(rows, 2 * count, generator=generator, dtype=torch.float64)

    def evaluate(case: Case, t: torch.dtype, backend: str) -> dict[str, torch.Tensor]:
        device = device_of(backend)
        x, parameters = (strided(c.to(device, t, copy=True), how).requires_grad_() for c in case)
        where = transformed.to(device) if isinstance(transformed, torch.Tensor) else transformed
        # Glow's channels lie interleaved, and most others in two halves: views of every stride.
        parts = parameters.unflatten(-1, (count, 2)).unbind(-1) if how == "sliced" else parameters.chunk(2, -1)
        with fk.backend(backend):
            z, log_det = fk.ops.coupling(x, *parts[: 1 if options.get("scale") == "none" else 2], transformed=where, **options)
        generator = torch.Generator().manual_seed(3)
        cotangents = [torch.randn(o.shape, generator=generator).to(o) for o in (z, log_det)]
        total = (z * cotangents[0]).sum() + (log_det * cotangents[1]).sum()
        grads = torch.autograd.grad(total, (x, parameters))
        names = ("z", "log_det", "gradient of x", "gradient of parameters")
        return {n: v.detach().cpu() for n, v in zip(names, (z, log_det, *grads), strict=True)}

    check_rule(cases(), evaluate, dtype, kernels)


@KERNELS
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", [n for n in TRANSFORMED if n != "none"])
def test_every_map_of_every_choice(name: str, scale: str, inverse: bool, dtype: torch.dtype, kernels: str) -> None:
    placement = PLACEMENTS[(SCALES.index(scale) + inverse) % len(PLACEMENTS)]
    check(TRANSFORMED[name], dtype, kernels, scale=scale, placement=placement, inverse=inverse)


@KERNELS
@pytest.mark.parametrize("how", ["transposed", "sliced"])
@pytest.mark.parametrize("name", ["half", "alternating", "table"])
def test_strides(name: str, how: str, dtype: torch.dtype, kernels: str) -> None:
    check(TRANSFORMED[name], dtype, kernels, how=how)


@KERNELS
@pytest.mark.parametrize("features", [2, 63, 1000, 20_000])
def test_widths(features: int, dtype: torch.dtype, kernels: str) -> None:
    for transformed in (slice(features // 2, None), slice(0, None, 2)):
        check(transformed, dtype, kernels, rows=3, features=features, scale="soft_clipped_exp")


@KERNELS
def test_no_features_and_no_rows(kernels: str) -> None:
    device = device_of(kernels)
    x = torch.randn(5, 9, device=device)
    with fk.backend(kernels):
        z, log_det = fk.ops.coupling(x, x[:, :0], x[:, :0], transformed=TRANSFORMED["none"])
        assert torch.equal(z, x)
        assert (log_det == 0).all()
        z, log_det = fk.ops.coupling(x[:0], x[:0, :4], x[:0, :4], transformed=TRANSFORMED["half"])
    assert z.shape == (0, 9)
    assert log_det.shape == (0,)


@KERNELS
def test_a_row_that_is_not_finite_shows_it(kernels: str) -> None:
    device = device_of(kernels)
    for inverse, feature in itertools.product((False, True), (0, 8)):  # one that passes, one that is transformed
        x = torch.zeros(3, 9, device=device)
        x[1, feature] = float("inf")
        with fk.backend(kernels):
            zeros = torch.zeros(3, 4, device=device)
            _, log_det = fk.ops.coupling(x, zeros, zeros, transformed=TRANSFORMED["half"], inverse=inverse)
        assert torch.isfinite(log_det).tolist() == [True, False, True]


@KERNELS
@pytest.mark.parametrize("name", ["half", "table"])
def test_gradcheck_and_gradgradcheck(name: str, kernels: str) -> None:
    device, transformed = device_of(kernels), TRANSFORMED[name]
    transformed = transformed.to(device) if isinstance(transformed, torch.Tensor) else transformed
    count = columns(transformed, 9)
    shapes = ((2, 9), (2, count), (2, count))
    inputs = [torch.randn(s, dtype=torch.float64, device=device, requires_grad=True) for s in shapes]
    for inverse in (False, True):
        with fk.backend(kernels):

            def call(*t: torch.Tensor, inverse: bool = inverse) -> Any:
                return fk.ops.coupling(*t, transformed=transformed, scale="softplus", inverse=inverse)

            assert torch.autograd.gradcheck(call, inputs)
            assert torch.autograd.gradgradcheck(call, inputs)


def test_broadcasting_round_trip_and_half_precision() -> None:
    x, shift, raw = torch.randn(4, 1, 9), torch.randn(3, 5), torch.randn(4, 3, 5)
    for low in (torch.float32, torch.bfloat16):
        z, log_det = fk.ops.coupling(x.to(low), shift.to(low), raw.to(low), transformed=TABLE)
        assert z.shape == (4, 3, 9)
        assert (z.dtype, log_det.dtype, log_det.shape) == (low, low, (4, 3))
    z, log_det = fk.ops.coupling(x, shift, raw, transformed=TABLE)
    back, inverse = fk.ops.coupling(z, shift, raw, transformed=TABLE, inverse=True)
    torch.testing.assert_close(back, x.expand(4, 3, 9))
    torch.testing.assert_close(inverse, -log_det)
    passing = TABLE < 0
    assert torch.equal(z[..., passing], x.expand(4, 3, 9)[..., passing])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"x": torch.ones(2, 9).long()}, TypeError, "x: expected a floating"),
        ({"x": torch.tensor(1.0)}, ValueError, r"x: expected shape \(..., features\), got \(\)"),
        ({"raw": None}, ValueError, "raw: the scale map 'exp' takes a raw scale"),
        ({"scale": "none"}, ValueError, "raw: the scale map 'none' takes no raw scale"),
        ({"shift": torch.ones(2, 5)}, ValueError, r"shift: expected shape \(..., 4\) for the transformed features, got"),
        ({"raw": torch.ones(2, 4).double()}, TypeError, r"raw: expected dtype torch.float32 like x"),
        ({"raw": torch.ones(3, 4)}, ValueError, "shift, raw: expected batch shapes that broadcast"),
        ({"transformed": slice(None, None, -1)}, ValueError, "transformed: expected a slice with a positive step"),
        ({"transformed": [5, 6, 7, 8]}, ValueError, r"transformed: expected a slice or an int64 tensor \(9,\)"),
        ({"transformed": TABLE[:8]}, ValueError, r"an int64 tensor \(9,\), got torch.int64 \(8,\)"),
        ({"transformed": torch.tensor([0, 1, 2, 3, 3, -1, -1, -1, -1])}, RuntimeError, "expected each column from 0 to 3 once"),
        ({"transformed": torch.tensor([0, 1, 2, 4, -1, -1, -1, -1, -1])}, RuntimeError, "got 4 for feature 3"),
        ({"transformed": torch.tensor([0, 1, 2, -1, -1, -1, -1, -1, -1])}, RuntimeError, "expected 4 features with a column"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(options: dict[str, Any], error: type[Exception], message: str) -> None:
    good = {"x": torch.ones(2, 9), "shift": torch.ones(2, 4), "raw": torch.ones(2, 4), "transformed": slice(5, None)}
    given = {**good, **options}
    with pytest.raises(error, match=message):
        fk.ops.coupling(given.pop("x"), given.pop("shift"), given.pop("raw"), **given)


def test_opcheck_and_compile() -> None:
    x, shift, raw = torch.randn(5, 9), torch.randn(5, 5), torch.randn(5, 5)
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    namespaces = [torch.ops.flowkern]
    if device_of("triton").type == "cpu":
        namespaces.append(torch.ops.flowkern_triton)
    for namespace in namespaces:
        for rest in ((TABLE, 0, 1, 5, False, 1, 0, 0.0, 0.0), (None, 4, 1, 5, True, 1, 0, 0.0, 0.0)):
            torch.library.opcheck(namespace.coupling, (x, shift, raw, *rest), test_utils=checks)
            backward = (x, torch.randn(5), x, shift, raw, *rest[:4], True, *rest[4:])
            torch.library.opcheck(namespace.coupling_backward, backward, test_utils=checks)
    leaves = [t.requires_grad_() for t in (x, shift, raw)]
    for backend, transformed in itertools.product(("native", "triton"), (TABLE, slice(4, None))):
        if backend == "triton" and device_of("triton").type != "cpu":
            continue

        def call(transformed: Any = transformed) -> torch.Tensor:
            z, log_det = fk.ops.coupling(x, shift, raw, transformed=transformed)
            return z.square().sum() + log_det.sum()

        with fk.backend(backend):
            compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
            torch.testing.assert_close(torch.autograd.grad(compiled(), leaves), torch.autograd.grad(call(), leaves))
    rows = torch.func.vmap(lambda a, b, c: fk.ops.coupling(a, b, c, transformed=slice(4, None))[0])(x, shift, raw)
    torch.testing.assert_close(rows, fk.ops.coupling(x, shift, raw, transformed=slice(4, None))[0])
