"""Oracle of ``logistic_mixture_sample``."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def chosen_component(choice: Tensor, logits: Tensor) -> Tensor:
    """The component (..., 1) with the largest of logits with Gumbel noise, which is each with its probability."""
    return torch.argmax(logits - torch.log(-torch.log(choice)), -1, keepdim=True)


def logistic_mixture_sample(
    u: Tensor,
    choice: Tensor,
    logits: Tensor,
    means: Tensor,
    log_scales: Tensor,
    levels: int | None = None,
    log_scale_min: float = -math.inf,
) -> Tensor:
    """Samples made of uniform numbers, as `flowkern.ops.logistic_mixture_sample` defines them."""
    choice, logits, means, log_scales = torch.broadcast_tensors(choice, logits, means, log_scales.clamp(min=log_scale_min))
    chosen = chosen_component(choice, logits)
    mean, log_scale = means.gather(-1, chosen).squeeze(-1), log_scales.gather(-1, chosen).squeeze(-1)
    x = mean + torch.exp(log_scale) * (torch.log(u) - torch.log1p(-u))
    if levels is None:
        return x
    steps = (levels - 1) / 2
    return torch.round((x.clamp(-1, 1) + 1) * steps) / steps - 1
