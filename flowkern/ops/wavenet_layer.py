"""A layer of a WaveNet."""

from __future__ import annotations

from torch import Tensor

from flowkern import reference


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
    r"""(a, b) = V * x + b_v + V_c c with a causal convolution V, u = tanh(a) sigmoid(b); x + W_r u + b_r, s + W_s u + b_s.

    Args:
        x: what the layer reads (batch, residual, time).
        skips: s (batch, skip, time), the sum of what the layers before gave; ``None`` for the first.
        gate_weight: V (2 gate, residual, k), the last tap being that of the present.
        gate_bias: b_v (2 gate,), or one for each row (batch, 2 gate), which is how a global condition comes in.
        residual_weight, residual_bias: W_r (residual, gate), b_r (residual,).
        skip_weight, skip_bias: W_s (skip, gate), b_s (skip,).
        condition: local condition c (batch, channels, time), or ``None``.
        condition_weight: V_c (2 gate, channels), where there is a condition.
        dilation: distance in time between taps.

    Returns:
        What the next layer reads (batch, residual, time), and the sum with this layer's skip (batch, skip, time).

    Raises:
        TypeError, ValueError: for arguments that do not fit each other.

    Example:
        >>> import torch
        >>> residual, gate, skip = 4, 5, 6
        >>> weights = [torch.randn(s) for s in ((2 * gate, residual, 2), (residual, gate), (skip, gate))]
        >>> arguments = [t for w in weights for t in (w, torch.zeros(len(w)))]
        >>> x, skips = wavenet_layer(torch.randn(2, residual, 30), None, *arguments, dilation=8)
        >>> x.shape, skips.shape
        (torch.Size([2, 4, 30]), torch.Size([2, 6, 30]))

    References:
        WaveNet: A Generative Model for Raw Audio (van den Oord et al., 2016), sections 2.3 to 2.5.
    """
    return reference.wavenet_layer(
        x,
        skips,
        gate_weight,
        gate_bias,
        residual_weight,
        residual_bias,
        skip_weight,
        skip_bias,
        condition,
        condition_weight,
        dilation=dilation,
    )
