"""Log-probabilities under mixtures of logistics."""

from __future__ import annotations

import math
from typing import Any

import torch
from calls import Example
from case import Case
from hypothesis import strategies as st

import flowkern as fk


def draw(rows: int, seed: int, *, features: int = 5, components: int = 10, log_scale: float = -2.0, **options: Any) -> Example:
    """Values on both edges and in between, and mixtures of all scales around one, some tens of them from the values."""
    generator = torch.Generator().manual_seed(seed)
    x = 2.2 * torch.rand(rows, features, generator=generator, dtype=torch.float64) - 1.1
    levels = options.get("levels")
    if levels:
        x = torch.round((x.clamp(-1, 1) + 1) * (levels - 1) / 2) * 2 / (levels - 1) - 1
    logits, means, spread = torch.randn(3, rows, features, components, generator=generator, dtype=torch.float64)
    means = x.unsqueeze(-1) + min(1, 10 * math.exp(log_scale)) * means
    tensors = {"x": x, "logits": logits, "means": means, "log_scales": log_scale + 0.5 * spread}
    return Example(tensors, {}, lambda t: {**t, **options})


VARIATIONS: dict[str, dict[str, Any]] = {
    "density": {},
    "8 bits": {"levels": 256},
    "16 bits": {"levels": 65536, "log_scale": -6.0},
    "two levels": {"levels": 2, "log_scale": 0.0},
    "one component": {"levels": 256, "components": 1},
    "many components": {"components": 40, "features": 2},
    "narrow": {"levels": 256, "log_scale": -9.0},
    "wide": {"levels": 65536, "log_scale": 9.0},
    "least scale": {"levels": 256, "log_scale": -7.0, "log_scale_min": -7.1},
}


def any_variation(draw: Any) -> dict[str, Any]:
    variation = draw(st.sampled_from(list(VARIATIONS.values())))
    size = {"features": draw(st.integers(1, 9)), "components": draw(st.sampled_from([1, 2, 5, 8, 33]))}
    return {**variation, **size}


CASE = Case(
    operator=fk.ops.logistic_mixture,
    outputs=("log_prob",),
    draw=draw,
    variations=VARIATIONS,
    smooth={
        "density": {"features": 2, "components": 3, "log_scale": 0.0},
        "levels": {"features": 2, "components": 3, "levels": 9, "log_scale": -1.0},
    },
    any=any_variation,
    shows="log_prob",
    layouts={"density": {}, "8 bits": {"levels": 256}},
    large={"levels": 256},
    bad={
        "integers": (lambda a: {"x": a["x"].int()}, TypeError, "x: expected a floating"),
        "dtype of means": (lambda a: {"means": a["means"].double()}, TypeError, "means: expected dtype"),
        "device of logits": (lambda a: {"logits": a["logits"].to("meta")}, ValueError, "logits: expected device"),
        "no components": (
            lambda a: {k: a[k][..., :0] for k in ("logits", "means", "log_scales")},
            ValueError,
            r"logits: expected shape \(\.\.\., components\), got \(3, 5, 0\)",
        ),
        "other components": (
            lambda a: {"log_scales": a["log_scales"][..., :-1]},
            ValueError,
            r"log_scales: expected 10 components like logits, got shape \(3, 5, 9\)",
        ),
        "batch": (lambda a: {"x": a["x"][:2]}, ValueError, r"x: shapes \(2, 5\) and \(3, 5, 10\).* do not broadcast"),
        "one level": (lambda a: {"levels": 1}, ValueError, "levels: expected a whole number of at least 2, got 1"),
        "half a level": (lambda a: {"levels": 2.5}, ValueError, "levels: expected a whole number of at least 2, got 2.5"),
        "no number": (lambda a: {"log_scale_min": "-7"}, ValueError, "log_scale_min: expected a number, got '-7'"),
    },
)
