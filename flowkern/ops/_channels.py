"""What the operators on the channels of images share: their checks, and images as the CPU kernels take them."""

from __future__ import annotations

import torch
from torch import Tensor

from flowkern._checks import HALF, check_float, check_like, check_tensor


def check_images(x: Tensor, channels: int) -> None:
    if x.dim() < 2 or x.shape[-2] != channels:
        raise ValueError(f"x: expected shape (..., {channels}, pixels), got {tuple(x.shape)}")


def check_of_channels(name: str, t: Tensor, shape: tuple[int, ...], x: Tensor) -> None:
    """A parameter of a shape."""
    check_tensor(name, t)
    check_like(name, t, x)
    if t.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(t.shape)}")


def check_vector(name: str, t: Tensor) -> int:
    """Number of channels of a parameter that has one number for each."""
    check_float(name, t)
    if t.dim() != 1 or len(t) == 0:
        raise ValueError(f"{name}: expected shape (channels,) with at least one channel, got {tuple(t.shape)}")
    return len(t)


def wide(t: Tensor) -> Tensor:
    """The CPU kernels take half precision as float32."""
    return t.float() if t.dtype in HALF else t


def as_images(x: Tensor) -> Tensor:
    """A batch of images (images, channels, pixels), of any strides."""
    x = wide(x)
    return x if x.dim() == 3 else x.reshape(x.shape[:-2].numel(), *x.shape[-2:])


def as_given(found: tuple[Tensor, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Results in the batch's shape and the dtype of x."""
    z, log_det = found
    if x.dim() != 3:
        z, log_det = z.reshape(x.shape), log_det.reshape(x.shape[:-2])
    return (z, log_det) if z.dtype is x.dtype else (z.to(x.dtype), log_det.to(x.dtype))


def needs_graph(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
