"""What the LSTMs that run over images share: checks, the autograd Function, the call."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flowkern._checks import HALF, check_float, check_like
from flowkern.backends import kernels_for
from flowkern.ops._convolutions import lowers
from flowkern.ops._derivatives import plain_backward, wants_plain


def scan(name: str, oracle: Callable[..., Tensor], x: Tensor, weight: Tensor, taps: str, **options: Any) -> Tensor:
    """A call of the operator of a name; ``taps`` says how many its weight has, ``options`` are the operator's own."""
    if lowers(x, weight):
        # Autocast's rounding of the weights, as in masked networks; the products take them in the dtype that they had.
        low, dtype = torch.get_autocast_dtype(x.device.type), weight.dtype
        with torch.autocast(x.device.type, enabled=False):
            return scan(name, oracle, x.to(dtype), weight.to(low).to(dtype), taps, **options)
    _check(x, weight, taps)
    if kernels_for(x, name).plain:
        return oracle(x, weight, **options)
    dtype, batch, image = x.dtype, x.shape[:-3], x.shape[-3:]
    x, weight = (t.float() if t.dtype in HALF else t for t in (x.reshape(batch.numel(), *image), weight))
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        h = ScanFunction.apply(name, oracle, options, x, weight)
    else:
        h, _ = _operator(name)(x.contiguous(), weight.contiguous(), **options, keep=False)
    return h.to(dtype).reshape(*batch, *image[:2], weight.shape[1])


def _operator(name: str) -> Any:
    return getattr(torch.ops.flowkern, name)


def _check(x: Tensor, weight: Tensor, taps: str) -> None:
    check_float("x", x)
    check_like("weight", weight, x)
    shape = tuple(weight.shape)
    right = len(shape) == 3 and 0 not in shape and shape[0] == 4 * shape[1]
    if not right or (shape[2] != 2 if taps == "2" else shape[2] % 2 == 0):
        raise ValueError(f"weight: expected shape (4 hidden, hidden, {taps}) of at least one unit, got {shape}")
    if x.dim() < 3 or x.shape[-1] != shape[0] or 0 in x.shape[-3:]:
        raise ValueError(
            f"x: expected shape (..., height, width, {shape[0]}) of at least one pixel like weight, got {tuple(x.shape)}"
        )


class ScanFunction(torch.autograd.Function):
    """Forward and backward kernels; second derivatives through the oracle."""

    @staticmethod
    def forward(
        ctx: Any, name: str, oracle: Callable[..., Tensor], options: dict[str, Any], x: Tensor, weight: Tensor
    ) -> Tensor:
        ctx.name, ctx.oracle, ctx.options = name, oracle, options
        h, kept = _operator(name)(x.contiguous(), weight.contiguous(), **options, keep=True)
        ctx.save_for_backward(x, weight, h, *kept)
        return h

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight, h, cells, gates = ctx.saved_tensors
        needs = ctx.needs_input_grad[3:]
        if wants_plain():
            found = plain_backward(partial(ctx.oracle, **ctx.options), (x, weight), needs, grads)
        else:
            operator = _operator(f"{ctx.name}_backward")
            tensors = grads[0].contiguous(), h, cells, gates, weight.contiguous()
            found = operator(*tensors, **ctx.options, of_weight=needs[1])
            found = [found[0] if needs[0] else None, found[1] if needs[1] else None]
        return None, None, None, *found
