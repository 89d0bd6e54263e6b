"""Oracle of ``causal_conv1d`` (WaveNet, van den Oord et al., 2016, section 2.1)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, dilation: int = 1, groups: int = 1) -> Tensor:
    """y (..., out, time) of x (..., in, time), as `flowkern.ops.causal_conv1d` defines it."""
    padded = F.pad(x.reshape(-1, *x.shape[-2:]), ((weight.shape[-1] - 1) * dilation, 0))
    return F.conv1d(padded, weight, bias, dilation=dilation, groups=groups).reshape(*x.shape[:-2], -1, x.shape[-1])
