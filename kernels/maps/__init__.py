"""Univariate maps of the Triton kernels, one file per family.

A family is four functions of a number u (or v), a tuple p of the parameters of the feature, and the map's options and constants
as constexpr tuples:

``forward``            v and log|dv/du|; the latter is NaN where u is not finite
``inverse``            u and log|du/dv|; the same for v
``backward``           the cotangent of u from those of v and log|dv/du|, and a tuple of those of the parameters
``backward_of_inverse``  the cotangent of v from that of its inverse u and one of log|dv/du|: minus what makes ``backward``
                       return minus the former; and what that gives the parameters
"""

from __future__ import annotations

import importlib
from typing import Any


def functions(map: tuple[str, tuple[int, ...], tuple[float, ...]], **names: str) -> dict[str, Any]:
    """What a kernel is told of a map (family, options, constants): constants of its compilation, ``names`` among them.

    ``functions(map, MAP="forward")`` gives the argument MAP the function ``forward`` of the family.
    """
    family, options, constants = map
    module = importlib.import_module(f"flowkern.kernels.maps.{family}")
    chosen = {argument: getattr(module, name) for argument, name in names.items()}
    return {**chosen, "OPTIONS": tuple(options), "CONSTANTS": tuple(constants)}
