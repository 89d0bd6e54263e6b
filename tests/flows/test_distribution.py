"""A flow as a torch.distributions.Distribution: Monte Carlo estimates, divergences, the interface's own behaviours."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch.distributions import Bernoulli, Distribution, Independent, MultivariateNormal, Normal, kl_divergence

import flowkern as fk
from flowkern.flows import MAF, Flow, FlowDistribution
from flowkern.models import MADE

MEAN, STD = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 3.0]).double()


def gaussian() -> FlowDistribution:
    """N(MEAN, STD^2), whose parameters are a BatchNorm's."""
    norm = fk.nn.BatchNorm(2, eps=0).double().eval()
    norm.running_mean.copy_(MEAN)
    norm.running_var.copy_(STD**2)
    return Flow([norm]).double().distribution()


def conditional(**options: Any) -> FlowDistribution:
    return MAF(3, 2, (8,), context=2, **options).double().distribution(torch.randn(5, 2).double())


def test_estimates_are_within_their_errors() -> None:
    d = gaussian()
    entropy = STD.log().sum() + 1 + math.log(2 * math.pi)
    error = STD / d.monte_carlo_samples**0.5
    assert ((d.mean - MEAN).abs() < 4 * error).all()
    assert ((d.variance / STD**2 - 1).abs() < 4 * (2 / d.monte_carlo_samples) ** 0.5).all()
    torch.testing.assert_close(d.stddev, STD, rtol=0.1, atol=0)
    assert (d.entropy() - entropy).abs() < 4 / d.monte_carlo_samples**0.5  # log p has variance D / 2 = 1
    for function, truth in (
        (lambda x: x, MEAN),
        (lambda x: -d.log_prob(x), entropy),
        (lambda x: x[..., 0] > 1, torch.tensor(0.5).double()),
    ):
        estimate, error = d.expectation(function, 5_000)
        assert estimate.shape == error.shape == truth.shape
        assert ((estimate - truth).abs() < 4 * error).all()
        assert not error.requires_grad


def test_the_standard_error_is_the_deviation_of_the_estimate() -> None:
    d = gaussian()
    with torch.no_grad():
        estimates, errors = zip(*(d.expectation(lambda x: x.exp().sum(-1).log(), 50) for _ in range(400)), strict=True)
    assert torch.stack(errors).mean().item() == pytest.approx(torch.stack(estimates).std().item(), rel=0.15)


def test_gradients_of_the_estimates() -> None:
    d = gaussian()
    norm = d.flow.transform.transforms[0]
    # x = (z - beta) exp(-g) STD + MEAN
    (g_mean,) = torch.autograd.grad(d.mean.sum(), norm.beta)
    torch.testing.assert_close(g_mean, -STD)
    (g_entropy,) = torch.autograd.grad(d.entropy(), norm.log_gamma)
    torch.testing.assert_close(g_entropy, -torch.ones(2).double())
    (g_variance,) = torch.autograd.grad(d.variance.sum(), norm.log_gamma)
    torch.testing.assert_close(g_variance, -2 * STD**2, rtol=0.3, atol=0)
    context = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(MAF(3, 1, (8,), context=2).double().distribution(context).stddev.sum(), context)
    assert (g != 0).any()


def test_divergences_and_their_gradients() -> None:
    p, standard = gaussian(), Independent(Normal(torch.zeros(2).double(), 1.0), 1)
    exact = kl_divergence(Independent(Normal(MEAN, STD), 1), standard)
    assert kl_divergence(p, standard).item() == pytest.approx(exact.item(), rel=0.2)
    wide = kl_divergence(p, Flow([fk.nn.BatchNorm(2).double().eval()]).distribution())  # a standard normal too
    assert wide.item() == pytest.approx(exact.item(), rel=0.2)
    torch.testing.assert_close(kl_divergence(p, p), torch.zeros(()).double(), atol=1e-9, rtol=0)
    norm = p.flow.transform.transforms[0]
    (g,) = torch.autograd.grad(kl_divergence(p, standard), norm.beta)
    torch.testing.assert_close(g, -STD * MEAN, rtol=0.3, atol=0.3)  # d(m^2 / 2) / d beta
    with pytest.raises(ValueError, match=r"q: expected event shape \(2,\) like p, got \(\)"):
        kl_divergence(p, Normal(torch.zeros(2), 1.0))


def test_divergences_broadcast_their_batches() -> None:
    torch.manual_seed(1)
    p, free = conditional(), MAF(3, 1, (8,)).double().distribution()
    many = MultivariateNormal(torch.zeros(4, 1, 3).double(), torch.eye(3).double())
    assert kl_divergence(p, free).shape == kl_divergence(free, p).shape == (5,)
    assert kl_divergence(p, many).shape == (4, 5)
    # Those of one row are that row's, up to the error of the estimate.
    row = FlowDistribution(p.flow, p.context[2])
    values, error = row.expectation(lambda x: row.log_prob(x) - free.log_prob(x), 4_000)
    assert abs(kl_divergence(p, free)[2] - values) < 6 * error * 4**0.5
    assert kl_divergence(Independent(p, 1), Independent(p, 1)).shape == ()


def test_samples_take_a_generator_and_chunks() -> None:
    for d in (conditional(), conditional().expand((2, 5)), MAF(3, 1, (8,)).double().distribution().expand((4,))):

        def seeded() -> torch.Generator:
            return torch.Generator().manual_seed(3)

        x = d.sample((6,), generator=seeded())
        torch.testing.assert_close(d.sample((6,), generator=seeded(), chunk_size=4), x)
        torch.testing.assert_close(d.rsample((6,), generator=seeded()), x)
        y, log_prob = d.rsample_and_log_prob((6,), generator=seeded())
        torch.testing.assert_close((y, log_prob), (x, d.log_prob(x)))
        first, second = (d.expectation(lambda x: x, 10, generator=seeded()) for _ in range(2))
        torch.testing.assert_close(first, second)


def test_a_base_without_rsample() -> None:
    flow = MAF(3, 1, (8,), base=MADE(3, "mixture", (8,)))
    p, q = flow.distribution(), MAF(3, 1, (8,)).distribution()
    assert (p.has_rsample, q.has_rsample, MAF(3, 1, (8,), base=flow).has_rsample) == (False, True, False)
    assert not Flow([fk.nn.Reverse(3)], base=Independent(Bernoulli(torch.ones(3)), 1)).has_rsample
    assert not p.mean.requires_grad
    assert not p.entropy().requires_grad
    kl_divergence(p, q).backward()
    assert all(t.grad is not None for t in q.flow.parameters())
    assert all(t.grad is None for t in p.flow.parameters())
    with pytest.raises(NotImplementedError, match="the base MADE has no rsample"):
        p.rsample()


def test_expansion() -> None:
    d = conditional()
    d.monte_carlo_samples = 16
    wide = d.expand((4, 5))
    assert (wide.batch_shape, wide.monte_carlo_samples, wide.mean.shape) == ((4, 5), 16, (4, 5, 3))
    assert d.flow.distribution(d.context[0]).expand((2,)).sample((3,)).shape == (3, 2, 3)
    assert d.flow.distribution(d.context[:1]).expand((4,)).sample().shape == (4, 3)
    with pytest.raises(ValueError, match=r"batch_shape: expected a shape that \(5,\) expands to, got \(4,\)"):
        d.expand((4,))

    class Named(FlowDistribution):
        pass

    assert type(Named(d.flow, d.context).expand((2, 5))) is Named


def test_an_embedding_runs_once_per_distribution() -> None:
    calls = []
    embedding = torch.nn.Flatten(-3)
    embedding.register_forward_hook(lambda *_: calls.append(1))
    d = MAF(3, 1, (8,), context=16, embedding=embedding).distribution(torch.randn(5, 1, 4, 4))
    assert d.expand((2, 5)).batch_shape == (2, 5)
    assert len(calls) == 1


def test_validation_is_off_by_default() -> None:
    d, nan = conditional(), torch.full((3,), math.nan).double()
    assert d.log_prob(nan).isnan().all()
    checked = FlowDistribution(d.flow, d.context, validate_args=True)
    for distribution in (checked, checked.expand((2, 5))):
        with pytest.raises(ValueError, match="to be within the support"):
            distribution.log_prob(nan)


@pytest.mark.filterwarnings("ignore:.*degrees of freedom is <= 0:UserWarning")  # torch's, of an empty batch
@pytest.mark.parametrize("shape", [(2,), (0, 2), (1, 2), (4, 5, 2)])
def test_every_batch_shape(shape: tuple[int, ...]) -> None:
    d = MAF(3, 2, (8,), context=2).distribution(torch.randn(shape))
    batch = shape[:-1]
    assert d.sample((7,)).shape == (7, *batch, 3)
    assert d.log_prob(torch.zeros(3)).shape == d.entropy().shape == batch
    assert d.mean.shape == d.variance.shape == d.stddev.shape == (*batch, 3)
    with torch.inference_mode():
        assert d.mean.shape == (*batch, 3)
        assert kl_divergence(d, d).shape == batch


def test_copies_and_functional_transforms() -> None:
    d, x = conditional(), torch.zeros(3).double()
    for twin in (copy.deepcopy(d), pickle.loads(pickle.dumps(d))):
        torch.testing.assert_close(twin.log_prob(x), d.log_prob(x))
        assert repr(twin) == repr(d) == "FlowDistribution(flow: MAF, event_shape: (3,), batch_shape: (5,))"
    mapped = torch.func.vmap(lambda c: d.flow.distribution(c).log_prob(x))(d.context)
    torch.testing.assert_close(mapped, d.log_prob(x))
    draw = torch.func.vmap(lambda c: d.flow.distribution(c).sample((4,), chunk_size=3), randomness="different")
    assert draw(d.context).shape == (5, 4, 3)


def test_arguments_of_distributions_are_named() -> None:
    d: Any = conditional()
    for call, error, message in (
        (lambda: d.sample(3), TypeError, r"sample_shape: expected a tuple of sizes such as \(3,\), got 3"),
        (lambda: d.rsample((-1,)), ValueError, r"sample_shape: expected sizes of at least 0, got \(-1,\)"),
        (lambda: d.expand(4), TypeError, r"batch_shape: expected a tuple of sizes such as \(4,\), got 4"),
        (lambda: d.log_prob([0.0, 0, 0]), TypeError, "value: expected a torch.Tensor, got list"),
        (lambda: d.log_prob(torch.zeros(2)), ValueError, r"value: expected shape \(\.\.\., 3\), got \(2,\)"),
        (lambda: d.expectation(torch.mean), ValueError, r"function: expected values of shape \(1024, \.\.\.\), got \(\)"),
        (lambda: d.expectation(len), TypeError, "function: its result: expected a torch.Tensor, got int"),
        (lambda: d.expectation(torch.sin, 1), ValueError, "samples: expected a whole number of at least 2, got 1"),
        (lambda: d.flow.distribution([0.0, 0]), TypeError, "context: expected a torch.Tensor, got list"),
    ):
        with pytest.raises(error, match=message):
            call()
    assert isinstance(d, Distribution)
