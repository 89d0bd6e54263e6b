"""Oracle of ``autoregressive_inverse``: one full pass per feature, as every library does it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flowkern.reference.affine import affine
from flowkern.reference.autoregressive import split_parameters
from flowkern.reference.masked_mlp import masked_mlp


def autoregressive_inverse(
    z: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    masks: Sequence[Tensor],
    *,
    scale: str = "exp",
    placement: str = "standardize",
    constants: tuple[float, ...] = (),
    layout: str = "feature_major",
    scale_first: bool = False,
    addends: Mapping[int, Tensor] | None = None,
    gates: Mapping[int, Tensor] | None = None,
    **structure: Any,
) -> tuple[Tensor, Tensor]:
    """(x, log_det) with z = autoregressive(x), as `flowkern.ops.autoregressive_inverse` defines them.

    A full pass gives the parameters of every feature, those of the next level among them; features that are not yet
    known enter as zero.
    """
    count = 1 if scale == "none" else 2
    batch = torch.broadcast_shapes(z.shape[:-1], *(t.shape[:-1] for t in [*(addends or {}).values(), *(gates or {}).values()]))
    z = z.expand(*batch, z.shape[-1])
    x, log_det = torch.zeros_like(z), z.new_zeros(batch)
    for level in feature_levels(masks, count, layout, **structure):
        parameters = masked_mlp(x, weights, biases, masks, addends=addends, gates=gates, **structure)
        parts = [p[..., level] for p in split_parameters(parameters, count, layout, scale_first)]
        options: dict[str, Any] = {"scale": scale, "placement": placement, "constants": constants}
        value, part = affine(z[..., level], *parts, **options, inverse=True)
        x, log_det = x.index_copy(-1, level, value), log_det + part
    return x, log_det


def feature_levels(masks: Sequence[Tensor], count: int, layout: str, **structure: Any) -> list[Tensor]:
    """Features by the longest chain of features that they depend on, first those that depend on none."""
    ones = [torch.ones_like(m, dtype=torch.float64) for m in masks]
    # With positive weights and no activation, the network's Jacobian says which parameter sees which feature.
    features = masks[0].shape[1]
    eye = torch.eye(features, dtype=torch.float64, device=masks[0].device)
    linear = {**structure, "activation": "identity"}
    seen_by = masked_mlp(eye, ones, [None] * len(masks), masks, **linear) > 0  # row i: the parameters that see feature i
    sees = torch.stack(split_parameters(seen_by, count, layout)).any(0).t()
    level = torch.zeros(features, dtype=torch.int64, device=masks[0].device)
    for _ in range(features):
        level = torch.where(sees, level + 1, 0).amax(1)
    return [(level == i).nonzero().flatten() for i in range(int(level.max()) + 1)]
