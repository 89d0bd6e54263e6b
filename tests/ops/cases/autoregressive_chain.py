"""Transforms one after another, with what stands between them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import networks
import torch
from calls import Example
from case import Bad, Case
from hypothesis import strategies as st
from networks import coupling_network, network
from torch import Tensor

import flowkern as fk
from flowkern.ops import CouplingStep, ElementwiseStep, LULinearStep, NetworkStep, PermutationStep

FEATURES = 11
# A network is (inverse, structure), a coupling one with "passing" in its structure; the others are "permute", "scale" or
# "divide" for an elementwise step, "lu" or "solve" for a linear one.
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
    "couplings": (
        (False, {"passing": (4, 0, 7)}),
        (True, {"passing": range(10), "context": 4, "wide": True, "layout": "parameter_major"}),
        "permute",
        (False, {"passing": (1, 3, 5, 7, 9), "context": 4, "gated": True, "hidden": (16, 9, 16), "scale": "sigmoid"}),
        (True, {"passing": (10,), "hidden": (), "placement": "scale_shift", "scale": "softplus"}),
        (False, {"passing": (2, 8), "scale": "none", "hidden": (70,)}),
        (True, {"passing": (6, 3), "context": 4, "gated": True, "gates_read": 5, "hidden": (8, 8, 8), "activation": "tanh"}),
    ),
    "triangles": ("lu", (False, {}), "permute", "solve", (True, {"passing": (1, 2)})),
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
            if layer in ("lu", "solve"):
                for name in ("lower", "upper"):
                    parameters[prefix + name] = 0.5 * drawn(features * (features - 1) // 2) / features**0.5
                parameters[prefix + "diagonal"] = (0.4 * drawn(features)).exp()
                parameters[prefix + "bias"] = 0.3 * drawn(features)
            elif layer != "permute":
                sign = 1 - 2 * torch.randint(0, 2, (features,), generator=generator)
                parameters[prefix + "shift"] = 0.3 * drawn(features)
                parameters[prefix + "scale"] = sign * (0.4 * drawn(features)).exp()
            continue
        inverse, structure = layer
        if "passing" in structure:
            made, passing = dict(structure), tuple(structure["passing"])
            del made["passing"]
            transformed = tuple(f for f in torch.randperm(features, generator=generator).tolist() if f not in passing)
            net = coupling_network(len(passing), len(transformed), seed=seed + number, **made)
            parts.append((prefix, (inverse, passing, transformed), net))
            if made.get("context"):
                inputs["context"] = drawn(rows, made["context"]) if "context" not in inputs else inputs["context"]
            for kind, tensors in (("weight", net.weights), ("bias", net.biases)):
                parameters.update({f"{prefix}{kind} {i}": t for i, t in enumerate(tensors)})
            continue
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
            elif kind in ("lu", "solve"):
                vectors = (t[prefix + name] for name in ("lower", "upper", "diagonal", "bias"))
                steps.append(LULinearStep(kind == "solve", *vectors))
            elif isinstance(kind, tuple):
                own, (backwards, passing, transformed) = t, kind
                weights = [own[f"{prefix}weight {i}"] for i in range(len(part.weights))]
                biases = [own[f"{prefix}bias {i}"] for i in range(len(part.biases))]
                given = {"weights": weights, "biases": biases, "plan": part.plan, **part.map}
                steps.append(CouplingStep(backwards, given, passing, transformed))
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
        if features > 1 and draw(st.booleans()):
            passing = draw(st.lists(st.integers(0, features - 1), min_size=1, max_size=features - 1, unique=True))
            structure = {
                "passing": passing,
                "context": draw(st.sampled_from([0, context])),
                "wide": draw(st.booleans()),
                **{name: structure[name] for name in ("hidden", "activation", "scale")},
            }
        layers += draw(st.lists(st.sampled_from(["permute", "scale", "divide", "lu"]), max_size=2))
        layers.append((draw(st.booleans()), structure))
    layers += draw(st.lists(st.sampled_from(["permute", "scale", "divide"]), max_size=1))
    return {"features": features, "layers": tuple(layers), "normal": draw(st.sampled_from([None, "output", "input"]))}


def coupled(**other: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A coupling as second step, with something else of it; arguments, or what passes and is transformed."""

    def change(given: dict[str, Any]) -> dict[str, Any]:
        net = coupling_network(3, 8)
        weights, biases = ([t.float() for t in part] for part in (net.weights, net.biases))
        arguments = {"weights": weights, "biases": biases, "plan": net.plan, "addends": ()}
        arguments = {**arguments, **{k: v(arguments[k]) for k, v in other.items() if k in arguments}}
        made = CouplingStep(False, arguments, other.get("passing", (4, 0, 7)), (1, 2, 3, 5, 6, 8, 9, 10))
        return {"steps": [given["steps"][0], made]}

    return change


def step(argument: str, value: Any) -> Any:
    """Replaces an argument of the second step."""

    def change(given: dict[str, Any]) -> dict[str, Any]:
        first, (inverse, arguments), *rest = given["steps"]
        changed = {**arguments, argument: value(arguments.get(argument))}
        return {"steps": [first, NetworkStep(inverse, changed), *rest]}

    return change


BAD: dict[str, Bad] = {
    "no steps": (lambda a: {"steps": []}, ValueError, "steps: expected at least one"),
    "no network": (lambda a: {"steps": [(False, {})]}, TypeError, r"steps\[0\]: expected NetworkStep, CouplingStep"),
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
BAD |= {
    "a feature twice": (
        coupled(passing=(4, 1, 7)),
        ValueError,
        r"steps\[1\]: passing, transformed: expected each of 11 features",
    ),
    "another network": (coupled(plan=lambda _: network().plan), ValueError, r"steps\[1\]: passing, transformed: .* 5 of them"),
    "weights of a coupling": (coupled(weights=lambda w: w[1:]), ValueError, r"steps\[1\]: weights: expected 3 tensors, got 2"),
    "addends of a coupling": (
        coupled(plan=lambda _: coupling_network(3, 8, addends=(0,)).plan, addends=lambda _: [torch.zeros(3, 16)]),
        ValueError,
        r"steps\[1\]: addends: a coupling takes none, the plan 1, got 1",
    ),
    "no bias of a linear step": (
        lambda a: {"steps": [*a["steps"], LULinearStep(True, *[a["x"].new_zeros(55)] * 2, a["x"][0], None)]},
        TypeError,
        r"steps\[3\]: bias: expected a torch.Tensor, got NoneType",
    ),
    "entries of a triangle": (
        lambda a: {"steps": [*a["steps"], LULinearStep(True, a["x"][0], *[a["x"][0]] * 3)]},
        ValueError,
        r"steps\[3\]: lower: expected shape \(55,\), got \(11,\)",
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
        "couplings": {
            "features": 3,
            "layers": ("lu", *smooth(((False, {"passing": (2, 0), "context": 2}), (True, {"passing": (1,)}))), "solve"),
        },
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
