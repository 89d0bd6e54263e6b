"""Oracle of ``coupling`` (Density estimation using Real NVP, Dinh et al., 2017, equations 4 to 8)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowkern.reference.affine import affine


def transformed_features(transformed: slice | Tensor, features: int, count: int, device: torch.device) -> Tensor:
    """The feature that each of ``count`` columns of parameters belongs to."""
    if isinstance(transformed, slice):
        return torch.arange(features, device=device)[transformed]
    return torch.argsort(transformed)[features - count :]  # those that pass hold -1 and come first


def coupling(
    x: Tensor, shift: Tensor, raw: Tensor | None = None, *, transformed: slice | Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    """(z, log_det) of the rows of x, as `flowkern.ops.coupling` defines them; every constant must be given."""
    index = transformed_features(transformed, x.shape[-1], shift.shape[-1], x.device)
    moved, log_det = affine(x[..., index], shift, raw, **options)
    x = x.expand(*moved.shape[:-1], x.shape[-1])
    return x.index_copy(-1, index, moved), log_det + (x - x).detach().sum(-1)
