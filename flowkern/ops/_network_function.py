"""The gradients of operators on masked networks.

A backward pass that must itself be differentiated runs through plain PyTorch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowkern._tensors import version
from flowkern.backends import Kernels
from flowkern.ops._derivatives import plain_backward, wants_plain
from flowkern.ops._network_call import Call


def _outlives(t: Tensor) -> bool:
    """Whether a tensor is there without the graph: a leaf, or a view of one. Computed weights would be kept alive."""
    return t.is_leaf or (t._base is not None and t._base.is_leaf)


class NetworkFunction(torch.autograd.Function):
    """Forward and backward kernels of one call; second derivatives through plain PyTorch."""

    @staticmethod
    def forward(ctx: Any, call: Call, kernels: Kernels, packed: Tensor | None, x: Tensor, *tensors: Tensor) -> Any:
        outputs, state = call.run(kernels, x, tensors, packed, True)
        ctx.call, ctx.kernels, ctx.count = call, kernels, len(tensors)
        kept = [x, *tensors]
        ctx.aside, ctx.versions = [None] * len(kept), []
        if kernels.namespace != "flowkern_cuda" and not torch.compiler.is_compiling():
            # The backward kernels read the packed weights, of these only the sizes: an optimiser may step before they run,
            # as it may where a library multiplies by masks. Autograd, which refuses that, is not told of them. Nor of the
            # input of an inverse, which only its output needs.
            spared = range(0 if call.solves else 1, call.parameters + 1)
            ctx.aside = [t if i in spared and _outlives(t) else None for i, t in enumerate(kept)]
            ctx.versions = [version(t) for t in ctx.aside if t is not None]
            kept = [t for t, aside in zip(kept, ctx.aside, strict=True) if aside is None]
        # A copy of the solution: the caller may write into what is returned.
        ctx.save_for_backward(outputs[0].clone() if call.solves else x, *kept, *state)
        return tuple(outputs) if len(outputs) > 1 else outputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        seen, *state = ctx.saved_tensors
        x, *tensors = [state.pop(0) if t is None else t for t in ctx.aside]
        call, needs = ctx.call, ctx.needs_input_grad[3:]
        if wants_plain(grads):
            if [version(t) for t in ctx.aside if t is not None] != ctx.versions:
                raise RuntimeError(
                    f"{call.name}: second derivatives and batched gradients need the weights and inputs of the forward pass, "
                    "which were modified by an inplace operation since"
                )
            # Under autocast the weights are of lower precision; the oracle takes one dtype.
            plain = lambda x, *rest: call.plain(x, *call.split([t.to(x.dtype) for t in rest]))  # noqa: E731
            return None, None, None, *plain_backward(plain, (x, *tensors), needs, grads)
        parameters = any(needs[1 : call.parameters + 1])
        g_x, *lists = call.gradients(ctx.kernels, grads, seen, state, tensors, parameters)
        g_tensors = [g for part in lists for g in part]
        if not parameters:
            g_tensors = [*[None] * call.parameters, *g_tensors]
        return None, None, None, g_x, *g_tensors
