"""Monotonic rational-quadratic splines: an interval in bins, each with a quotient of two quadratic polynomials.

The parameters of a feature are the raw widths of its K bins, their raw heights, and the raw derivatives at the knots, in this
order. *Tails* say how the spline goes on outside its interval, and with it how many derivatives there are:

================= ============================================ ===== =================================================
tails             outside                                      count used by
================= ============================================ ===== =================================================
``linear``        the identity; the derivatives at the ends    K - 1 nflows, glasflow, normflows, zuko, Pyro
                  are given
``circular``      repeated: f(u + period) = f(u) + period; one K     normflows (which has the identity there), distrax
                  derivative for both ends
``unconstrained`` straight lines with the derivatives at the   K + 1 distrax; nflows with ``tails=None`` (which raises)
                  ends
================= ============================================ ===== =================================================

A *parametrization* makes sizes and derivatives of raw numbers a:

==================== =============================== ========================= ==========================================
parametrization      part of the interval, of K bins derivative                settings
==================== =============================== ========================= ==========================================
``soft_clipped_exp`` softmax(a / (1 + abs(2 a / c))) exp(a / (1 + abs(a / c))) slope, c = ln slope: 1e-3
``softplus``         m + (1 - K m) softmax(g a)      m' + softplus(a)          m of widths, of heights, m': 1e-3 each; the
                                                                               derivative at the ends: 1; gain g: 1
==================== =============================== ========================= ==========================================

============================================ ====================================================================
library                                      its map
============================================ ====================================================================
zuko                                         ``RationalQuadratic(K)``; NCSF: ``RationalQuadratic(K, (-pi, pi), shifted=True)``
nflows, glasflow, normflows: autoregressive  ``RationalQuadratic(K, (-B, B), "linear", "softplus")``
their couplings                              the same, with ``settings=(1e-3, 1e-3, 1e-3, 1, hidden ** -0.5)``
Pyro, ``order="quadratic"``                  the same, with ``settings=(1e-3, 1e-3, 1e-3, 0.999, 1)``
============================================ ====================================================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from flowkern import reference
from flowkern._checks import flag, interval, one_of
from flowkern.univariate.map import UnivariateMap
from flowkern.univariate.splines import (
    bins_of,
    check_least,
    gpu_obstacle_of,
    names_of,
    raw_derivative_of_one,
    settings_of,
)

TAILS = ("linear", "circular", "unconstrained")
PARAMETRIZATIONS = ("soft_clipped_exp", "softplus")

_DEFAULTS: dict[str, tuple[float, ...]] = {"soft_clipped_exp": (1e-3,), "softplus": (1e-3, 1e-3, 1e-3, 1.0, 1.0)}


@dataclass(unsafe_hash=True)  # its base makes it immutable
class RationalQuadratic(UnivariateMap):
    """A monotonic rational-quadratic spline from an interval onto itself, and on in its tails.

    Args:
        bins: number of bins K, from 2 to 128.
        interval: its ends; what lies at the upper one belongs to the tail.
        tails: one of :data:`TAILS`.
        parametrization: one of :data:`PARAMETRIZATIONS`.
        settings: the parametrization's own numbers, see the table.
        shifted: with linear tails, a spline of circular numbers about zero: they are turned into the interval, half a turn on,
            before the spline, and the inverse likewise after it.

    Raises:
        ValueError: for numbers that give no spline, and unknown names.

    References:
        Neural Spline Flows (Durkan et al., 2019), section 3.1; Normalizing Flows on Tori and Spheres (Rezende et al., 2020).

    >>> import torch
    >>> map = RationalQuadratic(8, (-3, 3))
    >>> map.count
    23
    >>> zeros = torch.zeros(23, 2).unbind()
    >>> map.oracle(torch.tensor([0.5, 7.0]), *zeros)  # equal bins and derivatives of one: the identity
    (tensor([0.5000, 7.0000]), tensor([0., 0.]))
    """

    bins: int = 8
    interval: tuple[float, float] = (-5.0, 5.0)
    tails: str = "linear"
    parametrization: str = "soft_clipped_exp"
    settings: tuple[float, ...] = None  # type: ignore[assignment]  # the parametrization's own
    shifted: bool = False

    family: ClassVar[str] = "rational_quadratic"
    kind: ClassVar[int] = 1

    def __post_init__(self) -> None:
        bins = bins_of(self.bins)
        one_of("tails", self.tails, TAILS)
        one_of("parametrization", self.parametrization, PARAMETRIZATIONS)
        self.bins, self.interval, self.shifted = bins, interval("interval", self.interval), flag("shifted", self.shifted)
        if self.shifted and (self.tails != "linear" or sum(self.interval) != 0):
            raise ValueError(
                f"shifted: expected linear tails of an interval about zero, got {self.tails} ones of {self.interval}"
            )
        self.settings = _settings(self.parametrization, self.settings, bins)
        self.derivatives = bins - 1 + TAILS.index(self.tails)
        self.names = names_of(width=bins, height=bins, derivative=self.derivatives)
        self.options = bins, TAILS.index(self.tails), PARAMETRIZATIONS.index(self.parametrization), int(self.shifted)
        if self.parametrization == "softplus":
            self.constants = *self.interval, *self.settings
        else:  # none has a least size; its ends have the derivative one
            self.constants = *self.interval, 0.0, 0.0, 0.0, 1.0, 1 / math.log(self.settings[0])
        self.gpu_obstacle = gpu_obstacle_of(bins)
        super().__post_init__()

    def oracle(self, u: Tensor, *parameters: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        return reference.rational_quadratic_map(u, *parameters, inverse=inverse, bins=self.bins, **self.spline_options)

    @property
    def identity(self) -> tuple[float, ...]:
        """Raw parameters with which the map is the identity: equal bins, derivatives of one.

        Raises:
            ValueError: where the least derivative is one or more.

        >>> RationalQuadratic(2).identity
        (0.0, 0.0, 0.0, 0.0, 0.0)
        """
        raw = raw_derivative_of_one(self.settings[2]) if self.parametrization == "softplus" else 0.0
        return (0.0,) * (2 * self.bins) + (raw,) * self.derivatives

    @property
    def spline_options(self) -> dict[str, Any]:
        """What the oracle of the operator ``spline`` is told."""
        names = ("interval", "tails", "parametrization", "settings", "shifted")
        return {name: getattr(self, name) for name in names}


def _settings(parametrization: str, given: object, bins: int) -> tuple[float, ...]:
    default = _DEFAULTS[parametrization]
    values = settings_of(default if given is None else given)
    if len(values) != len(default):
        raise ValueError(f"settings: the parametrization {parametrization!r} takes {len(default)}, got {len(values)}")
    if parametrization == "soft_clipped_exp":
        if not 0 < values[0] < 1:
            raise ValueError(f"settings: expected a slope between 0 and 1, got {values[0]}")
    else:
        check_least(values, bins)
    return values
