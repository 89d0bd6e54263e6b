"""Checks of arguments: each message names the argument, what was expected and what came."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)  # computed in float32
FLOATS = (torch.float32, torch.float64, *HALF)


def check_float(name: str, t: Tensor) -> None:
    if t.dtype not in FLOATS:
        raise TypeError(f"{name}: expected a floating-point tensor, got dtype {t.dtype}")


def check_like(name: str, t: Tensor, other: Tensor, other_name: str = "x", index: int | None = None) -> None:
    """Same device and dtype as another argument; ``index`` is the place of t in a list."""
    if t.dtype is other.dtype and t.device == other.device:
        return
    name = name if index is None else f"{name}[{index}]"
    if t.device != other.device:
        raise ValueError(f"{name}: expected device {other.device} like {other_name}, got {t.device}")
    raise TypeError(f"{name}: expected dtype {other.dtype} like {other_name}, got {t.dtype}")


def check_features(name: str, t: Tensor, features: int) -> None:
    if t.dim() == 0 or t.shape[-1] != features:
        raise ValueError(f"{name}: expected shape (..., {features}), got {tuple(t.shape)}")


def check_context(taker: str, context: Tensor | None, features: int, like: Tensor, like_name: str) -> None:
    """A context of so many features, none for zero; its dtype is free under autocast. ``taker``: a network, a layer."""
    if (context is None) != (features == 0):
        got = "None" if context is None else f"shape {tuple(context.shape)}"
        takes = f"{features} context features" if features else "no context"
        raise ValueError(f"context: this {taker} takes {takes}, got {got}")
    if context is not None:
        check_features("context", context, features)
        if not torch.is_autocast_enabled(context.device.type):
            check_like("context", context, like, like_name)


def check_raw(raw: Tensor | None, scale: str) -> None:
    """A raw scale where the scale map takes one."""
    if (raw is None) != (scale == "none"):
        raise ValueError(f"raw: the scale map {scale!r} takes {'no raw scale' if raw is not None else 'a raw scale'}")


def check_shapes(name: str, tensors: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> None:
    if len(tensors) != len(shapes):
        raise ValueError(f"{name}: expected {len(shapes)} tensors, got {len(tensors)}")
    for i, (t, shape) in enumerate(zip(tensors, shapes, strict=True)):
        if t.shape != shape:
            raise ValueError(f"{name}[{i}]: expected shape {tuple(shape)}, got {tuple(t.shape)}")


def broadcast_batch(x: Tensor, others: Sequence[Tensor], name: str) -> torch.Size:
    """The common batch shape of x and of tensors whose last dimension may differ."""
    try:
        return torch.broadcast_shapes(x.shape[:-1], *(t.shape[:-1] for t in others))
    except RuntimeError:
        got = ", ".join(str(tuple(t.shape)) for t in others)
        raise ValueError(f"{name}: expected batch shapes that broadcast with {tuple(x.shape[:-1])}, got shapes {got}") from None
