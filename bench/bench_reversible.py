"""Deep stacks: time and peak memory of a training step, with activations kept and rebuilt, and in other libraries.

Gradients are there before a step is measured, as they are in training; they are no part of the peak.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import measure

import flowkern as fk
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


def normflows_glow(steps: int, levels: int, hidden: int, side: int = 32) -> Any:
    """The same numbers of steps, levels and channels, in the way of its documentation."""
    nf = pytest.importorskip("normflows")
    bases, merges, flows = [], [], []
    for i in range(levels):
        channels = 3 * 2 ** (levels + 1 - i)
        blocks = [nf.flows.GlowBlock(channels, hidden) for _ in range(steps)]
        flows.append([*blocks, nf.flows.Squeeze()])
        size = side // 2 ** (levels - i)
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


# -- models of other libraries ----------------------------------------------------------------------------------------


def zuko_flow(kind: str, layers: int) -> tuple[Any, Callable[..., torch.Tensor], tuple[int, ...]]:
    """By the name of its class."""
    zuko = pytest.importorskip("zuko")
    model = getattr(zuko.flows, kind)(64, transforms=layers, hidden_features=[512, 512])
    return model, lambda m, x: -m().log_prob(x).mean(), (1024, 64)


def nflows_couplings(layers: int) -> tuple[Any, Callable[..., torch.Tensor], tuple[int, ...]]:
    """Affine couplings with residual networks."""
    transforms = pytest.importorskip("nflows.transforms")
    from nflows import distributions, flows
    from nflows.nn.nets import ResidualNet

    def network(inputs: int, outputs: int) -> Any:
        return ResidualNet(inputs, outputs, hidden_features=512, num_blocks=1)

    masks = [[1, -1] * 32, [-1, 1] * 32]
    stack = [transforms.AffineCouplingTransform(masks[i % 2], network) for i in range(layers)]
    model = flows.Flow(transforms.CompositeTransform(stack), distributions.StandardNormal([64]))
    return model, lambda m, x: -m.log_prob(x).mean(), (1024, 64)


def freia(layers: int) -> tuple[Any, Callable[..., torch.Tensor], tuple[int, ...]]:
    """Blocks of all in one."""
    framework, modules = pytest.importorskip("FrEIA.framework"), pytest.importorskip("FrEIA.modules")

    def network(inputs: int, outputs: int) -> Any:
        return torch.nn.Sequential(torch.nn.Linear(inputs, 512), torch.nn.ReLU(), torch.nn.Linear(512, outputs))

    def loss(m: Any, x: torch.Tensor) -> torch.Tensor:
        z, log_det = m(x)
        return (z.square().sum(1) / 2 - log_det).mean()

    model = framework.SequenceINN(64)
    for _ in range(layers):
        model.append(modules.AllInOneBlock, subnet_constructor=network)
    return model, loss, (1024, 64)


def glow(layers: int) -> tuple[Any, Callable[..., torch.Tensor], tuple[int, ...]]:
    """Two levels."""
    return normflows_glow(layers, 2, 64, 16), lambda m, x: -m.log_prob(x, None).mean(), (64, 3, 16, 16)


PEERS: dict[str, tuple[Callable[[int], Any], int]] = {
    "zuko's MAF, D=64, 512x2, B=1024": (functools.partial(zuko_flow, "MAF"), 10),
    "zuko's NSF, D=64, 512x2, B=1024": (functools.partial(zuko_flow, "NSF"), 10),
    "nflows' affine couplings, D=64, 512 residual, B=1024": (nflows_couplings, 10),
    "FrEIA's AllInOneBlocks, D=64, 512, B=1024": (freia, 20),
    "normflows' Glow, L=2, 3x16x16, 64 channels, B=64": (glow, 8),
}


@BY
@pytest.mark.parametrize("work", PEERS)
def test_accelerated(benchmark: Any, work: str, implementation: str) -> None:
    """The option of accelerate, with the library's own code and with nothing kept."""
    torch.manual_seed(0)
    make, layers = PEERS[work]
    model, loss, shape = make(layers)
    x = torch.randn(shape)
    loss(model, x)
    if implementation != "peer":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # layers without an operator
            fk.accelerate(model, implementation)  # type: ignore[arg-type]
    group = f"accelerate: {work}, {layers} layers, forward + backward"
    measure(benchmark, step(model, lambda: loss(model, x)), group, implementation)
