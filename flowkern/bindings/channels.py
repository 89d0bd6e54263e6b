"""The operators on the channels of images: their shapes for torch.compile."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowkern._library import BUILD_ERROR


def _images_like(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[0])


def _actnorm_gradients_like(g_z: Tensor, g_log_det: Tensor, x: Tensor, *parameters: Any) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(shape) for shape in (x.shape, x.shape[1], x.shape[1]))


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
if BUILD_ERROR is None:
    for _name, _like in _SHAPES.items():
        torch.library.register_fake(f"flowkern::{_name}")(_like)
