"""Row sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from calls import Example
from case import Case
from hypothesis import strategies as st

import flowkern as fk


def draw(rows: int, seed: int, features: int = 77) -> Example:
    generator = torch.Generator().manual_seed(seed)
    return Example({"log_scale": torch.randn(rows, features, generator=generator, dtype=torch.float64)}, {}, dict)


def any_variation(draw: Callable[..., Any]) -> dict[str, Any]:
    return {"features": draw(st.integers(1, 100))}


WIDTHS = {f"{n} features": {"features": n} for n in (63, 0, 1, 7, 8, 20_000, 1000)}

CASE = Case(
    operator=fk.ops.log_det,
    outputs=("log_det",),
    draw=draw,
    variations=WIDTHS,
    smooth={"small": {"features": 4}},
    any=any_variation,
    layouts={name: width for name, width in WIDTHS.items() if width["features"] < 20_000},
    bad={
        "integers": (lambda a: {"log_scale": a["log_scale"].long()}, TypeError, "log_scale: expected a floating"),
        "no dimension": (lambda a: {"log_scale": torch.tensor(1.0)}, ValueError, "log_scale: expected shape"),
    },
)
