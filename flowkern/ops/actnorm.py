"""Activation normalisation of the channels of images."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowkern import reference
from flowkern._checks import HALF, check_float
from flowkern.backends import Kernels, kernels_for
from flowkern.ops._channels import as_given, as_images, check_channels, check_of_channels, check_vector
from flowkern.ops._derivatives import Function, plain_backward, wants_plain
from flowkern.ops._rows import namespace


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
    kernels = kernels_for(x, "actnorm")
    if kernels.plain:
        return reference.actnorm(x, bias, log_scale, dim=dim, inverse=inverse)
    if kernels.on_cpu and x.dtype in HALF:
        z, log_det = actnorm(x.float(), bias.float(), log_scale.float(), dim=dim, inverse=inverse)
        return z.to(x.dtype), log_det.to(x.dtype)
    norm, bias, log_scale = Norm(kernels, dim, inverse), bias.contiguous(), log_scale.contiguous()
    if torch.is_grad_enabled() and (x.requires_grad or bias.requires_grad or log_scale.requires_grad):
        return ActNormFunction.record(norm, x, bias, log_scale)
    return norm(x, bias, log_scale)


class Norm(NamedTuple):
    """The constants of a call."""

    kernels: Kernels
    dim: int
    inverse: bool

    def __call__(self, x: Tensor, bias: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
        if self.kernels.on_cpu:  # which finds the images itself: views take longer than a small one
            return torch.ops.flowkern.actnorm(x, bias, log_scale, self.dim, self.inverse)
        op = namespace(self.kernels).actnorm
        return as_given(op(as_images(x, self.dim), bias, log_scale, self.inverse), x, self.dim)

    def gradients(self, grads: tuple[Tensor, ...], x: Tensor, bias: Tensor, log_scale: Tensor) -> tuple[Tensor, ...]:
        """Cotangents of x, the bias and log_scale."""
        g_z, g_log_det = grads
        g_log_det = g_log_det if g_log_det.dim() == 1 else g_log_det.reshape(-1)
        if self.kernels.on_cpu:
            return torch.ops.flowkern.actnorm_backward(g_z, g_log_det, x, bias, log_scale, self.dim, self.inverse)
        g_z, images, op = as_images(g_z, self.dim), as_images(x, self.dim), namespace(self.kernels).actnorm_backward
        g_x, *found = op(g_z, g_log_det, images, bias, log_scale, self.inverse)
        return g_x.view_as(x), *found


class ActNormFunction(Function):
    """Forward and backward kernels; second derivatives through the oracle."""

    @staticmethod
    def forward(ctx: Any, norm: Norm, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        ctx.norm = norm
        ctx.save_for_backward(*tensors)
        return norm(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        norm, tensors = ctx.norm, ctx.saved_tensors
        if wants_plain():
            oracle = partial(reference.actnorm, dim=norm.dim, inverse=norm.inverse)
            return None, *plain_backward(oracle, tensors, ctx.needs_input_grad[1:], grads)
        return None, *norm.gradients(grads, *tensors)
