"""Causal convolutions of sequences."""

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
    inputs: int = 5,
    outputs: int = 6,
    kernel: int = 3,
    dilation: int = 2,
    groups: int = 1,
    time: int = 23,
    bias: bool = True,
) -> Example:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    parameters = {"weight": normal(outputs, inputs // groups, kernel)}
    if bias:
        parameters["bias"] = normal(outputs)
    options = {"dilation": dilation, "groups": groups}
    return Example({"x": normal(rows, inputs, time)}, parameters, lambda t: {**t, **options})


VARIATIONS = {
    "dense": {},
    "no bias": {"bias": False},
    "one tap": {"kernel": 1},
    "depthwise": {"inputs": 9, "outputs": 9, "groups": 9, "kernel": 4},
    "depthwise, several outputs": {"inputs": 3, "outputs": 6, "groups": 3},
    "grouped": {"inputs": 8, "outputs": 20, "groups": 2, "dilation": 5, "time": 70},
    "one time": {"time": 1},
    "dilation beyond the sequence": {"dilation": 50},
    "one channel": {"inputs": 1, "outputs": 1},
    "whole tiles": {"inputs": 16, "outputs": 16, "time": 64, "dilation": 16},
    "a tile and one": {"inputs": 33, "outputs": 9, "time": 33, "kernel": 2},
    "long": {"inputs": 2, "outputs": 3, "time": 700, "dilation": 256},
}
SMALL = {"inputs": 2, "outputs": 4, "time": 4}


def any_variation(draw: Callable[..., Any]) -> dict[str, Any]:
    groups = draw(st.integers(1, 4))
    sizes = st.integers(1, 12)
    return {
        "inputs": groups * draw(sizes),
        "outputs": groups * draw(sizes),
        "groups": groups,
        "kernel": draw(st.integers(1, 5)),
        "dilation": draw(st.integers(1, 40)),
        "time": draw(st.integers(1, 80)),
        "bias": draw(st.booleans()),
    }


CASE = Case(
    operator=fk.ops.causal_conv1d,
    outputs=("y",),
    draw=draw,
    most_rows=24,
    stand_in_rows=4,
    variations=VARIATIONS,
    smooth={"dense": SMALL, "grouped": {**SMALL, "groups": 2}, "no bias": {**SMALL, "bias": False, "kernel": 2}},
    any=any_variation,
    layouts={"dense": {}, "depthwise": VARIATIONS["depthwise"]},
    low={"dense": {**SMALL, "time": 50}, "grouped": {**SMALL, "time": 50, "groups": 2}},
    large={"inputs": 16, "outputs": 16, "time": 40},
    shows=None,
    bad={
        "integers": (lambda a: {"x": a["x"].long()}, TypeError, "x: expected a floating"),
        "no tensor": (lambda a: {"weight": None}, TypeError, r"weight: expected a torch\.Tensor, got NoneType"),
        "channels": (lambda a: {"x": a["x"][:, 1:]}, ValueError, r"x: expected shape \(\.\.\., in, time\) with 5 channels"),
        "no channels": (lambda a: {"x": a["x"][0, 0]}, ValueError, r"x: expected shape \(\.\.\., in, time\)"),
        "no time": (lambda a: {"x": a["x"][..., :0]}, ValueError, "x: expected at least one time"),
        "weight": (
            lambda a: {"weight": a["weight"][0]},
            ValueError,
            r"weight: expected shape \(out, in / groups, kernel size\)",
        ),
        "no taps": (lambda a: {"weight": a["weight"][..., :0]}, ValueError, "weight: expected shape"),
        "dtype of weight": (lambda a: {"weight": a["weight"].double()}, TypeError, "weight: expected dtype"),
        "device of weight": (lambda a: {"weight": a["weight"].to("meta")}, ValueError, "weight: expected device"),
        "bias": (lambda a: {"bias": a["bias"][1:]}, ValueError, r"bias: expected shape \(6,\) like the first of weight"),
        "dtype of bias": (lambda a: {"bias": a["bias"].double()}, TypeError, "bias: expected dtype"),
        "dilation": (lambda a: {"dilation": 0}, ValueError, "dilation: expected a whole number of at least 1, got 0"),
        "groups": (lambda a: {"groups": 1.5}, ValueError, "groups: expected a whole number of at least 1, got 1.5"),
        "outputs of groups": (
            lambda a: {"x": a["x"].repeat(1, 4, 1), "groups": 4},
            ValueError,
            "groups: expected a divisor of the 6 output channels of weight, got 4",
        ),
    },
)
