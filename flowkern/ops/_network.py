"""How every operator on a masked network runs: checks, choice of kernels, reshaping, autograd where something needs it.

Their kernels take (x, weights, biases, addends), pack the weights, and keep what the layers computed for one backward
kernel each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowkern._checks import HALF, autocasts, broadcast_batch
from flowkern.backends import ORACLE, Kernels, kernels_for
from flowkern.ops._network_call import Call
from flowkern.ops._network_checks import check_network, check_packed
from flowkern.ops._network_function import NetworkFunction
from flowkern.plan import AutoregressivePlan


def dispatch(
    call: Call,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    addends: Sequence[Tensor],
    packed: Tensor | None,
    name: str = "x",
) -> tuple[Tensor, ...]:
    """Checks the arguments, chooses the backend and runs the call; always a tuple."""
    kernels = kernels_for(x, call.name, call.map)
    device = x.device.type
    if autocasts(x) and weights[0].dtype is not torch.float64:
        # The products use weights of autocast's dtype, in both directions alike; all else stays as it is.
        low, dtype = torch.get_autocast_dtype(device), weights[0].dtype
        x, addends = x.to(dtype), [a.to(dtype) for a in addends]
        check_network(x, weights, biases, call.plan, addends, name)
        weights = [w.to(low) for w in weights]
        if kernels.plain or kernels.on_cpu:  # which do not multiply in that dtype
            weights = [w.to(dtype) for w in weights]
        with torch.autocast(device, enabled=False):
            return _run(call, kernels, x, weights, biases, addends, None)
    check_network(x, weights, biases, call.plan, addends, name)
    return _run(call, kernels, x, weights, biases, addends, packed)


def _run(
    call: Call,
    kernels: Kernels,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    addends: Sequence[Tensor],
    packed: Tensor | None,
) -> tuple[Tensor, ...]:
    """Runs a checked call: compute dtype, two dimensions, autograd only where something needs it."""
    if kernels.plain:
        outputs = (call.oracle if kernels == ORACLE else call.plain)(x, weights, biases, addends)
        return outputs if isinstance(outputs, tuple) else (outputs,)
    dtype = x.dtype
    x, addends, batch = as_rows(x, addends)
    tensors = [*weights, *biases, *addends]
    if kernels.on_cpu and dtype in HALF:  # float32 inside, the packed weights and every sum
        x, tensors, packed = x.float(), [t.float() for t in tensors], None
    if packed is not None:
        check_packed(packed, call.plan, x)
    if torch.is_grad_enabled() and (x.requires_grad or any(t.requires_grad for t in tensors)):
        if not torch.compiler.is_compiling() and x.is_inference():
            x = x.clone()  # inference tensors cannot be kept for a backward pass
        out = NetworkFunction.apply(call, kernels, packed, x, *tensors)
        outputs = out if isinstance(out, tuple) else (out,)
    else:
        outputs, _ = call.run(kernels, x, tensors, packed, False)
    if outputs[0].dtype is not dtype:
        outputs = tuple(t.to(dtype) for t in outputs)
    return tuple(outputs) if len(batch) == 1 else tuple(t.reshape(batch + t.shape[1:]) for t in outputs)


def as_rows(x: Tensor, addends: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor], torch.Size]:
    """x and the addends as matrices over their common batch, and the shape of that."""
    batch = x.shape[:-1]
    if addends:
        batch = broadcast_batch(x, addends, "addends")
        addends = [a.expand(*batch, a.shape[-1]).reshape(-1, a.shape[-1]) for a in addends]
        x = x.expand(*batch, x.shape[-1])
    return x if x.dim() == 2 else x.reshape(batch.numel(), x.shape[-1]), addends, batch


def optional_biases(plan: AutoregressivePlan, biases: Sequence[Tensor]) -> list[Tensor | None]:
    """One entry per layer, as the oracles take them."""
    found = iter(biases)
    return [next(found) if has else None for has in plan.biases]
