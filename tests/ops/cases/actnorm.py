"""Activation normalisation of images and vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from calls import Example
from case import Case
from hypothesis import strategies as st

import flowkern as fk


def draw(rows: int, seed: int, *, channels: int = 40, pixels: int = 2, inverse: bool = False) -> Example:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    parameters = {"bias": normal(channels), "log_scale": 0.3 * normal(channels)}
    return Example({"x": normal(rows, channels, pixels)}, parameters, lambda t: {**t, "inverse": inverse})


SIZES = {
    "images": {},
    "vectors": {"channels": 19, "pixels": 1},
    "one channel": {"channels": 1, "pixels": 70},
    "large images": {"channels": 3, "pixels": 201},
    "no pixels": {"pixels": 0},
}
BOTH = {f"{name}{' inverse' * i}": {**size, "inverse": i} for name, size in SIZES.items() for i in (False, True)}


def any_variation(draw: Callable[..., Any]) -> dict[str, Any]:
    sizes = {"channels": draw(st.integers(1, 40)), "pixels": draw(st.integers(0, 40))}
    return {**sizes, "inverse": draw(st.booleans())}


CASE = Case(
    operator=fk.ops.actnorm,
    outputs=("z", "log_det"),
    draw=draw,
    variations=BOTH,
    smooth={name: {**BOTH[name], "channels": 2, "pixels": 3} for name in ("images", "images inverse")},
    any=any_variation,
    layouts={name: BOTH[name] for name in ("images", "vectors inverse")},
    large={"pixels": 64},
    stand_in_rows=12,
    bad={
        "integers": (lambda a: {"x": a["x"].long()}, TypeError, "x: expected a floating"),
        "no images": (lambda a: {"x": a["x"][0, 0]}, ValueError, r"x: expected 40 channels in dimension -2, got shape \(2,\)"),
        "channels": (
            lambda a: {"x": a["x"][:, 1:]},
            ValueError,
            r"x: expected 40 channels in dimension -2, got shape \(3, 39, 2\)",
        ),
        "no channels": (lambda a: {"bias": a["bias"][:0]}, ValueError, r"bias: expected shape \(channels,\) with at least one"),
        "shape of log_scale": (
            lambda a: {"log_scale": a["log_scale"][1:]},
            ValueError,
            r"log_scale: expected shape \(40,\), got \(39,\)",
        ),
        "dtype of bias": (lambda a: {"bias": a["bias"].double()}, TypeError, "bias: expected dtype torch.float32 like x"),
        "device of log_scale": (lambda a: {"log_scale": a["log_scale"].to("meta")}, ValueError, "log_scale: expected device"),
        "no tensor": (lambda a: {"bias": None}, TypeError, r"bias: expected a torch\.Tensor, got NoneType"),
    },
)
