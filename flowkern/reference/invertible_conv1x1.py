"""Oracle of ``invertible_conv1x1`` (Glow, Kingma and Dhariwal, 2018, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from flowkern.reference.actnorm import image_log_det, with_pixels


def invertible_conv1x1(x: Tensor, *matrix: Tensor, dim: int = -2, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """(z, log_det) of images whose channels are in a dimension, as `flowkern.ops.invertible_conv1x1` defines them.

    Half precision is computed in float32: LAPACK knows no less.
    """
    if x.dtype in (torch.bfloat16, torch.float16):
        wide = (t.float() if t.is_floating_point() else t for t in (x, *matrix))
        z, log_det = invertible_conv1x1(*wide, dim=dim, inverse=inverse)
        return z.to(x.dtype), log_det.to(x.dtype)
    shape, x = x.shape, with_pixels(x, dim)
    if len(matrix) == 1:
        (weight,) = matrix
        # Not by `solve`, whose forward derivatives under vmap are wrong (PyTorch 2.13).
        z = torch.linalg.lu_solve(*torch.linalg.lu_factor(weight), x) if inverse else weight @ x
        of_a_pixel = torch.linalg.slogdet(weight).logabsdet
    else:
        lower, upper, log_scale, order, sign = matrix
        lower = lower.tril(-1) + torch.eye(len(sign), dtype=x.dtype, device=x.device)
        upper = upper.triu(1) + torch.diag(sign * log_scale.exp())
        if inverse:
            rows = x.index_select(-2, torch.argsort(order))
            rows = torch.linalg.solve_triangular(lower, rows, upper=False, unitriangular=True)
            z = torch.linalg.solve_triangular(upper, rows, upper=True)
        else:
            z = (lower @ upper)[order] @ x
        of_a_pixel = log_scale.sum()
    return z.reshape(shape), image_log_det(-of_a_pixel if inverse else of_a_pixel, x)
