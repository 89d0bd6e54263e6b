"""Layers of a WaveNet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from calls import Example
from case import Case
from hypothesis import strategies as st

import flowkern as fk


def draw(
    rows: int,
    seed: int,
    *,
    residual: int = 5,
    gate: int = 4,
    skip: int = 6,
    kernel: int = 2,
    dilation: int = 2,
    time: int = 23,
    channels: int = 0,
    skips: bool = True,
    row_bias: bool = False,
) -> Example:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    sequences = {"x": normal(rows, residual, time)}
    if skips:
        sequences["skips"] = normal(rows, skip, time)
    if channels:
        sequences["condition"] = normal(rows, channels, time)
    parameters = {
        "gate_weight": normal(2 * gate, residual, kernel) / (residual * kernel) ** 0.5,
        "residual_weight": normal(residual, gate) / gate**0.5,
        "residual_bias": normal(residual),
        "skip_weight": normal(skip, gate) / gate**0.5,
        "skip_bias": normal(skip),
    }
    if channels:
        parameters["condition_weight"] = normal(2 * gate, channels) / channels**0.5
    (sequences if row_bias else parameters)["gate_bias"] = normal(*([rows] if row_bias else []), 2 * gate)
    return Example(sequences, parameters, lambda t: {"skips": None, **t, "dilation": dilation})


SMALL = {"residual": 2, "gate": 2, "skip": 3, "time": 4, "dilation": 1}
VARIATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "first layer": {"skips": False},
    "one tap": {"kernel": 1},
    "three taps": {"kernel": 3, "dilation": 5, "time": 70},
    "condition": {"channels": 3},
    "bias of rows": {"row_bias": True},
    "all of it": {"channels": 7, "row_bias": True, "kernel": 3, "time": 40},
    "odd widths": {"residual": 7, "gate": 9, "skip": 11, "channels": 5},
    "one channel": {"residual": 1, "gate": 1, "skip": 1, "channels": 1},
    "wide gate": {"residual": 3, "gate": 33, "skip": 2},
    "narrow gate": {"residual": 33, "gate": 3, "skip": 17},
    "one time": {"time": 1},
    "shorter than the dilation": {"dilation": 50},
    "whole tiles": {"residual": 16, "gate": 16, "skip": 32, "time": 64, "dilation": 16},
    "several turns": {"residual": 2, "gate": 3, "skip": 2, "time": 300, "dilation": 256, "channels": 2},
}


def any_variation(draw: Callable[..., Any]) -> dict[str, Any]:
    sizes = st.integers(1, 20)
    return {
        **{name: draw(sizes) for name in ("residual", "gate", "skip")},
        "kernel": draw(st.integers(1, 4)),
        "dilation": draw(st.integers(1, 40)),
        "time": draw(st.integers(1, 80)),
        "channels": draw(st.integers(0, 9)),
        "skips": draw(st.booleans()),
        "row_bias": draw(st.booleans()),
    }


CASE = Case(
    operator=fk.ops.wavenet_layer,
    outputs=("y", "sum"),
    draw=draw,
    most_rows=24,
    stand_in_rows=4,
    variations=VARIATIONS,
    smooth={
        "plain": SMALL,
        "first layer": {**SMALL, "skips": False, "kernel": 3},
        "all of it": {**SMALL, "channels": 2, "row_bias": True},
    },
    any=any_variation,
    layouts={"plain": {}, "all of it": VARIATIONS["all of it"]},
    compiled={"plain": SMALL, "all of it": {**SMALL, "channels": 2, "row_bias": True}},
    low={"plain": {**SMALL, "time": 50}, "all of it": {**SMALL, "time": 50, "channels": 2, "row_bias": True}},
    large={"residual": 8, "gate": 8, "skip": 8, "time": 40, "channels": 2, "row_bias": True},
    shows=None,
    bad={
        "integers": (lambda a: {"x": a["x"].long()}, TypeError, "x: expected a floating"),
        "no tensor": (lambda a: {"gate_weight": None}, TypeError, r"gate_weight: expected a torch\.Tensor, got NoneType"),
        "no skips but a number": (lambda a: {"skips": 0}, TypeError, r"skips: expected a torch\.Tensor, got int"),
        "channels of x": (
            lambda a: {"x": a["x"][:, 1:]},
            ValueError,
            r"x: expected shape \(\.\.\., 5, time\) of at least one time like gate_weight, got \(3, 4, 23\)",
        ),
        "no channels": (lambda a: {"x": a["x"][0, 0]}, ValueError, r"x: expected shape \(\.\.\., 5, time\)"),
        "no time": (lambda a: {"x": a["x"][..., :0]}, ValueError, "x: expected shape .* of at least one time"),
        "dimensions of gate_weight": (
            lambda a: {"gate_weight": a["gate_weight"][..., 0]},
            ValueError,
            r"gate_weight: expected shape \(2 gate, residual, kernel size\), .*, got \(8, 5\)",
        ),
        "odd gate": (lambda a: {"gate_weight": a["gate_weight"][1:]}, ValueError, "gate_weight: expected .* the first even"),
        "no taps": (lambda a: {"gate_weight": a["gate_weight"][..., :0]}, ValueError, "gate_weight: expected shape"),
        "dtype": (lambda a: {"skip_bias": a["skip_bias"].double()}, TypeError, "skip_bias: expected dtype"),
        "device": (lambda a: {"skip_weight": a["skip_weight"].to("meta")}, ValueError, "skip_weight: expected device"),
        "skips": (
            lambda a: {"skips": a["skips"][..., 1:]},
            ValueError,
            r"skips: expected shape \(3, 6, 23\), got \(3, 6, 22\)",
        ),
        "gate_bias": (
            lambda a: {"gate_bias": a["gate_bias"][1:]},
            ValueError,
            r"gate_bias: expected shape \(8,\) or \(3, 8\), got \(7,\)",
        ),
        "rows of gate_bias": (
            lambda a: {"gate_bias": a["gate_bias"].expand(2, 8)},
            ValueError,
            r"gate_bias: expected shape \(8,\) or \(3, 8\), got \(2, 8\)",
        ),
        "residual_weight": (
            lambda a: {"residual_weight": a["residual_weight"].t()},
            ValueError,
            r"residual_weight: expected shape \(5, 4\), got \(4, 5\)",
        ),
        "residual_bias": (
            lambda a: {"residual_bias": a["residual_bias"][1:]},
            ValueError,
            r"residual_bias: expected shape \(5,\), got \(4,\)",
        ),
        "skip_weight": (
            lambda a: {"skip_weight": a["skip_weight"][:, 1:]},
            ValueError,
            r"skip_weight: expected shape \(skip, 4\) of at least one skip, got \(6, 3\)",
        ),
        "skip_bias": (lambda a: {"skip_bias": a["skip_bias"][1:]}, ValueError, r"skip_bias: expected shape \(6,\), got \(5,\)"),
        "condition without its weight": (
            lambda a: {"condition": a["x"]},
            ValueError,
            "condition_weight: expected a tensor, since there is condition, got None",
        ),
        "weight without its condition": (
            lambda a: {"condition_weight": a["skip_weight"]},
            ValueError,
            "condition: expected a tensor, since there is condition_weight, got None",
        ),
        "times of condition": (
            lambda a: {"condition": a["x"][..., 1:], "condition_weight": a["x"].new_zeros(8, 5)},
            ValueError,
            r"condition: expected shape \(3, 5, 23\), got \(3, 5, 22\)",
        ),
        "condition_weight": (
            lambda a: {"condition": a["x"], "condition_weight": a["x"].new_zeros(8, 6)},
            ValueError,
            r"condition_weight: expected shape \(8, 5\), got \(8, 6\)",
        ),
        "no condition": (
            lambda a: {"condition": a["x"][:, :0], "condition_weight": a["x"].new_zeros(8, 0)},
            ValueError,
            r"condition: expected shape \(\.\.\., channels, time\), got \(3, 0, 23\)",
        ),
        "dilation": (lambda a: {"dilation": 0}, ValueError, "dilation: expected a whole number of at least 1, got 0"),
    },
)
