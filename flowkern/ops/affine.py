"""An affine univariate map and its log-determinant, from given parameters."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flowkern import reference
from flowkern._checks import HALF, check_float, check_like
from flowkern.backends import chosen_backend
from flowkern.ops._derivatives import plain_backward, wants_plain
from flowkern.univariate import default_constants, resolve


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
    numbers = resolve(scale, placement, constants)
    check_float("x", x)
    parts = {"shift": shift, "raw": raw}
    if (raw is None) != (scale == "none"):
        raise ValueError(f"raw: the scale map {scale!r} takes {'no raw scale' if raw is not None else 'a raw scale'}")
    for name, t in parts.items():
        if t is not None:
            check_like(name, t, x)
    if x.dim() == 0:
        raise ValueError("x: expected shape (..., features), got ()")
    try:
        shape = torch.broadcast_shapes(x.shape, *(t.shape for t in parts.values() if t is not None))
    except RuntimeError:
        got = None if raw is None else tuple(raw.shape)
        raise ValueError(
            f"shift, raw: shapes {tuple(shift.shape)} and {got} do not broadcast with x {tuple(x.shape)}"
        ) from None
    given = default_constants(scale) if constants is None else tuple(constants)
    named: dict[str, Any] = {"scale": scale, "placement": placement, "constants": given}
    if chosen_backend(x) != "native":
        return reference.affine(x, shift, raw, inverse=inverse, **named)
    dtype = x.dtype
    raw = shift if raw is None else raw
    rows = [_rows(t, shape) for t in (x, shift, raw)]
    if torch.is_grad_enabled() and any(t.requires_grad for t in rows):
        z, log_det = AffineFunction.apply(named, numbers, inverse, *rows)
    else:
        z, log_det = torch.ops.flowkern.affine(*rows, inverse, *numbers)
    return z.reshape(shape).to(dtype), log_det.reshape(shape[:-1]).to(dtype)


def _rows(t: Tensor, shape: torch.Size) -> Tensor:
    """t as a matrix of float32 or float64 rows."""
    t = t.float() if t.dtype in HALF else t
    return t if t.shape == shape and t.dim() == 2 else t.expand(shape).reshape(shape[:-1].numel(), shape[-1])


class AffineFunction(torch.autograd.Function):
    """Native forward and backward; second derivatives through the oracle."""

    @staticmethod
    def forward(
        ctx: Any,
        named: dict[str, Any],
        numbers: tuple[int, int, float, float],
        inverse: bool,
        x: Tensor,
        shift: Tensor,
        raw: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.map = named, numbers, inverse
        ctx.save_for_backward(x, shift, raw)
        return torch.ops.flowkern.affine(x, shift, raw, inverse, *numbers)

    @staticmethod
    def backward(ctx: Any, g_z: Tensor, g_log_det: Tensor) -> Any:
        named, numbers, inverse = ctx.map
        if wants_plain((g_z, g_log_det)):
            function = partial(reference.affine, inverse=inverse, **named)
            return None, None, None, *plain_backward(function, ctx.saved_tensors, ctx.needs_input_grad[3:], (g_z, g_log_det))
        grads = torch.ops.flowkern.affine_backward(g_z, g_log_det, *ctx.saved_tensors, inverse, *numbers)
        return None, None, None, *grads
