"""NICE: additive couplings and a diagonal scaling."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from flowkern._checks import whole_number
from flowkern.config import configured
from flowkern.flows.base import Base, StandardLogistic
from flowkern.flows.flow import Flow
from flowkern.flows.maf import start_stack
from flowkern.nn import AdditiveCoupling, Scaling, Standardize, Transform
from flowkern.nn.reversible import Memory


class NICE(Flow):
    r"""Additive couplings of the even and the odd features in turn, which keep volumes, then a scale for each feature.

    Both directions cost one pass. Images are taken as vectors, as in the paper.

    Args:
        features: number of features D, at least 2.
        couplings: number of coupling layers.
        hidden: widths of the hidden layers of each.
        context: number of context features (after the embedding).
        activation: one of :data:`flowkern.plan.ACTIVATIONS`.
        base: see :class:`Flow`; the standard logistic distribution by default.
        embedding, standardize, memory: see :class:`flowkern.flows.MAF`.

    Example:
        >>> import torch, flowkern as fk
        >>> flow = fk.flows.NICE(4, hidden=(16,))
        >>> flow.log_prob(torch.randn(5, 4)).shape, flow.sample((7,)).shape
        (torch.Size([5]), torch.Size([7, 4]))

    References:
        NICE: Non-linear Independent Components Estimation (Dinh et al., 2015), sections 3 and 5.
    """

    @configured
    def __init__(
        self,
        features: int,
        couplings: int = 4,
        hidden: Sequence[int] = (1000, 1000, 1000, 1000, 1000),
        context: int = 0,
        activation: str = "relu",
        *,
        base: Base | None = None,
        embedding: nn.Module | None = None,
        standardize: Standardize | None = None,
        memory: Memory = "full",
    ) -> None:
        features = whole_number("features", features, 2)
        stack: list[Transform] = start_stack(standardize)
        for i in range(whole_number("couplings", couplings, 1)):
            stack.append(AdditiveCoupling(features, hidden, context, "alternating", bool(i % 2), activation))
        stack.append(Scaling(features))
        super().__init__(stack, StandardLogistic(features) if base is None else base, embedding, memory)
