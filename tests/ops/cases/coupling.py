"""Couplings: some features move, by parameters of their own, and the others pass."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from calls import Example, drawn_map
from case import Case, unless_a_spline
from hypothesis import strategies as st
from torch import Tensor

import flowkern as fk
from flowkern.univariate import PARAMETRIZATIONS, PLACEMENTS, SCALES, TAILS, RationalLinear, RationalQuadratic

TABLE = (3, -1, 0, -1, -1, 2, 1, -1, 4)  # the column of every feature's parameters
CHOICES: dict[str, slice | tuple[int, ...]] = {
    "half": slice(5, None),
    "alternating": slice(1, None, 2),
    "all": slice(None),
    "table": TABLE,
}


@functools.wraps(fk.ops.coupling)
def coupling(
    x: Tensor, shift: Tensor, raw: Tensor | None = None, more: Sequence[Tensor] = (), **options: Any
) -> tuple[Tensor, Tensor]:
    """With names for the parameters, as the contract gives arguments."""
    return fk.ops.coupling(x, shift, raw, *more, **options)


def draw(
    rows: int,
    seed: int,
    *,
    features: int = 9,
    transformed: slice | tuple[int, ...] = CHOICES["half"],
    interleaved: bool = False,
    inverse: bool = False,
    **map: Any,
) -> Example:
    """Parameters come from one tensor: in two halves, or as Glow's channels, one by one."""
    generator = torch.Generator().manual_seed(seed)
    moved = range(features)[transformed] if isinstance(transformed, slice) else [c for c in transformed if c >= 0]
    count = len(moved)
    x = torch.randn(rows, features, generator=generator, dtype=torch.float64)
    each, spread = 2, 1.0
    if "map" in map:  # a spline, whose bins are wide and of about one size, so that it stays well conditioned
        each, spread, x = map["map"].count, 0.2, 4 * x
    parameters = spread * torch.randn(rows, each * count, generator=generator, dtype=torch.float64)
    options = {"inverse": inverse, **drawn_map(**{"placement": "scale_shift", **map})} if map else {"inverse": inverse}

    def arguments(t: Any) -> dict[str, Any]:
        given: Tensor = t["parameters"]
        split = given.unflatten(-1, (count, each)).unbind(-1) if interleaved else given.unflatten(-1, (each, count)).unbind(-2)
        shift, raw, *more = split
        where = transformed if isinstance(transformed, slice) else torch.tensor(transformed, device=given.device)
        return {
            "x": t["x"],
            "shift": shift,
            "raw": None if map.get("scale") == "none" else raw,
            "more": more,
            "transformed": where,
            **options,
        }

    return Example({"x": x, "parameters": parameters}, {}, arguments)


def any_variation(draw: Any) -> dict[str, Any]:
    features = draw(st.sampled_from([1, 2, 8, 9, 64, 300]))
    begin, step = draw(st.integers(0, features)), draw(st.sampled_from([1, 2, 3]))
    return {
        "features": features,
        "transformed": slice(begin, None, step),
        "interleaved": draw(st.booleans()),
        "inverse": draw(st.booleans()),
        "scale": draw(st.sampled_from(SCALES)),
        "placement": draw(st.sampled_from(PLACEMENTS)),
    }


# Every scale map of every choice in both directions, the placements in turn.
MAPS = {
    f"{name} {scale}{' inverse' if inverse else ''}": {
        "transformed": transformed,
        "scale": scale,
        "placement": PLACEMENTS[(SCALES.index(scale) + inverse) % len(PLACEMENTS)],
        "inverse": inverse,
    }
    for name, transformed in CHOICES.items()
    for scale in SCALES
    for inverse in (False, True)
}
# Settings with which the derivatives at all knots are about one.
SLOPES = {"soft_clipped_exp": (1e-3,), "softplus": (1e-3, 1e-3, 0.3, 1.0, 1.0)}
# Splines of every kind in both directions, the choices in turn.
SPLINES = {
    f"spline {tails} {kind}{' inverse' if inverse else ''}{' interleaved' if interleaved else ''}": {
        "transformed": list(CHOICES.values())[TAILS.index(tails) + inverse],
        "map": RationalQuadratic(4, (-4, 8), tails, kind, SLOPES[kind]),
        "inverse": inverse,
        "interleaved": interleaved,
    }
    for tails in TAILS
    for kind in PARAMETRIZATIONS
    for inverse in (False, True)
    for interleaved in ((False, True) if tails == "linear" else (False,))
}
SPLINES |= {
    f"rational-linear spline{' inverse' if inverse else ''}": {
        "transformed": CHOICES["alternating"],
        "map": RationalLinear(4, (-4, 8), (1e-3, 1e-3, 0.3, 1.0, 0.1)),
        "inverse": inverse,
        "interleaved": True,
    }
    for inverse in (False, True)
}
WIDTHS = {
    f"{features} features, {name}": {"features": features, "transformed": transformed, "scale": "soft_clipped_exp"}
    for features in (63, 2, 1000, 20_000)
    for name, transformed in (("half", slice(features // 2, None)), ("alternating", slice(0, None, 2)))
    if features < 20_000 or name == "alternating"
}


def table(*columns: int) -> Any:
    """Replaces the choice of features by a table."""
    return lambda _: {"transformed": torch.tensor(columns)}


CASE = Case(
    operator=coupling,
    outputs=("z", "log_det"),
    draw=draw,
    variations={
        **MAPS,
        **WIDTHS,
        **{f"{name} interleaved": {"transformed": t, "interleaved": True} for name, t in CHOICES.items()},
        **SPLINES,
        "no feature": {"transformed": slice(9, None)},
        "one feature": {"features": 1, "transformed": slice(None)},
    },
    smooth={
        f"{name}{' inverse' if inverse else ''}": {"transformed": t, "scale": "softplus", "inverse": inverse}
        for name, t in CHOICES.items()
        for inverse in (False, True)
    }
    | {
        f"spline{' inverse' if inverse else ''}": {
            "transformed": CHOICES["half"],
            "map": RationalQuadratic(3, (-1, 2), "unconstrained"),
            "inverse": inverse,
        }
        for inverse in (False, True)
    },
    any=any_variation,
    layouts={name: {"transformed": CHOICES[name]} for name in ("half", "alternating", "table")},
    dtypes=unless_a_spline,
    compiled={"half inverse": {"transformed": CHOICES["half"], "inverse": True}, "table": {"transformed": TABLE}},
    large={"features": 77, "transformed": slice(40, None)},
    bad={
        "integers": (lambda a: {"x": a["x"].long()}, TypeError, "x: expected a floating"),
        "no dimension": (lambda a: {"x": torch.tensor(1.0)}, ValueError, r"x: expected shape \(..., features\), got \(\)"),
        "no raw scale": (lambda a: {"raw": None}, ValueError, r"raw: expected a tensor, since .* takes shift, raw, got None"),
        "a raw scale": (lambda a: {"scale": "none"}, ValueError, r"parameters: Affine\(.*\) takes shift, got 2 tensors"),
        "shape of shift": (
            lambda a: {"shift": torch.ones(3, 5)},
            ValueError,
            r"shift: expected shape \(..., 4\) for the transformed features, got",
        ),
        "dtype of raw": (lambda a: {"raw": a["raw"].double()}, TypeError, r"raw: expected dtype torch.float32 like x"),
        "batch of raw": (lambda a: {"raw": a["raw"][:2]}, ValueError, "shift, raw: expected batch shapes that broadcast"),
        "a slice backwards": (
            lambda a: {"transformed": slice(None, None, -1)},
            ValueError,
            "transformed: expected a slice with a positive step",
        ),
        "a list": (
            lambda a: {"transformed": [5, 6, 7, 8]},
            ValueError,
            r"transformed: expected a slice or an int64 tensor \(9,\)",
        ),
        "a short table": (table(*TABLE[:8]), ValueError, r"an int64 tensor \(9,\), got torch.int64 \(8,\)"),
        "a column twice": (table(0, 1, 2, 3, 3, -1, -1, -1, -1), RuntimeError, "expected each column from 0 to 3 once"),
        "a column too many": (table(0, 1, 2, 4, -1, -1, -1, -1, -1), RuntimeError, "got 4 for feature 3"),
        "a column left out": (table(0, 1, 2, -1, -1, -1, -1, -1, -1), RuntimeError, "expected 4 features with a column"),
    },
)
