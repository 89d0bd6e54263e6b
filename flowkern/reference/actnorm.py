"""Oracle of ``actnorm`` (Glow, Kingma and Dhariwal, 2018, section 3.1)."""

from __future__ import annotations

from torch import Tensor


def actnorm(x: Tensor, bias: Tensor, log_scale: Tensor, *, dim: int = -2, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """(z, log_det) of images whose channels are in a dimension, as `flowkern.ops.actnorm` defines them."""
    shape, x = x.shape, with_pixels(x, dim)
    shift, log_s = bias[:, None], log_scale[:, None]
    z = x * (-log_s).exp() - shift if inverse else (x + shift) * log_s.exp()
    return z.reshape(shape), image_log_det(-log_scale.sum() if inverse else log_scale.sum(), x)


def with_pixels(x: Tensor, dim: int) -> Tensor:
    """Images as (..., channels, pixels)."""
    return x.unsqueeze(-1) if dim == -1 else x.flatten(dim + 1)


def image_log_det(of_a_pixel: Tensor, x: Tensor) -> Tensor:
    """Of every image; not finite where the image is not: the difference is zero for all others."""
    return x.shape[-1] * of_a_pixel + (x - x).detach().sum((-2, -1))
