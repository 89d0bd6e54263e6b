"""Masked network, univariate map and log-determinant in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from flowkern import reference
from flowkern.ops._network import dispatch, optional_biases
from flowkern.ops._network_call import Call, call_of, check_count
from flowkern.plan import AutoregressivePlan
from flowkern.univariate import UnivariateMap


def autoregressive(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    plan: AutoregressivePlan,
    *,
    scale: str = "exp",
    placement: str = "standardize",
    constants: Sequence[float] | None = None,
    map: UnivariateMap | None = None,
    addends: Sequence[Tensor] = (),
    context: Tensor | None = None,
    packed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""z_d = f(x_d; parameters of d from x_{<d}) for every feature d in one pass, with log|det dz/dx|.

    Args:
        x: input (..., features).
        weights, biases, plan, addends, context, packed: the masked network, as in :func:`masked_mlp`, with as many
            parameters per feature as the map takes: two, or one where ``scale`` is ``"none"``.
        scale, placement, constants: the univariate map, see :mod:`flowkern.univariate`. The default is MAF's
            z = (x - t) exp(-a).
        map: any other univariate map, in the place of these three.

    Returns:
        z (..., features) and log_det with the batch's shape. A row that is not finite, or whose context is not, has a log_det
            that is not.

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
    call = forward_call(plan, scale, placement, constants, map)
    z, log_det = dispatch(call, x, weights, biases, addends, context, packed)
    return z, log_det


def _call(plan: AutoregressivePlan, map: UnivariateMap) -> Call:
    check_count(plan, map)
    make = partial(forward_call, scale="", placement="", constants=None, map=map)
    return Call("autoregressive", plan, map, partial(oracle, reference.autoregressive, plan, map), make=make)


forward_call = partial(call_of, "autoregressive", _call)


def oracle(
    function: Callable[..., Any],
    plan: AutoregressivePlan,
    map: UnivariateMap,
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
        map=map.oracle,
        **plan.structure,
        **plan.head,
    )
