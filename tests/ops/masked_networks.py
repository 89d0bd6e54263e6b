"""What the cases of the operators on masked networks share: structures, maps, bad arguments."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import networks
from case import Bad, Case, Variation, unless_a_spline
from hypothesis import strategies as st
from torch import Tensor

import flowkern as fk
from flowkern.plan import ACTIVATIONS
from flowkern.univariate import PARAMETRIZATIONS, PLACEMENTS, SCALES, TAILS, RationalLinear, RationalQuadratic

STRUCTURES: dict[str, Variation] = {
    "plain": {},
    "one hidden layer": {"hidden": (40,)},
    "no hidden layer": {"hidden": ()},
    "uneven layers": {"hidden": (70, 9, 33)},
    "fewer units than features": {"features": 20, "hidden": (5, 7)},
    "many units per level": {"features": 3, "hidden": (70, 70)},
    "one feature": {"features": 1, "hidden": (4,)},
    "wide": {"features": 70, "hidden": (96, 96)},
    "residual": {"hidden": (24, 24, 24), "residual": True, "activation": "silu"},
    "residual, identity between": {
        "hidden": (24, 24, 24),
        "residual": True,
        "activation": "silu",
        "activated": (False, True, False),
    },
    "skip": {"skip": True},
    "skip only": {"hidden": (), "skip": True},
    "graph": {"features": 12, "hidden": (30, 30), "masks": "dag"},
    "graph, deep": {"features": 9, "hidden": (20, 20, 20, 20), "masks": "dag"},
    "reversed": {"features": 7, "order": tuple(range(7))[::-1]},
    "parameter major": {"layout": "parameter_major"},
    "parameters backwards": {"backwards": True},
    "no biases": {"biases": (False, False, False)},
}
# Terms and factors that every row brings along, such as a context's.
ADDENDS: dict[str, Variation] = {
    f"addends {layers} {masks}": {"features": 7, "hidden": (24, 20), "addends": layers, "masks": masks}
    for layers in ((0,), (1,), (2,), (2, 0))
    for masks in ("made", "dag")
}
GATES: dict[str, Variation] = {
    f"gates {gates} addends {addends} {'residual' if residual else 'graph'}": {
        "features": 7,
        "hidden": (24, 24, 24),
        "gates": gates,
        "addends": addends,
        "activation": "silu",
        "masks": "made" if residual else "dag",
        "residual": residual,
    }
    for gates, addends in (((0,), ()), ((1,), (1,)), ((2, 0), (0, 3)), ((2,), (0,)))
    for residual in (False, True)
}
# What a context contributes is computed by the kernels: by columns of the first layer, by linear maps of its own.
CONTEXTS: dict[str, Variation] = {
    name: {"features": 7, "context": 5, **structure}
    for name, structure in {
        "columns after": {"columns": "after"},
        "columns before, graph": {"columns": "before", "masks": "dag"},
        "columns of a skip connection too": {"columns": "both", "skip": True},
        "columns, a skip connection without": {"columns": "after", "skip": True},
        "columns, no hidden layer": {"columns": "after", "hidden": ()},
        "columns and addends": {"columns": "after", "addends": (0, 2)},
        "wide": {"columns": "after", "context": 70, "hidden": (40, 40)},
        "one feature": {"columns": "after", "features": 1},
        "conditioners": {"conditioners": ((0, "tanh", False), (1, "identity", False), (2, "softplus", False))},
        "conditioners, graph": {"conditioners": ((0, "sigmoid", False),), "masks": "dag"},
        "conditioners without biases": {"conditioners": ((1, "gelu", False),), "biases": (True, True, True, False)},
        "gates": {"conditioners": ((0, "sigmoid", True), (1, "silu", True), (1, "tanh", False)), "activation": "tanh"},
        "gates, residual": {
            "conditioners": ((1, "sigmoid", True), (2, "silu", True), (0, "identity", False)),
            "activation": "silu", "residual": True, "hidden": (24, 24, 24), "addends": (3,),
        },
        "gates of both kinds": {"conditioners": ((0, "sigmoid", True),), "gates": (1,), "activation": "tanh"},
        "everything": {
            "columns": "both", "skip": True, "conditioners": ((0, "tanh", False), (2, "identity", False)), "addends": (1,),
        },
    }.items()
}  # fmt: skip
MAPS: dict[str, Variation] = {
    f"{scale} {placement}": {"hidden": (24,), "scale": scale, "placement": placement}
    for scale, placement in itertools.product(SCALES, PLACEMENTS)
}
SPLINES: dict[str, Variation] = {
    f"spline {tails} {kind}": {"hidden": (24,), "map": RationalQuadratic(4, (-1, 2), tails, kind)}
    for tails, kind in itertools.product(TAILS, PARAMETRIZATIONS)
}
# Of one a GPU's block has room for two features, so that there are several groups of them.
SPLINES["rational-linear spline"] = {
    "features": 7, "hidden": (24,), "map": RationalLinear(9, (-1, 2)), "addends": (1,), "layout": "parameter_major"
}  # fmt: skip
# One of them shifted, since a variation more takes CUDA's stand-in half a minute.
SPLINES["spline linear softplus"]["map"] = RationalQuadratic(4, (-9, 9), "linear", "softplus", shifted=True)
SMOOTH: dict[str, Variation] = {
    name: {"features": 3, "hidden": (5, 4), **structure}
    for name, structure in {
        "tanh": {"activation": "tanh", "addends": (0,)},
        "gates": {"activation": "tanh", "gates": (1,), "addends": (0,)},
        "context": {
            "activation": "tanh", "context": 2, "columns": "after", "conditioners": ((1, "sigmoid", True), (2, "tanh", False)),
        },
        "softplus": {"activation": "softplus", "scale": "softplus", "placement": "scale_shift", "masks": "dag"},
        "silu": {"activation": "silu", "scale": "sigmoid", "placement": "gate", "skip": True},
        "gelu": {
            "activation": "gelu", "scale": "soft_clipped_exp", "placement": "shift_scale", "hidden": (4, 4, 4), "residual": True
        },
        "sigmoid": {"activation": "sigmoid", "scale": "none", "placement": "scale_shift"},
        "elu": {"activation": "elu", "scale": "tanh", "hidden": ()},
        "spline": {"activation": "tanh", "map": RationalQuadratic(3, (-1, 2), "circular", "softplus")},
    }.items()
}  # fmt: skip


def any_network(draw: Callable[..., Any]) -> dict[str, Any]:
    hidden = tuple(draw(st.lists(st.integers(1, 40), max_size=3)))
    residual = draw(st.booleans()) and len(hidden) == 3 and draw(st.booleans())
    masks = draw(st.sampled_from(["made", "dag"]))
    features = draw(st.integers(1, 24))
    return {
        "features": features,
        "hidden": (hidden[0],) * 3 if residual else hidden,
        "masks": masks,
        "residual": residual and masks == "made",
        "skip": draw(st.booleans()),
        "order": tuple(draw(st.permutations(range(features)))),
        "activation": "tanh" if residual else draw(st.sampled_from(ACTIVATIONS)),
        "scale": draw(st.sampled_from(SCALES)),
        "placement": draw(st.sampled_from(PLACEMENTS)),
        "layout": "feature_major" if masks == "dag" else draw(st.sampled_from(["feature_major", "parameter_major"])),
        "backwards": draw(st.booleans()),
        **any_context(draw, len(hidden)),
    }


def any_context(draw: Callable[..., Any], hidden: int) -> dict[str, Any]:
    columns = draw(st.sampled_from(["", "before", "after"]))
    of_layers = st.tuples(st.integers(0, hidden), st.sampled_from(["identity", "tanh", "silu"]), st.just(False))
    conditioners = tuple(draw(st.lists(of_layers, max_size=2)))
    if not columns and not conditioners:
        return {}
    return {"context": draw(st.integers(1, 40)), "columns": columns, "conditioners": conditioners}


def item(name: str, index: int, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Replaces one tensor of a list."""
    return lambda a: {name: [change(t) if i == index else t for i, t in enumerate(a[name])]}


def bad_arguments(first: str) -> dict[str, Bad]:
    """For a typical call whose input is called ``first``."""
    return {
        "features": (lambda a: {first: a[first][:, :4]}, ValueError, rf"{first}: expected shape \(..., 6\), got \(3, 4\)"),
        "integers": (lambda a: {first: a[first].long()}, TypeError, f"{first}: expected a float"),
        "dtype": (
            lambda a: {first: a[first].double()},
            TypeError,
            rf"{first}: expected dtype torch\.float32 like weights\[0\], got",
        ),
        "dtype of a weight": (
            item("weights", 1, lambda t: t.double()),
            TypeError,
            r"weights\[1\]: expected dtype torch\.float32 like weights\[0\]",
        ),
        "dtype of a bias": (item("biases", 0, lambda t: t.double()), TypeError, r"biases\[0\]: expected dtype"),
        "shape of a weight": (item("weights", 0, lambda t: t[:, 1:]), ValueError, r"weights\[0\]: expected shape"),
        "shape of a bias": (item("biases", 0, lambda t: t[1:]), ValueError, r"biases\[0\]: expected shape"),
        "too few weights": (lambda a: {"weights": a["weights"][1:]}, ValueError, "weights: expected 3 tensors, got 2"),
        "an unexpected addend": (lambda a: {"addends": (a[first],)}, ValueError, "addends: the plan takes 0, got 1"),
        "device": (
            item("weights", 1, lambda t: t.to("meta")),
            ValueError,
            r"weights\[1\]: expected device cpu like weights\[0\]",
        ),
        "dtype of packed": (
            lambda a: {"packed": fk.ops.pack(a["plan"], a["weights"], a["biases"]).double()},
            TypeError,
            f"packed: expected dtype torch.float32 like {first if first == 'x' else '.'}, got torch.float64",
        ),
        "device of packed": (
            lambda a: {"packed": fk.ops.pack(a["plan"], a["weights"], a["biases"]).to("meta")},
            ValueError,
            f"packed: expected device cpu like {first if first == 'x' else '.'}, got meta",
        ),
        "a context": (lambda a: {"context": a[first]}, ValueError, "context: this network takes no context, got shape"),
        "shape of packed": (
            lambda a: {"packed": fk.ops.pack(a["plan"], a["weights"], a["biases"])[:-1]},
            ValueError,
            r"packed: expected shape \(\d+,\) for this plan, got \(\d+,\)",
        ),
    }


def bad_maps() -> dict[str, Bad]:
    return {
        "an unknown scale": (lambda a: {"scale": "cube"}, ValueError, "scale: expected one of"),
        "an unknown placement": (lambda a: {"placement": "left"}, ValueError, "placement: expected one of"),
        "too many constants": (lambda a: {"scale": "softplus", "constants": (1.0, 2.0)}, ValueError, "takes 1, got 2"),
        "a map of one parameter": (lambda a: {"scale": "none"}, ValueError, "takes 1 parameters per feature, the plan has 2"),
    }


def case_of(name: str) -> Case:
    """The case of an operator on masked networks."""
    transforms = name in networks.TRANSFORMS
    activations = {f"activation {a}": {"activation": a} for a in ACTIVATIONS}
    return Case(
        operator=getattr(fk.ops, name),
        outputs=networks.OUTPUTS[name],
        draw=functools.partial(networks.draw, name),
        variations={**STRUCTURES, **activations, **({**MAPS, **SPLINES} if transforms else {}), **ADDENDS, **GATES, **CONTEXTS},
        smooth=SMOOTH,
        any=any_network,
        bad={**bad_arguments("z" if name == "autoregressive_inverse" else "x"), **(bad_maps() if transforms else {})},
        layouts={
            "two hidden layers": {"features": 11, "hidden": (40, 40)},
            "context": {"context": 5, "columns": "before", "conditioners": ((1, "tanh", False),)},
        },
        low={
            "context": {"activation": "tanh", "context": 3, "columns": "after", "conditioners": ((1, "sigmoid", True),)},
            "two layers": {"activation": "tanh"},
            "residual": {"activation": "tanh", "hidden": (24, 24, 24), "residual": True},
            "gates": {"activation": "tanh", "gates": (1,), "addends": (0,)},
        },
        dtypes=unless_a_spline,
        large={"features": 20, "hidden": (64, 48)},
        shows="log_det" if transforms else None,
        oracle_compiles=name != "autoregressive_inverse",
    )
