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
    **structure: Any,
) -> tuple[Tensor, Tensor]:
    """(x, log_det) with z = autoregressive(x), as `flowkern.ops.autoregressive_inverse` defines them.

    After the i-th pass the features of the first i levels are exact, whatever the order.
    """
    count = 1 if scale == "none" else 2
    x = torch.zeros_like(z)
    log_det = z.sum(-1)  # for no features at all
    for _ in range(z.shape[-1]):
        parameters = masked_mlp(x, weights, biases, masks, addends=addends, **structure)
        parts = split_parameters(parameters, count, layout, scale_first)
        x, log_det = affine(z, *parts, scale=scale, placement=placement, constants=constants, inverse=True)
    return x, log_det
