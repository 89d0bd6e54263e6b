"""Activation normalisation of the channels of images."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from flowkern import reference
from flowkern._checks import check_float
from flowkern.backends import kernels_for
from flowkern.ops._channels import as_given, as_images, check_images, check_of_channels, check_vector, needs_graph, wide
from flowkern.ops._derivatives import plain_backward, wants_plain


def actnorm(x: Tensor, bias: Tensor, log_scale: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    r"""z_c = (x_c + b_c) exp(l_c) for every channel c, and log_det = pixels sum(l), in one read and one write.

    Args:
        x: images (..., channels, pixels), of any strides; vectors have one pixel.
        bias: b (channels,).
        log_scale: l (channels,).
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
    check_images(x, channels)
    if kernels_for(x, "actnorm").plain:
        return reference.actnorm(x, bias, log_scale, inverse=inverse)
    run = ActNormFunction.apply if needs_graph(x, bias, log_scale) else torch.ops.flowkern.actnorm
    return as_given(run(as_images(x), wide(bias).contiguous(), wide(log_scale).contiguous(), inverse), x)


class ActNormFunction(torch.autograd.Function):
    """Forward and backward kernels; second derivatives through the oracle."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, log_scale: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        ctx.inverse = inverse
        ctx.save_for_backward(x, bias, log_scale)
        return torch.ops.flowkern.actnorm(x, bias, log_scale, inverse)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        tensors = ctx.saved_tensors
        if wants_plain(grads):
            oracle = partial(reference.actnorm, inverse=ctx.inverse)
            return *plain_backward(oracle, tensors, ctx.needs_input_grad[:3], grads), None
        return *torch.ops.flowkern.actnorm_backward(*grads, *tensors, ctx.inverse), None
