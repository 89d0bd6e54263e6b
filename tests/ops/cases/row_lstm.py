"""LSTMs over the rows of images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from calls import Example
from case import Bad, Case, Variation
from hypothesis import strategies as st
from torch import Tensor

import flowkern as fk


def draw(rows: int, seed: int, *, hidden: int = 5, height: int = 3, width: int = 4, taps: int = 3, **options: Any) -> Example:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, height, width, 4 * hidden, generator=generator, dtype=torch.float64)
    weight = torch.randn(4 * hidden, hidden, taps, generator=generator, dtype=torch.float64) / (hidden * taps) ** 0.5
    return Example({"x": x}, {"weight": weight}, lambda t: {**t, **options})


def image_by_image(oracle: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The oracle with a weight for each image: their gradients are summed pairwise.

    In float64 those of one product of all images and columns are less exact than the kernels.
    """

    def call(x: Tensor, weight: Tensor, **options: Any) -> Tensor:
        if len(x) == 0:
            return oracle(x, weight, **options)
        return torch.vmap(partial(oracle, **options))(x, weight.expand(len(x), *weight.shape))

    return call


SMALL = {"hidden": 2, "height": 2, "width": 2}
VARIATIONS: dict[str, Variation] = {
    "typical": {},
    "one pixel": {"height": 1, "width": 1},
    "one row": {"height": 1, "width": 7},
    "one column": {"height": 7, "width": 1},
    "one unit": {"hidden": 1},
    "whole vectors": {"hidden": 16, "height": 3, "width": 5},
    "several blocks": {"hidden": 67, "height": 2, "width": 3},
    "gradients in several parts of a row": {"hidden": 2, "height": 2, "width": 70},
    "gradients in several parts of the rows": {"hidden": 2, "height": 9, "width": 9},
}


def any_variation(draw: Callable[..., Any]) -> dict[str, Any]:
    sizes = st.integers(1, 4)
    return {"hidden": draw(st.integers(1, 20)), "height": draw(sizes), "width": draw(sizes)}


def bad(taps: str, wrong: int) -> dict[str, Bad]:
    """What is bad input of either LSTM: ``taps`` in words, and a number of them that is wrong."""
    shape = rf"weight: expected shape \(4 hidden, hidden, {taps}\) of at least one unit, got "
    return {
        "integers": (lambda a: {"x": a["x"].long()}, TypeError, "x: expected a floating"),
        "no tensor": (lambda a: {"weight": None}, TypeError, r"weight: expected a torch\.Tensor, got NoneType"),
        "dtype": (lambda a: {"weight": a["weight"].double()}, TypeError, "weight: expected dtype"),
        "device": (lambda a: {"weight": a["weight"].to("meta")}, ValueError, "weight: expected device"),
        "taps": (lambda a: {"weight": a["weight"].new_zeros(20, 5, wrong)}, ValueError, rf"{shape}\(20, 5, {wrong}\)"),
        "gates": (lambda a: {"weight": a["weight"][1:]}, ValueError, rf"{shape}\(19, 5, "),
        "dimensions": (lambda a: {"weight": a["weight"][..., 0]}, ValueError, rf"{shape}\(20, 5\)"),
        "channels": (
            lambda a: {"x": a["x"][..., 1:]},
            ValueError,
            r"x: expected shape \(\.\.\., height, width, 20\) of at least one pixel like weight, got \(3, 3, 4, 19\)",
        ),
        "no pixels": (lambda a: {"x": a["x"][:, :0]}, ValueError, r"x: expected shape .* got \(3, 0, 4, 20\)"),
        "no image": (lambda a: {"x": a["x"][0, 0]}, ValueError, r"x: expected shape .* got \(4, 20\)"),
    }


CASE = Case(
    operator=fk.ops.row_lstm,
    outputs=("h",),
    draw=draw,
    variations={**VARIATIONS, "one tap": {"taps": 1}, "more taps than columns": {"taps": 9}},
    smooth={"typical": SMALL, "one tap": {**SMALL, "taps": 1}},
    any=lambda draw: {**any_variation(draw), "taps": draw(st.sampled_from([1, 3, 5]))},
    large={"hidden": 8},
    shows=None,
    oracle=image_by_image(fk.reference.row_lstm),
    bad=bad("an odd number of taps", 2),
)
