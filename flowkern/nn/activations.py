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


def activation_layer(name: str) -> nn.Module:
    """The layer of a name."""
    one_of("activation", name, _ACTIVATIONS)
    return _ACTIVATIONS[name]()


def mlp(sizes: Sequence[int], activation: str) -> nn.Sequential:
    """Linear layers from each size to the next, with an activation between each two."""
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), activation_layer(activation)]
    return nn.Sequential(*layers[:-1])
