"""Transforms one after another. Its kernel has no gradients: with them the steps are called one by one."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import networks
import torch
from calls import Example
from case import Bad, Case
from hypothesis import strategies as st
from networks import network
from torch import Tensor

import flowkern as fk

FEATURES = 11
Layers = tuple[tuple[bool, Mapping[str, Any]], ...]
REVERSED = tuple(range(FEATURES))[::-1]
CHAINS: dict[str, Layers] = {
    "density": ((False, {}), (False, {"order": REVERSED}), (False, {"hidden": (40,)})),
    "inverse": ((True, {}), (True, {"hidden": ()}), (True, {"masks": "dag"})),
    "both": ((False, {"scale": "tanh"}), (True, {"scale": "softplus", "placement": "scale_shift"}), (False, {"scale": "none"})),
    "one step": ((True, {"hidden": (70, 70)}),),
    "addends": ((False, {"addends": (0,)}), (True, {}), (True, {"addends": (2, 0)})),
    "many weights": ((False, {"hidden": (200, 200)}), (True, {"hidden": (200, 200), "order": REVERSED})),
}


def draw(rows: int, seed: int, *, layers: Layers = CHAINS["density"], features: int = FEATURES) -> Example:
    """The layers one after another on standard-normal rows; names of tensors begin with their step's."""
    parts = []
    for number, (inverse, structure) in enumerate(layers):
        name = "autoregressive_inverse" if inverse else "autoregressive"
        structure = {"hidden": (16, 16), **structure}
        parts.append((f"step {number} ", inverse, networks.draw(name, rows, seed + number, features=features, **structure)))
    x = torch.randn(rows, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    inputs = {"x": x}
    parameters: dict[str, Tensor] = {}
    for prefix, _, part in parts:
        inputs.update({prefix + k: t for k, t in part.rows.items() if k.startswith("addend")})
        parameters.update({prefix + k: t for k, t in part.parameters.items()})

    def arguments(t: Mapping[str, Tensor]) -> dict[str, Any]:
        steps = []
        for prefix, inverse, part in parts:
            own = {k: t[prefix + k] if prefix + k in t else t["x"] for k in part.tensors}
            given = part.arguments(own)
            del given["z" if inverse else "x"]
            steps.append((inverse, given))
        return {"x": t["x"], "steps": steps}

    return Example(inputs, parameters, arguments)


def any_variation(draw: Any) -> dict[str, Any]:
    """Chains whose steps are tame: what one step rounds, the next ones multiply."""
    features = draw(st.integers(1, 24))
    layers = [
        {
            "hidden": tuple(draw(st.lists(st.integers(1, 40), min_size=1, max_size=2))),
            "masks": draw(st.sampled_from(["made", "dag"])),
            "order": tuple(draw(st.permutations(range(features)))),
            "activation": draw(st.sampled_from(["relu", "tanh"])),
            "scale": draw(st.sampled_from(["exp", "tanh", "none"])),
            "addends": draw(st.sampled_from([(), (0,), (1, 0)])),
        }
        for _ in range(draw(st.integers(1, 3)))
    ]
    return {"features": features, "layers": tuple((draw(st.booleans()), layer) for layer in layers)}


def step(argument: str, value: Any) -> Any:
    """Replaces an argument of the second step."""

    def change(given: dict[str, Any]) -> dict[str, Any]:
        first, (inverse, arguments), *rest = given["steps"]
        return {"steps": [first, (inverse, {**arguments, argument: value(arguments[argument])}), *rest]}

    return change


BAD: dict[str, Bad] = {
    "no steps": (lambda a: {"steps": []}, ValueError, "steps: expected at least one"),
    "features": (lambda a: {"x": a["x"][:, :3]}, ValueError, r"x: expected shape \(\.\.\., 11\), got \(3, 3\)"),
    "integers": (lambda a: {"x": a["x"].long()}, TypeError, "x: expected a floating-point tensor"),
    "dtype": (lambda a: {"x": a["x"].double()}, TypeError, r"x: expected dtype torch.float32 like weights\[0\]"),
    "too few weights": (step("weights", lambda w: w[:-1]), ValueError, "weights: expected 3 tensors, got 2"),
    "shape of a weight": (
        step("weights", lambda w: [w[0].t(), *w[1:]]),
        ValueError,
        r"weights\[0\]: .* \(16, 11\), got \(11, 16\)",
    ),
    "dtype of a bias": (
        step("biases", lambda b: [b[0].double(), *b[1:]]),
        TypeError,
        r"biases\[0\]: expected dtype torch.float32",
    ),
    "shape of a bias": (step("biases", lambda b: [b[0][None], *b[1:]]), ValueError, r"biases\[0\]: expected shape \(16,\)"),
    "an unexpected addend": (step("addends", lambda _: [torch.zeros(3, 16)]), ValueError, "addends: the plan takes 0, got 1"),
    "another plan": (
        step("plan", lambda _: network(features=3).plan),
        ValueError,
        r"expected shape \(\.\.\., 3\), got \(3, 11\)",
    ),
}
SMOOTH = ((False, {"scale": "tanh"}), (True, {"scale": "softplus", "placement": "scale_shift", "addends": (0,)}))

CASE = Case(
    operator=fk.ops.autoregressive_chain,
    outputs=("value", "log_det"),
    draw=draw,
    variations={
        **{name: {"layers": layers} for name, layers in CHAINS.items()},
        "one feature": {"features": 1, "layers": ((False, {}), (True, {}))},
    },
    smooth={"both": {"features": 3, "layers": tuple((i, {"hidden": (4,), "activation": "tanh", **s}) for i, s in SMOOTH)}},
    any=any_variation,
    large={"features": 20, "layers": tuple(itertools.repeat((False, {"hidden": (64, 48)}), 2))},
    bad=BAD,
    has_gradients=False,
    rounds_once=False,
    oracle_compiles=False,
)
