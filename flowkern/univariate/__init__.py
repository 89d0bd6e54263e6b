"""Univariate maps u -> v as values: what they are called, how many parameters a feature has, their constants.

Operators and layers take a map as ``map=``; the affine ones also by name, as ``scale=``, ``placement=`` and ``constants=``, see
:mod:`flowkern.univariate.affine`. Splines: :mod:`flowkern.univariate.rational_quadratic`,
:mod:`flowkern.univariate.rational_linear`.
"""

from flowkern.univariate.affine import PLACEMENTS, SCALES, Affine, affine_map, chosen_map, default_constants
from flowkern.univariate.map import Reads, UnivariateMap, check_map
from flowkern.univariate.rational_linear import RationalLinear
from flowkern.univariate.rational_quadratic import PARAMETRIZATIONS, TAILS, RationalQuadratic

__all__ = [
    "PARAMETRIZATIONS",
    "PLACEMENTS",
    "SCALES",
    "TAILS",
    "Affine",
    "RationalLinear",
    "RationalQuadratic",
    "Reads",
    "UnivariateMap",
    "affine_map",
    "check_map",
    "chosen_map",
    "default_constants",
]
