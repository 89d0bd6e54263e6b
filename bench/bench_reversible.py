"""Deep stacks: time and peak memory of a training step, with activations kept and rebuilt, and in other libraries.

Gradients are there before a step is measured, as they are in training; they are no part of the peak.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import measure

from flowkern.flows import MAF, Flow, Glow

BY = pytest.mark.parametrize("implementation", ["full", "reversible", "peer"])


def step(model: Any, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """Forward and backward, into gradients that are there."""

    def call() -> None:
        model.zero_grad(set_to_none=False)
        loss().backward()

    call()  # sets what takes its parameters from a first batch, and measures the round trips
    call()
    return call


def check(flow: Flow, loss: Callable[[], torch.Tensor]) -> None:
    """The gradients of both ways are the same."""
    found = []
    for memory in ("full", "reversible"):
        flow.memory = memory  # type: ignore[assignment]
        flow.zero_grad()
        loss().backward()
        found.append(torch.cat([p.grad.flatten() for p in flow.parameters()]))
    assert (found[0] - found[1]).norm() < 1e-3 * found[0].norm()


def compare(benchmark: Any, flow: Flow, x: torch.Tensor, group: str, implementation: str) -> None:
    """One of our two ways."""

    def loss() -> torch.Tensor:
        return -flow.log_prob(x).mean()

    loss()
    check(flow, loss)
    flow.memory = implementation  # type: ignore[assignment]
    measure(benchmark, step(flow, loss), group, implementation)


def normflows_glow(steps: int, levels: int, hidden: int) -> Any:
    """The same numbers of steps, levels and channels, in the way of its documentation."""
    nf = pytest.importorskip("normflows")
    bases, merges, flows = [], [], []
    for i in range(levels):
        channels = 3 * 2 ** (levels + 1 - i)
        blocks = [nf.flows.GlowBlock(channels, hidden) for _ in range(steps)]
        flows.append([*blocks, nf.flows.Squeeze()])
        size = 32 // 2 ** (levels - i)
        if i > 0:
            merges.append(nf.flows.Merge())
            shape = (3 * 2 ** (levels - i), 2 * size, 2 * size)
        else:
            shape = (channels, size, size)
        bases.append(nf.distributions.GlowBase(shape))
    return nf.MultiscaleFlow(bases, flows, merges, class_cond=False)


@BY
@pytest.mark.parametrize("steps", [32, 64])
def test_glow(benchmark: Any, steps: int, implementation: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 3, 32, 32)
    group = f"Glow forward + backward, K={steps}, L=3, 3x32x32, 512 channels, B=16"
    if implementation == "peer":
        peer = normflows_glow(steps, 3, 512)
        measure(benchmark, step(peer, lambda: -peer.log_prob(x, None).mean()), group, "normflows")
        return
    compare(benchmark, Glow((3, 32, 32), steps, 3, (512, 512)), x, group, implementation)


@BY
@pytest.mark.parametrize("transforms", [20, 40])
def test_maf(benchmark: Any, transforms: int, implementation: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(1024, 64)
    group = f"MAF forward + backward, {transforms} transforms, D=64, 512x2, B=1024"
    if implementation == "peer":
        zuko = pytest.importorskip("zuko")
        peer = zuko.flows.MAF(64, transforms=transforms, hidden_features=[512, 512])
        measure(benchmark, step(peer, lambda: -peer().log_prob(x).mean()), group, "zuko")
        return
    compare(benchmark, MAF(64, transforms, (512, 512)), x, group, implementation)
