"""Oracle of ``logistic_mixture_sample``."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def logistic_mixture_sample(
    noise: Tensor,
    logits: Tensor,
    means: Tensor,
    log_scales: Tensor,
    levels: int | None = None,
    log_scale_min: float = -math.inf,
) -> Tensor:
    """Samples made of uniform numbers, as `flowkern.ops.logistic_mixture_sample` defines them."""
    choice, u = noise[..., :-1], noise[..., -1]
    scores = logits - torch.log(-torch.log(choice))  # the largest is that of a component with its weight (Gumbel)
    scores, means, log_scales = torch.broadcast_tensors(scores, means, log_scales.clamp(min=log_scale_min))
    chosen = scores.argmax(-1, keepdim=True)
    mean, log_scale = means.gather(-1, chosen).squeeze(-1), log_scales.gather(-1, chosen).squeeze(-1)
    x = mean + torch.exp(log_scale) * (torch.log(u) - torch.log1p(-u))
    if levels is None:
        return x
    width = 2 / (levels - 1)
    return torch.round((x.clamp(-1, 1) + 1) / width) * width - 1
