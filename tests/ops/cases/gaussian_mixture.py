"""Log-densities under mixtures of Gaussians."""

from __future__ import annotations

import dataclasses
from typing import Any

from calls import Example
from case import Case
from hypothesis import strategies as st

import flowkern as fk
from cases import logistic_mixture


def draw(rows: int, seed: int, *, log_scale: float = -1.0, **options: Any) -> Example:
    """As for logistics, but at most 36 deviations from a mean: beyond, shares of a component are no numbers of float64."""
    example = logistic_mixture.draw(rows, seed, log_scale=log_scale, **options)
    rows = dict(example.rows)
    x, most = rows["x"].unsqueeze(-1), 36 * rows["log_scales"].exp()
    rows["means"] = x + (rows["means"] - x).clamp(-most, most)
    return dataclasses.replace(example, rows=rows)


VARIATIONS: dict[str, dict[str, Any]] = {
    "density": {},
    "one component": {"components": 1},
    "many components": {"components": 40, "features": 2},
    "narrow": {"log_scale": -9.0},
    "wide": {"log_scale": 9.0},
    "least scale": {"log_scale": -7.0, "log_scale_min": -7.1},
}


def any_variation(draw: Any) -> dict[str, Any]:
    variation = draw(st.sampled_from(list(VARIATIONS.values())))
    return {**variation, "features": draw(st.integers(1, 9)), "components": draw(st.sampled_from([1, 2, 5, 8, 33]))}


CASE = Case(
    operator=fk.ops.gaussian_mixture,
    outputs=("log_prob",),
    draw=draw,
    variations=VARIATIONS,
    smooth={"density": {"features": 2, "components": 3, "log_scale": 0.0}},
    any=any_variation,
    shows="log_prob",
    layouts={"density": {}},
    bad={name: bad for name, bad in logistic_mixture.CASE.bad.items() if "level" not in name},
)
