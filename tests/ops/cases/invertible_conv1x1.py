"""Invertible 1x1 convolutions, in both forms and directions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from calls import Example
from case import Case
from hypothesis import strategies as st
from torch import Tensor

import flowkern as fk

NAMES = ("lower", "upper", "log_scale", "order", "sign")


def draw(rows: int, seed: int, *, channels: int = 24, pixels: int = 2, lu: bool = True, inverse: bool = False) -> Example:
    """Triangles that are well conditioned, with numbers in the parts that are not read."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x, size = normal(rows, channels, pixels), 0.5 / channels**0.5
    lower, upper, log_scale = size * normal(channels, channels), size * normal(channels, channels), 0.3 * normal(channels)
    order, sign = torch.randperm(channels, generator=generator), normal(channels).sign()
    if not lu:
        product = (lower.tril(-1) + torch.eye(channels)) @ (upper.triu(1) + torch.diag(sign * log_scale.exp()))
        added = 3 * torch.eye(channels)  # later, so that the matrix is regular where all rows of the parameter are the first
        return Example(
            {"x": x},
            {"weight": product[order] - added},
            lambda t: {**t, "weight": t["weight"] + added.to(t["weight"]), "inverse": inverse},
        )
    constants = {"order": order}
    return Example(
        {"x": x},
        {"lower": lower, "upper": upper, "log_scale": log_scale},
        lambda t: {**t, **constants, "sign": sign.to(t["x"]), "order": order.to(t["x"].device), "inverse": inverse},
    )


def operator(x: Tensor, *, inverse: bool = False, **matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The operator with its matrices by name."""
    names = ("weight",) if "weight" in matrix else NAMES
    return fk.ops.invertible_conv1x1(x, *(matrix[name] for name in names if name in matrix), inverse=inverse)


operator.__name__ = "invertible_conv1x1"

FORMS = {
    f"{'lu' if lu else 'plain'}{' inverse' * inverse}": {"lu": lu, "inverse": inverse}
    for lu in (True, False)
    for inverse in (False, True)
}
SIZES = {
    "vectors": {"channels": 19, "pixels": 1},
    "one channel": {"channels": 1, "pixels": 70},
    "wide": {"channels": 48, "pixels": 33},
    "no pixels": {"pixels": 0},
}
VARIATIONS = FORMS | {f"{name}, {form}": {**size, **options} for name, size in SIZES.items() for form, options in FORMS.items()}


def any_variation(draw: Callable[..., Any]) -> dict[str, Any]:
    sizes = {"channels": draw(st.integers(1, 40)), "pixels": draw(st.integers(0, 40))}
    return {**sizes, **draw(st.sampled_from(list(FORMS.values())))}


def only_a_weight(a: Mapping[str, Any]) -> dict[str, Any]:
    return {"weight": a["lower"][1:]}


CASE = Case(
    operator=operator,
    outputs=("z", "log_det"),
    draw=draw,
    variations=VARIATIONS,
    smooth={name: {**form, "channels": 3, "pixels": 2} for name, form in FORMS.items()},
    any=any_variation,
    # In float64 the oracle's long products are less exact than the kernels: test_invertible_conv1x1.py has a better judge.
    dtypes=lambda variation: (torch.float32,),
    layouts={name: VARIATIONS[name] for name in ("lu", "lu inverse", "vectors, lu")},
    compiled={name: FORMS[name] for name in ("lu", "plain inverse")},
    large={"pixels": 64},
    stand_in_rows=6,
    bad={
        "integers": (lambda a: {"x": a["x"].long()}, TypeError, "x: expected a floating"),
        "no images": (lambda a: {"x": a["x"][0, 0]}, ValueError, r"x: expected 24 channels in dimension -2, got shape \(2,\)"),
        "channels": (
            lambda a: {"x": a["x"][:, 1:]},
            ValueError,
            r"x: expected 24 channels in dimension -2, got shape \(3, 23, 2\)",
        ),
        "no square": (only_a_weight, ValueError, r"weight: expected shape \(24, 24\), got \(23, 24\)"),
        "shape of lower": (
            lambda a: {"lower": a["lower"][1:]},
            ValueError,
            r"lower: expected shape \(24, 24\), got \(23, 24\)",
        ),
        "dtype of upper": (lambda a: {"upper": a["upper"].double()}, TypeError, "upper: expected dtype torch.float32 like x"),
        "device of sign": (lambda a: {"sign": a["sign"].to("meta")}, ValueError, "sign: expected device"),
        "order of numbers": (
            lambda a: {"order": a["order"].float()},
            ValueError,
            r"order: expected an int64 tensor \(24,\), got torch.float32 \(24,\)",
        ),
        "no log_scale": (lambda a: {"log_scale": None}, TypeError, r"log_scale: expected a torch\.Tensor, got NoneType"),
    },
)
