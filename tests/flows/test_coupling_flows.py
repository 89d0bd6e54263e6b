"""NICE, RealNVP and Glow: densities, round trips, what the papers say, and the same numbers as public implementations."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from calls import Calls
from torch import Tensor, nn

import flowkern as fk
from flowkern import nn as fnn
from flowkern.cli.train import for_data
from flowkern.data import Dataset, Rows
from flowkern.flows import NICE, Flow, Glow, RealNVP, StandardLogistic
from flowkern.nn import coupling_step

IMAGE = (3, 4, 8)


def flows(context: int = 0, **options: Any) -> dict[str, Flow]:
    return {
        "nice": NICE(5, hidden=(8,), context=context, **options),
        "realnvp": RealNVP(5, 3, (8,), context=context, **options),
        "realnvp, image": RealNVP(IMAGE, 2, (6, 6), 2, context, **options),
        "realnvp, batch norm": RealNVP((1, 8, 8), 1, (6,), 3, context, batch_norm=True, **options),
        "glow": Glow(5, 3, hidden=(8,), context=context, **options),
        "glow, image": Glow(IMAGE, 2, 2, (6, 6), context, **options),
        "glow, plain": Glow((1, 8, 8), 1, 3, (6, 6), context, lu=False, **options),
    }


NAMES = pytest.mark.parametrize("name", flows())


def perturbed(flow: Any, by: float = 0.1) -> Any:
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(by * torch.randn(p.shape, dtype=p.dtype))
    return flow.eval()


@NAMES
@pytest.mark.parametrize("context", [0, 2])
def test_densities_are_those_of_the_base_and_the_jacobian(name: str, context: int) -> None:
    flow = perturbed(flows(context)[name].double())
    x = torch.randn(2, *flow.event_shape).double()
    c = torch.randn(2, context).double() if context else None
    z, _ = flow.transform(x, c)
    first = None if c is None else c[0]
    jacobian = torch.autograd.functional.jacobian(lambda v: flow.transform(v, first)[0], x[0]).reshape(flow.features, -1)
    wanted = flow.base.log_prob(z)[0] + torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(flow.log_prob(x, c)[0], wanted)
    drawn, log_prob = flow.rsample_and_log_prob((3,), c)
    torch.testing.assert_close(flow.log_prob(drawn, c), log_prob)
    assert drawn.shape == (3, *((2,) if context else ()), *flow.event_shape)


@NAMES
def test_reversible_gradients(name: str) -> None:
    flow = flows(2)[name].double().train()
    x, c = torch.randn(6, *flow.event_shape).double(), torch.randn(6, 2).double()
    flow.log_prob(x, c)  # sets what takes its parameters from a first batch
    perturbed(flow).train()
    found = {}
    for memory in ("full", "reversible"):
        flow.memory = memory  # type: ignore[assignment]
        flow.zero_grad()
        flow.log_prob(x, c).sum().backward()
        found[memory] = [p.grad.clone() for p in flow.parameters()]
    scale = max(float(g.abs().max()) for g in found["full"])
    torch.testing.assert_close(found["reversible"], found["full"], rtol=1e-8, atol=1e-10 * scale)
    assert flow.checkpointed == []


DEEP = {
    "nice": lambda: NICE(16, 32, (32,)),
    "realnvp": lambda: RealNVP(16, 32, (32,)),
    "realnvp, image": lambda: RealNVP((3, 8, 8), 8, (8, 8), 2),
    "glow": lambda: Glow(16, 32, hidden=(32,)),
    "glow, image": lambda: Glow((3, 8, 8), 32, 1, (8, 8)),
}


@pytest.mark.parametrize("name", DEEP)
def test_round_trips_of_32_layers_in_float32(name: str) -> None:
    """The error is at most 1e-4 of the largest number, a thousand roundings."""
    flow = perturbed(DEEP[name](), 0.02)
    x = torch.randn(50, *flow.event_shape)
    with torch.no_grad():
        z, log_det = flow.transform(x)
        back, other = flow.transform.inverse(z)
    assert (back - x).abs().max() < 1e-4 * x.abs().max()
    torch.testing.assert_close(other, -log_det, rtol=1e-4, atol=1e-3)


def test_nice_keeps_volumes() -> None:
    flow = perturbed(NICE(6, hidden=(8,)))
    assert [type(layer) for layer in flow.transform.transforms] == [fnn.AdditiveCoupling] * 4 + [fnn.Scaling]
    x = torch.randn(7, 6)
    z, log_det = fnn.Compose(list(flow.transform.transforms)[:-1])(x)
    assert torch.equal(log_det, torch.zeros(7))
    assert not torch.equal(z, x)
    assert torch.equal(flow.transform(x)[1], flow.transform.transforms[-1].log_scale.sum().expand(7))


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("hidden", [(), (8, 7)], ids=str)
def test_couplings_of_vectors_are_one_call_with_the_same_results(
    hidden: tuple[int, ...], context: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = perturbed(RealNVP(5, 3, hidden, context=context, batch_norm=True).double())
    x, c = (torch.randn(4, n).double().requires_grad_() for n in (5, context))
    wanted = [x, *([c] if context else []), *flow.parameters()]

    def results(called: list[str]) -> list[Tensor]:
        given = c if context else None
        with Calls() as calls:
            values = [flow.log_prob(x, given), flow.transform.inverse(x, given)[0]]
        assert calls.names == called
        total = sum(v.sin().sum() for v in values)
        return [*values, *torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True)]  # type: ignore[arg-type]

    found = results(["autoregressive_chain"] * 2)
    flow.transform.transforms[2].network.register_forward_hook(lambda *_: None)  # which must run
    with Calls() as calls:
        flow.transform.inverse(x, c if context else None)
    assert "coupling" in calls.names
    monkeypatch.setattr(coupling_step, "FEW_WEIGHTS", 0)  # few rows of a large network
    torch.testing.assert_close(results((["coupling"] * 3 + ["normal_log_prob"]) + ["coupling"] * 3), found)


def test_the_standard_logistic() -> None:
    base, z = StandardLogistic(1), torch.linspace(-40, 40, 8001)[:, None].double()
    log_p = base.log_prob(z)
    torch.testing.assert_close(log_p, -torch.log1p(z.exp()).sum(-1) - torch.log1p((-z).exp()).sum(-1))
    assert (log_p.exp().sum() * 0.01).item() == pytest.approx(1)
    drawn = base.rsample(torch.Size((20_000,)), torch.Generator().manual_seed(0))
    assert drawn.var().item() == pytest.approx(math.pi**2 / 3, rel=0.05)


def test_temperatures() -> None:
    flow = perturbed(Glow(IMAGE, 1, 2, (6, 6)), 0.05)
    mode = flow.sample((2,), temperature=0)
    torch.testing.assert_close(mode[0], mode[1])
    torch.testing.assert_close(mode[0], flow.transform.inverse(torch.zeros(96))[0])
    first, second = (flow.sample((5,), temperature=t, generator=torch.Generator().manual_seed(1)) for t in (1.0, 0.5))
    torch.testing.assert_close(flow.transform(second)[0], 0.5 * flow.transform(first)[0], rtol=1e-3, atol=1e-3)
    for wrong in (-1.0, math.nan, math.inf, "warm"):
        with pytest.raises(ValueError, match=r"^temperature: expected a number of at least 0, got"):
            flow.sample((2,), temperature=wrong)  # type: ignore[arg-type]


def test_glow_at_first_only_mixes() -> None:
    """Its networks give zeros: scales of sigmoid(2), priors that are standard normal; training's first batch normalises."""
    flow = Glow((2, 4, 4), 2, 2, (6, 6))
    x = 9 * torch.randn(64, 2, 4, 4) + 4
    flow.train()
    z, _ = flow.transform(x)
    norms = [m for m in flow.modules() if isinstance(m, fnn.ActNorm)]
    assert len(norms) == 4
    assert all(m.initialised for m in norms)
    quarter = torch.sigmoid(torch.tensor(2.0)).item()  # of the numbers: what the last coupling scales
    assert z.std().item() == pytest.approx(math.sqrt(0.75 + 0.25 * quarter**2), rel=0.01)


@pytest.mark.parametrize("kind", [Glow, RealNVP])
def test_default_levels(kind: Any) -> None:
    levels = {"Glow": {8: 3, 12: 2, 32: 3, 2: 1}, "RealNVP": {8: 2, 12: 2, 32: 3, 6: 1}}[kind.__name__]
    for size, count in levels.items():
        options = {"steps": 1} if kind is Glow else {"couplings": 1}
        flow = kind((1, size, size), hidden=(4, 4), **options)
        assert len(flow.transform.transforms[0].levels) == count
        assert flow.sample((2,)).shape == (2, 1, size, size)


def test_models_are_built_for_the_shape_of_the_data() -> None:
    images = Rows(torch.zeros(30, 1, 8, 8, dtype=torch.uint8))
    table = Rows(torch.zeros(30, 5))
    pictures, numbers = (Dataset("data", rows, rows, rows, levels=17) for rows in (images, table))
    options = {"hidden": (4, 4)}
    for kind, shape in ((Glow, (1, 8, 8)), (RealNVP, (1, 8, 8)), (NICE, (64,)), (fk.flows.MAF, (64,))):
        assert [for_data(kind, data, options).event_shape for data in (pictures, numbers)] == [shape, (5,)]


def test_training_sets_act_norms_before_its_first_step() -> None:
    x = torch.randn(200, 3) * torch.tensor([1.0, 50.0, 0.01]) + 7
    flow = Glow(3, 2, hidden=(8,))
    flow.fit(x, epochs=1, standardize=False, progress=False, average=0.5)
    assert all(m.initialised for m in flow.modules() if isinstance(m, fnn.ActNorm))
    assert flow.log_prob(x).isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Glow((1, 6, 6), levels=2), "levels: 2 take height and width to be multiples of 4, got (1, 6, 6)"),
        (lambda: RealNVP((1, 6, 6), levels=3), "levels: 3 take height and width to be multiples of 4, got (1, 6, 6)"),
        (lambda: Glow((1, 7, 8)), "features: expected an image of even height and width, got (1, 7, 8)"),
        (lambda: RealNVP((1, 2, 2), levels=2), "levels: expected at least 2 pixels at the last, got (2, 1, 1)"),
        (lambda: Glow(4, levels=2), "levels: vectors have one, got 2"),
        (lambda: Glow(1), "features: expected a whole number of at least 2, got 1"),
        (lambda: NICE(1), "features: expected a whole number of at least 2, got 1"),
        (lambda: Glow((3, 4)), "features: expected a number or a shape (channels, height, width), got (3, 4)"),
        (lambda: Glow(4, steps=0), "steps: expected a whole number of at least 1, got 0"),
        (lambda: NICE(4, couplings=0), "couplings: expected a whole number of at least 1, got 0"),
        (lambda: Glow(IMAGE, 1, hidden=(4,)).log_prob(torch.zeros(2, 3, 8, 4)), "x: expected shape (..., 3, 4, 8), got (2, 3,"),
    ],
)  # fmt: skip
def test_what_does_not_fit(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        make()


# -- public implementations: their weights give the same log-likelihood ---------------------------------------------------


def of_normflows(block: Any, shape: torch.Size) -> list[fnn.Transform]:
    """The layers of a GlowBlock from data to noise; its networks give shift and scale of each channel in turn."""
    peer_coupling, peer_mix, peer_norm = block.flows
    norm, mix = fnn.ActNorm(shape).double(), fnn.InvertibleConv1x1(shape).double()
    coupling = fnn.AffineCoupling(shape, (6, 6), scale="sigmoid", placement="shift_scale").double()
    theirs = [m for m in peer_coupling.modules() if isinstance(m, nn.Conv2d)]
    *mine, last = [m for m in coupling.network if hasattr(m, "weight")]
    with torch.no_grad():
        norm.bias.copy_(-peer_norm.t.flatten())
        norm.log_scale.copy_(-peer_norm.s.flatten())
        mix.set_weight(peer_mix._assemble_W())
        for own, other in zip(mine, theirs, strict=False):
            own.load_state_dict(other.state_dict())
        for own, other in ((last.weight, theirs[-1].weight), (last.bias, theirs[-1].bias)):
            own.copy_(torch.cat([-other[0::2], other[1::2]]))
    return [norm, mix, coupling]


def mixed(shape: torch.Size, weight: Tensor) -> fnn.InvertibleConv1x1:
    layer = fnn.InvertibleConv1x1(shape, lu=False).double()
    layer.set_weight(weight)
    return layer


def test_normflows_glow_has_the_same_log_likelihood() -> None:
    nf = pytest.importorskip("normflows")
    levels = [[*(nf.flows.GlowBlock(channels, 6) for _ in range(2)), nf.flows.Squeeze()] for channels in (8, 4)]
    bases = [nf.distributions.GlowBase(shape) for shape in ((8, 4, 4), (2, 8, 8))]
    peer = nf.MultiscaleFlow(bases, levels, [nf.flows.Merge()], class_cond=False)
    x = torch.randn(5, 1, 16, 16).double()
    peer.log_prob(x.float(), None)  # sets its normalisations
    peer = peer.double()
    perturbed(peer.flows, 0.1)

    def layers(level: int, squeeze: fnn.Squeeze) -> list[fnn.Transform]:
        blocks = list(peer.flows[level])[:-1]
        return [squeeze, *(layer for block in reversed(blocks) for layer in of_normflows(block, squeeze.noise_shape))]

    # There the first half goes on, here the second.
    exchange = mixed(torch.Size((4, 8, 8)), torch.eye(4).roll(2, 0))
    first, second = layers(1, fnn.Squeeze((1, 16, 16))), layers(0, fnn.Squeeze((2, 8, 8)))
    flow = Flow([fnn.MultiScale([fnn.Compose([*first, exchange]), fnn.Compose(second)])]).eval()
    torch.testing.assert_close(flow.log_prob(x), peer.log_prob(x, None))


class OfInputs(nn.Module):
    """A network of nflows, which takes a context too."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x, None)


def test_nflows_multi_scale_pieces_have_the_same_log_likelihood() -> None:
    pytest.importorskip("nflows")
    from nflows import distributions, transforms
    from nflows import nn as peer_nn
    from nflows.flows import Flow as PeerFlow

    def network(inputs: int, outputs: int) -> nn.Module:
        return peer_nn.nets.ConvResidualNet(inputs, outputs, hidden_channels=6, num_blocks=1)

    shape, parts = (1, 8, 8), []
    multi = transforms.MultiscaleCompositeTransform(num_transforms=2)
    levels: list[fnn.Transform] = []
    for _ in range(2):
        squeeze = fnn.Squeeze(shape)
        shape = squeeze.noise_shape
        mask = torch.arange(shape[0]) % 2
        norm, mix = transforms.ActNorm(shape[0]), transforms.OneByOneConvolution(shape[0])
        coupling = transforms.AffineCouplingTransform(mask, network)
        level = transforms.CompositeTransform([transforms.SqueezeTransform(), norm, mix, coupling])
        parts.append((squeeze, norm, mix, coupling, mask))
        rest = multi.add_transform(level, shape)
        shape = None if rest is None else rest
    peer = PeerFlow(multi, distributions.StandardNormal([64]))
    x = torch.randn(5, 1, 8, 8)
    peer.log_prob(x)  # sets its normalisations
    peer = perturbed(peer.double(), 0.1)
    for squeeze, norm, mix, coupling, mask in parts:
        event = squeeze.noise_shape
        own, shift = fnn.ActNorm(event), fnn.ActNorm(event)
        basis = torch.eye(event[0]).double()[:, :, None, None]
        with torch.no_grad():
            own.log_scale.copy_(norm.log_scale)
            own.bias.copy_(norm.shift / norm.scale)
            shift.bias.copy_(mix(torch.zeros_like(basis))[0][0].flatten())
            weight = (mix(basis)[0] - mix(torch.zeros_like(basis))[0]).flatten(1).T
        options: dict[str, Any] = {"scale": "sigmoid", "constants": (2, 1e-3), "network": OfInputs(coupling.transform_net)}
        couple = fnn.AffineCoupling(event, mask=mask == 1, **options)
        levels.append(fnn.Compose([squeeze, own, mixed(event, weight), shift, couple]))
    flow = Flow([fnn.MultiScale(levels)]).double().eval()
    torch.testing.assert_close(flow.log_prob(x.double()), peer.log_prob(x.double()))
