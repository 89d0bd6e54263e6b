"""RealNVP of tables, ten couplings: flowkern, the libraries before and after `accelerate`, nflows, in training and sampling.

The libraries' networks are their own: most have the same linear layers as flowkern's, nflows' a residual block of as many,
normflows' masked couplings two networks each.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from conftest import measure
from torch import nn

import flowkern as fk
from flowkern.flows import RealNVP

COUPLINGS = 10
TRAINING = {"D=64, 512x2, B=1024": (64, 512, 1024), "D=8, 128x2, B=1024": (8, 128, 1024), "D=6, 64x2, B=200": (6, 64, 200)}
SAMPLING = {"D=8, 128x2, B=1": (8, 128, 1), "D=8, 128x2, B=1024": (8, 128, 1024)}


class Made(NamedTuple):
    """A model, how it scores rows and draws so many, and its parameters."""

    model: Any
    log_prob: Callable[[torch.Tensor], torch.Tensor]
    sample: Callable[[int], Any]
    parameters: list[torch.Tensor]


def networks(features: int, width: int, *, whole: bool = False) -> list[nn.Sequential]:
    """Conditioners of the first half, which give two numbers for each feature of the other; or whole, one of each."""
    inputs, outputs = (features, features) if whole else (features - features // 2, features // 2 * 2)
    sizes = (inputs, width, width, outputs)
    linears = [[nn.Linear(i, o) for i, o in itertools.pairwise(sizes)] for _ in range(COUPLINGS * (1 + whole))]
    return [nn.Sequential(a, nn.ReLU(), b, nn.ReLU(), c) for a, b, c in linears]


def of_flowkern(features: int, width: int) -> Made:
    flow = RealNVP(features, COUPLINGS, (width, width))
    return Made(flow, flow.log_prob, lambda n: flow.sample((n,)), list(flow.parameters()))


def of_zuko(features: int, width: int) -> Made:
    zuko = pytest.importorskip("zuko", reason="pip install 'flowkern[peers]'")
    model = zuko.flows.RealNVP(features, transforms=COUPLINGS, hidden_features=(width, width))
    return Made(model, lambda x: model().log_prob(x), lambda n: model().sample((n,)), list(model.parameters()))


def of_nflows(features: int, width: int) -> Made:
    pytest.importorskip("nflows", reason="pip install 'flowkern[peers]'")
    from nflows import distributions, flows, transforms
    from nflows.nn.nets import ResidualNet

    def network(inputs: int, outputs: int) -> Any:
        return ResidualNet(inputs, outputs, width, num_blocks=1)

    masks = [(torch.arange(features) + i) % 2 for i in range(COUPLINGS)]
    layers = [transforms.AffineCouplingTransform(mask, network) for mask in masks]
    peer = flows.Flow(transforms.CompositeTransform(layers), distributions.StandardNormal([features]))
    return Made(peer, peer.log_prob, peer.sample, list(peer.parameters()))


def of_normflows(features: int, width: int) -> Made:
    nf = pytest.importorskip("normflows", reason="pip install 'flowkern[peers]'")
    blocks = [nf.flows.AffineCouplingBlock(net) for net in networks(features, width)]
    layers = [layer for block in blocks for layer in (block, nf.flows.Permute(features, mode="swap"))]
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(features), layers)
    return Made(model, model.log_prob, model.sample, list(model.parameters()))


def of_normflows_masked(features: int, width: int) -> Made:
    nf = pytest.importorskip("normflows", reason="pip install 'flowkern[peers]'")
    nets = networks(features, width, whole=True)
    masks = [((torch.arange(features) + i) % 2).float() for i in range(COUPLINGS)]
    layers = [nf.flows.MaskedAffineFlow(mask, *nets[2 * i : 2 * i + 2]) for i, mask in enumerate(masks)]
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(features), layers)
    return Made(model, model.log_prob, model.sample, list(model.parameters()))


def of_pyro(features: int, width: int) -> Made:
    dist = pytest.importorskip("pyro.distributions", reason="pip install 'flowkern[peers]'")
    couplings = [dist.transforms.affine_coupling(features, [width, width]) for _ in range(COUPLINGS)]
    order = torch.arange(features).flip(0)
    layers = [layer for coupling in couplings for layer in (coupling, dist.transforms.Permute(order))]
    model = dist.TransformedDistribution(dist.Normal(torch.zeros(features), torch.ones(features)), layers)
    parameters = list(nn.ModuleList(couplings).parameters())
    return Made(model, lambda x: model.log_prob(x.clone()), lambda n: model.sample((n,)), parameters)  # a clone is in no cache


def of_freia(features: int, width: int, block: str = "AllInOneBlock", couplings: int = 1) -> Made:
    """Of blocks with so many couplings each."""
    framework = pytest.importorskip("FrEIA.framework", reason="pip install 'flowkern[peers]'")
    import FrEIA.modules

    model, nets = framework.SequenceINN(features), iter(networks(features, width))
    for _ in range(COUPLINGS // couplings):
        model.append(getattr(FrEIA.modules, block), subnet_constructor=lambda *_: next(nets))

    def log_prob(x: torch.Tensor) -> torch.Tensor:
        z, log_det = model(x)
        return log_det - (0.5 * z.square()).sum(1)

    parameters = [p for p in model.parameters() if p.requires_grad]
    return Made(model, log_prob, lambda n: model(torch.randn(n, features), rev=True), parameters)


PEERS = {
    "zuko": of_zuko,
    "nflows": of_nflows,
    "normflows": of_normflows,
    "normflows masked": of_normflows_masked,
    "pyro": of_pyro,
    "FrEIA": of_freia,
    "FrEIA Glow": functools.partial(of_freia, block="GLOWCouplingBlock", couplings=2),
}
MAKERS = {"flowkern": of_flowkern, **PEERS}
BY = pytest.mark.parametrize("implementation", [*MAKERS, *(f"{peer} accelerated" for peer in PEERS)])


def flow_of(implementation: str, features: int, width: int) -> Made:
    """One that is accelerated gives the numbers of before."""
    torch.manual_seed(0)
    name = implementation.removesuffix(" accelerated")
    made = MAKERS[name](features, width)
    if name != implementation:
        x = torch.randn(200, features)
        with torch.no_grad():
            before = made.log_prob(x)
            fk.accelerate(made.model)
            torch.testing.assert_close(made.log_prob(x), before, rtol=1e-3, atol=1e-3)
    return made


@BY
@pytest.mark.parametrize("size", TRAINING)
def test_training(benchmark: Any, size: str, implementation: str) -> None:
    features, width, batch = TRAINING[size]
    made, x = flow_of(implementation, features, width), torch.randn(batch, features)
    group = f"RealNVP forward + backward, {COUPLINGS} couplings, {size}"

    def call() -> None:
        torch.autograd.grad(-made.log_prob(x).mean(), made.parameters, allow_unused=True)

    measure(benchmark, call, group, implementation)


@BY
@pytest.mark.parametrize("size", SAMPLING)
def test_sampling(benchmark: Any, size: str, implementation: str) -> None:
    features, width, batch = SAMPLING[size]
    made = flow_of(implementation, features, width)

    def call() -> None:
        with torch.no_grad():
            made.sample(batch)

    measure(benchmark, call, f"RealNVP samples, {COUPLINGS} couplings, {size}", implementation)
