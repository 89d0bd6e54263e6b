"""Oracle of ``affine``: the affine maps by their formulas."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def scale_of(raw: Tensor | None, scale: str, constants: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """s and log s of a raw scale."""
    if raw is None or scale == "none":
        raise ValueError("scale: an additive map has none")
    if scale == "exp":
        return raw.exp(), raw
    if scale == "clamped_exp":
        through = raw - raw.detach()  # zero, with the gradient of raw
        log_s = raw.clamp(*constants).detach() + torch.where(through.isnan(), 0, through)
        return log_s.exp(), log_s
    if scale == "soft_clipped_exp":
        log_s = raw / (1 + (raw / constants[0]).abs())
        return log_s.exp(), log_s
    if scale == "softplus":
        s = -F.logsigmoid(-raw) + constants[0]
        return s, s.log()
    if scale == "sigmoid":
        bias, eps = constants
        if eps == 0:
            return torch.sigmoid(raw + bias), F.logsigmoid(raw + bias)
        s = torch.sigmoid(raw + bias) + eps
        return s, s.log()
    if scale == "tanh":
        bound, gain = constants
        log_s = bound * torch.tanh(gain * raw)
        return log_s.exp(), log_s
    if scale == "atan":
        factor, gain = constants
        log_s = factor * torch.atan(gain * raw)
        return log_s.exp(), log_s
    raise ValueError(f"scale: unknown name {scale!r}")


def affine_map(
    u: Tensor,
    shift: Tensor,
    raw: Tensor | None = None,
    *,
    scale: str = "exp",
    placement: str = "standardize",
    constants: tuple[float, ...] = (),
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """v and log|dv/du| element by element, for the inverse u and log|du/dv|; every constant must be given."""
    u, shift = torch.broadcast_tensors(u, shift)
    if scale == "none":
        s, log_s = torch.ones_like(u), torch.zeros_like(u)
    else:
        s, log_s = scale_of(raw, scale, constants)
    if placement == "scale_shift":
        v, log_slope = ((u - shift) / s, -log_s) if inverse else (u * s + shift, log_s)
    elif placement == "standardize":
        v, log_slope = (u * s + shift, log_s) if inverse else ((u - shift) / s, -log_s)
    elif placement == "shift_scale":
        v, log_slope = (u / s - shift, -log_s) if inverse else ((u + shift) * s, log_s)
    elif placement == "gate":
        rest = (1 - s) * shift
        v, log_slope = ((u - rest) / s, -log_s) if inverse else (s * u + rest, log_s)
    else:
        raise ValueError(f"placement: unknown name {placement!r}")
    # A row that is not finite has no log-det; the difference is zero for all others.
    return v, log_slope + (u - u).detach()


def affine(x: Tensor, shift: Tensor, raw: Tensor | None = None, **options: Any) -> tuple[Tensor, Tensor]:
    """(z, log_det) of the rows of x, as `flowkern.ops.affine` defines them; every constant must be given."""
    z, log_slope = affine_map(x, shift, raw, **options)
    return z, log_slope.sum(-1)
