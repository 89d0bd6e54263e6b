"""Names and constants of the affine univariate maps.

A *scale map* says how a raw number a becomes a positive scale s, a *placement* where s and the shift t go. Both are
part of a map's name. The operators take them as ``scale=``, ``placement=`` and ``constants=``.

=================== ====================================== =================== ==================================
scale               s                                      constants           used by
=================== ====================================== =================== ==================================
``none``            1                                                          additive maps, NICE
``exp``             exp(a)                                                     MAF, RealNVP, TensorFlow Probability
``clamped_exp``     exp(clamp(a, low, high)), with the     low = -5, high = 3  Pyro
                    gradient straight through the clamp
``soft_clipped_exp`` exp(a / (1 + abs(a / c)))             c = ln 1000         zuko
``softplus``        softplus(a) + eps                      eps = 1e-3          nflows, FlowJAX
``sigmoid``         sigmoid(a + bias) + eps                bias = 2, eps = 0   gated IAF, Glow; nsf: eps = 1e-3
``tanh``            exp(bound tanh(gain a))                bound = 1, gain = 1 RealNVP, FrEIA
=================== ====================================== =================== ==================================

================ ================= ==============================================================
placement        the map u -> v    used by
================ ================= ==============================================================
``scale_shift``  v = u s + t       zuko, nflows; Pyro's IAF
``standardize``  v = (u - t) / s   MAF
``shift_scale``  v = (u + t) s     Glow
``gate``         v = s u + (1-s) t gated IAF
================ ================= ==============================================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["PLACEMENTS", "SCALES", "constants_of", "default_constants", "resolve"]

SCALES = ("none", "exp", "clamped_exp", "soft_clipped_exp", "softplus", "sigmoid", "tanh")
PLACEMENTS = ("scale_shift", "standardize", "shift_scale", "gate")

_DEFAULTS: dict[str, tuple[float, ...]] = {
    "none": (),
    "exp": (),
    "clamped_exp": (-5.0, 3.0),
    "soft_clipped_exp": (math.log(1e3),),
    "softplus": (1e-3,),
    "sigmoid": (2.0, 0.0),
    "tanh": (1.0, 1.0),
}


def default_constants(scale: str) -> tuple[float, ...]:
    """The constants of a scale map where none are given.

    >>> default_constants("clamped_exp")
    (-5.0, 3.0)
    """
    if scale not in SCALES:
        raise ValueError(f"scale: expected one of {', '.join(SCALES)}, got {scale!r}")
    return _DEFAULTS[scale]


def constants_of(scale: str, given: Sequence[float] | None) -> tuple[float, ...]:
    """The constants that were given, or the scale map's own.

    >>> constants_of("sigmoid", None), constants_of("sigmoid", [0, 0.1])
    ((2.0, 0.0), (0, 0.1))
    """
    return default_constants(scale) if given is None else tuple(given)


def resolve(scale: str, placement: str, constants: Sequence[float] | None) -> tuple[int, int, float, float]:
    """The map as the four numbers that the native operators take.

    Raises:
        ValueError: for an unknown name or a wrong number of constants.

    >>> resolve("exp", "standardize", None)
    (1, 1, 0.0, 0.0)
    """
    default = default_constants(scale)
    if placement not in PLACEMENTS:
        raise ValueError(f"placement: expected one of {', '.join(PLACEMENTS)}, got {placement!r}")
    try:
        values = tuple(map(float, default if constants is None else constants))
    except (TypeError, ValueError):
        raise ValueError(f"constants: expected numbers, got {constants!r}") from None
    if len(values) != len(default):
        raise ValueError(f"constants: the scale map {scale!r} takes {len(default)}, got {len(values)}")
    c0, c1 = (*values, 0.0, 0.0)[:2]
    return SCALES.index(scale), PLACEMENTS.index(placement), c0, c1
