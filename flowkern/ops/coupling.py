"""A coupling layer's map and its log-determinant, from given parameters."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from flowkern import reference
from flowkern._checks import broadcast_batch, check_float, check_like, check_parameters
from flowkern.backends import kernels_for
from flowkern.ops._rows import RowMap, apply_row_map
from flowkern.univariate import UnivariateMap, chosen_map


def coupling(
    x: Tensor,
    *parameters: Tensor | None,
    transformed: slice | Tensor,
    scale: str = "exp",
    placement: str = "scale_shift",
    constants: Sequence[float] | None = None,
    map: UnivariateMap | None = None,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""z with the transformed features z_d = f(x_d; parameters) and all others as they are, and log|det dz/dx|.

    One read of x, one write of z and the row sums in the same pass; joining the two parts costs nothing.

    Args:
        x: input (..., features).
        parameters: those of the map in their order, each (..., transformed features), their batch shapes broadcast with that
            of x. An affine map takes the shift t and the raw scale a; the additive one, ``scale="none"``, the shift alone.
        transformed: which features are transformed, and by which column of the parameters: a slice, such as
            ``slice(3, None)`` for the second half or ``slice(1, None, 2)`` for every other; or for any mask an int64 tensor
            (features,) that holds each feature's column, -1 for those that pass.
        scale, placement, constants: the map, see :mod:`flowkern.univariate`. The default is RealNVP's z = x exp(a) + t.
        map: any other univariate map, in the place of these three.
        inverse: evaluate the inverse map and its log-determinant.

    Returns:
        z (..., features) and log_det with the batch's shape. A row that is not finite has a log_det that is not.

    Raises:
        TypeError, ValueError: for arguments that do not fit each other.
        RuntimeError: from the CPU kernel, for a table that does not hold each column once. On a GPU this is not checked, since
            it would wait for the GPU.

    Example:
        >>> import torch
        >>> x = torch.arange(4.0).expand(2, 4)
        >>> z, log_det = coupling(x, torch.ones(2, 2), torch.zeros(2, 2), transformed=slice(2, None))
        >>> z[0], log_det
        (tensor([0., 1., 3., 4.]), tensor([0., 0.]))

    References:
        Density estimation using Real NVP (Dinh et al., 2017), equations 4 to 8; NICE (Dinh et al., 2015), equations 8 and 9.
    """
    map = chosen_map(map, scale, placement, constants)
    check_float("x", x)
    if x.dim() == 0:
        raise ValueError("x: expected shape (..., features), got ()")
    check_parameters(map, parameters)
    given = [p for p in parameters if p is not None]
    features, place, count = _features(transformed, x, given[0])
    for name, t in zip(map.names, given, strict=True):
        check_like(name, t, x)
        if t.dim() == 0 or t.shape[-1] != count:
            raise ValueError(f"{name}: expected shape (..., {count}) for the transformed features, got {tuple(t.shape)}")
    batch = broadcast_batch(x, given, ", ".join(map.names))
    oracle = partial(reference.coupling, transformed=transformed, map=map.oracle, inverse=inverse)
    kernels = kernels_for(x, "coupling", map)
    if kernels.plain:
        return oracle(x, *given)
    return apply_row_map(RowMap(kernels, oracle, map, inverse, place, features), x, given, batch, count)


def _features(transformed: slice | Tensor, x: Tensor, like: Tensor) -> tuple[tuple[int, int, int], Tensor | None, int]:
    """Begin, step and count of the transformed features, the table in their stead, and the number of columns."""
    width = x.shape[-1]
    if isinstance(transformed, slice):
        begin, end, step = transformed.indices(width)
        if step < 1:
            raise ValueError(f"transformed: expected a slice with a positive step, got {transformed}")
        count = len(range(begin, end, step))
        return (begin, step, count), None, count
    count = like.shape[-1] if like.dim() else 0
    if not isinstance(transformed, Tensor) or transformed.dtype is not torch.int64 or transformed.shape != (width,):
        got = f"{transformed.dtype} {tuple(transformed.shape)}" if isinstance(transformed, Tensor) else repr(transformed)
        raise ValueError(f"transformed: expected a slice or an int64 tensor ({width},), got {got}")
    if transformed.device != x.device:
        raise ValueError(f"transformed: expected device {x.device} like x, got {transformed.device}")
    return (0, 1, count), transformed.contiguous(), count
