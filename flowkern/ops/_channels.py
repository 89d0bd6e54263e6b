"""What the operators on the channels of images share: their checks, and images as the CPU kernels take them."""

from __future__ import annotations

import torch
from torch import Tensor

from flowkern._checks import check_float, check_like, check_tensor


def check_channels(x: Tensor, channels: int, dim: int) -> int:
    """Raises if x has another number of channels; the dimension that they are in, counted from the end."""
    last = dim if dim < 0 else dim - x.dim()
    if not -x.dim() <= last < 0 or x.shape[last] != channels:
        raise ValueError(f"x: expected {channels} channels in dimension {dim}, got shape {tuple(x.shape)}")
    return last


def check_of_channels(name: str, t: Tensor, shape: tuple[int, ...], x: Tensor) -> None:
    """A parameter of a shape."""
    check_tensor(name, t)
    check_like(name, t, x)
    if t.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(t.shape)}")


def check_vector(name: str, t: Tensor) -> int:
    """Number of channels of a parameter that has one number for each."""
    check_float(name, t)
    shape = t.shape
    if len(shape) != 1 or shape[0] == 0:
        raise ValueError(f"{name}: expected shape (channels,) with at least one channel, got {tuple(shape)}")
    return shape[0]


def as_images(x: Tensor, dim: int) -> Tensor:
    """A batch of images (images, channels, pixels), of any strides. Each step that x does not need is a microsecond."""
    if dim != -2:
        x = x.unsqueeze(-1) if dim == -1 else x.flatten(dim + 1)
    return x if x.dim() == 3 else x.reshape(x.shape[:-2].numel(), *x.shape[-2:])


def as_given(found: tuple[Tensor, Tensor], x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Results in the shapes that belong to x."""
    z, log_det = found
    one = x.dim() + dim == 1  # dimension of the batch
    return z if one and dim == -2 else z.view_as(x), log_det if one else log_det.view(x.shape[:dim])


def needs_graph(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
