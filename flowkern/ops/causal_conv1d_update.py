"""One step of a causal convolution, for samplers."""

from __future__ import annotations

import torch
from torch import Tensor

from flowkern import reference
from flowkern._checks import HALF, check_like, check_tensor, whole_number
from flowkern.backends import kernels_for
from flowkern.ops._convolutions import check_convolution


@torch.no_grad()
def causal_conv1d_update(
    x: Tensor, state: Tensor, step: int, weight: Tensor, bias: Tensor | None = None, *, dilation: int = 1, groups: int = 1
) -> Tensor:
    r"""The next time of a causal convolution, its cost independent of the dilation: see :func:`causal_conv1d`.

    ``state`` is a ring: the input of time ``step`` replaces that of (k - 1) dilation times before. Zeros are what lies
    before the first time. Nothing records a gradient.

    Args:
        x: the inputs at this time (..., in).
        state: the inputs of the (k - 1) dilation times before (..., in, (k - 1) dilation), that of time t at
            t mod ((k - 1) dilation). It is changed in place; one in half precision, or with strides, is copied at each step.
        step: this time, from 0.
        weight, bias, dilation, groups: the convolution.

    Returns:
        (..., out).

    Raises:
        TypeError, ValueError: for arguments that do not fit each other.

    Example:
        >>> import torch
        >>> weight, state = torch.tensor([[[10.0, 1.0]]]), torch.zeros(1, 2)
        >>> [causal_conv1d_update(torch.tensor([t + 1.0]), state, t, weight, dilation=2).item() for t in range(4)]
        [1.0, 2.0, 13.0, 24.0]

    References:
        Fast Wavenet Generation Algorithm (Le Paine et al., 2016), section 2.
    """
    check_convolution(x, weight, bias, dilation, groups, -1, "(..., in)")
    check_tensor("state", state)
    check_like("state", state, x)
    whole_number("step", step, 0)
    expected = (*x.shape, (weight.shape[-1] - 1) * dilation)
    if state.shape != expected:
        raise ValueError(f"state: expected shape {expected}, got {tuple(state.shape)}")
    kernels = kernels_for(x, "causal_conv1d_update")
    if kernels.plain:
        return reference.causal_conv1d_update(x, state, step, weight, bias, dilation=dilation, groups=groups)
    rows, dtype = x.shape[:-1].numel(), torch.float32 if x.dtype in HALF else x.dtype
    row, ring, weights = (
        t.to(dtype).contiguous() for t in (x.reshape(rows, x.shape[-1]), state.reshape(rows, *state.shape[-2:]), weight)
    )
    biases = None if bias is None else bias.to(dtype).contiguous()
    y = torch.ops.flowkern.causal_conv1d_update(row, ring, step, weights, biases, dilation, groups)
    if ring.data_ptr() != state.data_ptr():
        state.copy_(ring.view_as(state))
    return y.to(x.dtype).reshape(*x.shape[:-1], weight.shape[0])
