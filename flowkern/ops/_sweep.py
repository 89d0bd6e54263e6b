"""The degree-ordered sweep in plain PyTorch, level by level: differentiable, on any device, under any transform.

It serves the inverse where no kernel does, its second derivatives, and the sampling of networks whose conditionals
are no univariate map. It costs one pass of arithmetic, but a handful of small operations per level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from flowkern.plan import AutoregressivePlan
from flowkern.reference.masked_mlp import activate


def sweep(
    solve: Callable[[Tensor, Tensor], Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    plan: AutoregressivePlan,
    addends: Sequence[Tensor],
    batch: tuple[int, ...],
) -> Tensor:
    """x (*batch, features) where the features of each level are ``solve(features, parameters)``.

    ``solve`` receives the original indices (n,) of one level's features and their parameters (*batch, n, P), shift
    first, and returns their values (*batch, n).
    """
    like = weights[0]
    depth = len(plan.units)
    rows = [*plan.unit_orders, plan.output_order]
    starts, feature_starts = plan.level_starts, plan.level_features
    sources = [plan.feature_order, *plan.unit_orders]
    sorted_weights = [
        torch.where(m, w, 0)[r][:, s] for m, w, r, s in zip(plan.masks_like(like), weights, rows, sources, strict=False)
    ]
    if plan.skip:
        mask = plan.masks[-1].to(like.device)
        sorted_weights.append(torch.where(mask, weights[-1], 0)[plan.output_order][:, plan.feature_order])
    sorted_biases = [None if b is None else b[r] for b, r in zip(biases, rows, strict=False)]
    terms = {kind: {a: t[..., rows[a]] for a, t in named.items()} for kind, named in plan.terms(addends).items()}

    def known() -> Tensor:
        return like.new_empty(*batch, 0)

    x = known()
    pre, hidden = [known() for _ in range(depth)], [known() for _ in range(depth)]
    for level in range(plan.levels):
        for layer in range(depth + 1):
            u0, u1 = starts[layer][level], starts[layer][level + 1]
            if u0 == u1:
                continue
            h = x if layer == 0 else hidden[layer - 1]
            bias = sorted_biases[layer]
            p = F.linear(h, sorted_weights[layer][u0:u1, : h.shape[-1]], None if bias is None else bias[u0:u1])
            if layer in terms["addends"]:
                p = p + terms["addends"][layer][..., u0:u1]
            if layer in terms["gates"]:
                p = p * terms["gates"][layer][..., u0:u1]
            if layer == depth:
                if plan.skip:
                    p = p + F.linear(x, sorted_weights[-1][u0:u1, : x.shape[-1]])
                break
            source = plan.residuals[layer]
            if source is not None:
                p = p + pre[source][..., plan.residual_places[layer][u0:u1]]
            pre[layer] = torch.cat([pre[layer], p], -1)
            h = activate(plan.activation, p, plan.constant) if plan.activated[layer] else p
            hidden[layer] = torch.cat([hidden[layer], h], -1)
        features = plan.feature_order[feature_starts[level] : feature_starts[level + 1]]
        x = torch.cat([x, solve(features, p.unflatten(-1, (len(features), plan.parameters)))], -1)
    return x[..., torch.argsort(plan.feature_order)]
