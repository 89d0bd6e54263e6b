"""Inverse autoregressive flow."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from flowkern.config import configured
from flowkern.flows.base import Base
from flowkern.flows.flow import Flow
from flowkern.flows.maf import build_stack
from flowkern.nn import InverseAutoregressive, Standardize
from flowkern.nn.reversible import Memory
from flowkern.univariate import UnivariateMap


class IAF(Flow):
    r"""Inverse autoregressive flow: samples in one pass per transform, the density of given values in one sweep.

    Args:
        gated: the gated step x = s z + (1 - s) m of the paper, see :class:`flowkern.nn.InverseAutoregressive`.
        scale, placement, constants, map: another univariate map than the one that ``gated`` names, see
            :mod:`flowkern.univariate`.
        features, transforms, hidden, context, activation, order, batch_norm, base, embedding, standardize, degrees,
            residual, skip, generator, memory: as in :class:`flowkern.flows.MAF`.

    Example:
        >>> import torch, flowkern as fk
        >>> flow = fk.flows.IAF(3, transforms=2, hidden=(16,))
        >>> x, log_prob = flow.rsample_and_log_prob((5,))
        >>> torch.allclose(flow.log_prob(x), log_prob, atol=1e-4)
        True

    References:
        Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016).
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
        gated: bool = False,
        batch_norm: bool = False,
        base: Base | None = None,
        embedding: nn.Module | None = None,
        standardize: Standardize | None = None,
        scale: str | None = None,
        placement: str | None = None,
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
            "gated": gated,
            "scale": scale,
            "placement": placement,
            "constants": constants,
            "degrees": degrees,
            "residual": residual,
            "skip": skip,
            "generator": generator,
            "map": map,
        }
        stack = build_stack(InverseAutoregressive, features, transforms, order, batch_norm, standardize, options)
        super().__init__(stack, base, embedding, memory)
