"""Random masked networks for the tests, and calls of the operators on them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from calls import Example, drawn_map, evaluate
from torch import Tensor

import flowkern as fk
from flowkern import AutoregressivePlan
from flowkern.ops._context import outside
from flowkern.univariate import UnivariateMap


def made_masks(
    features: int, hidden: Sequence[int], parameters: int, layout: str = "feature_major", order: Any = None
) -> list[Tensor]:
    """Masks of MADE with cyclic degrees, positions from 0."""
    position = torch.arange(features) if order is None else torch.as_tensor(order)
    degrees, masks = position + 1, []
    for width in hidden:
        units = torch.arange(width) % max(1, features - 1) + min(1, features - 1)
        masks.append(units[:, None] >= degrees)
        degrees = units
    rows = position.repeat_interleave(parameters) if layout == "feature_major" else position.repeat(parameters)
    masks.append(rows[:, None] + 1 > degrees)
    return masks


def dag_masks(features: int, hidden: Sequence[int], parameters: int, generator: torch.Generator) -> list[Tensor]:
    """Masks of a random directed acyclic graph: every unit sees a random subset of what its level allows."""
    level = torch.randperm(features, generator=generator)
    below, masks = level + 1, []
    for width in hidden:
        own = torch.randint(0, features + 1, (width,), generator=generator)  # some see all: they reach no output
        masks.append((own[:, None] >= below) & (torch.rand(width, len(below), generator=generator) < 0.6))
        below = own
    rows = level.repeat_interleave(parameters)[:, None]
    masks.append((rows + 1 > below) & (torch.rand(len(rows), len(below), generator=generator) < 0.6))
    return masks


@dataclass
class Network:
    """A plan with weights in float64, and the map on top of it."""

    plan: AutoregressivePlan
    weights: list[Tensor]
    biases: list[Tensor]
    map: dict[str, Any] = field(default_factory=dict)
    gain: float = 1.0

    def leaves(self, dtype: torch.dtype, device: torch.device | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """Weights and biases in a dtype, with gradients."""
        return (
            [w.to(device, dtype, copy=True).requires_grad_() for w in self.weights],
            [b.to(device, dtype, copy=True).requires_grad_() for b in self.biases],
        )

    def redrawn(self, seed: int) -> Network:
        """The same plan with weights of another seed, small enough that inverses stay well conditioned."""
        generator = torch.Generator().manual_seed(seed)
        like: Any = {"generator": generator, "dtype": torch.float64}
        weights = [self.gain * torch.randn(s, **like) / max(s[1], 1) ** 0.5 for s in self.plan.weight_shapes]
        hidden = len(self.plan.units)
        for i in range(hidden, len(self.plan.masks)):
            weights[i] *= 0.25 if hidden else 0.1  # alone, the exponential of a linear map of the features grows without bound
        biases = [0.3 * torch.randn(s, **like) for s in self.plan.bias_shapes]
        return Network(self.plan, weights, biases, self.map, self.gain)


def network(
    features: int = 5,
    hidden: Sequence[int] = (16, 16),
    *,
    parameters: int = 2,
    masks: str = "made",
    residual: bool = False,
    skip: bool = False,
    seed: int = 0,
    order: Any = None,
    gain: float = 1.0,
    scale: str = "exp",
    placement: str = "standardize",
    constants: tuple[float, ...] | None = None,
    map: UnivariateMap | None = None,
    backwards: bool = False,
    context: int = 0,
    columns: str = "",
    **structure: Any,
) -> Network:
    """A network of the given structure; ``backwards``: its outputs are a feature's parameters from the last to the first.

    ``columns``: where those of the context are in the first layer, "before" or "after" those of the features, or "both",
    after, and in the skip connection too.
    """
    parameters = map.count if map is not None else 1 if scale == "none" else parameters
    if backwards:
        structure["parameter_order"] = tuple(reversed(range(parameters)))
    layout = structure.get("layout", "feature_major")
    if masks == "dag":
        made = dag_masks(features, hidden, parameters, torch.Generator().manual_seed(1000 + seed))
    else:
        made = made_masks(features, hidden, parameters, layout, order)
    if skip:
        full = made_masks(features, (), parameters, layout, order)[0]
        made.append(full if masks == "made" else torch.zeros_like(full))
    if columns:
        first = 0 if columns == "before" else features
        structure["context_columns"] = range(first, first + context)
        for i in [0, -1] if columns == "both" else [0]:
            drawn = torch.rand(len(made[i]), context, generator=torch.Generator().manual_seed(seed)) < 0.7
            sees = drawn if masks == "dag" else torch.ones_like(drawn)
            made[i] = torch.cat([sees, made[i]] if columns == "before" else [made[i], sees], 1)
    residuals = [i - 2 if residual and i and i % 2 == 0 else None for i in range(len(hidden))]
    plan = AutoregressivePlan(made, parameters=parameters, residuals=residuals, skip=skip, context=context, **structure)
    return Network(plan, [], [], drawn_map(scale, placement, constants, map), gain).redrawn(seed)


def coupling_network(
    passing: int,
    transformed: int,
    hidden: Sequence[int] = (16, 16),
    *,
    context: int = 0,
    gated: bool = False,
    gates_read: int | None = None,
    wide: bool = False,
    seed: int = 0,
    scale: str = "exp",
    placement: str = "standardize",
    constants: tuple[float, ...] | None = None,
    map: UnivariateMap | None = None,
    **structure: Any,
) -> Network:
    """The network of a coupling: it reads what passes and then the context, which may gate the last of three layers.

    ``gates_read``: how much of the context and then of what passes, the whole context by default.
    ``wide``: there are columns for what is transformed, after those for what passes, which are masked.
    """
    parameters = map.count if map is not None else 1 if scale == "none" else 2
    unread = transformed if wide else 0
    widths = [passing + unread + context, *hidden, transformed * parameters]
    masks = [torch.ones(rows, columns, dtype=torch.bool) for columns, rows in itertools.pairwise(widths)]
    masks[0][:, passing : passing + unread] = False
    if gated:
        structure |= {"conditioners": ((2, "sigmoid", True),), "residuals": (None, None, 0)}
    plan = AutoregressivePlan(
        masks,
        parameters=parameters,
        context=passing + context,
        context_columns=[*range(passing + unread, widths[0]), *range(passing)],
        conditioner_context=context if gates_read is None else gates_read,
        features=None if wide else transformed,
        **structure,
    )
    return Network(plan, [], [], drawn_map(scale, placement, constants, map)).redrawn(seed)


# -- calls ------------------------------------------------------------------------------------------------------------

TRANSFORMS = ("autoregressive", "autoregressive_inverse")
OUTPUTS = {"masked_mlp": ("value",), **dict.fromkeys(TRANSFORMS, ("value", "log_det"))}
_network = functools.lru_cache(512)(network)  # plans are costly, and nothing of a call changes them


def draw(
    operator: str, rows: int, seed: int, *, features: int = 6, hidden: tuple[int, ...] = (24, 24), **structure: Any
) -> Example:
    """A call of an operator on a network of a structure. Only graphs are of a new plan for every seed."""
    graph = seed if structure.get("masks") == "dag" else 0
    planned = _network(features, hidden, seed=graph, **structure)
    for own in itertools.count(seed, 10_000):  # a unit that reads nothing may lie at its kink: then other weights
        net = planned.redrawn(own)
        found = _rows(net, rows, torch.Generator().manual_seed(own))
        if found is not None:
            break
    x, *added = found
    context = added.pop() if planned.plan.context else None
    if operator == "autoregressive_inverse":  # of rows whose solution is clear of kinks
        with fk.backend("reference"):
            x, _ = fk.ops.autoregressive(x, net.weights, net.biases, net.plan, addends=added, context=context, **net.map)
    return example(operator, net, x, added, context)


def example(operator: str, net: Network, x: Tensor, addends: Sequence[Tensor] = (), context: Tensor | None = None) -> Example:
    """A call of an operator on a network, its tensors named after the layers."""
    first = "z" if operator == "autoregressive_inverse" else "x"
    weights = {f"layer {i}.weight": w for i, w in enumerate(net.weights)}
    biased = [i for i, has in enumerate(net.plan.biases) if has]
    biases = {f"layer {i}.bias": b for i, b in zip(biased, net.biases, strict=True)}
    added = {f"addend {i}": a for i, a in enumerate(addends)}
    given_context = {} if context is None else {"context": context}

    def arguments(t: Mapping[str, Tensor]) -> dict[str, Any]:
        given = {"weights": [t[k] for k in weights], "biases": [t[k] for k in biases], "addends": [t[k] for k in added]}
        given.update({k: t[k] for k in given_context})
        return {first: t[first], **given, "plan": net.plan, **({} if operator == "masked_mlp" else net.map)}

    return Example({first: x, **added, **given_context}, {**weights, **biases}, arguments)


def _rows(net: Network, rows: int, generator: torch.Generator) -> list[Tensor] | None:
    """Inputs and addends that keep every pre-activation clear of zero, where the derivative of relu jumps, if there are any."""
    like: Any = {"generator": generator, "dtype": torch.float64}
    widths = [net.plan.features, *net.plan.addend_widths, *([net.plan.context] if net.plan.context else [])]
    kept = [torch.empty(0, w, dtype=torch.float64) for w in widths]
    while len(kept[0]) < rows:
        drawn = [torch.randn(rows + 8, net.plan.features, **like)]
        drawn += [0.3 * torch.randn(rows + 8, w, **like) for w in widths[1:]]
        clear = _clear_of_kinks(net, *drawn)
        if not clear.any():
            return None
        kept = [torch.cat([old, new[clear]]) for old, new in zip(kept, drawn, strict=True)]
    return [t[:rows] for t in kept]


def _clear_of_kinks(net: Network, x: Tensor, *addends: Tensor) -> Tensor:
    if net.plan.context:
        weights, given, added = outside(net.plan, net.weights, net.biases, addends[:-1], addends[-1])
        return _clear_of_kinks(Network(net.plan.outside, weights, given), x, *added)
    plan = net.plan
    clear = torch.ones(len(x), dtype=torch.bool)
    if plan.activation not in ("relu", "leaky_relu"):
        return clear
    assert not any(r is not None for r in plan.residuals), (
        "kinks of residual networks are not modelled: take a smooth activation"
    )
    biases = iter(net.biases)
    optional = [next(biases) if has else None for has in plan.biases]
    for depth in range(len(plan.units)):  # the network cut off after each layer gives its pre-activations
        structure = {"activated": plan.activated[:depth], "residuals": plan.residuals[:depth], "constant": plan.constant}
        p = fk.reference.masked_mlp(
            x,
            net.weights,
            optional,
            plan.masks[: depth + 1],
            activation=plan.activation,
            **plan.terms(addends),
            **structure,
        )
        clear &= (p.abs() > 1e-5).all(-1)
    return clear


def run(
    operator: str,
    net: Network,
    x: Tensor,
    dtype: torch.dtype,
    backend: str,
    *,
    addends: Sequence[Tensor] = (),
    context: Tensor | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """Outputs of an operator and the gradients of everything, as in :func:`calls.evaluate`."""
    call = example(operator, net, x, addends, context)
    return evaluate(getattr(fk.ops, operator), OUTPUTS[operator], call, dtype, backend, **options)
