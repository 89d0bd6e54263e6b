"""Oracle of ``gaussian_mixture``."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian_mixture(x: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor, log_scale_min: float = -math.inf) -> Tensor:
    """Log-densities of x, as `flowkern.ops.gaussian_mixture` defines them."""
    log_scales = log_scales.clamp(min=log_scale_min)
    u = (x.unsqueeze(-1) - means) * torch.exp(-log_scales)
    log_densities = -0.5 * (u.square() + math.log(2 * math.pi)) - log_scales
    return torch.logsumexp(F.log_softmax(logits, -1) + log_densities, -1)
