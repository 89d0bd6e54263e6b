"""Univariate maps of the Triton kernels, one file per family.

A family is four functions of a number u (or v), a tuple p of the parameters of the feature, and the map's options and constants
as constexpr tuples:

``forward``            v and log|dv/du|; the latter is NaN where u is not finite
``inverse``            u and log|du/dv|; the same for v
``backward``           the cotangent of u from those of v and log|dv/du|, and a tuple of those of the parameters
``backward_of_inverse``  the cotangent of v from that of its inverse u and one of log|dv/du|: minus what makes ``backward``
                       return minus the former; and what that gives the parameters

A family with many parameters of a few kinds has a fifth, ``kinds(options)``, how many of each kind a feature has. Networks then
give each kind as a matrix, and _bins.py has the four functions of these.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

Words = tuple[str, tuple[int, ...], tuple[float, ...]]  # a family, options, constants


@dataclass(frozen=True)
class Kinds:
    """The kinds of a feature's parameters: how many there are of each, and a feature's columns in a block of one kind.

    Where a map has few parameters, each is a kind with one column.
    """

    counts: tuple[int, ...]
    columns: int = 1


def kinds_of(map: Words | None, parameters: int) -> Kinds:
    """Of a map, or of so many parameters that no map takes."""
    module = importlib.import_module(f"flowkern.kernels.maps.{map[0]}") if map else None
    if map is None or not hasattr(module, "kinds"):
        return Kinds((1,) * parameters)
    counts = module.kinds(map[1])
    return Kinds(counts, 1 << (max(counts) - 1).bit_length())  # whole blocks; Triton need not be here to ask for a family


def functions(map: Words, by_kinds: bool = False, **names: str) -> dict[str, Any]:
    """What a kernel is told of a map: constants of its compilation, ``names`` among them.

    ``functions(map, MAP="forward")`` gives the argument MAP the function ``forward`` of the family; ``by_kinds``, that which
    takes a matrix of each kind of parameter.
    """
    family, options, constants = map
    module = importlib.import_module("flowkern.kernels._bins" if by_kinds else f"flowkern.kernels.maps.{family}")
    chosen = {argument: getattr(module, name) for argument, name in names.items()}
    return {**chosen, "OPTIONS": tuple(options), "CONSTANTS": tuple(constants)}
