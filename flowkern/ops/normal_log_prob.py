"""Standard-normal log-density per row, plus a log-determinant."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowkern import reference
from flowkern._checks import check_float, check_like
from flowkern.backends import Kernels, kernels_for
from flowkern.ops._rows import as_rows, namespace


def normal_log_prob(z: Tensor, log_det: Tensor | None = None) -> Tensor:
    r"""log N(z; 0, I) over the last dimension plus ``log_det``: the density of a flow from its noise.

    Args:
        z: noise (..., features).
        log_det: log|det dz/dx| with the batch's shape, or ``None`` for zero.

    Returns:
        Log-densities in nats, with the batch's shape.

    Raises:
        TypeError, ValueError: for arguments that do not fit each other.

    Example:
        >>> import torch
        >>> normal_log_prob(torch.zeros(2, 3))
        tensor([-2.7568, -2.7568])

    References:
        Masked Autoregressive Flow for Density Estimation (Papamakarios et al., 2017), equation 2.
    """
    check_float("z", z)
    if z.dim() == 0:
        raise ValueError("z: expected shape (..., features), got ()")
    if log_det is not None:
        check_like("log_det", log_det, z, "z")
        if log_det.shape != z.shape[:-1]:
            raise ValueError(f"log_det: expected shape {tuple(z.shape[:-1])}, got {tuple(log_det.shape)}")
    kernels = kernels_for(z, "normal_log_prob")
    if kernels.plain:
        return reference.normal_log_prob(z, log_det)
    if log_det is None:
        log_det = z.new_zeros(()).expand(z.shape[:-1])
    if torch.is_grad_enabled() and (z.requires_grad or log_det.requires_grad):
        return NormalLogProbFunction.apply(z, log_det, kernels)
    return _run(z, log_det, kernels)


def _run(z: Tensor, log_det: Tensor, kernels: Kernels) -> Tensor:
    dtype, batch = z.dtype, z.shape[:-1]
    rows = as_rows(kernels, z, z.shape)
    out = namespace(kernels).normal_log_prob(rows, log_det.to(rows.dtype).reshape(-1))
    return out.reshape(batch).to(dtype) if out.shape != batch or out.dtype != dtype else out


class NormalLogProbFunction(torch.autograd.Function):
    """The gradient is plain PyTorch, so every derivative exists."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, log_det: Tensor, kernels: Kernels) -> Tensor:
        ctx.save_for_backward(z)
        return _run(z, log_det, kernels)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        (z,) = ctx.saved_tensors
        return -g.unsqueeze(-1) * z, g, None
