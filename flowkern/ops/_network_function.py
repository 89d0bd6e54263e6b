"""The gradients of operators on masked networks.

A backward pass that must itself be differentiated runs through plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowkern._tensors import version
from flowkern.backends import Kernels
from flowkern.ops._derivatives import Function, plain_backward, wants_plain

Inputs = list[Tensor | None]  # x, context, weights and biases, addends


class NetworkFunction(Function):
    """Forward and backward kernels of one call, of one network or a chain; second derivatives through plain PyTorch."""

    @staticmethod
    def forward(
        ctx: Any, call: Any, kernels: Kernels, packed: Sequence[Tensor], x: Tensor, context: Tensor | None, *tensors: Tensor
    ) -> Any:
        outputs, state = call.run(kernels, x, context, tensors, packed, True)
        alone = call.keeps_inputs(kernels)  # and takes missing cotangents
        ctx.set_materialize_grads(not alone)
        ctx.call, ctx.kernels, ctx.packed = call, kernels, packed
        inputs: Inputs = [x, context, *tensors]
        ctx.aside, ctx.versions = [None] * len(inputs), []
        if kernels.namespace != "flowkern_cuda" and not torch.compiler.is_compiling():
            # The backward kernels read what they kept themselves, of these only the sizes: an optimiser may step before they
            # run, as it may where a library multiplies by masks. Autograd, which refuses that, is not told of them.
            first = 0 if alone or call.solves else 2
            ctx.aside = _set_aside(inputs, first, call.parameters + 2)
            ctx.versions = _versions(ctx.aside)
            inputs = [t for t, aside in zip(inputs, ctx.aside, strict=True) if aside is None]
        # A copy of the solution: the caller may write into what is returned.
        solution = outputs[0].clone() if call.solves and not kernels.on_cpu else None
        ctx.saved_inputs = len(inputs)
        ctx.save_for_backward(solution, *inputs, *state)
        return tuple(outputs) if len(outputs) > 1 else outputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        solution, *state = ctx.saved_tensors
        saved, state = iter(state[: ctx.saved_inputs]), state[ctx.saved_inputs :]
        x, context, *tensors = [next(saved) if t is None else t for t in ctx.aside]
        call, needs = ctx.call, ctx.needs_input_grad[3:]
        if wants_plain():
            if _versions(ctx.aside) != ctx.versions:
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


def _set_aside(inputs: Inputs, first: int, last: int) -> Inputs:
    """Of the inputs [first, last) those that are there without the graph; ``None`` for all others.

    A leaf, or a view of one: computed weights would be kept alive.
    """
    middle = inputs[2:last]
    if set(map(type, middle)) != {nn.Parameter}:  # as most are; looking at each takes 20 microseconds in a flow
        middle = [t if type(t) is nn.Parameter or _outlives(t) else None for t in middle]
    begin = [t if i >= first and _outlives(t) else None for i, t in enumerate(inputs[:2])]
    return [*begin, *middle, *[None] * (len(inputs) - last)]


def _outlives(t: Tensor | None) -> bool:
    return t is not None and (t.is_leaf or (t._base is not None and t._base.is_leaf))


def _versions(tensors: Iterable[Tensor | None]) -> list[int]:
    try:
        return [t._version for t in tensors if t is not None]
    except RuntimeError:  # inference tensors count no changes
        return [version(t) for t in tensors if t is not None]
