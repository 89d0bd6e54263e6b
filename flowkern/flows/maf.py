"""Masked autoregressive flow."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from flowkern._checks import flag, one_of, whole_number
from flowkern.config import configured
from flowkern.flows.base import Base
from flowkern.flows.flow import Flow
from flowkern.nn import BatchNorm, InverseAutoregressive, MaskedAutoregressive, Standardize, Transform
from flowkern.nn.made import ORDERS
from flowkern.nn.reversible import Memory
from flowkern.univariate import UnivariateMap


def build_stack(
    layer: type[MaskedAutoregressive] | type[InverseAutoregressive],
    features: int,
    transforms: int,
    order: str,
    batch_norm: bool,
    standardize: Standardize | None,
    options: dict,
) -> list[Transform]:
    """Autoregressive layers in alternating orders, each followed by batch normalisation where asked."""
    one_of("order", order, ORDERS)
    transforms, batch_norm = whole_number("transforms", transforms, 1), flag("batch_norm", batch_norm)
    stack = start_stack(standardize)
    for i in range(transforms):
        # "reverse" turns the order around from each transform to the next, as the papers do.
        of_layer = order if order != "reverse" else ("natural", "reverse")[i % 2]
        stack.append(layer(features, order=of_layer, **options))
        if batch_norm:
            stack.append(BatchNorm(features))
    return stack


def start_stack(standardize: Standardize | None) -> list[Transform]:
    """What is next to the data."""
    if standardize is not None and not isinstance(standardize, Transform):
        raise TypeError(f"standardize: expected a flowkern.nn.Standardize, got {type(standardize).__name__}")
    return [] if standardize is None else [standardize]


class MAF(Flow):
    r"""Masked autoregressive flow: the density in one pass per transform, samples in one sweep per transform.

    Args:
        features: number of features D.
        transforms: number of autoregressive transforms.
        hidden: widths of the hidden layers of each.
        context: number of context features (after the embedding).
        activation: one of :data:`flowkern.plan.ACTIVATIONS`.
        order: ``"reverse"`` turns the order around between transforms, ``"random"`` draws one for each,
            ``"natural"`` keeps it.
        batch_norm: a :class:`flowkern.nn.BatchNorm` after each transform, as in the paper.
        base: see :class:`Flow`; a :class:`flowkern.models.MADE` with a mixture head gives MAF MoG.
        embedding: see :class:`Flow`.
        standardize: a :class:`flowkern.nn.Standardize`, applied to the data first.
        scale, placement, constants, map: the univariate map, see :class:`flowkern.nn.MaskedAutoregressive`.
        degrees, residual, skip, generator: the networks, see :class:`flowkern.nn.MADE`.
        memory: see :class:`flowkern.flows.Flow`.

    Example:
        >>> import torch, flowkern as fk
        >>> flow = fk.flows.MAF(3, transforms=2, hidden=(16, 16), context=4)
        >>> flow.log_prob(torch.randn(5, 3), torch.randn(5, 4)).shape
        torch.Size([5])
        >>> flow.sample((7,), torch.randn(5, 4)).shape
        torch.Size([7, 5, 3])

    References:
        Masked Autoregressive Flow for Density Estimation (Papamakarios et al., 2017).
    """

    @configured
    def __init__(
        self,
        features: int,
        transforms: int = 5,
        hidden: Sequence[int] = (512, 512),
        context: int = 0,
        activation: str = "relu",
        order: str = "reverse",
        *,
        batch_norm: bool = False,
        base: Base | None = None,
        embedding: nn.Module | None = None,
        standardize: Standardize | None = None,
        scale: str = "soft_clipped_exp",
        placement: str = "standardize",
        constants: Sequence[float] | None = None,
        degrees: str = "sequential",
        residual: bool = False,
        skip: bool = False,
        generator: torch.Generator | None = None,
        map: UnivariateMap | None = None,
        memory: Memory = "full",
    ) -> None:
        options = {
            "hidden": hidden,
            "context": context,
            "activation": activation,
            "scale": scale,
            "placement": placement,
            "constants": constants,
            "degrees": degrees,
            "residual": residual,
            "skip": skip,
            "generator": generator,
            "map": map,
        }
        stack = build_stack(MaskedAutoregressive, features, transforms, order, batch_norm, standardize, options)
        super().__init__(stack, base, embedding, memory)
