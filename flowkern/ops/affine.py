"""An affine univariate map and its log-determinant, from given parameters."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from flowkern import reference
from flowkern._checks import check_float, check_like, check_parameters
from flowkern.backends import kernels_for
from flowkern.ops._rows import RowMap, apply_row_map
from flowkern.univariate import affine_map


def affine(
    x: Tensor,
    shift: Tensor,
    raw: Tensor | None = None,
    *,
    scale: str = "exp",
    placement: str = "standardize",
    constants: Sequence[float] | None = None,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""z = f(x; shift, raw) element by element and the row sums of log|dz/dx|, in one read and one write.

    Args:
        x: input (..., features).
        shift: shift t, broadcast against x.
        raw: raw scale a, broadcast against x; ``None`` for the additive map, ``scale="none"``.
        scale, placement, constants: the map, see :mod:`flowkern.univariate`.
        inverse: evaluate the inverse map and its log-determinant.

    Returns:
        z with the broadcast shape, log_det without its last dimension.

    Raises:
        TypeError, ValueError: for arguments that do not fit each other.

    Example:
        >>> import torch
        >>> z, log_det = affine(torch.ones(2, 3), torch.zeros(3), torch.full((3,), 0.5))
        >>> log_det
        tensor([-1.5000, -1.5000])

    References:
        Density estimation using Real NVP (Dinh et al., 2017), equations 7 and 8; see :mod:`flowkern.univariate`.
    """
    map = affine_map(scale, placement, constants)
    check_float("x", x)
    check_parameters(map, (shift, raw))
    parameters = [shift] if raw is None else [shift, raw]
    for name, t in zip(map.names, parameters, strict=True):
        check_like(name, t, x)
    if x.dim() == 0:
        raise ValueError("x: expected shape (..., features), got ()")
    shape = x.shape
    # torch.broadcast_shapes takes longer than the kernel; a graph in the making must not compare sizes.
    if torch.compiler.is_compiling() or any(t.shape != shape for t in parameters):
        try:
            shape = torch.broadcast_shapes(shape, *(t.shape for t in parameters))
        except RuntimeError:
            got = None if raw is None else tuple(raw.shape)
            raise ValueError(
                f"shift, raw: shapes {tuple(shift.shape)} and {got} do not broadcast with x {tuple(x.shape)}"
            ) from None
    oracle = partial(reference.affine, scale=scale, placement=placement, constants=map.constants, inverse=inverse)
    kernels = kernels_for(x, "affine", map)
    if kernels.plain:
        return oracle(x, shift, raw)
    x = x if x.shape == shape else x.expand(*x.shape[:-1], shape[-1])
    return apply_row_map(RowMap(kernels, oracle, map, inverse), x, parameters, shape[:-1], shape[-1])
