"""What the operators on the rows of a matrix share: reshaping, and the autograd Function of the univariate maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowkern._checks import HALF
from flowkern.backends import Kernels
from flowkern.ops._derivatives import Function, plain_backward, wants_plain
from flowkern.univariate import UnivariateMap


def namespace(kernels: Kernels) -> Any:
    """Where the operators that serve a call are registered."""
    return getattr(torch.ops, kernels.namespace)


def numbers_of(kernels: Kernels, map: UnivariateMap) -> tuple[Any, ...]:
    """A map as the kernels take it."""
    return (map.numbers,) if kernels.on_cpu else map.words


def as_rows(kernels: Kernels, t: Tensor, shape: torch.Size) -> Tensor:
    """t, broadcast to a shape, as a matrix; the CPU kernels take half precision as float32."""
    t = t.float() if kernels.on_cpu and t.dtype in HALF else t
    return t if t.shape == shape and t.dim() == 2 else t.expand(shape).reshape(shape[:-1].numel(), shape[-1])


class RowMap(NamedTuple):
    """A univariate map of some or all columns of a matrix: its kernels and its oracle.

    ``features`` holds the begin, step and count of the columns that are transformed, step 0 for all of them; ``place`` is a
    table in their stead.
    """

    kernels: Kernels
    oracle: Callable[..., tuple[Tensor, Tensor]]
    map: UnivariateMap
    inverse: bool
    place: Tensor | None = None
    features: tuple[int, int, int] = (0, 0, 0)

    def __call__(self, x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        op = namespace(self.kernels).coupling
        return op(x, parameters, self.place, *self.features, self.inverse, *numbers_of(self.kernels, self.map))

    def gradients(self, grads: tuple[Tensor, ...], x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Cotangents of x and of the parameters. In place of x stands z where that is what the map reads."""
        op, rebuild = namespace(self.kernels).coupling_backward, self.map.reads(self.inverse).output
        return op(*grads, x, parameters, self.place, *self.features, rebuild, self.inverse, *numbers_of(self.kernels, self.map))


def apply_row_map(
    map: RowMap, x: Tensor, parameters: Sequence[Tensor], batch: torch.Size, columns: int
) -> tuple[Tensor, Tensor]:
    """Broadcasts, runs the kernels on matrices, and restores shape and dtype; ``columns`` are those of the parameters."""
    dtype, width = x.dtype, x.shape[-1]
    x = as_rows(map.kernels, x, torch.Size((*batch, width)))
    shape = torch.Size((*batch, columns))
    parameters = [as_rows(map.kernels, p, shape) for p in parameters]
    if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in parameters)):
        z, log_det = RowMapFunction.record(map, x, *parameters)
    else:
        z, log_det = map(x, parameters)
    if len(batch) != 1:
        z, log_det = z.reshape(*batch, width), log_det.reshape(batch)
    return (z, log_det) if z.dtype is dtype else (z.to(dtype), log_det.to(dtype))


class RowMapFunction(Function):
    """Forward and backward kernels; second derivatives through the oracle."""

    @staticmethod
    def forward(ctx: Any, map: RowMap, x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        ctx.map, ctx.shape = map, parameters[0].shape
        z, log_det = map(x, parameters)
        output, read = map.map.reads(map.inverse)
        # A parameter that the gradient does not read, and nothing else may hold, is not kept.
        ctx.save_for_backward(z if output else x, *(parameters[i] for i in read))
        return z, log_det

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        map: RowMap = ctx.map
        x, *kept = ctx.saved_tensors
        output, read = map.map.reads(map.inverse)
        # Where a parameter was not kept, the gradients are those of the map where it is zero.
        zero = x.new_zeros(1, 1).expand(ctx.shape)
        parameters = [kept[read.index(i)] if i in read else zero for i in range(map.map.count)]
        if wants_plain():
            with torch.enable_grad():
                if output:
                    x, _ = map.oracle(x, *parameters, inverse=not map.inverse)
                parameters = [p if i in read else p.detach().requires_grad_() for i, p in enumerate(parameters)]
            return None, *plain_backward(map.oracle, (x, *parameters), ctx.needs_input_grad[1:], grads)
        g_x, g_parameters = map.gradients(grads, x, parameters)
        return None, g_x, *g_parameters
