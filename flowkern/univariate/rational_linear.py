"""Monotonic rational-linear splines: in either half of a bin a quotient of two linear functions.

An interval has K bins, each divided in two. The parameters of a feature are the raw widths of the bins, their raw heights, the
raw derivatives at the K - 1 knots between them, and K raw numbers that say where the bins are divided, in this order. Outside
the interval is the identity. Raw numbers a become

============================== ================================ ===================================================
part of the interval           m + (1 - K m) softmax(a)         m of widths, of heights: 1e-3 each
derivative at a knot           m + softplus(a)                  m: 1e-3; the derivative at the ends is given: 1
part of a bin at its division  m + (1 - 2 m) sigmoid(a)         m: 0.025
============================== ================================ ===================================================

The curve and its slope are continuous at knots and divisions, and the inverse, being of the same kind, takes no root. Pyro's
splines, ``order="linear"``, which is its default, are ``RationalLinear(K, (-B, B), (1e-3, 1e-3, 1e-3, 0.999, 0.025))``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from flowkern import reference
from flowkern._checks import interval
from flowkern.univariate.map import UnivariateMap
from flowkern.univariate.rational_quadratic import PARAMETRIZATIONS, TAILS
from flowkern.univariate.splines import (
    bins_of,
    check_least,
    gpu_obstacle_of,
    names_of,
    raw_derivative_of_one,
    settings_of,
)


@dataclass(unsafe_hash=True)  # its base makes it immutable
class RationalLinear(UnivariateMap):
    """A monotonic rational-linear spline from an interval onto itself, and the identity outside.

    Args:
        bins: number of bins K, from 2 to 128.
        interval: its ends.
        settings: the least width, the least height and the least derivative, the derivative at the ends, and the least part of
            a bin on either side of its division.

    Raises:
        ValueError: for numbers that give no spline.

    References:
        Invertible Generative Modeling using Linear Rational Splines (Dolatabadi et al., 2020).

    >>> import torch
    >>> map = RationalLinear(8, (-3, 3))
    >>> map.count
    31
    >>> raw = torch.tensor(map.identity)[:, None].expand(-1, 2)
    >>> map.oracle(torch.tensor([0.5, 7.0]), *raw)[0]
    tensor([0.5000, 7.0000])
    """

    bins: int = 8
    interval: tuple[float, float] = (-5.0, 5.0)
    settings: tuple[float, ...] = (1e-3, 1e-3, 1e-3, 1.0, 0.025)

    family: ClassVar[str] = "rational_linear"
    kind: ClassVar[int] = 2
    tails: ClassVar[str] = "linear"
    parametrization: ClassVar[str] = "softplus"

    def __post_init__(self) -> None:
        bins, settings = bins_of(self.bins), settings_of(self.settings)
        if len(settings) != 5:
            raise ValueError(f"settings: a rational-linear spline takes 5, got {len(settings)}")
        check_least(settings, bins)
        if not 0 < settings[4] < 0.5:
            raise ValueError(f"settings: expected a least part of a bin between 0 and 0.5, got {settings[4]}")
        self.bins, self.interval = bins, interval("interval", self.interval)
        self.settings, self.derivatives = settings, bins - 1
        self.names = names_of(width=bins, height=bins, derivative=self.derivatives, **{"lambda": bins})
        self.options = bins, TAILS.index(self.tails), PARAMETRIZATIONS.index(self.parametrization), 0
        self.constants = *self.interval, *settings[:4], 1.0, settings[4]  # the gain of raw sizes is one
        self.gpu_obstacle = gpu_obstacle_of(bins)
        super().__post_init__()

    def oracle(self, u: Tensor, *parameters: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        return reference.rational_linear_map(u, *parameters, inverse=inverse, bins=self.bins, **self.spline_options)

    @property
    def identity(self) -> tuple[float, ...]:
        """Raw parameters with which the map is the identity: equal bins, derivatives of one, divided in the middle.

        Raises:
            ValueError: where the least derivative is one or more.

        >>> len(RationalLinear(2).identity)
        7
        """
        return (0.0,) * (2 * self.bins) + (raw_derivative_of_one(self.settings[2]),) * self.derivatives + (0.0,) * self.bins

    @property
    def spline_options(self) -> dict[str, Any]:
        """What the oracle of the operator ``spline`` is told."""
        *settings, least_lambda = self.settings
        names = ("interval", "tails", "parametrization")
        given = {name: getattr(self, name) for name in names}
        return {**given, "settings": (*settings, 1.0), "least_lambda": least_lambda}
