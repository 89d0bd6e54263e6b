"""Oracle of ``causal_conv1d`` (WaveNet, van den Oord et al., 2016, section 2.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, dilation: int = 1, groups: int = 1) -> Tensor:
    """y (..., out, time) of x (..., in, time), as `flowkern.ops.causal_conv1d` defines it.

    Products of matrices, tap by tap: the weights' gradient of torch's own convolution, in float64, is ten times less exact.
    """
    time, taps = x.shape[-1], weight.shape[-1]
    padded = F.pad(x, ((taps - 1) * dilation, 0)).unflatten(-2, (groups, weight.shape[1]))
    weight = weight.unflatten(0, (groups, weight.shape[0] // groups))
    terms = [weight[..., j] @ padded[..., j * dilation : j * dilation + time] for j in range(taps)]
    y = torch.stack(terms).sum(0).flatten(-3, -2)
    return y if bias is None else y + bias[:, None]
