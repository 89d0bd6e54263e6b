"""Oracle of ``normal_log_prob``."""

from __future__ import annotations

import math

from torch import Tensor


def normal_log_prob(z: Tensor, log_det: Tensor | None = None) -> Tensor:
    """Standard-normal log-density over the last dimension, as `flowkern.ops.normal_log_prob` defines it."""
    log_prob = -0.5 * (z.square().sum(-1) + z.shape[-1] * math.log(2 * math.pi))
    return log_prob if log_det is None else log_prob + log_det
