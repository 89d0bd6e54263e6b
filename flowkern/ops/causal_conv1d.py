"""A causal convolution of sequences."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from flowkern import reference
from flowkern._checks import HALF
from flowkern.backends import Kernels, kernels_for
from flowkern.ops._convolutions import check_convolution, lowers
from flowkern.ops._derivatives import plain_backward, wants_plain
from flowkern.ops._rows import namespace


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
    tensors: list[Tensor | None] = [x.reshape(batch.numel(), *x.shape[-2:]), weight, bias]
    if kernels.on_cpu:
        tensors = [t if t is None or t.dtype not in HALF else t.float() for t in tensors]
    needed = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    y = (CausalConv1dFunction.apply if needed else _run)(kernels, dilation, groups, *tensors)
    return y.to(dtype).reshape(*batch, *y.shape[1:])


def _run(kernels: Kernels, dilation: int, groups: int, *tensors: Tensor | None) -> Tensor:
    contiguous = (t if t is None else t.contiguous() for t in tensors)
    return namespace(kernels).causal_conv1d(*contiguous, *_constants(kernels, dilation, groups))


def _constants(kernels: Kernels, dilation: int, groups: int) -> tuple[Any, ...]:
    """What the kernels take besides tensors."""
    return (dilation, groups) if kernels.on_cpu else (dilation, groups, kernels.precision)


class CausalConv1dFunction(torch.autograd.Function):
    """Forward and backward kernels; second derivatives through the oracle."""

    @staticmethod
    def forward(ctx: Any, kernels: Kernels, dilation: int, groups: int, *tensors: Tensor | None) -> Tensor:
        ctx.kernels, ctx.options = kernels, {"dilation": dilation, "groups": groups}
        ctx.save_for_backward(*tensors)
        return _run(kernels, dilation, groups, *tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight, bias = ctx.saved_tensors
        needs = ctx.needs_input_grad[3:]
        if wants_plain():
            oracle = partial(reference.causal_conv1d, **ctx.options)
            return None, None, None, *plain_backward(oracle, (x, weight, bias), needs, grads)
        tensors = (t.contiguous() for t in (grads[0], x, weight))
        constants = _constants(ctx.kernels, **ctx.options)
        found = iter(namespace(ctx.kernels).causal_conv1d_backward(*tensors, *constants, *needs))
        return None, None, None, *(next(found) if need else None for need in needs)
