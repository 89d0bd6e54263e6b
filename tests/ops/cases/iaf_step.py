"""The gated step of an inverse autoregressive flow, against the formula of the paper."""

from __future__ import annotations

from typing import Any

import torch
from calls import Example
from case import Case
from hypothesis import strategies as st

import flowkern as fk
from flowkern import reference


def draw(rows: int, seed: int, *, features: int = 9, **options: Any) -> Example:
    generator = torch.Generator().manual_seed(seed)
    tensors = torch.randn(3, rows, features, generator=generator, dtype=torch.float64)
    return Example(dict(zip(("z", "m", "s"), tensors, strict=True)), {}, lambda t: {**t, **options})


def any_variation(draw: Any) -> dict[str, Any]:
    return {"features": draw(st.integers(1, 70)), "bias": draw(st.sampled_from([0.0, 1.0, -2.0]))}


CASE = Case(
    operator=fk.ops.iaf_step,
    outputs=("x", "log_det"),
    draw=draw,
    variations={"no bias": {}, "a bias": {"bias": 1.5}, "one feature": {"features": 1}},
    smooth={"small": {"features": 4, "bias": 1.0}},
    any=any_variation,
    oracle=reference.iaf_step,
    large={"features": 77},
    bad={
        "integers": (lambda a: {"z": a["z"].long()}, TypeError, "expected a floating"),
        "shape of m": (lambda a: {"m": a["m"][:, :-1]}, ValueError, "do not broadcast"),
        "dtype of s": (lambda a: {"s": a["s"].double()}, TypeError, "expected dtype"),
    },
)
