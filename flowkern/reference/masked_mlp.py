"""Oracle of ``masked_mlp`` (MADE, Germain et al., 2015, equations 9 and 10)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def activate(name: str, x: Tensor, constant: float = 0.0) -> Tensor:
    """The activation ``name``; ``constant`` is leaky_relu's slope or elu's alpha."""
    if name == "identity":
        return x
    if name == "relu":
        return F.relu(x)
    if name == "leaky_relu":
        return F.leaky_relu(x, constant)
    if name == "elu":
        return F.elu(x, constant)
    if name == "gelu":
        return F.gelu(x)
    if name == "silu":
        return F.silu(x)
    if name == "tanh":
        return torch.tanh(x)
    if name == "sigmoid":
        return torch.sigmoid(x)
    if name == "softplus":
        return -F.logsigmoid(-x)  # F.softplus is linear beyond its threshold, off by 2e-9
    raise ValueError(f"activation: unknown name {name!r}")


def masked_linear(x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor) -> Tensor:
    """x (W * M)^T + b, where a masked weight has no effect whatever it holds."""
    return F.linear(x, torch.where(mask, weight, 0), bias)


def masked_mlp(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    masks: Sequence[Tensor],
    *,
    activation: str = "relu",
    constant: float = 0.0,
    activated: Sequence[bool] | None = None,
    residuals: Sequence[int | None] | None = None,
    skip: bool = False,
    addends: Mapping[int, Tensor] | None = None,
    gates: Mapping[int, Tensor] | None = None,
) -> Tensor:
    """Parameters (..., rows of the last mask) of x (..., features), as `flowkern.ops.masked_mlp` defines them.

    ``addends`` maps a layer to what is added to its linear map, ``gates`` to what this sum is multiplied by.
    """
    depth = len(masks) - 1 - int(skip)
    activated = [True] * depth if activated is None else activated
    residuals = [None] * depth if residuals is None else residuals
    addends, gates = addends or {}, gates or {}
    pre: list[Tensor] = []
    h = x
    for layer in range(depth + 1):
        p = masked_linear(h, weights[layer], biases[layer], masks[layer])
        if layer in addends:
            p = p + addends[layer]
        if layer in gates:
            p = p * gates[layer]
        if layer == depth:
            return p + masked_linear(x, weights[-1], None, masks[-1]) if skip else p
        source = residuals[layer]
        if source is not None:
            p = p + pre[source]
        pre.append(p)
        h = activate(activation, p, constant) if activated[layer] else p
    raise AssertionError("unreachable")
