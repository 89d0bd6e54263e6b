"""Masked network, univariate map and log-determinant in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from flowkern import reference
from flowkern.ops._network import Call, dispatch, optional_biases
from flowkern.plan import AutoregressivePlan
from flowkern.univariate import constants_of, resolve


def autoregressive(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    plan: AutoregressivePlan,
    *,
    scale: str = "exp",
    placement: str = "standardize",
    constants: Sequence[float] | None = None,
    addends: Sequence[Tensor] = (),
    packed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""z_d = f(x_d; parameters of d from x_{<d}) for every feature d in one pass, with log|det dz/dx|.

    Args:
        x: input (..., features).
        weights, biases, plan, addends, packed: the masked network, as in :func:`masked_mlp`; two parameters per
            feature, or one where ``scale`` is ``"none"``.
        scale, placement, constants: the univariate map, see :mod:`flowkern.univariate`. The default is MAF's
            z = (x - t) exp(-a).

    Returns:
        z (..., features) and log_det with the batch's shape. A row that is not finite has a log_det that is not.

    Raises:
        TypeError, ValueError: for arguments that do not fit the plan or each other.

    Example:
        >>> import torch
        >>> degrees, hidden = torch.arange(2), torch.tensor([0, 0, 0])
        >>> masks = [hidden[:, None] >= degrees, degrees.repeat_interleave(2)[:, None] > hidden]
        >>> plan = AutoregressivePlan(masks)
        >>> weights, biases = [torch.randn(3, 2), torch.randn(4, 3)], [torch.zeros(3), torch.zeros(4)]
        >>> z, log_det = autoregressive(torch.randn(5, 2), weights, biases, plan)
        >>> z.shape, log_det.shape
        (torch.Size([5, 2]), torch.Size([5]))

    References:
        Masked Autoregressive Flow for Density Estimation (Papamakarios et al., 2017), equations 3 to 5.
    """
    call = call_of(plan, scale, placement, constants)
    z, log_det = dispatch(call, x, weights, biases, addends, packed)
    return z, log_det


def check_map(
    plan: AutoregressivePlan, scale: str, placement: str, constants: Sequence[float] | None
) -> tuple[tuple[int, int, float, float], dict[str, Any]]:
    """A univariate map as numbers and as keyword arguments of the oracle, if it fits the plan."""
    numbers = resolve(scale, placement, constants)
    count = 1 if scale == "none" else 2
    if plan.parameters != count:
        raise ValueError(f"plan: the scale map {scale!r} takes {count} parameters per feature, the plan has {plan.parameters}")
    given = constants_of(scale, constants)
    return numbers, {"scale": scale, "placement": placement, "constants": given}


def call_of(plan: AutoregressivePlan, scale: str, placement: str, constants: Sequence[float] | None) -> Call:
    """The constants of a call, made at the first one."""
    constants = None if constants is None else tuple(constants)
    key = ("autoregressive", scale, placement, constants)
    return plan.calls.get(key) or plan.remember(key, _call(plan, scale, placement, constants))


def _call(plan: AutoregressivePlan, scale: str, placement: str, constants: Sequence[float] | None) -> Call:
    numbers, named = check_map(plan, scale, placement, constants)
    return Call("autoregressive", plan, numbers, partial(oracle, reference.autoregressive, plan, named))


def oracle(
    function: Callable[..., Any],
    plan: AutoregressivePlan,
    named: dict[str, Any],
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    addends: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """Calls the oracle of a transform with what the plan knows."""
    return function(
        x,
        weights,
        optional_biases(plan, biases),
        plan.masks_like(x),
        **plan.terms(addends),
        **named,
        **plan.structure,
        **plan.head,
    )
