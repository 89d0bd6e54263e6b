"""Sum of log-scales per row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowkern import reference
from flowkern._checks import check_float
from flowkern.backends import Kernels, kernels_for
from flowkern.ops._rows import as_rows, namespace


def log_det(log_scale: Tensor) -> Tensor:
    r"""Log-determinant of a diagonal map: the sum of its log-scales over the last dimension.

    The sum is taken in a fixed order, on the CPU in double precision, so it does not depend on the number of threads.

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
    kernels = kernels_for(log_scale, "log_det")
    if kernels.plain:
        return reference.log_det(log_scale)
    if torch.is_grad_enabled() and log_scale.requires_grad:
        return LogDetFunction.apply(log_scale, kernels)
    return _run(log_scale, kernels)


def _run(log_scale: Tensor, kernels: Kernels) -> Tensor:
    rows = as_rows(kernels, log_scale, log_scale.shape)
    return namespace(kernels).log_det(rows).reshape(log_scale.shape[:-1]).to(log_scale.dtype)


class LogDetFunction(torch.autograd.Function):
    """The gradient of a sum is plain PyTorch, so every derivative exists."""

    @staticmethod
    def forward(ctx: Any, log_scale: Tensor, kernels: Kernels) -> Tensor:
        ctx.shape = log_scale.shape
        return _run(log_scale, kernels)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g.unsqueeze(-1).expand(ctx.shape), None
