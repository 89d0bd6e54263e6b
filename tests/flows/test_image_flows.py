"""Flows of events of any shape: densities, samples, bases, distributions."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal, TransformedDistribution, kl_divergence

import flowkern as fk
from flowkern import nn as fnn
from flowkern.flows import MAF, Flow, FlowDistribution, StandardNormal
from flowkern.models import MADE

IMAGE = (2, 4, 4)


def layer(event_shape: tuple[int, ...], context: int = 0) -> fnn.Compose:
    """An autoregressive layer on the flattened event, which keeps its shape."""
    features = math.prod(event_shape)
    masked = fnn.MaskedAutoregressive(features, hidden=(16,), activation="tanh", context=context)
    return fnn.Compose([fnn.Reshape(event_shape), masked, fnn.Reshape((features,), event_shape)])


def scales(context: int = 0) -> list[fnn.Transform]:
    """A multi-scale flow of images; its noise is (32,)."""
    first = fnn.Compose([fnn.Squeeze(IMAGE), layer((8, 2, 2), context)])
    return [fnn.Standardize(torch.randn(IMAGE), torch.rand(IMAGE) + 0.5), fnn.MultiScale([first, layer((4, 2, 2), context)])]


def squeezed(context: int = 0, **options: Any) -> Flow:
    """A flow of images whose noise is (8, 2, 2)."""
    return Flow([fnn.Squeeze(IMAGE), layer((8, 2, 2), context)], **options).double()


def flows(context: int = 0) -> dict[str, Flow]:
    """Bases: of vectors and of images, of this library's and of torch's, with and without gradients."""
    base = Independent(Normal(torch.zeros(8, 2, 2).double(), 2.0), 3)
    return {
        "standard": squeezed(context),
        "torch": squeezed(context, base=base),
        "flow": squeezed(context, base=Flow([layer((8, 2, 2), context)])),
        "multi-scale": Flow(scales(context)).double(),
        "multi-scale, MADE": Flow(scales(context), base=MADE(32, "mixture", (8,), context)).double(),
        "multi-scale, MAF": Flow(scales(context), base=MAF(32, 1, (8,), context)).double(),
    }


NAMES = pytest.mark.parametrize("name", flows())


@NAMES
def test_densities_are_those_of_the_base_and_the_jacobian(name: str) -> None:
    flow = flows()[name]
    assert (flow.event_shape, flow.features) == (IMAGE, 32)
    x = torch.randn(3, *IMAGE).double()
    found = flow.log_prob(x)
    assert found.shape == (3,)
    z, _ = flow.transform(x)
    vector = x[0].flatten()
    jacobian = torch.autograd.functional.jacobian(lambda v: flow.transform(v.view(IMAGE))[0].flatten(), vector)
    normal = Independent(Normal(torch.zeros(flow.noise_shape).double(), 1.0), len(flow.noise_shape))
    base = normal if type(flow.base) is StandardNormal else flow.base
    expected = base.log_prob(z[0]) + torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(found[0], expected)
    torch.testing.assert_close(flow.loss(x), {"loss": -found.mean()})


def test_the_density_integrates_to_one_and_matches_samples() -> None:
    """Of events (2, 1, 1), over a grid."""
    torch.manual_seed(2)
    shape = (2, 1, 1)
    flow = Flow([layer(shape), fnn.Reshape(shape), fnn.Reverse(2), fnn.MaskedAutoregressive(2, (16,))]).double()
    axis = torch.linspace(-12, 12, 401, dtype=torch.float64)
    log_p = flow.log_prob(torch.cartesian_prod(axis, axis).view(-1, *shape))
    cell = (axis[1] - axis[0]) ** 2
    assert (log_p.exp().sum() * cell).item() == pytest.approx(1, abs=1e-3)
    entropy = -(log_p.exp() * log_p).sum() * cell
    samples = flow.sample((20_000,), generator=torch.Generator().manual_seed(1))
    assert (-flow.log_prob(samples).mean()).item() == pytest.approx(entropy.item(), abs=0.05)


@NAMES
def test_samples(name: str) -> None:
    flow = flows()[name]
    for shape in ((), (0,), (3,), (2, 3)):
        assert flow.sample(shape).shape == (*shape, *IMAGE)
    torch.manual_seed(3)
    whole = flow.sample((2, 5))
    if name != "multi-scale, MADE":  # which draws feature by feature: other samples for every chunk size
        torch.manual_seed(3)
        torch.testing.assert_close(flow.sample((2, 5), chunk_size=3), whole)
    assert flow.sample((0,), chunk_size=3).shape == (0, *IMAGE)
    assert flow.sample((2, 2), chunk_size=3).shape == (2, 2, *IMAGE)
    if not flow.has_rsample:
        return
    x, log_prob = flow.rsample_and_log_prob((4,))
    torch.testing.assert_close(flow.log_prob(x), log_prob)
    torch.autograd.grad(flow.rsample((4,)).square().sum(), list(flow.transform.parameters()))


@NAMES
def test_contexts(name: str) -> None:
    flow = flows(context=3)[name]
    x, context = torch.randn(IMAGE).double(), torch.randn(5, 3).double()
    log_prob = flow.log_prob(x, context)
    assert log_prob.shape == (5,)
    torch.testing.assert_close(log_prob[2], flow.log_prob(x, context[2]))
    torch.testing.assert_close(flow.loss((x, context)), {"loss": -log_prob.mean()})
    assert flow.sample((), context).shape == (5, *IMAGE)
    assert flow.sample((7,), context).shape == flow.sample((7,), context, chunk_size=2).shape == (7, 5, *IMAGE)
    if flow.has_rsample:
        y, log_prob = flow.rsample_and_log_prob((7,), context)
        torch.testing.assert_close(flow.log_prob(y, context), log_prob)


def test_an_embedding_of_images() -> None:
    """The context is an image too, of which the embedding makes a vector."""
    flow = squeezed(context=4, embedding=nn.Sequential(nn.Flatten(-3), nn.Linear(9, 4)))
    context = torch.randn(5, 1, 3, 3).double()
    x, log_prob = flow.rsample_and_log_prob((2,), context)
    assert x.shape == (2, 5, *IMAGE)
    torch.testing.assert_close(flow.log_prob(x, context), log_prob)
    context[3, 0, 1, 1] = math.inf
    assert torch.isfinite(flow.log_prob(x[0].detach(), context)).tolist() == [True, True, True, False, True]


@NAMES
def test_distributions(name: str) -> None:
    context = torch.randn(5, 3).double()
    flow = flows(context=3)[name]
    d = flow.distribution(context)
    assert (d.batch_shape, d.event_shape, d.support.event_dim) == ((5,), IMAGE, 3)
    assert repr(d) == "FlowDistribution(flow: Flow, event_shape: (2, 4, 4), batch_shape: (5,))"
    x = d.sample((7,))
    assert (x.shape, d.log_prob(x).shape, d.log_prob(x[0, 0]).shape) == ((7, 5, *IMAGE), (7, 5), (5,))
    assert (d.mean.shape, d.variance.shape, d.entropy().shape) == ((5, *IMAGE), (5, *IMAGE), (5,))
    wide = d.expand((2, 5))
    assert (wide.sample().shape, wide.log_prob(x[0]).shape) == ((2, 5, *IMAGE), (2, 5))
    assert Independent(d, 1).log_prob(x).shape == (7,)
    assert kl_divergence(d, flows()["standard"].distribution()).shape == (5,)
    with pytest.raises(ValueError, match=r"^value: expected shape \(\.\.\., 2, 4, 4\), got \(5, 4, 4\)$"):
        d.log_prob(torch.zeros(5, 4, 4))
    with pytest.raises(ValueError, match=r"q: expected event shape \(2, 4, 4\) like p, got \(2,\)"):
        kl_divergence(d, Independent(Normal(torch.zeros(2), 1.0), 1))
    with pytest.raises(ValueError, match="to be within the support"):
        FlowDistribution(flow, context, validate_args=True).log_prob(torch.full(IMAGE, math.nan).double())


def test_a_transformed_distribution_of_torch_is_the_flow() -> None:
    flow = flows()["multi-scale"]
    base = Independent(Normal(torch.zeros(32).double(), 1.0), 1)
    twin = TransformedDistribution(base, [flow.transform.as_distribution_transform()])
    x = twin.sample((6,))
    assert x.shape == (6, *IMAGE)
    torch.testing.assert_close(twin.log_prob(x), flow.log_prob(x))


def test_calibrate_reaches_every_level() -> None:
    """Each BatchNorm sees the whole data set through the layers before it, those of earlier levels included."""
    vector = fnn.Compose([fnn.Reshape((4, 2, 2)), fnn.BatchNorm(16)])
    first = fnn.Compose([fnn.Squeeze(IMAGE), fnn.Reshape((8, 2, 2)), fnn.BatchNorm(32), fnn.Reshape((32,), (8, 2, 2))])
    flow = Flow([fnn.MultiScale([first, vector])], base=Flow([fnn.BatchNorm(32)]))
    data = torch.randn(100, *IMAGE) * 3 + 2
    flow.calibrate(data, batch_size=30)
    flow.eval()
    x, _ = first(data)
    torch.testing.assert_close(vector.transforms[1].running_mean, x[:, 4:].flatten(1).mean(0))
    z, _ = flow.transform(data)
    torch.testing.assert_close(z.mean(0), torch.zeros(32), atol=1e-4, rtol=0)
    torch.testing.assert_close(flow.base.transform.transforms[0].running_mean, z.mean(0))
    with pytest.raises(ValueError, match=r"^x: expected shape \(n, 2, 4, 4\) with at least one row, got \(2, 4, 4\)$"):
        flow.calibrate(data[0])


def test_training_with_and_without_the_kernels() -> None:
    losses = {}
    for backend in ("native", "reference"):
        torch.manual_seed(0)
        flow = Flow(scales())
        optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
        data = torch.randn(64, *IMAGE).cumsum(-1)
        curve = []
        with fk.backend(backend):
            for _ in range(20):
                optimizer.zero_grad()
                loss = flow.loss(data)["loss"]
                loss.backward()
                optimizer.step()
                curve.append(loss.item())
        losses[backend] = torch.tensor(curve)
    torch.testing.assert_close(losses["native"], losses["reference"], rtol=1e-3, atol=1e-3)
    assert losses["native"][-1] < losses["native"][0] - 1


def test_compiled_flow_gives_the_same_numbers() -> None:
    flow, x = Flow(scales()), torch.randn(6, *IMAGE)
    compiled = torch.compile(lambda a: flow.log_prob(a).mean(), fullgraph=True, backend="aot_eager")
    expected = flow.log_prob(x).mean()
    torch.testing.assert_close(compiled(x), expected)
    wanted = torch.autograd.grad(expected, list(flow.parameters()))
    torch.testing.assert_close(torch.autograd.grad(compiled(x), list(flow.parameters())), wanted)
    sampler = torch.compile(lambda n: flow.sample((n,)), fullgraph=True, backend="aot_eager")
    for n in (3, 5):
        assert sampler(n).shape == (n, *IMAGE)


def test_the_standard_normal_of_images() -> None:
    normal, z = StandardNormal((2, 3)), torch.randn(5, 2, 3)
    assert (normal.event_shape, normal.features, StandardNormal(6).event_shape) == ((2, 3), 6, (6,))
    torch.testing.assert_close(normal.log_prob(z), StandardNormal(6).log_prob(z.flatten(1)))
    assert normal.rsample(torch.Size((5,))).shape == (5, 2, 3)


class Short:
    """A base by its methods alone, whose samples are vectors."""

    def log_prob(self, z: torch.Tensor) -> torch.Tensor:
        return z.sum(-1)

    def rsample(self, shape: torch.Size) -> torch.Tensor:
        return torch.randn(*shape, 32)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: squeezed(base=MAF(32, 1)), "base: expected event shape (8, 2, 2), got (32,)"),
        (lambda: squeezed(base=StandardNormal(IMAGE)), "base: expected event shape (8, 2, 2), got (2, 4, 4)"),
        (
            lambda: squeezed(base=Independent(Normal(torch.zeros(8, 2, 2), 1), 1)),
            "base: expected event shape (8, 2, 2), got (2,);",
        ),
        (lambda: squeezed(base=Short()).sample((3,)), "base: expected samples of shape (3, 8, 2, 2), got (3, 32)"),
        (
            lambda: squeezed(base=Short()).log_prob(torch.zeros(3, *IMAGE).double()),
            "base: expected log_prob of shape (3,), got (3, 8, 2)",
        ),
        (lambda: StandardNormal((2, 0)), "event_shape: expected a shape of positive sizes such as (3, 8, 8), got (2, 0)"),
        (lambda: StandardNormal((2, 3)).log_prob(torch.zeros(2, 6)), "z: expected shape (..., 2, 3), got (2, 6)"),
        (lambda: squeezed().log_prob(torch.zeros(3, 4, 4).double()), "x: expected shape (..., 2, 4, 4), got (3, 4, 4)"),
    ],
)
def test_what_does_not_fit(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        make()
