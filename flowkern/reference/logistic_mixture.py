"""Oracle of ``logistic_mixture``."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def log1mexp(log_t: Tensor) -> Tensor:
    """log(1 - exp(-t)) from log t, with all digits for small and for large t."""
    near = log_t.clamp(-60, -0.37).exp()  # the ratio below is 1 at -60 and before; t = log 2 is where the digits are the same
    far = log_t.clamp(min=-0.37).exp()
    return torch.where(log_t < -0.37, log_t + torch.log(-torch.expm1(-near) / near), torch.log1p(-torch.exp(-far)))


def logistic_mixture(
    x: Tensor,
    logits: Tensor,
    means: Tensor,
    log_scales: Tensor,
    levels: int | None = None,
    log_scale_min: float = -math.inf,
) -> Tensor:
    """Log-probabilities of x, as `flowkern.ops.logistic_mixture` defines them."""
    x, log_scales = x.unsqueeze(-1), log_scales.clamp(min=log_scale_min)
    inverse_scales = torch.exp(-log_scales)
    middle = (x - means) * inverse_scales
    if levels is None:
        log_probs = F.logsigmoid(middle) + F.logsigmoid(-middle) - log_scales
    else:
        half = 1 / (levels - 1)  # of a level's width
        upper, lower = middle + half * inverse_scales, middle - half * inverse_scales
        # sigmoid(upper) - sigmoid(lower) = sigmoid(upper) sigmoid(-lower) (1 - exp(lower - upper)), without a cancellation
        inside = F.logsigmoid(upper) + F.logsigmoid(-lower) + log1mexp(math.log(2 * half) - log_scales)
        last = torch.where(x > 1 - half, F.logsigmoid(-lower), inside)
        log_probs = torch.where(x < half - 1, F.logsigmoid(upper), last)
    return torch.logsumexp(F.log_softmax(logits, -1) + log_probs, -1)
