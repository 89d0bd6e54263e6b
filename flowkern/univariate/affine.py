"""Affine maps: a shift, and a raw number that becomes a scale.

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
``atan``            exp(factor atan(gain a))               factor = 2 / pi,    FrEIA: factor = 0.636 clamp
                                                           gain = 1
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from flowkern import reference
from flowkern._checks import floats, one_of
from flowkern._compiling import constant_while_compiling
from flowkern.univariate.map import Reads, UnivariateMap, check_map

SCALES = ("none", "exp", "clamped_exp", "soft_clipped_exp", "softplus", "sigmoid", "tanh", "atan")
PLACEMENTS = ("scale_shift", "standardize", "shift_scale", "gate")

_DEFAULTS: dict[str, tuple[float, ...]] = {
    "none": (),
    "exp": (),
    "clamped_exp": (-5.0, 3.0),
    "soft_clipped_exp": (math.log(1e3),),
    "softplus": (1e-3,),
    "sigmoid": (2.0, 0.0),
    "tanh": (1.0, 1.0),
    "atan": (2 / math.pi, 1.0),
}
_FITTING: dict[str, tuple[str, Callable[..., bool]]] = {
    "clamped_exp": (" in order", lambda low, high: low <= high),
    "soft_clipped_exp": (" but 0", lambda c: c != 0),
    "softplus": (" of at least 0", lambda eps: eps >= 0),
    "sigmoid": (", eps of at least 0", lambda bias, eps: eps >= 0),
}


def default_constants(scale: str) -> tuple[float, ...]:
    """The constants of a scale map where none are given.

    >>> default_constants("clamped_exp")
    (-5.0, 3.0)
    """
    one_of("scale", scale, SCALES)
    return _DEFAULTS[scale]


@dataclass(unsafe_hash=True)  # its base makes it immutable
class Affine(UnivariateMap):
    """An affine map: parameter 0 of a feature is the shift, parameter 1, where the scale map takes one, the raw scale.

    Raises:
        ValueError: for an unknown name or a wrong number of constants.

    >>> Affine("sigmoid", "gate", (0, 0.1))
    Affine(scale='sigmoid', placement='gate', constants=(0.0, 0.1))
    >>> Affine("none").count, Affine("exp").count
    (1, 2)
    """

    scale: str = "exp"
    placement: str = "standardize"
    constants: tuple[float, ...] = None  # type: ignore[assignment]  # the scale map's own

    family: ClassVar[str] = "affine"
    kind: ClassVar[int] = 0

    def __post_init__(self) -> None:
        default = default_constants(self.scale)
        one_of("placement", self.placement, PLACEMENTS)
        try:
            values = floats(default if self.constants is None else self.constants)
        except (TypeError, ValueError):
            raise ValueError(f"constants: expected numbers, got {self.constants!r}") from None
        if len(values) != len(default):
            raise ValueError(f"constants: the scale map {self.scale!r} takes {len(default)}, got {len(values)}")
        wanted, fits = _FITTING.get(self.scale, ("", None))
        if any(map(math.isnan, values)) or not (fits is None or fits(*values)):
            raise ValueError(f"constants: the scale map {self.scale!r} takes numbers{wanted}, got {values}")
        self.constants = values
        self.names = ("shift",) if self.scale == "none" else ("shift", "raw")
        self.options = SCALES.index(self.scale), PLACEMENTS.index(self.placement)
        super().__post_init__()

    def oracle(self, u: Tensor, *parameters: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        return self._oracle(u, *parameters, inverse=inverse)

    @property
    def _oracle(self) -> partial[tuple[Tensor, Tensor]]:
        return partial(reference.affine_map, scale=self.scale, placement=self.placement, constants=self.constants)

    def reads(self, inverse: bool) -> Reads:
        """The raw scale, and the input where z = x s + t or x / s - t, the output where z = (x - t) / s or (x + t) s; the gate
        needs the shift too.
        """
        raw = tuple(range(1, self.count))
        if self.placement == "gate":
            return Reads(False, (0, *raw))
        return Reads((self.placement == "scale_shift") == inverse, raw)


def affine_map(scale: str, placement: str, constants: Sequence[float] | None) -> UnivariateMap:
    """The map that ``scale=``, ``placement=`` and ``constants=`` of an operator name.

    >>> affine_map("exp", "standardize", None)
    Affine(scale='exp', placement='standardize', constants=())
    """
    try:
        key = scale, placement, None if constants is None else tuple(constants)
        if torch.compiler.is_compiling():
            _make_outside(*key)
            return getattr(_TRACED, _name(key))
        return _MADE.get(key) or _make(key)
    except TypeError:  # what cannot be a key is no map either; this says why
        return Affine(scale, placement, constants)  # type: ignore[arg-type]


_Key = tuple[str, str, tuple[float, ...] | None]
_MADE: dict[_Key, UnivariateMap] = {}


def _name(key: _Key) -> str:
    """Of an attribute, which torch.compile takes without dots."""
    scale, placement, constants = key
    return f"{scale} {placement} {constants}".replace(".", "_")


def _make(key: _Key) -> UnivariateMap:
    return _MADE.setdefault(key, Affine(*key))  # type: ignore[arg-type]


class _Traced:
    """Maps as attributes: what torch.compile reads of an object it guards one by one, of a dictionary all at once."""


_TRACED = _Traced()


@constant_while_compiling
def _make_outside(scale: str, placement: str, constants: tuple[float, ...] | None) -> None:
    """Not traced: a map holds a tensor that outlives the call."""
    key = scale, placement, constants
    setattr(_TRACED, _name(key), _make(key))


def chosen_map(map: UnivariateMap | None, scale: str, placement: str, constants: Sequence[float] | None) -> UnivariateMap:
    """The map that was given, or the affine one of the names.

    Raises:
        TypeError: for what is no map.
        ValueError: for names that are of no affine map.
    """
    return affine_map(scale, placement, constants) if map is None else check_map(map)
