"""One gated step of an inverse autoregressive flow."""

from __future__ import annotations

from torch import Tensor

from flowkern.ops.affine import affine


def iaf_step(z: Tensor, m: Tensor, s: Tensor, *, bias: float = 0.0) -> tuple[Tensor, Tensor]:
    r"""x = sigmoid(s) z + (1 - sigmoid(s)) m and log|det dx/dz| = sum log sigmoid(s), for s + bias in place of s.

    It is :func:`affine` with the gate placement and runs the same kernel.

    Args:
        z: noise (..., features).
        m, s: the outputs of the autoregressive network on z, broadcast against it.
        bias: added to s; 1 or 2 keeps the gate open at the start of training.

    Returns:
        x with the broadcast shape, log_det without its last dimension.

    Raises:
        TypeError, ValueError: for arguments that do not fit each other.

    Example:
        >>> import torch
        >>> x, log_det = iaf_step(torch.ones(2, 3), torch.zeros(3), torch.zeros(3))
        >>> x[0], log_det
        (tensor([0.5000, 0.5000, 0.5000]), tensor([-2.0794, -2.0794]))

    References:
        Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016), equations 12 to 14.
    """
    return affine(z, m, s, scale="sigmoid", placement="gate", constants=(bias, 0.0))
