"""Samples, with and without gradients: flowkern, the oracle, zuko, zuko under torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import IMPLEMENTATIONS, SIZES, WIDE, Models, Size, compiled, forced_oracle, measure, models, need_zuko

import flowkern as fk

BY = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


def sampler(found: Models, implementation: str) -> Callable[[], torch.Tensor]:
    """A batch of samples."""
    flow, shape = found.flow, (found.size.batch,)
    if implementation == "flowkern":
        return lambda: flow.sample(shape)
    if implementation == "oracle":
        return forced_oracle(lambda: flow.sample(shape))
    twin = need_zuko(found)
    if implementation == "zuko":
        return lambda: twin().sample(shape)
    if found.size.features > 64:
        pytest.skip("torch.compile unrolls D passes of the network: not for hundreds of features")
    call = compiled(lambda z: twin().transform.inv(z), torch.randn(*shape, found.size.features))
    return lambda: call(torch.randn(*shape, found.size.features))


@BY
@pytest.mark.parametrize("name", ["wide", "wide-1", "narrow", "image", "tiny"])
def test_sampling(benchmark: Any, name: str, implementation: str) -> None:
    found = models(SIZES[name])
    if name.startswith("wide") and implementation == "zuko compiled":
        pytest.skip("torch.compile unrolls 320 passes of the network: minutes; see the narrow size")
    with torch.no_grad():
        function = sampler(found, implementation)
        measure(benchmark, function, f"sample: {SIZES[name]}", implementation, found.unmasked * found.size.batch)


@pytest.mark.parametrize("name", ["wide", "wide-1"])
def test_sampling_frozen(benchmark: Any, name: str) -> None:
    found = models(SIZES[name])
    with torch.no_grad(), fk.frozen(found.flow):
        measure(
            benchmark,
            sampler(found, "flowkern"),
            f"sample: {SIZES[name]}",
            "flowkern frozen",
            found.unmasked * found.size.batch,
        )


@pytest.mark.parametrize("implementation", ["flowkern", "oracle", "zuko"])
def test_rsample_and_backward(benchmark: Any, implementation: str) -> None:
    found = models(WIDE)
    model = need_zuko(found) if implementation == "zuko" else found.flow
    shape = (WIDE.batch,)

    def step() -> None:
        model.zero_grad()
        x = model().rsample(shape) if implementation == "zuko" else model.rsample(shape)
        x.square().mean().backward()

    function = forced_oracle(step) if implementation == "oracle" else step
    measure(benchmark, function, f"rsample + backward: {WIDE}", implementation, 3 * found.unmasked * WIDE.batch)


@pytest.mark.parametrize("direction", ["density", "inverse"])
def test_inverse_against_density(benchmark: Any, direction: str) -> None:
    found = models(WIDE)
    call = found.flow.transform if direction == "density" else found.flow.transform.inverse
    with torch.no_grad():
        measure(benchmark, lambda: call(found.x), f"one direction: {WIDE}", direction, found.unmasked * WIDE.batch)


@pytest.mark.parametrize("features", [48, 192, 768, 3072])
def test_growth_with_the_number_of_features(benchmark: Any, features: int) -> None:
    """Cost of the inverse per unmasked weight: flat if it grows with the weights, not with D times them."""
    size = Size(1, features, (512, 512), 256)
    found = models(size)
    with torch.no_grad():
        measure(benchmark, sampler(found, "flowkern"), "sample as D grows", f"D={features}", found.unmasked * size.batch)
