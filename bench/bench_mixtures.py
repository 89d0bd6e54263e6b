"""Mixtures of logistics: flowkern, its oracle, and what is usually written in PyTorch for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import measure_operator
from torch import Tensor

import flowkern as fk

CLIPS, SAMPLES, COMPONENTS, LEVELS, LOG_SCALE_MIN = 4, 8000, 10, 65536, -14.0


def discretized_mix_logistic(x: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor) -> Tensor:
    """The published form for audio (PixelCNN++'s, with the number of classes as an argument), per sample."""
    x, log_scales = x.unsqueeze(-1).expand_as(means), torch.clamp(log_scales, min=LOG_SCALE_MIN)
    centered, inv_stdv = x - means, torch.exp(-log_scales)
    plus_in, min_in = inv_stdv * (centered + 1.0 / (LEVELS - 1)), inv_stdv * (centered - 1.0 / (LEVELS - 1))
    cdf_delta = torch.sigmoid(plus_in) - torch.sigmoid(min_in)
    log_cdf_plus, log_one_minus_cdf_min = plus_in - F.softplus(plus_in), -F.softplus(min_in)
    mid_in = inv_stdv * centered
    log_pdf_mid = mid_in - log_scales - 2.0 * F.softplus(mid_in)
    inner = torch.where(
        cdf_delta > 1e-5, torch.log(torch.clamp(cdf_delta, min=1e-12)), log_pdf_mid - torch.log(torch.tensor((LEVELS - 1) / 2))
    )
    log_probs = torch.where(x > 0.999, log_one_minus_cdf_min, inner)
    log_probs = torch.where(x < -0.999, log_cdf_plus, log_probs) + F.log_softmax(logits, -1)
    return torch.logsumexp(log_probs, -1)


def sample_from_mix_logistic(u: Tensor, choice: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor) -> Tensor:
    """Its sampler, with its random numbers as an argument."""
    chosen = (logits - torch.log(-torch.log(choice))).max(-1)[1]
    one_hot = F.one_hot(chosen, COMPONENTS).to(logits)
    mean, log_scale = (means * one_hot).sum(-1), torch.clamp((log_scales * one_hot).sum(-1), min=LOG_SCALE_MIN)
    return torch.clamp(mean + torch.exp(log_scale) * (torch.log(u) - torch.log(1.0 - u)), -1.0, 1.0)


def drawn(grads: bool) -> list[Tensor]:
    """Audio and the parameters of its mixtures, cut from one tensor as a network leaves it."""
    torch.manual_seed(0)
    x = torch.round(torch.rand(CLIPS, SAMPLES) * 65535) * (2 / 65535) - 1
    network = torch.randn(CLIPS, SAMPLES, 3 * COMPONENTS) * torch.tensor([1.0, 0.3, 1.0]).repeat_interleave(COMPONENTS)
    network[..., 2 * COMPONENTS :] -= 4
    return [t.detach().requires_grad_(grads) for t in (x, *network.chunk(3, -1))]


@pytest.mark.parametrize("implementation", ["flowkern", "oracle", "peer"])
@pytest.mark.parametrize("direction", ["forward", "forward + backward"])
def test_logistic_mixture(benchmark: Any, direction: str, implementation: str) -> None:
    x, *parameters = drawn(direction != "forward")
    x.requires_grad_(False)  # data

    def call() -> Tensor:
        if implementation == "peer":
            return discretized_mix_logistic(x, *parameters)
        return fk.ops.logistic_mixture(x, *parameters, levels=LEVELS, log_scale_min=LOG_SCALE_MIN)

    inside = x.abs() < 0.998  # the published form takes more than the last levels for edges, and loses digits elsewhere
    torch.testing.assert_close(call()[inside], discretized_mix_logistic(x, *parameters)[inside], rtol=2e-2, atol=2e-2)
    group = f"logistic_mixture {direction}: {CLIPS} x {SAMPLES}, {COMPONENTS} components, {LEVELS} levels"
    measure_operator(benchmark, call, parameters, group, implementation)


@pytest.mark.parametrize("implementation", ["flowkern", "oracle", "peer"])
def test_logistic_mixture_sample(benchmark: Any, implementation: str) -> None:
    _, *parameters = drawn(False)
    noise = [torch.empty(CLIPS, SAMPLES, *more).uniform_(1e-5, 1 - 1e-5) for more in ((), (COMPONENTS,))]

    def call() -> Tensor:
        if implementation == "peer":
            return sample_from_mix_logistic(*noise, *parameters)
        return fk.ops.logistic_mixture_sample(*noise, *parameters, levels=LEVELS, log_scale_min=LOG_SCALE_MIN)

    assert ((call() - sample_from_mix_logistic(*noise, *parameters)).abs() < 1e-4).float().mean() > 0.999
    group = f"logistic_mixture_sample: {CLIPS} x {SAMPLES}, {COMPONENTS} components, {LEVELS} levels"
    measure_operator(benchmark, call, parameters, group, implementation)


ROWS, FEATURES = 100, 784


@pytest.mark.parametrize("implementation", ["flowkern", "peer"])
def test_gaussian_mixture(benchmark: Any, implementation: str) -> None:
    """The head of a MADE on MNIST. The peer is the usual PyTorch code, and the oracle."""
    torch.manual_seed(0)
    x, parameters = torch.randn(ROWS, FEATURES), torch.randn(ROWS, FEATURES, 3, COMPONENTS).requires_grad_()

    def call() -> Tensor:
        operator = fk.ops.gaussian_mixture if implementation == "flowkern" else fk.reference.gaussian_mixture
        return operator(x, *parameters.unbind(-2))

    group = f"gaussian_mixture forward + backward: {ROWS} x {FEATURES}, {COMPONENTS} components"
    measure_operator(benchmark, call, [parameters], group, implementation)
