"""What the operators on the rows of a matrix share: reshaping, and the autograd Function of the affine maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowkern._checks import HALF
from flowkern.ops._derivatives import plain_backward, wants_plain
from flowkern.univariate import PLACEMENTS


def namespace(kernels: str) -> Any:
    """Where the operators of a backend are registered."""
    return torch.ops.flowkern_triton if kernels == "triton" else torch.ops.flowkern


def as_rows(kernels: str, t: Tensor, shape: torch.Size) -> Tensor:
    """t, broadcast to a shape, as a matrix; the native kernels take half precision as float32."""
    t = t.float() if kernels == "native" and t.dtype in HALF else t
    return t if t.shape == shape and t.dim() == 2 else t.expand(shape).reshape(shape[:-1].numel(), shape[-1])


@dataclass(frozen=True)
class RowMap:
    """An affine map of some or all columns of a matrix: its kernels and its oracle.

    ``features`` holds the begin, step and count of the columns that are transformed, step 0 for all of them; ``place`` is a
    table in their stead.
    """

    kernels: str
    oracle: Callable[..., tuple[Tensor, Tensor]]
    numbers: tuple[int, int, float, float]
    inverse: bool
    place: Tensor | None = None
    features: tuple[int, int, int] = (0, 0, 0)

    def __call__(self, x: Tensor, shift: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        op = namespace(self.kernels).coupling
        return op(x, shift, raw, self.place, *self.features, self.inverse, *self.numbers)

    @property
    def needs(self) -> str:
        """What the gradients depend on besides the raw scale.

        ``"input"`` where z = x s + t or x / s - t, ``"output"`` where z = (x - t) / s or (x + t) s: there the shift, which
        nothing else may hold, need not be kept. ``"all"`` for the gate.
        """
        placement = PLACEMENTS[self.numbers[1]]
        if placement == "gate":
            return "all"
        return "input" if (placement == "scale_shift") != self.inverse else "output"

    def gradients(self, grads: tuple[Tensor, ...], x: Tensor, shift: Tensor, raw: Tensor) -> tuple[Tensor | None, ...]:
        """Cotangents of x, shift and raw. In place of x stands z where that is what they need."""
        op, rebuild = namespace(self.kernels).coupling_backward, self.needs == "output"
        g_x, g_shift, g_raw = op(*grads, x, shift, raw, self.place, *self.features, rebuild, self.inverse, *self.numbers)
        return g_x, g_shift, g_raw if self.numbers[0] else None


def apply_row_map(
    map: RowMap, x: Tensor, shift: Tensor, raw: Tensor | None, batch: torch.Size, columns: int
) -> tuple[Tensor, Tensor]:
    """Broadcasts, runs the kernels on matrices, and restores shape and dtype; ``columns`` are those of the parameters."""
    dtype, width = x.dtype, x.shape[-1]
    x = as_rows(map.kernels, x, torch.Size((*batch, width)))
    shift = as_rows(map.kernels, shift, torch.Size((*batch, columns)))
    raw = shift if raw is None else as_rows(map.kernels, raw, torch.Size((*batch, columns)))
    if torch.is_grad_enabled() and (x.requires_grad or shift.requires_grad or raw.requires_grad):
        z, log_det = RowMapFunction.apply(map, x, shift, raw)
    else:
        z, log_det = map(x, shift, raw)
    return z.reshape(*batch, z.shape[-1]).to(dtype), log_det.reshape(batch).to(dtype)


class RowMapFunction(torch.autograd.Function):
    """Forward and backward kernels; second derivatives through the oracle."""

    @staticmethod
    def forward(ctx: Any, map: RowMap, x: Tensor, shift: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        ctx.map = map
        z, log_det = map(x, shift, raw)
        kept = {"input": (x, raw), "output": (z, raw), "all": (x, raw, shift)}[map.needs]
        ctx.save_for_backward(*kept)
        return z, log_det

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        map: RowMap = ctx.map
        x, raw, *rest = ctx.saved_tensors
        # Where the shift was not kept, the gradients are those of the map without one.
        shift = rest[0] if rest else raw.new_zeros(1, 1).expand_as(raw)
        if wants_plain(grads):
            with torch.enable_grad():
                if map.needs == "output":
                    x, _ = map.oracle(x, shift, raw, inverse=not map.inverse)
                shift = shift if rest else shift.detach().requires_grad_()
            return None, *plain_backward(map.oracle, (x, shift, raw), ctx.needs_input_grad[1:], grads)
        return None, *map.gradients(grads, x, shift, raw)
