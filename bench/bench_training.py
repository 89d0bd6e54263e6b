"""Densities and training steps: flowkern, the oracle, zuko, zuko under torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import IMPLEMENTATIONS, SIZES, Models, compiled, forced_oracle, measure, models, need_zuko

DENSITY = pytest.mark.parametrize("name", ["wide", "wide-256", "narrow", "image", "tiny"])
TRAINING = pytest.mark.parametrize("name", ["wide", "wide-256", "narrow", "image"])
BY = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


def density(found: Models, implementation: str) -> Callable[[], torch.Tensor]:
    """log_prob of the batch."""
    flow, x = found.flow, found.x
    if implementation == "flowkern":
        return lambda: flow.log_prob(x)
    if implementation == "oracle":
        return forced_oracle(lambda: flow.log_prob(x))
    twin = need_zuko(found)
    if implementation == "zuko":
        return lambda: twin().log_prob(x)
    call = compiled(lambda rows: twin().log_prob(rows), x)
    return lambda: call(x)


@BY
@DENSITY
def test_density(benchmark: Any, name: str, implementation: str) -> None:
    found = models(SIZES[name])

    with torch.no_grad():
        function = density(found, implementation)
        measure(
            benchmark, function, f"log_prob without gradient: {SIZES[name]}", implementation, found.unmasked * found.size.batch
        )


@BY
@TRAINING
def test_training_step(benchmark: Any, name: str, implementation: str) -> None:
    found = models(SIZES[name])
    model = need_zuko(found) if implementation.startswith("zuko") else found.flow
    log_prob = density(found, implementation)

    def step() -> None:
        model.zero_grad()
        (-log_prob().mean()).backward()

    measure(
        benchmark, step, f"log_prob forward + backward: {SIZES[name]}", implementation, 3 * found.unmasked * found.size.batch
    )


@pytest.mark.parametrize("rows", [1024])
def test_torch_mm(benchmark: Any, rows: int) -> None:
    """The limit that the tables compare with: a dense product of the size of a hidden layer."""
    a, b = torch.randn(rows, 512), torch.randn(512, 512)
    torch.testing.assert_close(a[:1] @ b, (a[:1].double() @ b.double()).float(), rtol=1e-3, atol=1e-3)
    measure(benchmark, lambda: a @ b, "torch.mm 1024 x 512 x 512", "torch.mm", rows * 512 * 512)
