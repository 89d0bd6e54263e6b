"""Oracle of ``autoregressive_inverse``: one full pass per feature, as every library does it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flowkern.reference.affine import affine_map
from flowkern.reference.autoregressive import UnivariateOracle, split_parameters
from flowkern.reference.masked_mlp import masked_mlp


def autoregressive_inverse(
    z: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    masks: Sequence[Tensor],
    *,
    map: UnivariateOracle | None = None,
    scale: str = "exp",
    placement: str = "standardize",
    constants: tuple[float, ...] = (),
    layout: str = "feature_major",
    parameter_order: Sequence[int] | None = None,
    addends: Mapping[int, Tensor] | None = None,
    gates: Mapping[int, Tensor] | None = None,
    **structure: Any,
) -> tuple[Tensor, Tensor]:
    """(x, log_det) with z = autoregressive(x), as `flowkern.ops.autoregressive_inverse` defines them.

    A full pass gives the parameters of every feature, those of the next level among them; features that are not yet
    known enter as zero.
    """
    map = map or partial(affine_map, scale=scale, placement=placement, constants=constants)
    batch = torch.broadcast_shapes(z.shape[:-1], *(t.shape[:-1] for t in [*(addends or {}).values(), *(gates or {}).values()]))
    z = z.expand(*batch, z.shape[-1])
    x, log_det = torch.zeros_like(z), z.new_zeros(batch)
    for level in feature_levels(masks, layout, **structure):
        parameters = masked_mlp(x, weights, biases, masks, addends=addends, gates=gates, **structure)
        parts = [p[..., level] for p in split_parameters(parameters, x.shape[-1], layout, parameter_order)]
        value, log_slope = map(z[..., level], *parts, inverse=True)
        x, log_det = x.index_copy(-1, level, value), log_det + log_slope.sum(-1)
    return x, log_det


def feature_levels(masks: Sequence[Tensor], layout: str, **structure: Any) -> list[Tensor]:
    """Features by the longest chain of features that they depend on, first those that depend on none."""
    ones = [torch.ones_like(m, dtype=torch.float64) for m in masks]
    # With positive weights and no activation, the network's Jacobian says which parameter sees which feature.
    features = masks[0].shape[1]
    eye = torch.eye(features, dtype=torch.float64, device=masks[0].device)
    linear = {**structure, "activation": "identity"}
    seen_by = masked_mlp(eye, ones, [None] * len(masks), masks, **linear) > 0  # row i: the parameters that see feature i
    sees = torch.stack(split_parameters(seen_by, features, layout)).any(0).t()
    level = torch.zeros(features, dtype=torch.int64, device=masks[0].device)
    for _ in range(features):
        level = torch.where(sees, level + 1, 0).amax(1)
    return [(level == i).nonzero().flatten() for i in range(int(level.max()) + 1)]
