"""How every operator on a masked network runs: checks, choice of kernels, reshaping, autograd where something needs it.

Their kernels take (x, context, weights, biases, addends), pack the weights, and keep what the layers computed for one
backward kernel each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowkern._checks import HALF, autocasts, broadcast_batch
from flowkern.backends import ORACLE, Kernels, kernels_for
from flowkern.ops._context import outside
from flowkern.ops._network_call import Call, Runs
from flowkern.ops._network_checks import check_network, check_packed
from flowkern.ops._network_function import NetworkFunction
from flowkern.plan import AutoregressivePlan

Tensors = Sequence[Tensor]


def dispatch(
    call: Call,
    x: Tensor,
    weights: Tensors,
    biases: Tensors,
    addends: Tensors,
    context: Tensor | None,
    packed: Tensor | None,
    name: str = "x",
) -> tuple[Tensor, ...]:
    """Checks the arguments, chooses the backend and runs the call; always a tuple."""
    kernels = kernels_for(x, call.name, call.map)
    device = x.device.type
    if autocasts(x) and weights[0].dtype is not torch.float64:
        # The products use weights of autocast's dtype, in both directions alike; all else stays as it is.
        low, dtype = torch.get_autocast_dtype(device), weights[0].dtype
        x, addends, context = x.to(dtype), [a.to(dtype) for a in addends], context if context is None else context.to(dtype)
        check_network(x, weights, biases, call.plan, addends, context, name)
        weights = [w.to(low) for w in weights]
        if kernels.plain or kernels.on_cpu:  # which do not multiply in that dtype
            weights = [w.to(dtype) for w in weights]
        with torch.autocast(device, enabled=False):
            return _run(call, kernels, x, weights, biases, addends, context, None)
    check_network(x, weights, biases, call.plan, addends, context, name)
    return _run(call, kernels, x, weights, biases, addends, context, packed)


def _run(
    call: Call,
    kernels: Kernels,
    x: Tensor,
    weights: Tensors,
    biases: Tensors,
    addends: Tensors,
    context: Tensor | None,
    packed: Tensor | None,
) -> tuple[Tensor, ...]:
    """Runs a checked call in the kernels' dtype on two dimensions, with autograd only where something needs it."""
    if context is not None and not kernels.on_cpu:  # such kernels know no contexts
        weights, biases, addends = outside(call.plan, weights, biases, addends, context)
        value, *log_det = _run(call.outside, kernels, x, weights, biases, addends, None, None)
        return value, *(term + (context - context).detach().sum(-1) for term in log_det)
    if kernels.plain:
        outputs = (call.oracle if kernels == ORACLE else call.plain)(x, weights, biases, addends)
        return outputs if isinstance(outputs, tuple) else (outputs,)
    dtype = x.dtype
    x, context, addends, batch = as_rows(x, context, addends)
    tensors = [*weights, *biases, *addends]
    if kernels.on_cpu and dtype in HALF:  # float32 inside, the packed weights and every sum
        x, context, packed = x.float(), context if context is None else context.float(), None
        tensors = [t.float() for t in tensors]
    if packed is not None:
        check_packed(packed, call.plan, x)
    outputs = with_gradients(call, kernels, x, context, tensors, () if packed is None else (packed,))
    if outputs[0].dtype is not dtype:
        outputs = tuple(t.to(dtype) for t in outputs)
    return tuple(outputs) if len(batch) == 1 else tuple(t.reshape(batch + t.shape[1:]) for t in outputs)


def with_gradients(
    call: Runs, kernels: Kernels, x: Tensor, context: Tensor | None, tensors: Tensors, packed: Tensors
) -> Sequence[Tensor]:
    """The outputs of a call on rows, recorded by autograd where something needs a gradient."""
    needed = torch.is_grad_enabled() and (
        x.requires_grad or any(t.requires_grad for t in tensors) or (context is not None and context.requires_grad)
    )
    if not needed:
        return call.run(kernels, x, context, tensors, packed, False)[0]
    if not torch.compiler.is_compiling():  # inference tensors cannot be kept for a backward pass
        x = x.clone() if x.is_inference() else x
        context = context.clone() if context is not None and context.is_inference() else context
    out = NetworkFunction.record(call, kernels, packed, x, context, *tensors)
    return out if isinstance(out, tuple) else (out,)


def as_rows(x: Tensor, context: Tensor | None, addends: Tensors) -> tuple[Tensor, Tensor | None, Tensors, torch.Size]:
    """x, the context and the addends as matrices over their common batch, and the shape of that."""
    batch = x.shape[:-1]
    if context is not None:
        batch = broadcast_batch(x, [context], "context")
    if addends:
        batch = broadcast_batch(x if context is None else x.expand(*batch, x.shape[-1]), addends, "addends")
    if context is not None and (len(batch) != 1 or context.shape[:-1] != batch):
        context = _rows(context, batch)
    if addends:
        addends = [_rows(a, batch) for a in addends]
    return x if x.dim() == 2 and x.shape[:-1] == batch else _rows(x, batch), context, addends, batch


def _rows(t: Tensor, batch: torch.Size) -> Tensor:
    return t.expand(*batch, t.shape[-1]).reshape(batch.numel(), t.shape[-1])


def optional_biases(plan: AutoregressivePlan, biases: Tensors) -> list[Tensor | None]:
    """One entry per layer, as the oracles take them."""
    found = iter(biases)
    return [next(found) if has else None for has in plan.biases]
