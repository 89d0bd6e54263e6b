"""The exact inverse of ``autoregressive`` at the cost of about one pass."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from flowkern import reference
from flowkern._checks import broadcast_batch
from flowkern.ops._network import dispatch, optional_biases
from flowkern.ops._network_call import Call, call_of, check_count
from flowkern.ops._sweep import sweep
from flowkern.ops.autoregressive import oracle
from flowkern.plan import AutoregressivePlan
from flowkern.univariate import UnivariateMap


def autoregressive_inverse(
    z: Tensor,
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
    r"""x with ``autoregressive(x) = z``, and log|det dx/dz|, in one sweep over the levels.

    A hidden unit is final as soon as the features that it may read are known. So the sweep computes, level by level,
    just the units that became available, then the parameters of the next features, then these features: every
    unmasked weight is used once, where D full passes use each D times. The gradient, for z, addends and every weight,
    is one sweep in reverse order, by implicit differentiation: with J = dz/dx it solves J^T v = g and returns v for z
    and -v^T dz/dtheta for the weights.

    Args:
        z: input (..., features).
        weights, biases, plan, scale, placement, constants, map, addends, context, packed: as in :func:`autoregressive`.

    Returns:
        x (..., features) and log_det with the batch's shape. A row that is not finite, or whose context is not, has a log_det
            that is not.

    Raises:
        TypeError, ValueError: for arguments that do not fit the plan or each other.

    Example:
        >>> import torch
        >>> degrees, hidden = torch.arange(2), torch.tensor([0, 0, 0])
        >>> masks = [hidden[:, None] >= degrees, degrees.repeat_interleave(2)[:, None] > hidden]
        >>> plan = AutoregressivePlan(masks)
        >>> weights, biases = [torch.randn(3, 2) / 2, torch.randn(4, 3) / 2], [torch.zeros(3), torch.zeros(4)]
        >>> z = torch.randn(5, 2)
        >>> x, _ = autoregressive_inverse(z, weights, biases, plan)
        >>> from flowkern.ops import autoregressive
        >>> torch.allclose(autoregressive(x, weights, biases, plan)[0], z, atol=1e-4)
        True

    References:
        Masked Autoregressive Flow for Density Estimation (Papamakarios et al., 2017), equation 3.
    """
    call = inverse_call(plan, scale, placement, constants, map)
    x, log_det = dispatch(call, z, weights, biases, addends, context, packed, name="z")
    return x, log_det


def _call(plan: AutoregressivePlan, map: UnivariateMap) -> Call:
    check_count(plan, map)
    slow = partial(oracle, reference.autoregressive_inverse, plan, map)
    make = partial(inverse_call, scale="", placement="", constants=None, map=map)
    return Call("autoregressive_inverse", plan, map, slow, partial(_sweep_inverse, plan, map), solves=True, make=make)


inverse_call = partial(call_of, "autoregressive_inverse", _call)


def _sweep_inverse(
    plan: AutoregressivePlan,
    map: UnivariateMap,
    z: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    addends: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    batch = broadcast_batch(z, addends, "addends") if addends else z.shape[:-1]
    z = z.expand(*batch, z.shape[-1])
    log_det = z.new_zeros(batch)

    def solve(features: Tensor, parameters: Tensor) -> Tensor:
        nonlocal log_det
        x, log_slope = map.oracle(z[..., features], *parameters.unbind(-1), inverse=True)
        log_det = log_det + log_slope.sum(-1)
        return x

    return sweep(solve, weights, optional_biases(plan, biases), plan, addends, tuple(batch)), log_det
