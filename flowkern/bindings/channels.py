"""The operators on the channels of images: those of the Triton kernels, and the shapes of all for torch.compile."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowkern._library import BUILD_ERROR
from flowkern.bindings.namespaces import TRITON

_NORM = "Tensor x, Tensor bias, Tensor log_scale, bool inverse"


@TRITON.define(f"actnorm({_NORM}) -> (Tensor, Tensor)")
def _actnorm(x: Tensor, bias: Tensor, log_scale: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    from flowkern.kernels.actnorm import actnorm

    return actnorm(x, bias, log_scale, inverse)


@TRITON.define(f"actnorm_backward(Tensor g_z, Tensor g_log_det, {_NORM}) -> (Tensor, Tensor, Tensor)")
def _actnorm_backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    from flowkern.kernels.actnorm import actnorm_gradients

    return actnorm_gradients(*arguments)


_CONVOLUTION = "Tensor x, Tensor lower, Tensor? upper, Tensor? log_scale, Tensor? order, Tensor? sign, bool inverse"


@TRITON.define(f"invertible_conv1x1({_CONVOLUTION}) -> (Tensor, Tensor)")
def _invertible_conv1x1(*arguments: Any) -> tuple[Tensor, Tensor]:
    from flowkern.kernels.invertible_conv1x1 import invertible_conv1x1

    return invertible_conv1x1(*arguments)


@TRITON.define(f"invertible_conv1x1_backward(Tensor g_z, Tensor g_log_det, {_CONVOLUTION}) -> (Tensor, Tensor, Tensor, Tensor)")
def _invertible_conv1x1_backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from flowkern.kernels.invertible_conv1x1 import invertible_conv1x1_gradients

    return invertible_conv1x1_gradients(*arguments)


def _images_like(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[0])


def _normed_like(x: Tensor, bias: Tensor, log_scale: Tensor, dim: int, inverse: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[:dim])


def _actnorm_gradients_like(g_z: Tensor, g_log_det: Tensor, x: Tensor, bias: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(shape) for shape in (x.shape, bias.shape, bias.shape))


def _conv_gradients_like(  # type: ignore[no-untyped-def]
    g_z, g_log_det, x, lower, upper, log_scale, *rest
) -> tuple[Tensor, ...]:
    n = 0 if log_scale is None else x.shape[1]
    square = (n, n) if n else (0,)
    return x.new_empty(x.shape), x.new_empty(lower.shape), x.new_empty(square), x.new_empty(n)


_SHAPES = {
    "actnorm": _images_like,
    "actnorm_backward": _actnorm_gradients_like,
    "invertible_conv1x1": _images_like,
    "invertible_conv1x1_backward": _conv_gradients_like,
}
for _name, _like in _SHAPES.items():
    TRITON.fake(_name)(_like)
if BUILD_ERROR is None:
    _SHAPES["actnorm"] = _normed_like  # the CPU's takes images of any shape
    for _name, _like in _SHAPES.items():
        torch.library.register_fake(f"flowkern::{_name}")(_like)
