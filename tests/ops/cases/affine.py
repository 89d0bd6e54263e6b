"""Affine maps of given parameters, in both directions."""

from __future__ import annotations

from typing import Any

import torch
from calls import Example, drawn_map
from case import Case
from hypothesis import strategies as st

import flowkern as fk
from flowkern.univariate import PLACEMENTS, SCALES

MAPS = {
    f"{scale} {placement}{' inverse' if inverse else ''}": {"scale": scale, "placement": placement, "inverse": inverse}
    for scale in SCALES
    for placement in PLACEMENTS
    for inverse in (False, True)
}


def draw(rows: int, seed: int, *, features: int = 19, inverse: bool = False, **map: Any) -> Example:
    generator = torch.Generator().manual_seed(seed)
    names = ("x", "shift") if map.get("scale") == "none" else ("x", "shift", "raw")
    tensors = torch.randn(len(names), rows, features, generator=generator, dtype=torch.float64)
    options = {"inverse": inverse, **drawn_map(**map)} if map else {}
    return Example(dict(zip(names, tensors, strict=True)), {}, lambda t: {**t, **options})


def any_variation(draw: Any) -> dict[str, Any]:
    return {**draw(st.sampled_from(list(MAPS.values()))), "features": draw(st.sampled_from([0, 1, 2, 7, 8, 9, 63, 1000]))}


CASE = Case(
    operator=fk.ops.affine,
    outputs=("z", "log_det"),
    draw=draw,
    variations={**MAPS, "one feature": {"features": 1}, "many features": {"features": 1000}},
    smooth={name: {**map, "features": 4} for name, map in MAPS.items() if map["scale"] != "clamped_exp"},
    any=any_variation,
    compiled={"exp": {"features": 4}},
    large={"features": 77},
    bad={
        "integers": (lambda a: {"x": a["x"].long()}, TypeError, "x: expected a floating"),
        "no dimension": (lambda a: dict.fromkeys(a, torch.tensor(1.0)), ValueError, "x: expected shape"),
        "no raw scale": (lambda a: {"raw": None}, ValueError, r"raw: expected a tensor, since .* takes shift, raw, got None"),
        "a raw scale": (lambda a: {"scale": "none"}, ValueError, r"parameters: Affine\(.*\) takes shift, got 2 tensors"),
        "shape of shift": (lambda a: {"shift": a["shift"][:, :-1]}, ValueError, "do not broadcast"),
        "dtype of shift": (lambda a: {"shift": a["shift"].double()}, TypeError, "shift: expected dtype"),
        "device of raw": (lambda a: {"raw": a["raw"].to("meta")}, ValueError, "raw: expected device"),
    },
)
