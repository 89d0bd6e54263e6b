"""Oracle of ``coupling`` (Density estimation using Real NVP, Dinh et al., 2017, equations 4 to 8)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from flowkern.reference.affine import affine_map
from flowkern.reference.autoregressive import UnivariateOracle


def transformed_features(transformed: slice | Tensor, features: int, count: int, device: torch.device) -> Tensor:
    """The feature that each of ``count`` columns of parameters belongs to."""
    if isinstance(transformed, slice):
        return torch.arange(features, device=device)[transformed]
    return torch.argsort(transformed)[features - count :]  # those that pass hold -1 and come first


def coupling(
    x: Tensor,
    *parameters: Tensor | None,
    transformed: slice | Tensor,
    map: UnivariateOracle | None = None,
    inverse: bool = False,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """(z, log_det) of the rows of x, as `flowkern.ops.coupling` defines them.

    ``map`` is a univariate map's oracle, element by element; without one it is the affine map of the ``options``, of which
    every constant must be given.
    """
    given = [p for p in parameters if p is not None]
    index = transformed_features(transformed, x.shape[-1], given[0].shape[-1], x.device)
    moved, log_slope = (map or partial(affine_map, **options))(x[..., index], *given, inverse=inverse)
    x = x.expand(*moved.shape[:-1], x.shape[-1])
    return x.index_copy(-1, index, moved), log_slope.sum(-1) + (x - x).detach().sum(-1)
