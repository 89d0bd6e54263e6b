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
