"""Activations by their names, for networks of torch's own layers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import nn

from flowkern._checks import one_of

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
}
_NAMES = {kind: name for name, kind in _ACTIVATIONS.items()}
_CONSTANTS = {"leaky_relu": "negative_slope", "elu": "alpha"}


def activation_layer(name: str) -> nn.Module:
    """The layer of a name."""
    one_of("activation", name, _ACTIVATIONS)
    return _ACTIVATIONS[name]()


def activation_named(layer: nn.Module) -> tuple[str, float | None] | None:
    """Name and constant that a plan has for a layer; ``None`` for what has none.

    >>> activation_named(nn.ELU(2.0)), activation_named(nn.GELU()), activation_named(nn.GELU("tanh"))
    (('elu', 2.0), ('gelu', None), None)
    """
    name = _NAMES.get(type(layer))
    if name is None or (type(layer) is nn.GELU and layer.approximate != "none"):
        return None
    if type(layer) is nn.Softplus and (layer.beta, layer.threshold) != (1, 20):
        return None
    return name, getattr(layer, _CONSTANTS[name]) if name in _CONSTANTS else None


def mlp(sizes: Sequence[int], activation: str) -> nn.Sequential:
    """Linear layers from each size to the next, with an activation between each two."""
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), activation_layer(activation)]
    return nn.Sequential(*layers[:-1])
