"""Oracle of ``affine``: the univariate maps by their formulas."""

from __future__ import annotations

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
    raise ValueError(f"scale: unknown name {scale!r}")


def affine(
    x: Tensor,
    shift: Tensor,
    raw: Tensor | None = None,
    *,
    scale: str = "exp",
    placement: str = "standardize",
    constants: tuple[float, ...] = (),
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """(z, log_det) of the rows of x, as `flowkern.ops.affine` defines them; every constant must be given."""
    x, shift = torch.broadcast_tensors(x, shift)
    if scale == "none":
        s, log_s = torch.ones_like(x), torch.zeros_like(x)
    else:
        s, log_s = scale_of(raw, scale, constants)
    if placement == "scale_shift":
        z, log_slope = ((x - shift) / s, -log_s) if inverse else (x * s + shift, log_s)
    elif placement == "standardize":
        z, log_slope = (x * s + shift, log_s) if inverse else ((x - shift) / s, -log_s)
    elif placement == "shift_scale":
        z, log_slope = (x / s - shift, -log_s) if inverse else ((x + shift) * s, log_s)
    elif placement == "gate":
        rest = (1 - s) * shift
        z, log_slope = ((x - rest) / s, -log_s) if inverse else (s * x + rest, log_s)
    else:
        raise ValueError(f"placement: unknown name {placement!r}")
    # A row that is not finite has no log-det; the difference is zero for all others.
    return z, (log_slope + (x - x).detach()).sum(-1)
