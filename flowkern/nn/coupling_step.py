"""A coupling layer of vectors as a masked network of two levels, and so as a step of a chain.

The conditioner's first matrix gets columns of zeros for the features that are transformed, its last one rows of zeros for
those that pass: where the map with parameters of zero is the identity, that is the whole layer.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from flowkern import ops
from flowkern._tensors import outside_modes
from flowkern.nn.activations import activation_named
from flowkern.nn.checks import has_hooks
from flowkern.plan import AutoregressivePlan
from flowkern.univariate import Affine, UnivariateMap

# Packing all weights takes as long as so many rows (docs/measured.md); fewer are done sooner by torch, but for networks
# whose single calls take longer than their products.
FEW_ROWS, FEW_WEIGHTS = 128, 2**16


def is_identity_at_zero(map: UnivariateMap) -> bool:
    """Whether parameters of zero leave a number exactly as it is."""
    if not isinstance(map, Affine) or map.scale not in ("none", "exp", "clamped_exp", "soft_clipped_exp", "tanh"):
        return False
    return map.scale != "clamped_exp" or map.constants[0] <= 0 <= map.constants[1]


def linear_layers(network: nn.Module) -> tuple[list[nn.Linear], str] | None:
    """The linear layers of a network that has one activation between each two, and nothing else that a call would run."""
    if type(network) is not nn.Sequential or _does_more(network):
        return None
    linears, between = list(network)[0::2], list(network)[1::2]
    names = {activation_named(layer) for layer in between} or {("identity", None)}
    plain = all(type(layer) is nn.Linear and layer.bias is not None for layer in linears)
    if len(linears) != len(between) + 1 or not plain or len(names) > 1 or any(map(_does_more, [*linears, *between])):
        return None
    (found,) = names
    return (linears, found[0]) if found is not None and found[1] is None else None  # type: ignore[return-value]


def _does_more(module: nn.Module) -> bool:
    return has_hooks(module) or "forward" in module.__dict__


def worthwhile(x: Tensor, weights: Iterable[int]) -> bool:
    """Whether the kernels are expected to be faster than torch's layers, of so many weights each."""
    return x.shape[:-1].numel() >= FEW_ROWS or sum(weights) <= FEW_WEIGHTS


@functools.lru_cache(128)
def plan_of(
    transformed: tuple[bool, ...], hidden: tuple[int, ...], parameters: int, context: int, activation: str
) -> AutoregressivePlan:
    """The masks: what passes, and the context, is read; parameters of what is transformed are given, parameter by parameter."""
    with outside_modes():
        chosen = torch.tensor(transformed, device="cpu")
        reads = torch.cat([~chosen, torch.ones(context, dtype=torch.bool, device="cpu")])
        gives = chosen.repeat(parameters)
        every = [reads, *(torch.ones(n, dtype=torch.bool, device="cpu") for n in hidden)]
        masks = [units[:, None] & read for read, units in itertools.pairwise([*every, gives])]
        features = len(transformed)
        return AutoregressivePlan(
            masks,
            parameters=parameters,
            layout="parameter_major",
            activation=activation,
            context=context,
            context_columns=range(features, features + context),
        )


def network_step(
    linears: Sequence[nn.Linear],
    plan: AutoregressivePlan,
    map: UnivariateMap,
    columns: Tensor,
    rows: Tensor,
    features: int,
    context: int,
    inverse: bool,
) -> ops.NetworkStep:
    """The step: ``columns`` are those of its first matrix that the conditioner's are, ``rows`` those of the last."""
    weights: list[Tensor] = [layer.weight for layer in linears]
    biases: list[Tensor] = [layer.bias for layer in linears]
    first = weights[0]
    weights[0] = first.new_zeros(len(first), features + context).index_copy(1, columns, first)
    last = weights[-1]
    weights[-1] = last.new_zeros(features * map.count, last.shape[1]).index_copy(0, rows, last)
    biases[-1] = last.new_zeros(features * map.count).index_copy(0, rows, biases[-1])
    return ops.NetworkStep(inverse, {"weights": weights, "biases": biases, "plan": plan, "map": map})
