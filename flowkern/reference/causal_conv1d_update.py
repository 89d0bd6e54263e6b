"""Oracle of ``causal_conv1d_update``: the convolution of what a ring buffer holds."""

from __future__ import annotations

import torch
from torch import Tensor

from flowkern.reference.causal_conv1d import causal_conv1d


def causal_conv1d_update(
    x: Tensor, state: Tensor, step: int, weight: Tensor, bias: Tensor | None = None, *, dilation: int = 1, groups: int = 1
) -> Tensor:
    """y (..., out) of x (..., in) at a time, as `flowkern.ops.causal_conv1d_update` defines it; x replaces the oldest."""
    length = state.shape[-1]
    past = state.roll(-(step % length), -1) if length else state  # oldest first
    y = causal_conv1d(torch.cat([past, x[..., None]], -1), weight, bias, dilation=dilation, groups=groups)
    if length:
        state[..., step % length] = x
    return y[..., -1]
