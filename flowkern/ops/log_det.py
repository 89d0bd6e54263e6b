"""Sum of log-scales per row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowkern import reference
from flowkern._checks import HALF, check_float
from flowkern.backends import chosen_backend


def log_det(log_scale: Tensor) -> Tensor:
    r"""Log-determinant of a diagonal map: the sum of its log-scales over the last dimension.

    The sum is accumulated in double precision in a fixed order, so it does not depend on the number of threads.

    Args:
        log_scale: (..., features).

    Returns:
        The sums, with the batch's shape.

    Raises:
        TypeError: if the argument is not of a floating-point type.
        ValueError: if it has no dimension.

    Example:
        >>> import torch
        >>> log_det(torch.tensor([[0.5, 1.0], [0.0, -1.0]]))
        tensor([ 1.5000, -1.0000])

    References:
        Density estimation using Real NVP (Dinh et al., 2017), equation 6.
    """
    check_float("log_scale", log_scale)
    if log_scale.dim() == 0:
        raise ValueError("log_scale: expected shape (..., features), got ()")
    if chosen_backend(log_scale) != "native":
        return reference.log_det(log_scale)
    if torch.is_grad_enabled() and log_scale.requires_grad:
        return LogDetFunction.apply(log_scale)
    return _native(log_scale)


def _native(log_scale: Tensor) -> Tensor:
    rows = log_scale.float() if log_scale.dtype in HALF else log_scale
    rows = rows.reshape(log_scale.shape[:-1].numel(), log_scale.shape[-1])
    return torch.ops.flowkern.log_det(rows).reshape(log_scale.shape[:-1]).to(log_scale.dtype)


class LogDetFunction(torch.autograd.Function):
    """The gradient of a sum is plain PyTorch, so every derivative exists."""

    @staticmethod
    def forward(ctx: Any, log_scale: Tensor) -> Tensor:
        ctx.shape = log_scale.shape
        return _native(log_scale)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g.unsqueeze(-1).expand(ctx.shape)
