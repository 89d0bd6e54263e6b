"""Operators on the rows of a matrix, alone: flowkern and its oracle. They move memory and hardly compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import compare_with_oracle, measure_operator
from torch import Tensor

import flowkern as fk

ROWS, FEATURES = 16384, 64
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
