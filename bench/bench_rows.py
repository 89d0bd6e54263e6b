"""Operators on the rows of a matrix, alone: flowkern, its oracle, nflows' spline. But for the splines they hardly compute."""

from __future__ import annotations

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
