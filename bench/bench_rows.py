"""Operators on the rows of a matrix, alone: flowkern, its oracle, other libraries. But for splines they hardly compute."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import compare_with_oracle, measure_operator
from torch import Tensor

import flowkern as fk
from flowkern.univariate import RationalQuadratic

ROWS, FEATURES = 16384, 64
ELEMENTS, BINS, BOUND = 1_000_000, 8, 3.0
OPERATORS: dict[str, tuple[int, Callable[..., Any]]] = {  # how many matrices it takes, and the call
    "log_det": (1, fk.ops.log_det),
    "normal_log_prob": (1, fk.ops.normal_log_prob),
    "affine": (3, fk.ops.affine),
    "iaf_step": (3, fk.ops.iaf_step),
    "coupling": (
        2,
        lambda x, parameters: fk.ops.coupling(x, *parameters.chunk(2, -1), transformed=slice(FEATURES // 2, None)),
    ),
}


@pytest.mark.parametrize("implementation", ["flowkern", "oracle"])
@pytest.mark.parametrize("direction", ["forward", "forward + backward"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_rows(benchmark: Any, operator: str, direction: str, implementation: str) -> None:
    torch.manual_seed(0)
    count, call = OPERATORS[operator]
    tensors: list[Tensor] = [torch.randn(ROWS, FEATURES, requires_grad=direction != "forward") for _ in range(count)]
    compare_with_oracle(lambda: call(*tensors))
    group = f"{operator} {direction}: {ROWS} x {FEATURES}"
    measure_operator(benchmark, lambda: call(*tensors), tensors, group, implementation)


@pytest.mark.parametrize("implementation", ["flowkern", "oracle", "nflows"])
@pytest.mark.parametrize("direction", ["forward", "inverse", "forward + backward"])
def test_spline(benchmark: Any, direction: str, implementation: str) -> None:
    """On one thread; the parameters of an element lie together, as a network leaves them."""
    nflows = pytest.importorskip("nflows.transforms.splines.rational_quadratic", reason="pip install 'flowkern[peers]'")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    grads, inverse = direction == "forward + backward", direction == "inverse"
    map = RationalQuadratic(BINS, (-BOUND, BOUND), "linear", "softplus")
    sizes = BINS, BINS, BINS - 1
    tensors = [torch.randn(ELEMENTS, *more).requires_grad_(grads) for more in ((), *((n,) for n in sizes))]

    def call() -> Any:
        if implementation == "nflows":
            return nflows.unconstrained_rational_quadratic_spline(*tensors, inverse=inverse, tail_bound=BOUND)
        return fk.ops.spline(*tensors, map=map, inverse=inverse)

    expected = fk.ops.spline(*(t[:1000].double() for t in tensors), map=map, inverse=inverse)
    for found, exact in zip(call(), expected, strict=True):
        torch.testing.assert_close(found[:1000].double(), exact, rtol=1e-3, atol=1e-3)
    measure_operator(benchmark, call, tensors, f"spline {direction}: {ELEMENTS:,} elements, {BINS} bins", implementation)


def of_madspace() -> Callable[..., Any]:
    """Its splines of a box, as its coupling flows call them; the parameters of an element lie apart."""
    madspace = pytest.importorskip("madspace", reason="pip install madspace")
    from madspace.torch import FunctionModule

    numbers, raw = madspace.batch_float_array(FEATURES), madspace.batch_float_array(FEATURES * (3 * BINS + 1))
    builder = madspace.FunctionBuilder(
        madspace.NamedTypes(["x", "raw"], [numbers, raw]), madspace.NamedTypes(["z", "slope"], [numbers, numbers])
    )
    x, (widths, heights, derivatives) = builder.input(0), builder.rqs_reshape(builder.input(1), BINS)
    sizes = builder.softmax(widths), builder.softmax(heights)
    builder.output_range(0, builder.rqs_forward(x, builder.rqs_find_bin(x, *sizes, derivatives)))
    return FunctionModule(builder.function(), madspace.Context(1))


@pytest.mark.parametrize("implementation", ["flowkern", "madspace"])
@pytest.mark.parametrize("direction", ["forward", "forward + backward"])
def test_spline_in_a_box(benchmark: Any, direction: str, implementation: str) -> None:
    """In float64, on one thread, each with the parameters as it likes them to lie."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    theirs, grads = of_madspace(), direction != "forward"
    map = RationalQuadratic(BINS, (0, 1), "unconstrained", "softplus")
    x, raw = (
        torch.rand(ELEMENTS // FEATURES, FEATURES).double(),
        torch.randn(ELEMENTS // FEATURES, FEATURES, 3 * BINS + 1).double(),
    )
    apart = raw.transpose(1, 2).flatten(1)
    # madspace divides derivatives by that of a raw number of zero.
    slopes = (1e-3 + torch.nn.functional.softplus(raw[..., 2 * BINS :])) / (1e-3 + math.log(2)) - 1e-3
    raw[..., 2 * BINS :] = slopes.expm1().log()
    tensors = (
        [x, apart] if implementation == "madspace" else [x, *(t.contiguous() for t in raw.split((BINS, BINS, BINS + 1), -1))]
    )
    tensors = [t.requires_grad_(grads) for t in tensors]

    def call() -> Any:
        return theirs(*tensors) if implementation == "madspace" else fk.ops.spline(*tensors, map=map)

    few = [t[:100].detach() for t in (x, apart, raw)]
    with torch.no_grad():
        z, log_slope = fk.ops.spline(few[0], *few[2].split((BINS, BINS, BINS + 1), -1), map=map)
        for found, exact in zip(theirs(*few[:2]), (z, log_slope.exp()), strict=True):
            torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-6)
    measure_operator(benchmark, call, tensors, f"spline {direction}: {ELEMENTS:,} float64, {BINS} bins, a box", implementation)
