"""Oracle of ``autoregressive`` (Masked Autoregressive Flow, Papamakarios et al., 2017, equations 3 and 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from flowkern.reference.affine import affine
from flowkern.reference.masked_mlp import masked_mlp


def split_parameters(parameters: Tensor, count: int, layout: str = "feature_major", scale_first: bool = False) -> list[Tensor]:
    """The ``count`` parameters of each feature, each (..., features), shift first."""
    if layout == "feature_major":
        parts = list(parameters.unflatten(-1, (-1, count)).unbind(-1))
    else:
        parts = list(parameters.unflatten(-1, (count, -1)).unbind(-2))
    return parts[::-1] if scale_first else parts


def autoregressive(
    x: Tensor,
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
    """(z, log_det) of x (..., features), as `flowkern.ops.autoregressive` defines them."""
    parameters = masked_mlp(x, weights, biases, masks, addends=addends, gates=gates, **structure)
    count = 1 if scale == "none" else 2
    parts = split_parameters(parameters, count, layout, scale_first)
    return affine(x, *parts, scale=scale, placement=placement, constants=constants)
