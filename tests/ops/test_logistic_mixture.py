"""logistic_mixture and its sampler: by the definition with hundreds of digits, at the extremes, sample by sample."""

from __future__ import annotations

import importlib
import math
from decimal import MAX_EMAX, MIN_EMIN, Decimal, localcontext
from typing import Any

import pytest
import torch
from accuracy import KERNELS, device_of, using
from torch import Tensor

import flowkern as fk
from flowkern import reference


def grid(levels: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """All values from -1 to 1."""
    return (torch.arange(levels, dtype=torch.float64) * (2 / (levels - 1)) - 1).to(dtype)


def mixture(components: int, log_scale: float, *batch: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits, means, spread = torch.randn(3, *batch, components, generator=generator, dtype=torch.float64)
    return [logits, 0.6 * means, log_scale + 0.5 * spread]


def by_definition(x: float, parameters: list[list[float]], levels: int) -> float:
    """The logarithm of a weighted sum of differences of sigmoids, with 100 digits and exponents without a limit."""
    with localcontext() as context:
        context.prec, context.Emax, context.Emin = 100, MAX_EMAX, MIN_EMIN
        half = Decimal(1) / (levels - 1)
        total = weight = Decimal(0)
        for logit, mean, log_scale in ((Decimal(v) for v in part) for part in zip(*parameters, strict=True)):
            side = 1 if mean >= x else -1  # sigmoid(a) - sigmoid(b) = sigmoid(-b) - sigmoid(-a); both are small in this way
            ends = sorted(side * (Decimal(x) + step - mean) for step in (-half, half))
            low, high = (1 / (1 + (-end / log_scale.exp()).exp()) for end in ends)
            if abs(x) > 1 - half:  # one end is infinite
                low, high = (Decimal(0), high) if side * x < 0 else (low, Decimal(1))
            total, weight = total + logit.exp() * (high - low), weight + logit.exp()
        return float((total / weight).ln())


CALLS = {  # levels, log-scale: ordinary, far from every component, much narrower and much wider than a level
    "8 bits": (256, -2.0),
    "16 bits": (65536, -6.0),
    "tails": (256, -5.0),
    "narrow": (256, -9.0),
    "narrow, 16 bits": (65536, -14.0),
    "wide": (256, 5.0),
    "very wide": (65536, 20.0),
}


@KERNELS
@pytest.mark.parametrize("call", CALLS)
def test_the_definition(call: str, kernels: str, dtype: torch.dtype) -> None:
    levels, log_scale = CALLS[call]
    values = grid(levels)
    x = values[[0, 1, levels // 3, levels // 2, levels - 2, levels - 1]]
    parameters = [t.to(dtype) for t in mixture(3, log_scale, len(x))]
    parameters[1][3] = x[3]  # in the middle of the component
    if call == "tails":
        parameters[1] = parameters[1].clamp(0.5)
    rows = zip(x.to(dtype), *parameters, strict=True)
    exact = [by_definition(float(v), [t.tolist() for t in rest], levels) for v, *rest in rows]
    assert call != "tails" or min(exact) < -100
    expected, close = torch.tensor(exact, dtype=torch.float64), 50 * torch.finfo(dtype).eps
    place = device_of(kernels)
    for backend in (kernels, "reference"):
        with using(backend):
            found = fk.ops.logistic_mixture(x.to(place, dtype), *(t.to(place) for t in parameters), levels=levels)
        # A distance to a mean has the digits that its difference has; in units of the scale it may be large.
        torch.testing.assert_close(found.double().cpu(), expected, rtol=close, atol=close)


@KERNELS
@pytest.mark.parametrize(
    ("levels", "log_scale"), [(2, 0.0), (256, -2.0), (256, -8.0), (65536, -4.0), (65536, -13.0), (65536, 3.0)]
)
def test_probabilities_of_all_levels_sum_to_one(levels: int, log_scale: float, kernels: str, dtype: torch.dtype) -> None:
    if kernels == "triton" and levels > 256 and device_of(kernels).type == "cpu":
        levels = 1024
    place = device_of(kernels)
    parameters = [t.to(place, dtype) for t in mixture(10, log_scale)]
    with using(kernels):
        log_prob = fk.ops.logistic_mixture(grid(levels, dtype).to(place), *parameters, levels=levels)
    # In float32 the levels themselves are rounded, by a thousandth of their distance.
    total = log_prob.double().exp().sum().item()
    assert total == pytest.approx(1, abs=1e-12 if dtype == torch.float64 else 2e-3 if log_scale < -12 else 1e-5)


@KERNELS
def test_everything_is_finite_at_the_extremes(kernels: str, dtype: torch.dtype) -> None:
    place = device_of(kernels)
    levels = 65536
    x = torch.tensor([-1.0, -1 + 2 / 65535, 0.0, 0.5, 1 - 2 / 65535, 1.0, 1.5])
    means = torch.tensor([-100.0, -1.0, 0.0, 0.5, 1.0])
    log_scales = torch.tensor([-60.0, -16.0, -7.0, 0.0, 16.0, 60.0])
    logits = torch.tensor([-1e4, 0.0, 1e4])
    for given in (levels, 2, None):
        tensors = [t.flatten() for t in torch.meshgrid(x, means, log_scales, logits, indexing="ij")]
        leaves = [t.to(place, dtype).requires_grad_() for t in (tensors[0], *(t.unsqueeze(-1) for t in tensors[1:]))]
        # A second component, of scale one.
        with using(kernels):
            parts = [torch.cat([leaves[i], torch.zeros_like(leaves[i])], -1) for i in (3, 1, 2)]
            log_prob = fk.ops.logistic_mixture(leaves[0], *parts, levels=given)
            alone = fk.ops.logistic_mixture(leaves[0], leaves[3], leaves[1], leaves[2], levels=given)
            found = torch.autograd.grad(log_prob.sum() + alone.sum(), leaves)
        for t in (log_prob, alone, *found):
            assert torch.isfinite(t).all()


def test_a_density_by_hand() -> None:
    zero, one = torch.zeros(()), torch.zeros(1)
    assert fk.ops.logistic_mixture(zero, one, one, one).item() == pytest.approx(math.log(0.25))
    two = torch.zeros(2)
    both = fk.ops.logistic_mixture(zero, two, two, torch.tensor([0.0, -1.0]))
    assert both.item() == pytest.approx(math.log(0.5 * 0.25 + 0.5 * 0.25 * math.e))


def test_a_density_is_the_limit_of_many_levels() -> None:
    x, parameters = grid(9)[1:-1], mixture(5, -1.0)
    levels = 2**24 + 1
    expected = fk.ops.logistic_mixture(x, *parameters) + math.log(2 / (levels - 1))
    torch.testing.assert_close(fk.ops.logistic_mixture(x, *parameters, levels=levels), expected, rtol=0, atol=1e-9)


@KERNELS
def test_log_scales_below_the_least(kernels: str) -> None:
    x, (logits, means, log_scales) = torch.zeros(4), (t.float() for t in mixture(3, -7.0, 4))
    place = device_of(kernels)
    given = log_scales.to(place).requires_grad_()
    rest = logits.to(place), means.to(place)
    with using(kernels):
        found = fk.ops.logistic_mixture(x.to(place), *rest, given, levels=256, log_scale_min=-7.0)
        expected = fk.ops.logistic_mixture(x.to(place), *rest, given.clamp(min=-7.0), levels=256)
    assert torch.equal(found, expected)
    gradient = torch.autograd.grad(found.sum(), given)[0]
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), given)[0])
    below = given < -7
    assert 0 < below.sum() < below.numel()
    assert (gradient[below] == 0).all()


def test_broadcasting() -> None:
    x, (logits, means, log_scales) = torch.randn(4, 1, 6), (t.float() for t in mixture(3, -1.0, 5, 6))
    one = means[0, 0].clone().requires_grad_()
    found = fk.ops.logistic_mixture(x, logits, one, log_scales[:, :1])
    assert found.shape == (4, 5, 6)
    shape = 4, 5, 6, 3
    whole = [t.expand(shape) for t in (logits, one, log_scales[:, :1])]
    expected = fk.ops.logistic_mixture(x.expand(shape[:3]), *whole)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), one), torch.autograd.grad(expected.sum(), one))


def test_what_a_convolution_leaves_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters lie before time or space; the operator sees strides."""
    module = importlib.import_module("flowkern.ops._mixtures")
    seen: list[Any] = []
    run = module._run
    monkeypatch.setattr(module, "_run", lambda call, tensors, keep: seen.append(tensors) or run(call, tensors, keep))
    for size in ((7,), (4, 6)):
        channels = torch.randn(2, 9, *size)
        parameters = [t.movedim(1, -1) for t in channels.chunk(3, 1)]
        x = torch.rand(2, *size)
        found = fk.ops.logistic_mixture(x, *parameters, levels=256)
        assert all(t.untyped_storage().data_ptr() == channels.untyped_storage().data_ptr() for t in seen[-1][1:])
        torch.testing.assert_close(found, fk.ops.logistic_mixture(x, *(t.contiguous() for t in parameters), levels=256))


# -- samples ----------------------------------------------------------------------------------------------------------


def noise(components: int, *batch: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    drawn = torch.rand(*batch, components + 1, generator=generator, dtype=torch.float64).clamp(min=2.0**-25)
    return drawn[..., 0], drawn[..., 1:]


@KERNELS
@pytest.mark.parametrize("levels", [None, 256, 65536])
def test_samples_are_those_of_the_oracle(levels: int | None, kernels: str, dtype: torch.dtype) -> None:
    rows = 300 if kernels == "native" else 20
    place = device_of(kernels)
    drawn = [t.to(dtype) for t in (*noise(10, rows, 7), *mixture(10, -4.0, rows, 7))]
    expected = reference.logistic_mixture_sample(*(t.double() for t in drawn), levels)
    with using(kernels):
        found = fk.ops.logistic_mixture_sample(*(t.to(place) for t in drawn), levels=levels).double().cpu()
    assert found.unique().numel() > 50
    close = 1e-6 if dtype == torch.float32 else 1e-13
    if kernels == "triton" and dtype == torch.float32 and levels:
        close += 2 / (levels - 1)  # rounded to the next level
    torch.testing.assert_close(found, expected, rtol=0, atol=close)
    if levels:
        steps = (found + 1) * (levels - 1) / 2
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-2 if dtype == torch.float32 else 1e-9)
        assert found.min() >= -1
        assert found.max() <= 1


@KERNELS
def test_the_histogram_of_samples_is_that_of_the_probabilities(kernels: str) -> None:
    levels, n = 16, 200_000 if kernels == "native" else 20_000
    place = device_of(kernels)
    parameters = [t.float().to(place) for t in mixture(3, -1.5)]
    u, choice = (t.float().to(place) for t in noise(3, n))
    with using(kernels):
        x = fk.ops.logistic_mixture_sample(u, choice, *parameters, levels=levels)
        p = fk.ops.logistic_mixture(grid(levels, torch.float32).to(place), *parameters, levels=levels).exp().double()
    counts = torch.bincount(torch.round((x + 1) * (levels - 1) / 2).long(), minlength=levels)
    assert ((counts - n * p).abs() <= 5 * (n * p * (1 - p)).sqrt() + 1).all()
    assert p.max() > 0.1
    assert p[0] > 0.003  # both edges take part
    assert p[-1] > 0.003


def test_samples_of_levels_have_no_gradient() -> None:
    parameters = [t.requires_grad_() for t in mixture(3, -1.0, 5)]
    x = fk.ops.logistic_mixture_sample(*noise(3, 5), *parameters, levels=256)
    assert all((g == 0).all() for g in torch.autograd.grad(x.sum(), parameters))
