"""A whole masked network in one call."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from flowkern import reference
from flowkern.ops._network import dispatch, optional_biases
from flowkern.ops._network_call import Call
from flowkern.plan import AutoregressivePlan


def masked_mlp(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    plan: AutoregressivePlan,
    *,
    addends: Sequence[Tensor] = (),
    context: Tensor | None = None,
    packed: Tensor | None = None,
) -> Tensor:
    r"""Parameters of every feature from a masked network: the autoregressive conditionals of MADE.

    Args:
        x: input (..., features).
        weights: one (out, in) matrix per mask of the plan; masked entries have no effect.
        biases: one vector per layer that has a bias.
        plan: the structure of the network.
        addends: per-row terms (..., width) of the layers that ``plan.addends`` names, then the per-row factors of those
            that ``plan.gates`` names; their batch shapes broadcast with that of x.
        context: what the network is conditioned on (..., plan.context), its batch shape broadcast with that of x; ``None``
            where the plan takes none.
        packed: the result of ``pack`` for these weights, where they are known not to have changed.

    Returns:
        (..., features x parameters), in the order of the rows of the last mask.

    Raises:
        TypeError, ValueError: for arguments that do not fit the plan or each other.

    Example:
        >>> import torch
        >>> degrees, hidden = torch.arange(3), torch.tensor([0, 1, 0, 1])
        >>> masks = [hidden[:, None] >= degrees, degrees[:, None] > hidden]
        >>> plan = AutoregressivePlan(masks, parameters=1)
        >>> weights, biases = [torch.randn(4, 3), torch.randn(3, 4)], [torch.zeros(4), torch.zeros(3)]
        >>> masked_mlp(torch.randn(5, 3), weights, biases, plan).shape
        torch.Size([5, 3])

    References:
        MADE: Masked Autoencoder for Distribution Estimation (Germain et al., 2015), equations 9 and 10.
    """
    return dispatch(_call(plan), x, weights, biases, addends, context, packed)[0]


def _call(plan: AutoregressivePlan) -> Call:
    found = plan.calls.get("masked_mlp")
    made = found or Call("masked_mlp", plan, None, partial(_oracle, plan), make=_call)
    return found or plan.remember("masked_mlp", made)


def _oracle(
    plan: AutoregressivePlan, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], addends: Sequence[Tensor]
) -> Tensor:
    return reference.masked_mlp(
        x,
        weights,
        optional_biases(plan, biases),
        plan.masks_like(x),
        **plan.terms(addends),
        **plan.structure,
    )
