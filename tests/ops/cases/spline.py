"""Splines, every element with its own parameters."""

from __future__ import annotations

from typing import Any

import torch
from calls import Example
from case import Case, unless_a_spline
from hypothesis import strategies as st

import flowkern as fk
from flowkern.univariate import PARAMETRIZATIONS, TAILS, RationalLinear, RationalQuadratic


def draw(
    rows: int,
    seed: int,
    *,
    features: int = 12,
    inverse: bool = False,
    bins: int = 8,
    spread: float = 0.3,
    family: type = RationalQuadratic,
    **options: Any,
) -> Example:
    """Numbers inside and on both sides of the interval; bins that differ little enough for errors to stay well conditioned."""
    map = family(bins, **{"interval": (-2, 3), **options})
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(rows, features, generator=generator, dtype=torch.float64) + 0.5
    sizes = {"widths": bins, "heights": bins, "derivatives": map.derivatives}
    if family is RationalLinear:
        sizes["lambdas"] = bins
    given = {
        name: spread * torch.randn(rows, features, n, generator=generator, dtype=torch.float64) for name, n in sizes.items()
    }
    return Example({"x": x, **given}, {}, lambda t: {**t, "map": map, "inverse": inverse})


KINDS = {
    f"{tails} {kind}{' inverse' if inverse else ''}": {"tails": tails, "parametrization": kind, "inverse": inverse}
    for tails in TAILS
    for kind in PARAMETRIZATIONS
    for inverse in (False, True)
}
KINDS |= {
    f"rational-linear{' inverse' if inverse else ''}": {"family": RationalLinear, "inverse": inverse}
    for inverse in (False, True)
}
SHIFTED = {
    f"shifted{' inverse' if inverse else ''}": {"interval": (-3, 3), "shifted": True, "inverse": inverse}
    for inverse in (False, True)
}
SIZES = {
    "two bins": {"bins": 2},
    "many bins": {"bins": 128, "features": 5},
    "many bins inverse": {"bins": 128, "features": 5, "inverse": True},
    "nine bins, one feature": {"bins": 9, "features": 1},
    "nearly equal bins": {"spread": 1e-4},
    "nearly equal bins inverse": {"spread": 1e-4, "inverse": True},
}


def any_variation(draw: Any) -> dict[str, Any]:
    kind = draw(st.sampled_from(list(KINDS.values())))
    return {**kind, "bins": draw(st.integers(2, 20)), "features": draw(st.sampled_from([0, 5, 24]))}


CASE = Case(
    operator=fk.ops.spline,
    outputs=("z", "log_slope"),
    draw=draw,
    variations={**KINDS, **SHIFTED, **SIZES},
    smooth={name: {**kind, "features": 2, "bins": 3} for name, kind in {**KINDS, **SHIFTED}.items()},
    any=any_variation,
    compiled={"inverse": {"inverse": True}},
    shows="log_slope",
    dtypes=lambda variation: unless_a_spline({"map": None}),
    bad={
        "integers": (lambda a: {"x": a["x"].int()}, TypeError, "x: expected a floating"),
        "no spline": (
            lambda a: {"map": 8},
            TypeError,
            "map: expected a flowkern.univariate.RationalQuadratic or RationalLinear, got int",
        ),
        "lambdas": (
            lambda a: {"lambdas": a["widths"]},
            ValueError,
            "lambdas: expected those of a RationalLinear and none else, got some for a RationalQuadratic",
        ),
        "dtype of heights": (lambda a: {"heights": a["heights"].double()}, TypeError, "heights: expected dtype"),
        "device of widths": (lambda a: {"widths": a["widths"].to("meta")}, ValueError, "widths: expected device"),
        "count of derivatives": (
            lambda a: {"derivatives": a["widths"]},
            ValueError,
            r"derivatives: expected shape \(\.\.\., 7\) for 8 bins, got \(3, 12, 8\)",
        ),
        "batch": (lambda a: {"x": a["x"][:2]}, ValueError, r"shapes \(3, 12, 8\).* do not broadcast with x \(2, 12\)"),
    },
)
