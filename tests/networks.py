"""Random masked networks for the tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accuracy import device_of, using
from torch import Tensor

import flowkern as fk
from flowkern import AutoregressivePlan
from flowkern.ops._network import optional_biases
from flowkern.univariate import default_constants


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

    def leaves(self, dtype: torch.dtype, device: torch.device | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """Weights and biases in a dtype, with gradients."""
        return (
            [w.to(device, dtype, copy=True).requires_grad_() for w in self.weights],
            [b.to(device, dtype, copy=True).requires_grad_() for b in self.biases],
        )


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
    **structure: Any,
) -> Network:
    """A network of the given structure, its weights small enough that inverses stay well conditioned."""
    generator = torch.Generator().manual_seed(seed)
    if scale == "none":
        parameters = 1
    layout = structure.get("layout", "feature_major")
    if masks == "dag":
        made = dag_masks(features, hidden, parameters, generator)
    else:
        made = made_masks(features, hidden, parameters, layout, order)
    if skip:
        full = made_masks(features, (), parameters, layout, order)[0]
        made.append(full if masks == "made" else torch.zeros_like(full))
    residuals = [i - 2 if residual and i and i % 2 == 0 else None for i in range(len(hidden))]
    plan = AutoregressivePlan(made, parameters=parameters, residuals=residuals, skip=skip, **structure)
    weights = [gain * torch.randn(m.shape, generator=generator, dtype=torch.float64) / max(m.shape[1], 1) ** 0.5 for m in made]
    for i in range(len(hidden), len(weights)):
        weights[i] *= 0.25 if hidden else 0.1  # alone, the exponential of a linear map of the features grows without bound
    biases = [
        0.3 * torch.randn(m.shape[0], generator=generator, dtype=torch.float64)
        for m, has in zip(made, plan.biases, strict=True)
        if has
    ]
    return Network(plan, weights, biases, {"scale": scale, "placement": placement, "constants": constants})


def strided(rows: Tensor, how: str) -> Tensor:
    """The same values with other strides."""
    if how == "transposed":
        return rows.t().contiguous().t()
    if how == "sliced":
        wide = torch.full((rows.shape[0] * 2, rows.shape[1] + 3), float("nan"), dtype=rows.dtype, device=rows.device)
        wide[::2, 1:-2] = rows
        return wide[::2, 1:-2]
    return rows


def away_from_kinks(operator: str, net: Network, x: Tensor, addends: Sequence[Tensor]) -> Tensor:
    """Which rows keep every pre-activation clear of zero, where the derivative of relu jumps."""
    if net.plan.activation not in ("relu", "leaky_relu") or not net.plan.units:
        return torch.ones(len(x), dtype=torch.bool)
    added = net.plan.terms([a.double() for a in addends])
    biases = optional_biases(net.plan, net.biases)
    if operator == "autoregressive_inverse":
        constants = net.map["constants"] or default_constants(net.map["scale"])
        options = {**net.map, "constants": constants, **net.plan.structure, **net.plan.head}
        x, _ = fk.reference.autoregressive_inverse(x, net.weights, biases, net.plan.masks, **added, **options)
    clear = torch.ones(len(x), dtype=torch.bool)
    for depth in range(len(net.plan.units)):  # the network cut off after each layer gives its pre-activations
        structure = {
            "activated": net.plan.activated[:depth],
            "residuals": net.plan.residuals[:depth],
            "constant": net.plan.constant,
        }
        p = fk.reference.masked_mlp(
            x, net.weights, biases, net.plan.masks[: depth + 1], activation=net.plan.activation, **added, **structure
        )
        if net.plan.residuals[depth] is not None:
            return torch.zeros(len(x), dtype=torch.bool)  # not modelled here; use a smooth activation
        clear &= (p.abs() > 1e-5).all(-1)
    return clear


def run(
    operator: str,
    net: Network,
    x: Tensor,
    dtype: torch.dtype,
    backend: str,
    *,
    grads: bool = True,
    addends: Sequence[Tensor] = (),
    how: str = "contiguous",
    host: Any = None,
) -> dict[str, Tensor]:
    """Outputs of an operator and, by random cotangents, the gradients of everything."""
    device = device_of(backend)
    weights, biases = net.leaves(dtype, device)
    x = strided(x.to(device, dtype, copy=True), how).requires_grad_(grads)
    added = [a.to(device, dtype, copy=True).requires_grad_() for a in addends]
    options = {} if operator == "masked_mlp" else net.map
    with using(backend, host), torch.set_grad_enabled(grads):
        found = getattr(fk.ops, operator)(x, weights, biases, net.plan, addends=added, **options)
    outputs = found if isinstance(found, tuple) else (found,)
    named = dict(zip(("value", "log_det"), (o.detach().cpu() for o in outputs), strict=False))
    if grads and x.numel():
        generator = torch.Generator().manual_seed(7)
        # Cotangents that every dtype represents exactly.
        cotangents = [torch.randn(o.shape, generator=generator).bfloat16().to(o) for o in outputs]
        total = sum((o * c).sum() for o, c in zip(outputs, cotangents, strict=True))
        leaves = {"x": x, **{f"weight {i}": w for i, w in enumerate(weights)}, **{f"bias {i}": b for i, b in enumerate(biases)}}
        leaves.update({f"addend {i}": a for i, a in enumerate(added)})
        with using(backend, host):
            got = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
        named.update({f"gradient of {k}": g.cpu() for k, g in zip(leaves, got, strict=True)})
    return named
