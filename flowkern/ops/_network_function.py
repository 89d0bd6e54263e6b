"""The gradients of operators on masked networks.

A backward pass that must itself be differentiated runs through plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowkern._tensors import version
from flowkern.backends import Kernels
from flowkern.ops._derivatives import plain_backward, wants_plain


def _outlives(t: Tensor) -> bool:
    """Whether a tensor is there without the graph: a leaf, or a view of one. Computed weights would be kept alive."""
    return t.is_leaf or (t._base is not None and t._base.is_leaf)


class NetworkFunction(torch.autograd.Function):
    """Forward and backward kernels of one call, of one network or a chain; second derivatives through plain PyTorch."""

    @staticmethod
    def forward(
        ctx: Any, call: Any, kernels: Kernels, packed: Sequence[Tensor], x: Tensor, context: Tensor | None, *tensors: Tensor
    ) -> Any:
        outputs, state = call.run(kernels, x, context, tensors, packed, True)
        ctx.call, ctx.kernels, ctx.packed = call, kernels, packed
        kept: list[Tensor | None] = [x, context, *tensors]
        ctx.aside, ctx.versions = [None] * len(kept), []
        alone = call.keeps_inputs(kernels)
        ctx.set_materialize_grads(not alone)
        if kernels.namespace != "flowkern_cuda" and not torch.compiler.is_compiling():
            # The backward kernels read what they kept themselves, of these only the sizes: an optimiser may step before they
            # run, as it may where a library multiplies by masks. Autograd, which refuses that, is not told of them.
            first = 0 if call.solves or alone else 2
            spared = range(first, call.parameters + 2)
            ctx.aside = [t if i in spared and t is not None and _outlives(t) else None for i, t in enumerate(kept)]
            ctx.versions = [version(t) for t in ctx.aside if t is not None]
            kept = [t for t, aside in zip(kept, ctx.aside, strict=True) if aside is None]
        # A copy of the solution: the caller may write into what is returned.
        ctx.save_for_backward(outputs[0].clone() if call.solves and not kernels.on_cpu else None, *kept, *state)
        ctx.saved_count = len(kept)
        return tuple(outputs) if len(outputs) > 1 else outputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        solution, *state = ctx.saved_tensors
        kept, state = state[: ctx.saved_count], state[ctx.saved_count :]
        x, context, *tensors = [kept.pop(0) if t is None else t for t in ctx.aside]
        call, needs = ctx.call, ctx.needs_input_grad[3:]
        if wants_plain(grads):
            if [version(t) for t in ctx.aside if t is not None] != ctx.versions:
                raise RuntimeError(
                    f"{call.name}: second derivatives and batched gradients need the weights and inputs of the forward pass, "
                    "which were modified by an inplace operation since"
                )
            return None, None, None, *plain_backward(call.in_plain_pytorch, (x, context, *tensors), needs, grads)
        parameters = any(needs[2 : call.parameters + 2])
        seen = x if solution is None else solution
        g_x, g_context, g_parameters, g_addends = call.gradients(
            ctx.kernels, grads, seen, context, state, tensors, ctx.packed, parameters, needs[1]
        )
        if not parameters:
            g_parameters = [None] * call.parameters
        return None, None, None, g_x, g_context if needs[1] else None, *g_parameters, *g_addends
