"""Transforms one after another, with what stands between them."""

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
from flowkern.ops import ElementwiseStep, NetworkStep, PermutationStep

FEATURES = 11
# A network is (inverse, structure); "permute", and "scale" or "divide" for an elementwise step, are the others.
Layer = tuple[bool, Mapping[str, Any]] | str
Layers = tuple[Layer, ...]
REVERSED = tuple(range(FEATURES))[::-1]
CONTEXT = {"context": 4, "columns": "after"}
GATED = {"context": 4, "conditioners": ((0, "sigmoid", True), (1, "tanh", False)), "activation": "tanh"}
CHAINS: dict[str, Layers] = {
    "density": ((False, {}), (False, {"order": REVERSED}), (False, {"hidden": (40,)})),
    "inverse": ((True, {}), (True, {"hidden": ()}), (True, {"masks": "dag"})),
    "both": ((False, {"scale": "tanh"}), (True, {"scale": "softplus", "placement": "scale_shift"}), (False, {"scale": "none"})),
    "one step": ((True, {"hidden": (70, 70)}),),
    "addends": ((False, {"addends": (0,)}), (True, {}), (True, {"addends": (2, 0)})),
    "many weights": ((False, {"hidden": (200, 200)}), (True, {"hidden": (200, 200), "order": REVERSED})),
    "context": ((False, CONTEXT), (True, {**CONTEXT, "order": REVERSED}), (False, {}), (True, GATED)),
    "permutations": ("permute", "permute", (False, {}), "permute", (True, {"order": REVERSED}), "permute"),
    "elementwise": ("divide", (False, {}), "scale", "permute", (True, {}), "divide"),
    "everything": ("divide", "permute", (True, GATED), "scale", "permute", (False, {**CONTEXT, "addends": (1,)}), "permute"),
}


def draw(
    rows: int, seed: int, *, layers: Layers = CHAINS["density"], features: int = FEATURES, normal: str | None = None
) -> Example:
    """The layers one after another on standard-normal rows; names of tensors begin with their step's."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = {"x": drawn(rows, features)}
    parameters: dict[str, Tensor] = {}
    parts: list[Any] = []
    for number, layer in enumerate(layers):
        prefix = f"step {number} "
        if isinstance(layer, str):
            parts.append((prefix, layer, tuple(torch.randperm(features, generator=generator).tolist())))
            if layer != "permute":
                sign = 1 - 2 * torch.randint(0, 2, (features,), generator=generator)
                parameters[prefix + "shift"] = 0.3 * drawn(features)
                parameters[prefix + "scale"] = sign * (0.4 * drawn(features)).exp()
            continue
        inverse, structure = layer
        name = "autoregressive_inverse" if inverse else "autoregressive"
        part = networks.draw(name, rows, seed + number, features=features, **{"hidden": (16, 16), **structure})
        parts.append((prefix, inverse, part))
        if "context" in part.rows:
            inputs["context"] = part.rows["context"]
        inputs.update({prefix + k: t for k, t in part.rows.items() if k.startswith("addend")})
        parameters.update({prefix + k: t for k, t in part.parameters.items()})

    def arguments(t: Mapping[str, Tensor]) -> dict[str, Any]:
        steps: list[fk.ops.Step] = []
        for prefix, kind, part in parts:
            if kind == "permute":
                steps.append(PermutationStep(part))
            elif isinstance(kind, str):
                steps.append(ElementwiseStep(kind == "divide", t[prefix + "shift"], t[prefix + "scale"]))
            else:
                own = {k: t.get(prefix + k, t["x"]) for k in part.tensors}
                given = part.arguments(own)
                del given["z" if kind else "x"]
                given.pop("context", None)
                steps.append(NetworkStep(kind, given))
        return {"x": t["x"], "steps": steps, "context": t.get("context"), "normal": normal}

    return Example(inputs, parameters, arguments)


def any_variation(draw: Any) -> dict[str, Any]:
    """Chains whose steps are tame: what one step rounds, the next ones multiply."""
    features = draw(st.integers(1, 24))
    context = draw(st.integers(1, 12))
    contexts: list[dict[str, Any]] = [
        {},
        {"context": context, "columns": "before"},
        {"context": context, "conditioners": ((1, "tanh", False),)},
    ]
    layers: list[Layer] = []
    for _ in range(draw(st.integers(1, 3))):
        structure = {
            "hidden": tuple(draw(st.lists(st.integers(1, 40), min_size=1, max_size=2))),
            "masks": draw(st.sampled_from(["made", "dag"])),
            "order": tuple(draw(st.permutations(range(features)))),
            "activation": draw(st.sampled_from(["relu", "tanh"])),
            "scale": draw(st.sampled_from(["exp", "tanh", "none"])),
            "addends": draw(st.sampled_from([(), (0,), (1, 0)])),
            **draw(st.sampled_from(contexts)),
        }
        layers += draw(st.lists(st.sampled_from(["permute", "scale", "divide"]), max_size=2))
        layers.append((draw(st.booleans()), structure))
    layers += draw(st.lists(st.sampled_from(["permute", "scale", "divide"]), max_size=1))
    return {"features": features, "layers": tuple(layers), "normal": draw(st.sampled_from([None, "output", "input"]))}


def step(argument: str, value: Any) -> Any:
    """Replaces an argument of the second step."""

    def change(given: dict[str, Any]) -> dict[str, Any]:
        first, (inverse, arguments), *rest = given["steps"]
        changed = {**arguments, argument: value(arguments.get(argument))}
        return {"steps": [first, NetworkStep(inverse, changed), *rest]}

    return change


BAD: dict[str, Bad] = {
    "no steps": (lambda a: {"steps": []}, ValueError, "steps: expected at least one"),
    "no network": (lambda a: {"steps": [(False, {})]}, TypeError, "steps: expected NetworkStep, PermutationStep or"),
    "an unknown normal": (lambda a: {"normal": "both"}, ValueError, "normal: expected 'output', 'input' or None, got 'both'"),
    "a context": (lambda a: {"context": a["x"]}, ValueError, r"context: no step takes one, got shape \(3, 11\)"),
    "order": (
        lambda a: {"steps": [*a["steps"], PermutationStep((0, 0))]},
        ValueError,
        r"steps\[3\]: order: expected a permutation of 0 to 10, got \(0, 0\)",
    ),
    "shape of a scale": (
        lambda a: {"steps": [*a["steps"], ElementwiseStep(True, a["x"][0], a["x"])]},
        ValueError,
        r"steps\[3\]: scale: expected shape \(11,\), got \(3, 11\)",
    ),
    "features": (lambda a: {"x": a["x"][:, :3]}, ValueError, r"x: expected shape \(\.\.\., 11\), got \(3, 3\)"),
    "integers": (lambda a: {"x": a["x"].long()}, TypeError, "x: expected a floating-point tensor"),
    "dtype": (lambda a: {"x": a["x"].double()}, TypeError, r"x: expected dtype torch.float32 like weights\[0\]"),
    "too few weights": (step("weights", lambda w: w[:-1]), ValueError, r"steps\[1\]: weights: expected 3 tensors, got 2"),
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
        r"steps\[1\]: x: expected shape \(\.\.\., 3\), got \(3, 11\)",
    ),
}
SMOOTH = (
    (False, {"scale": "tanh", "context": 2, "columns": "after"}),
    (True, {"scale": "softplus", "placement": "scale_shift", "addends": (0,)}),
)


def smooth(layers: tuple[tuple[bool, dict[str, Any]], ...]) -> Layers:
    return tuple((inverse, {"hidden": (4,), "activation": "tanh", **structure}) for inverse, structure in layers)


CASE = Case(
    operator=fk.ops.autoregressive_chain,
    outputs=("value", "log_det"),
    draw=draw,
    variations={
        **{name: {"layers": layers} for name, layers in CHAINS.items()},
        **{f"normal {side}": {"layers": CHAINS["everything"], "normal": side} for side in ("output", "input")},
        "one feature": {"features": 1, "layers": ((False, {}), "permute", (True, {}))},
    },
    smooth={
        "both": {"features": 3, "layers": smooth(SMOOTH)},
        "everything": {"features": 3, "layers": ("divide", *smooth(SMOOTH), "permute"), "normal": "output"},
        "noise": {"features": 3, "layers": ("scale", *smooth(SMOOTH), "permute"), "normal": "input"},
    },
    layouts={"density": {}, "everything": {"layers": CHAINS["everything"]}},
    any=any_variation,
    large={"features": 20, "layers": tuple(itertools.repeat((False, {"hidden": (64, 48)}), 2))},
    bad=BAD,
    rounds_once=False,
    oracle_compiles=False,
    leaves_out=("triton",),  # see density_chains.py
)
