"""A causal convolution of sequences."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from flowkern import reference
from flowkern._checks import HALF
from flowkern.backends import kernels_for
from flowkern.ops._convolutions import check_convolution, lowers
from flowkern.ops._derivatives import plain_backward, wants_plain


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, dilation: int = 1, groups: int = 1) -> Tensor:
    r"""y_t = b + sum over the taps j of W_j x_{t - (k - 1 - j) dilation}: no output sees a later input.

    It is ``torch.nn.functional.conv1d`` of x with (k - 1) dilation zeros before its beginning, which are never stored.

    Args:
        x: sequences (..., in, time) of at least one time.
        weight: (out, in / groups, k), the last tap being that of the present.
        bias: (out,), or ``None``.
        dilation: distance in time between taps.
        groups: parts of the channels, each of which sees only the inputs of its own; as many as channels make it depthwise.

    Returns:
        (..., out, time).

    Raises:
        TypeError, ValueError: for arguments that do not fit each other.

    Example:
        >>> import torch
        >>> x = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
        >>> causal_conv1d(x, torch.tensor([[[10.0, 1.0]]]), dilation=2)
        tensor([[[ 1.,  2., 13., 24.]]])

    References:
        WaveNet: A Generative Model for Raw Audio (van den Oord et al., 2016), section 2.1.
    """
    if lowers(x, weight):
        # Autocast's rounding of the weights, as in masked networks; the products take them in the dtype that they had.
        low, dtype = torch.get_autocast_dtype(x.device.type), weight.dtype
        with torch.autocast(x.device.type, enabled=False):
            return causal_conv1d(x.to(dtype), weight.to(low).to(dtype), bias, dilation=dilation, groups=groups)
    check_convolution(x, weight, bias, dilation, groups, -2, "(..., in, time)")
    if x.shape[-1] == 0:
        raise ValueError(f"x: expected at least one time, got shape {tuple(x.shape)}")
    kernels = kernels_for(x, "causal_conv1d")
    if kernels.plain:
        return reference.causal_conv1d(x, weight, bias, dilation=dilation, groups=groups)
    dtype, batch = x.dtype, x.shape[:-2]
    tensors = [x.reshape(batch.numel(), *x.shape[-2:]), weight, bias]
    x, weight, bias = (t if t is None or t.dtype not in HALF else t.float() for t in tensors)  # type: ignore[assignment]
    needed = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias))
    run = CausalConv1dFunction.apply if needed else _run
    return run(x, weight, bias, dilation, groups).to(dtype).reshape(*batch, weight.shape[0], x.shape[-1])


def _run(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, groups: int) -> Tensor:
    bias = None if bias is None else bias.contiguous()
    return torch.ops.flowkern.causal_conv1d(x.contiguous(), weight.contiguous(), bias, dilation, groups)


class CausalConv1dFunction(torch.autograd.Function):
    """Forward and backward kernels; second derivatives through the oracle."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, groups: int) -> Tensor:
        ctx.options = {"dilation": dilation, "groups": groups}
        ctx.save_for_backward(x, weight, bias)
        return _run(x, weight, bias, dilation, groups)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight, bias = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        if wants_plain(grads):
            oracle = partial(reference.causal_conv1d, **ctx.options)
            return *plain_backward(oracle, (x, weight, bias), needs, grads), None, None
        tensors = (t.contiguous() for t in (grads[0], x, weight))
        found = iter(torch.ops.flowkern.causal_conv1d_backward(*tensors, *ctx.options.values(), *needs))
        return *(next(found) if need else None for need in needs), None, None
