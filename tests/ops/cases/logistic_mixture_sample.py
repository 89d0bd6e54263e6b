"""Samples of mixtures of logistics: real numbers. With levels a rounding decides, see tests/ops/test_logistic_mixture.py."""

from __future__ import annotations

from typing import Any

import torch
from calls import Example
from case import Case
from hypothesis import strategies as st

import flowkern as fk


def draw(rows: int, seed: int, *, features: int = 5, components: int = 10, **options: Any) -> Example:
    generator = torch.Generator().manual_seed(seed)
    # Below a half, since the contract doubles arguments.
    u, *choice = 0.02 + 0.47 * torch.rand(components + 1, rows, features, generator=generator, dtype=torch.float64)
    names = ("logits", "means", "log_scales")
    tensors = torch.randn(3, rows, features, components, generator=generator, dtype=torch.float64)
    noise = {"u": u, "choice": torch.stack(choice, -1)}
    return Example({**noise, **dict(zip(names, tensors, strict=True))}, {}, lambda t: {**t, **options})


def any_variation(draw: Any) -> dict[str, Any]:
    return {"features": draw(st.integers(1, 9)), "components": draw(st.sampled_from([1, 2, 5, 8, 33]))}


CASE = Case(
    operator=fk.ops.logistic_mixture_sample,
    outputs=("x",),
    draw=draw,
    variations={
        "one component": {"components": 1},
        "many components": {"components": 40},
        "least scale": {"log_scale_min": 0.1},
    },
    smooth={"small": {"features": 2, "components": 3}},
    any=any_variation,
    shows="x",
    bad={
        "integers": (lambda a: {"u": a["u"].int()}, TypeError, "u: expected a floating"),
        "integers for choice": (lambda a: {"choice": a["choice"].int()}, TypeError, "choice: expected a floating"),
        "choices": (
            lambda a: {"choice": a["choice"][..., :-1]},
            ValueError,
            r"choice: expected shape \(\.\.\., 10\), got \(3, 5, 9\)",
        ),
        "dtype of means": (lambda a: {"means": a["means"].double()}, TypeError, "means: expected dtype .* like u"),
        "batch": (lambda a: {"u": a["u"][:2]}, ValueError, r"u: shapes \(2, 5\) and .* do not broadcast"),
        "one level": (lambda a: {"levels": 1}, ValueError, "levels: expected a whole number of at least 2, got 1"),
    },
)
