"""Activation normalisation of the channels of images."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from flowkern import reference
from flowkern._checks import HALF, check_float
from flowkern.backends import kernels_for
from flowkern.ops._channels import as_given, as_images, check_channels, check_of_channels, check_vector, needs_graph
from flowkern.ops._derivatives import plain_backward, wants_plain


def actnorm(x: Tensor, bias: Tensor, log_scale: Tensor, *, dim: int = -2, inverse: bool = False) -> tuple[Tensor, Tensor]:
    r"""z_c = (x_c + b_c) exp(l_c) for every channel c, and log_det = pixels sum(l), in one read and one write.

    Args:
        x: images (..., channels, pixels), of any strides.
        bias: b (channels,).
        log_scale: l (channels,).
        dim: the dimension of x that holds the channels; those after it are pixels, and vectors, -1, have one.
        inverse: evaluate the inverse map and its log-determinant.

    Returns:
        z like x and log_det with the batch's shape. An image that is not finite has a log_det that is not.

    Raises:
        TypeError, ValueError: for arguments that do not fit each other.

    Example:
        >>> import torch
        >>> actnorm(torch.ones(1, 2, 3), torch.tensor([0.0, 1.0]), torch.zeros(2))
        (tensor([[[1., 1., 1.],
                 [2., 2., 2.]]]), tensor([0.]))

    References:
        Glow: Generative Flow with Invertible 1x1 Convolutions (Kingma and Dhariwal, 2018), section 3.1.
    """
    check_float("x", x)
    channels = check_vector("bias", bias)
    check_of_channels("bias", bias, (channels,), x)
    check_of_channels("log_scale", log_scale, (channels,), x)
    dim = check_channels(x, channels, dim)
    if kernels_for(x, "actnorm").plain:
        return reference.actnorm(x, bias, log_scale, dim=dim, inverse=inverse)
    if x.dtype in HALF:
        z, log_det = actnorm(x.float(), bias.float(), log_scale.float(), dim=dim, inverse=inverse)
        return z.to(x.dtype), log_det.to(x.dtype)
    run = ActNormFunction.apply if needs_graph(x, bias, log_scale) else _run
    return run(x, bias.contiguous(), log_scale.contiguous(), dim, inverse)


def _run(x: Tensor, bias: Tensor, log_scale: Tensor, dim: int, inverse: bool) -> tuple[Tensor, Tensor]:
    return as_given(torch.ops.flowkern.actnorm(as_images(x, dim), bias, log_scale, inverse), x, dim)


class ActNormFunction(torch.autograd.Function):
    """Forward and backward kernels; second derivatives through the oracle."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, log_scale: Tensor, dim: int, inverse: bool) -> tuple[Tensor, Tensor]:
        ctx.dim, ctx.inverse = dim, inverse
        ctx.save_for_backward(x, bias, log_scale)
        return _run(x, bias, log_scale, dim, inverse)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, bias, log_scale = ctx.saved_tensors
        if wants_plain(grads):
            oracle = partial(reference.actnorm, dim=ctx.dim, inverse=ctx.inverse)
            return *plain_backward(oracle, (x, bias, log_scale), ctx.needs_input_grad[:3], grads), None, None
        g_z, g_log_det = as_images(grads[0], ctx.dim), grads[1].reshape(-1)
        g_x, *found = torch.ops.flowkern.actnorm_backward(g_z, g_log_det, as_images(x, ctx.dim), bias, log_scale, ctx.inverse)
        return g_x.view(x.shape), *found, None, None
