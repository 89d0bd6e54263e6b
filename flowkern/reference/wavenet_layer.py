"""Oracle of ``wavenet_layer`` (WaveNet, van den Oord et al., 2016, sections 2.3 to 2.5)."""

from __future__ import annotations

import torch
from torch import Tensor

from flowkern.reference.causal_conv1d import causal_conv1d


def wavenet_layer(
    x: Tensor,
    skips: Tensor | None,
    gate_weight: Tensor,
    gate_bias: Tensor,
    residual_weight: Tensor,
    residual_bias: Tensor,
    skip_weight: Tensor,
    skip_bias: Tensor,
    condition: Tensor | None = None,
    condition_weight: Tensor | None = None,
    *,
    dilation: int = 1,
) -> tuple[Tensor, Tensor]:
    """What the next layer reads and the sum of the skips so far, as `flowkern.ops.wavenet_layer` defines them."""
    z = causal_conv1d(x, gate_weight, dilation=dilation) + gate_bias[..., None]
    if condition is not None and condition_weight is not None:
        z = z + causal_conv1d(condition, condition_weight[..., None])
    u = gated(z, -2)
    skip = causal_conv1d(u, skip_weight[..., None], skip_bias)
    return x + causal_conv1d(u, residual_weight[..., None], residual_bias), skip if skips is None else skips + skip


def gated(z: Tensor, dim: int) -> Tensor:
    """tanh of the first half of the channels times the sigmoid of the second."""
    a, b = z.chunk(2, dim)
    return torch.tanh(a) * torch.sigmoid(b)
