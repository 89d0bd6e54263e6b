"""Transforms one after another, all from data to noise, as the kernels of a GPU take them; the CPU's are held to all chains."""

from __future__ import annotations

import dataclasses
from typing import Any

from case import unless_a_spline

from cases.autoregressive_chain import CASE as ALL
from cases.autoregressive_chain import CONTEXT, GATED, REVERSED, Layers, any_variation, smooth
from flowkern.univariate import RationalQuadratic

RESIDUAL = {"hidden": (24, 24, 24), "residual": True, "activation": "silu"}
SPLINE = {"hidden": (16,), "map": RationalQuadratic(5, (-4, 4))}
SKIP = {"skip": True, "activation": "elu", "scale": "softplus", "placement": "scale_shift"}
CHAINS: dict[str, Layers] = {
    "widths and depths": ((False, {}), (False, {"order": REVERSED, "hidden": ()}), (False, {"hidden": (70, 9, 33)})),
    "one step": ((False, {"hidden": (70, 70)}),),
    "addends": ((False, {"addends": (2, 0)}), (False, {}), (False, {"addends": (1,)})),
    "context": ((False, CONTEXT), (False, {**CONTEXT, "order": REVERSED}), (False, {})),
    "gates": ("divide", (False, GATED), "permute", (False, {**GATED, "addends": (2,)})),
    "residuals": ((False, RESIDUAL), "permute", (False, {**RESIDUAL, "order": REVERSED})),
    "skip connections": ((False, SKIP), (False, SKIP)),
    "graphs": ((False, {"masks": "dag"}), "permute", (False, {"masks": "dag", "hidden": (40,)})),
    "additive": ((False, {"scale": "none"}), (False, {"scale": "none", "order": REVERSED})),
    "permutations": ("permute", "permute", (False, {}), "permute", (False, {"order": REVERSED}), "permute"),
    "elementwise": ("divide", (False, {}), "scale", "permute", (False, {}), "divide", "scale"),
    "of several kinds": ((False, {}), (False, {"scale": "tanh", "placement": "gate"}), (False, {"activation": "tanh"})),
    "wide": ((False, {"hidden": (300,)}), (False, {})),
    "splines": ((False, SPLINE), "permute", (False, {**SPLINE, "order": REVERSED})),
}
EVERYTHING: Layers = ("divide", "permute", (False, {**CONTEXT, "addends": (1,)}), "scale", "permute", (False, {}), "permute")
TANH = {"scale": "tanh"}  # tame: bfloat16 rounds, and every step multiplies
SMOOTH: Layers = smooth(((False, {**TANH, "context": 2, "columns": "after"}), (False, {**TANH, "addends": (1,)})))
WHOLE: dict[str, Any] = {"features": 3, "layers": ("divide", *SMOOTH, "permute"), "normal": "output"}


def densities(draw: Any) -> dict[str, Any]:
    """Those of all chains in which no network is inverse."""
    found = any_variation(draw)
    return {**found, "layers": tuple(part if isinstance(part, str) else (False, part[1]) for part in found["layers"])}


CASE = dataclasses.replace(
    ALL,
    variations={
        **{name: {"layers": layers} for name, layers in CHAINS.items()},
        **{f"normal {side}": {"layers": EVERYTHING, "normal": side} for side in ("output", "input")},
        "one feature": {"features": 1, "layers": ((False, {}), "permute", (False, {}))},
        "many features": {"features": 70, "layers": ("divide", (False, {"hidden": (80,)}), "permute", (False, {}), "permute")},
    },
    smooth={
        "networks": {"features": 3, "layers": ("permute", *SMOOTH)},
        "everything": WHOLE,
        "noise": {"features": 3, "layers": ("scale", "permute", *SMOOTH), "normal": "input"},
    },
    low={
        "context": {"layers": smooth(((False, CONTEXT), (False, {**CONTEXT, "order": REVERSED}))), "normal": "output"},
        "everything": WHOLE,
    },
    any=densities,
    dtypes=lambda variation: unless_a_spline({"map": None} if variation.get("layers") == CHAINS["splines"] else {}),
    layouts={"density": {}, "everything": {"layers": EVERYTHING}},
    bad={},
    compiled={"everything": WHOLE},
    leaves_out=("native",),
)
