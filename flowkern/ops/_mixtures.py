"""What the operators on mixtures share: checks, shapes, the constants of a call, log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowkern._checks import HALF, check_float, check_like, whole_number
from flowkern.backends import Kernels, kernels_for
from flowkern.ops._derivatives import plain_backward, wants_plain
from flowkern.ops._rows import namespace


class Call(NamedTuple):
    """What is constant about a call: its operator, what serves it, the levels (0 for a density), the least log-scale."""

    operator: str
    kernels: Kernels
    levels: int
    log_scale_min: float

    @property
    def gaussian(self) -> bool:
        """Whether the components are Gaussians."""
        return self.operator == "gaussian_mixture"

    @property
    def options(self) -> dict[str, Any]:
        """The constants as the oracles take them."""
        levels = {} if self.gaussian else {"levels": self.levels or None}
        return {**levels, "log_scale_min": self.log_scale_min}


def checked_call(
    operator: str, first: tuple[str, Tensor], parameters: Sequence[Tensor], levels: int | None, log_scale_min: float
) -> Call:
    """Checks everything but the shape of the first argument, whose name comes with it."""
    name, value = first
    check_float(name, value)
    components = 0
    for other, t in zip(("logits", "means", "log_scales"), parameters, strict=True):
        check_float(other, t)
        check_like(other, t, value, name)
        if t.dim() == 0 or t.shape[-1] == 0:
            raise ValueError(f"{other}: expected shape (..., components), got {tuple(t.shape)}")
        components = components or t.shape[-1]
        if t.shape[-1] != components:
            raise ValueError(f"{other}: expected {components} components like logits, got shape {tuple(t.shape)}")
    check_log_scale_min(log_scale_min)
    count = 0 if levels is None else whole_number("levels", levels, 2)
    return Call(operator, kernels_for(value, operator), count, float(log_scale_min))


def check_log_scale_min(value: float) -> None:
    """The least log-scale is a number, which may be infinite."""
    if not isinstance(value, float | int) or value != value:
        raise ValueError(f"log_scale_min: expected a number, got {value!r}")


def batch_of(name: str, batch: torch.Size, parameters: Sequence[Tensor]) -> torch.Size:
    """The common batch shape of the elements and of parameters with one more dimension."""
    if not torch.compiler.is_compiling() and all(t.shape[:-1] == batch for t in parameters):
        return batch
    try:
        return torch.broadcast_shapes(batch, *(t.shape[:-1] for t in parameters))
    except RuntimeError:
        got = ", ".join(str(tuple(t.shape)) for t in parameters)
        raise ValueError(f"{name}: shapes {tuple(batch)} and {got} less the components do not broadcast") from None


def as_matrix(kernels: Kernels, t: Tensor, batch: torch.Size, last: Sequence[int] = ()) -> Tensor:
    """t, broadcast to a batch shape, with two dimensions for it; the CPU kernels take half precision as float32.

    The second one is all but the first: then parameters that lie before time or space, as a convolution leaves them, are
    not copied.
    """
    t = t.float() if kernels.on_cpu and t.dtype in HALF else t
    rows, columns = (batch[0], batch[1:].numel()) if batch else (1, 1)
    return t.expand((*batch, *last)).reshape((rows, columns, *last))


def log_probs(call: Call, oracle: Callable[..., Tensor], x: Tensor, parameters: tuple[Tensor, ...]) -> Tensor:
    """Log-probabilities of x under its mixtures, as the oracle defines them."""
    batch = batch_of("x", x.shape, parameters)
    if call.kernels.plain:
        return oracle(x, *parameters, **call.options)
    dtype, components = x.dtype, parameters[0].shape[-1]
    given = [as_matrix(call.kernels, t, batch, (components,)) for t in parameters]
    tensors = as_matrix(call.kernels, x, batch), *given
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        out = MixtureFunction.apply(call, oracle, *tensors)
    else:
        out, _ = _run(call, tensors, keep=False)
    return out.reshape(batch).to(dtype)


def _run(call: Call, tensors: tuple[Tensor, ...], keep: bool) -> tuple[Tensor, list[Tensor]]:
    """Log-probabilities and, where they are kept, their derivatives by the parameters."""
    constants = call.levels, call.log_scale_min, call.gaussian
    return namespace(call.kernels).logistic_mixture(*tensors, *constants, keep)


class MixtureFunction(torch.autograd.Function):
    """The kernel makes the derivatives too, second ones go through the oracle."""

    @staticmethod
    def forward(ctx: Any, call: Call, oracle: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        out, kept = _run(call, tensors, keep=True)
        ctx.oracle, ctx.inputs = partial(oracle, **call.options), len(tensors)
        ctx.save_for_backward(*tensors, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        tensors, kept = ctx.saved_tensors[: ctx.inputs], ctx.saved_tensors[ctx.inputs :]
        if wants_plain():
            return None, None, *plain_backward(ctx.oracle, tensors, ctx.needs_input_grad[2:], (g,))
        found = [g.unsqueeze(-1) * derivative for derivative in kept]
        g_x = -found[1].sum(-1) if ctx.needs_input_grad[2] else None  # x and the means are only seen as a difference
        return None, None, g_x, *(t.to(g.dtype) for t in found)
