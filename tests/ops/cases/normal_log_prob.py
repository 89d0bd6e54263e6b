"""The density of noise."""

from __future__ import annotations

from typing import Any

import torch
from calls import Example
from case import Case
from hypothesis import strategies as st

import flowkern as fk


def draw(rows: int, seed: int, features: int = 77) -> Example:
    generator = torch.Generator().manual_seed(seed)
    drawn = {"z": torch.randn(rows, features, generator=generator, dtype=torch.float64)}
    return Example({**drawn, "log_det": torch.randn(rows, generator=generator, dtype=torch.float64)}, {}, dict)


def any_variation(draw: Any) -> dict[str, Any]:
    return {"features": draw(st.integers(1, 100))}


WIDTHS = {f"{n} features": {"features": n} for n in (63, 0, 1, 7, 8, 20_000, 1000)}

CASE = Case(
    operator=fk.ops.normal_log_prob,
    outputs=("log_prob",),
    draw=draw,
    variations=WIDTHS,
    smooth={"small": {"features": 4}},
    any=any_variation,
    shows="log_prob",
    layouts={name: width for name, width in WIDTHS.items() if width["features"] < 20_000},
    bad={
        "integers": (lambda a: {"z": a["z"].int()}, TypeError, "z: expected a floating"),
        "no dimension": (lambda a: {"z": torch.tensor(1.0)}, ValueError, r"z: expected shape \(..., features\), got \(\)"),
        "shape of log_det": (
            lambda a: {"log_det": a["log_det"][:-1]},
            ValueError,
            r"log_det: expected shape \(3,\), got \(2,\)",
        ),
        "dtype of log_det": (lambda a: {"log_det": a["log_det"].double()}, TypeError, "log_det: expected dtype"),
    },
)
