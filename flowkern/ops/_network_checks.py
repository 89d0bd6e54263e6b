"""Checks of the arguments of operators on masked networks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from flowkern._checks import check_context, check_features, check_float, check_like, check_shapes
from flowkern.plan import AutoregressivePlan


def check_parameters(weights: Sequence[Tensor], biases: Sequence[Tensor], plan: AutoregressivePlan) -> None:
    """Raises for weights and biases that do not fit the plan or each other."""
    if [t.shape for t in weights] != plan.weight_shapes or [t.shape for t in biases] != plan.bias_shapes:
        check_shapes("weights", weights, plan.weight_shapes)
        check_shapes("biases", biases, plan.bias_shapes)
    first = weights[0]
    dtype, device = first.dtype, first.device
    check_float("weights[0]", first)
    for t in (*weights, *biases):
        if t.dtype is not dtype or t.device != device:
            for kind, part in (("weights", weights), ("biases", biases)):
                for i, other in enumerate(part):
                    check_like(kind, other, first, "weights[0]", i)


def check_packed(packed: Tensor, plan: AutoregressivePlan, x: Tensor) -> None:
    """Raises for packed weights that are not of this plan, or not of the dtype and device of x."""
    check_like("packed", packed, x)
    if packed.shape != (plan.packed_size,):
        raise ValueError(f"packed: expected shape ({plan.packed_size},) for this plan, got {tuple(packed.shape)}")


def check_network(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    plan: AutoregressivePlan,
    addends: Sequence[Tensor],
    context: Tensor | None = None,
    name: str = "x",
) -> None:
    """Raises for arguments that do not fit the plan or each other."""
    check_float(name, x)
    check_features(name, x, plan.features)
    check_parameters(weights, biases, plan)
    check_like(name, x, weights[0], "weights[0]")
    if context is not None or plan.context:
        check_context("network", context, plan.context, weights[0], "weights[0]")
    if len(addends) != len(plan.addend_widths):
        raise ValueError(f"addends: the plan takes {len(plan.addend_widths)}, got {len(addends)}")
    for i, (t, width) in enumerate(zip(addends, plan.addend_widths, strict=True)):
        check_features(f"addends[{i}]", t, width)
        check_like("addends", t, weights[0], "weights[0]", i)
