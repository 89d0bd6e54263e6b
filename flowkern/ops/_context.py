"""What a context contributes to a network, in plain PyTorch: for the oracles, and for kernels that are given it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from flowkern.plan import AutoregressivePlan
from flowkern.reference.masked_mlp import activate

Tensors = Sequence[Tensor]


def outside(
    plan: AutoregressivePlan, weights: Tensors, biases: Tensors, addends: Tensors, context: Tensor
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Weights, biases and addends of ``plan.outside``, which has no context."""
    count, depth = len(plan.masks), len(plan.units)
    terms: dict[int, list[Tensor]] = {a: [t] for a, t in zip(plan.addends, addends, strict=False)}
    gates = list(addends[len(plan.addends) :])
    inner = list(weights[:count])
    for i in [0, *([depth + 1] if plan.skip_reads_context else [])] if plan.context_columns else []:
        inner[i], weight = _apart(plan, weights[i])
        if i not in plan.whole_contexts:
            mask = plan.masks[i][:, list(plan.context_columns)].to(weight.device)
            weight = torch.where(mask, weight, 0)
        terms.setdefault(min(i, depth), []).append(_linear(context, weight, None))
    kept = sum(plan.biases[:count])
    found = iter(biases[kept:])
    for c, weight, has in zip(plan.conditioners, weights[count:], plan.biases[count:], strict=True):
        read = context[..., : plan.conditioner_context]
        value = activate(c.activation, _linear(read, weight, next(found) if has else None), plan.constant_of(c.activation))
        (gates if c.gate else terms.setdefault(c.layer, [])).append(value)
    return inner, list(biases[:kept]), [sum(terms[a][1:], terms[a][0]) for a in plan.outside.addends] + gates


def _apart(plan: AutoregressivePlan, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The columns that read features, and those that read the context.

    Where either come first they are views, whose gradients one kernel joins; indices would be copied to a GPU at every call.
    """
    columns, features = plan.context_columns, plan.features if plan.reads_features else 0
    if columns == tuple(range(features, features + plan.context)):
        first, last = weight.split([features, plan.context], 1)
        return first, last
    if columns == tuple(range(plan.context)):
        first, last = weight.split([plan.context, features], 1)
        return last, first
    return weight[:, plan.feature_columns], weight[:, list(columns)]


def _linear(context: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """In the weights' dtype, which autocast has lowered."""
    return F.linear(context.to(weight.dtype), weight, bias if bias is None else bias.to(weight.dtype)).to(context.dtype)
