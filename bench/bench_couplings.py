"""RealNVP of tables, ten couplings: flowkern, zuko before and after `accelerate`, nflows, in training and sampling.

The libraries' networks are their own: zuko's and flowkern's have the same linear layers, nflows' a residual block of as many.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import measure

import flowkern as fk
from flowkern.flows import RealNVP

COUPLINGS = 10
TRAINING = {"D=64, 512x2, B=1024": (64, 512, 1024), "D=8, 128x2, B=1024": (8, 128, 1024), "D=6, 64x2, B=200": (6, 64, 200)}
SAMPLING = {"D=8, 128x2, B=1": (8, 128, 1), "D=8, 128x2, B=1024": (8, 128, 1024)}
BY = pytest.mark.parametrize("implementation", ["flowkern", "zuko", "zuko accelerated", "nflows"])


def flow_of(implementation: str, features: int, width: int) -> tuple[Any, Callable[[Any], torch.Tensor], Callable[[int], Any]]:
    """A model, its log_prob and its samples."""
    torch.manual_seed(0)
    if implementation == "flowkern":
        flow = RealNVP(features, COUPLINGS, (width, width))
        return flow, flow.log_prob, lambda n: flow.sample((n,))
    if implementation == "nflows":
        peer = nflows_flow(features, width)
        return peer, peer.log_prob, peer.sample
    zuko = pytest.importorskip("zuko", reason="pip install 'flowkern[peers]'")
    model = zuko.flows.RealNVP(features, transforms=COUPLINGS, hidden_features=(width, width))
    if implementation != "zuko":
        twin, x = copy.deepcopy(model), torch.randn(200, features)
        torch.testing.assert_close(fk.accelerate(model)().log_prob(x), twin().log_prob(x), rtol=1e-3, atol=1e-3)
    return model, lambda x: model().log_prob(x), lambda n: model().sample((n,))


def nflows_flow(features: int, width: int) -> Any:
    pytest.importorskip("nflows", reason="pip install 'flowkern[peers]'")
    from nflows import distributions, flows, transforms
    from nflows.nn.nets import ResidualNet

    def network(inputs: int, outputs: int) -> Any:
        return ResidualNet(inputs, outputs, width, num_blocks=1)

    masks = [(torch.arange(features) + i) % 2 for i in range(COUPLINGS)]
    layers = [transforms.AffineCouplingTransform(mask, network) for mask in masks]
    return flows.Flow(transforms.CompositeTransform(layers), distributions.StandardNormal([features]))


@BY
@pytest.mark.parametrize("size", TRAINING)
def test_training(benchmark: Any, size: str, implementation: str) -> None:
    features, width, batch = TRAINING[size]
    model, log_prob, _ = flow_of(implementation, features, width)
    x, parameters = torch.randn(batch, features), list(model.parameters())
    group = f"RealNVP forward + backward, {COUPLINGS} couplings, {size}"
    measure(benchmark, lambda: torch.autograd.grad(-log_prob(x).mean(), parameters, allow_unused=True), group, implementation)


@BY
@pytest.mark.parametrize("size", SAMPLING)
def test_sampling(benchmark: Any, size: str, implementation: str) -> None:
    features, width, batch = SAMPLING[size]
    _, _, sample = flow_of(implementation, features, width)

    def call() -> None:
        with torch.no_grad():
            sample(batch)

    measure(benchmark, call, f"RealNVP samples, {COUPLINGS} couplings, {size}", implementation)
