"""Several autoregressive transforms, one after another, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowkern._checks import HALF, check_features, check_float
from flowkern._library import MAPS
from flowkern.backends import kernels_for
from flowkern.ops._network import as_rows
from flowkern.ops._network_call import Call
from flowkern.ops._network_checks import check_network, check_packed
from flowkern.ops.autoregressive import autoregressive, forward_call
from flowkern.ops.autoregressive_inverse import autoregressive_inverse, inverse_call

Step = tuple[bool, dict[str, Any]]


def autoregressive_chain(x: Tensor, steps: Sequence[Step]) -> tuple[Tensor, Tensor]:
    r"""The steps one after another, and the sum of their log-determinants.

    Without a gradient the native kernel packs all weights at once and takes each tile of rows through the whole chain
    while it is in the cache: a small flow costs one call instead of one per transform. In all other cases the steps
    are called one by one.

    Args:
        x: input (..., features).
        steps: for each step whether it is :func:`autoregressive_inverse` rather than :func:`autoregressive`, and the
            keyword arguments of that operator.

    Returns:
        The output of the last step (..., features) and the log_det with the batch's shape.

    Raises:
        TypeError, ValueError: for arguments that do not fit each other.

    Example:
        >>> import torch
        >>> from flowkern import AutoregressivePlan
        >>> plan = AutoregressivePlan([torch.tensor([[0, 0], [0, 0], [1, 0], [1, 0]])])
        >>> step = {"weights": [torch.randn(4, 2)], "biases": [torch.zeros(4)], "plan": plan}
        >>> with torch.no_grad():
        ...     x, log_det = autoregressive_chain(torch.ones(1, 2), [(False, step), (True, step)])
        >>> torch.allclose(x, torch.ones(1, 2)), torch.allclose(log_det, torch.zeros(1), atol=1e-6)
        (True, True)

    References:
        Masked Autoregressive Flow for Density Estimation (Papamakarios et al., 2017), section 3.1.
    """
    if not steps:
        raise ValueError("steps: expected at least one")
    check_float("x", x)
    if (
        torch.is_grad_enabled()
        or x.dtype in HALF
        or not kernels_for(x, "autoregressive").on_cpu
        or any(step.get("map") is not None and step["map"].kind not in MAPS for _, step in steps)
        or torch.compiler.is_compiling()
        or torch.is_autocast_enabled(x.device.type)
    ):
        return _one_by_one(x, steps)
    try:
        return _native(x, steps)
    except RuntimeError:
        for inverse, arguments in steps:  # the kernel only says that something does not fit; say what
            weights, biases, plan = arguments["weights"], arguments["biases"], arguments["plan"]
            check_network(x, weights, biases, plan, arguments.get("addends", ()), "z" if inverse else "x")
            if arguments.get("packed") is not None:
                check_packed(arguments["packed"], plan, x)
        raise


def _native(x: Tensor, steps: Sequence[Step]) -> tuple[Tensor, Tensor]:
    weights: list[Tensor] = []
    biases: list[Tensor] = []
    addends: list[Tensor] = []
    packed: list[Tensor] = []
    plans: list[Tensor] = []
    masks: list[Tensor] = []
    maps: list[Tensor] = []
    inverses: list[int] = []
    for inverse, arguments in steps:
        call = _call(inverse, arguments)
        plan = call.plan
        counts = len(arguments["weights"]), len(arguments["biases"]), len(arguments.get("addends", ()))
        if counts != (call.weights, call.parameters - call.weights, len(plan.addend_widths)):
            raise RuntimeError("a step's tensors do not belong to its plan")
        weights += arguments["weights"]
        biases += arguments["biases"]
        addends += arguments.get("addends", ())
        if arguments.get("packed") is not None:
            packed.append(arguments["packed"])
        plans.append(plan.meta)
        masks.append(plan.mask_bytes)
        maps += call.numbers
        inverses.append(inverse)
    if any(t.is_meta for part in (weights, biases, addends, packed) for t in part):
        raise RuntimeError("tensors without values would reach the operator's fake, not its kernel")
    check_features("z" if steps[0][0] else "x", x, steps[0][1]["plan"].features)
    rows, added, batch = as_rows(x, addends)
    packed = packed if len(packed) == len(steps) else []
    z, log_det = torch.ops.flowkern.autoregressive_chain(rows, weights, biases, added, packed, plans, masks, maps, inverses)
    return (z, log_det) if len(batch) == 1 else (z.reshape(*batch, z.shape[-1]), log_det.reshape(batch))


def _call(inverse: bool, arguments: dict[str, Any]) -> Call:
    get = arguments.get
    placed = get("scale", "exp"), get("placement", "standardize"), get("constants"), get("map")
    return (inverse_call if inverse else forward_call)(arguments["plan"], *placed)


def _one_by_one(x: Tensor, steps: Sequence[Step]) -> tuple[Tensor, Tensor]:
    total: Any = 0
    for inverse, arguments in steps:
        if inverse:
            x, log_det = autoregressive_inverse(x, **arguments)
        else:
            x, log_det = autoregressive(x, **arguments)
        total = total + log_det
    return x, total
