"""Oracle of ``autoregressive`` (Masked Autoregressive Flow, Papamakarios et al., 2017, equations 3 and 4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from flowkern.reference.affine import affine_map
from flowkern.reference.masked_mlp import masked_mlp

UnivariateOracle = Callable[..., tuple[Tensor, Tensor]]  # as `affine_map`


def split_parameters(
    parameters: Tensor, features: int, layout: str = "feature_major", parameter_order: Sequence[int] | None = None
) -> list[Tensor]:
    """The parameters of each feature, each (..., features), in the order of the univariate map."""
    if layout == "feature_major":
        parts = list(parameters.unflatten(-1, (features, -1)).unbind(-1))
    else:
        parts = list(parameters.unflatten(-1, (-1, features)).unbind(-2))
    return parts if parameter_order is None else [parts[i] for i in parameter_order]


def autoregressive(
    x: Tensor,
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
    """(z, log_det) of x (..., features), as `flowkern.ops.autoregressive` defines them.

    ``map`` is a univariate map's oracle, element by element; without one it is the affine map of the names.
    """
    parameters = masked_mlp(x, weights, biases, masks, addends=addends, gates=gates, **structure)
    map = map or partial(affine_map, scale=scale, placement=placement, constants=constants)
    z, log_slope = map(x, *split_parameters(parameters, x.shape[-1], layout, parameter_order))
    return z, log_slope.sum(-1)
