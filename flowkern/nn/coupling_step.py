"""A coupling layer of vectors as a step of a chain: its network, linear layers and one activation, and its map in one call."""

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
from flowkern.univariate import UnivariateMap

# Packing all weights takes as long as so many rows (docs/measured.md); fewer are done sooner by torch, but for networks
# whose single calls take longer than their products.
FEW_ROWS, FEW_WEIGHTS = 128, 2**16


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
    passing: int, transformed: int, hidden: tuple[int, ...], parameters: int, context: int, activation: str
) -> AutoregressivePlan:
    """Of a network that reads what passes, then the context, and gives the transformed features parameter by parameter."""
    widths = [passing + context, *hidden, transformed * parameters]
    with outside_modes():
        masks = [torch.ones(rows, columns, dtype=torch.bool, device="cpu") for columns, rows in itertools.pairwise(widths)]
    return AutoregressivePlan(
        masks,
        parameters=parameters,
        layout="parameter_major",
        activation=activation,
        context=passing + context,
        context_columns=[*range(passing, passing + context), *range(passing)],
        features=transformed,
    )


def coupling_step(
    linears: Sequence[nn.Linear],
    activation: str,
    map: UnivariateMap,
    passing: tuple[int, ...],
    transformed: tuple[int, ...],
    context: int,
    inverse: bool,
) -> ops.CouplingStep:
    """The step of a layer with this network."""
    hidden = tuple(layer.out_features for layer in linears[:-1])
    plan = plan_of(len(passing), len(transformed), hidden, map.count, context, activation)
    arguments = {"weights": [n.weight for n in linears], "biases": [n.bias for n in linears], "plan": plan, "map": map}
    return ops.CouplingStep(inverse, arguments, passing, transformed)
