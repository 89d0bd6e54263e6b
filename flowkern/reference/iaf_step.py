"""Oracle of ``iaf_step`` (Inverse Autoregressive Flow, Kingma et al., 2016, equations 12 to 14)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def iaf_step(z: Tensor, m: Tensor, s: Tensor, *, bias: float = 0.0) -> tuple[Tensor, Tensor]:
    """(x, log_det) of the gated step, as `flowkern.ops.iaf_step` defines them."""
    gate = torch.sigmoid(s + bias)
    log_gate = F.logsigmoid(s + bias)
    return gate * z + (1 - gate) * m, (log_gate + (z - z).detach()).sum(-1)
