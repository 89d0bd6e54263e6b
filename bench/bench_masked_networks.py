"""Operators on one masked network, alone: flowkern and its oracle. Models of several are in the other files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import compare_with_oracle, measure_operator

import flowkern as fk

SIZES = {"wide": (64, (512, 512), 1024), "narrow": (8, (128, 128), 1024)}  # features, hidden layers, rows
OPERATORS: dict[str, Callable[..., Any]] = {
    "masked_mlp": fk.ops.masked_mlp,
    "autoregressive": fk.ops.autoregressive,
    "autoregressive_inverse": fk.ops.autoregressive_inverse,
}


@pytest.mark.parametrize("implementation", ["flowkern", "oracle"])
@pytest.mark.parametrize("direction", ["forward", "forward + backward"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("operator", OPERATORS)
def test_masked_networks(benchmark: Any, operator: str, size: str, direction: str, implementation: str) -> None:
    torch.manual_seed(0)
    features, hidden, rows = SIZES[size]
    network = fk.nn.MaskedAutoregressive(features, hidden).network
    arguments = network.arguments(None)
    tensors = [t.detach().requires_grad_(direction != "forward") for t in (*arguments["weights"], *arguments["biases"])]
    x = torch.randn(rows, features)

    def call() -> Any:
        count = len(arguments["weights"])
        return OPERATORS[operator](x, tensors[:count], tensors[count:], arguments["plan"])

    compare_with_oracle(call)
    work = rows * sum(int(m.sum()) for m in arguments["plan"].masks)
    group = f"{operator} {direction}: D={features}, hidden {hidden[0]}x{len(hidden)}, B={rows}"
    measure_operator(benchmark, call, tensors, group, implementation, work if direction == "forward" else 3 * work)
