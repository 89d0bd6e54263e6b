"""Neural spline flow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from flowkern._checks import whole_number, widths
from flowkern.config import configured
from flowkern.flows.base import Base
from flowkern.flows.flow import Flow
from flowkern.flows.maf import build_stack, start_stack
from flowkern.nn import BatchNorm, Coupling, MaskedAutoregressive, Standardize, Transform
from flowkern.nn.reversible import Memory
from flowkern.univariate import RationalQuadratic


class NSF(Flow):
    r"""Neural spline flow: autoregressive or coupling transforms whose univariate maps are rational-quadratic splines.

    What lies outside the interval passes as it is, so the data should be standardised first, as ``fit`` and the commands do. A
    new flow is the identity.

    Args:
        coupling: coupling transforms, which transform every other feature given the rest, in turns: sampling costs one pass of
            each network, and the density does. Otherwise autoregressive ones: a better density, samples in one sweep.
        bins: number of bins of each spline.
        interval, tails: of the splines, see :mod:`flowkern.univariate.rational_quadratic`. Raw sizes are divided by the square
            root of the last hidden width, as in the paper's code.
        map: another spline, in the place of these three.
        features, transforms, hidden, context, activation, batch_norm, base, embedding, standardize, memory: as in
            :class:`flowkern.flows.MAF`.
        order, degrees, residual, skip, generator: of autoregressive transforms, as there.

    Raises:
        ValueError: for impossible sizes and unknown names, and for masked networks' structure with ``coupling``.

    Example:
        >>> import torch, flowkern as fk
        >>> flow = fk.flows.NSF(3, transforms=2, hidden=(16, 16), context=4)
        >>> flow.log_prob(torch.randn(5, 3), torch.randn(5, 4)).shape
        torch.Size([5])
        >>> flow.sample((7,), torch.randn(5, 4)).shape
        torch.Size([7, 5, 3])

    References:
        Neural Spline Flows (Durkan et al., 2019).
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
        coupling: bool = False,
        bins: int = 8,
        interval: Sequence[float] = (-5.0, 5.0),
        tails: str = "linear",
        batch_norm: bool = False,
        base: Base | None = None,
        embedding: nn.Module | None = None,
        standardize: Standardize | None = None,
        degrees: str = "sequential",
        residual: bool = False,
        skip: bool = False,
        generator: torch.Generator | None = None,
        map: RationalQuadratic | None = None,
        memory: Memory = "full",
    ) -> None:
        hidden = widths("hidden", hidden)
        if map is None:
            settings = (1e-3, 1e-3, 1e-3, 1.0, (hidden[-1] if hidden else 1) ** -0.5)
            map = RationalQuadratic(bins, interval, tails, "softplus", settings)  # type: ignore[arg-type]  # it checks
        elif not isinstance(map, RationalQuadratic):
            raise TypeError(f"map: expected a flowkern.univariate.RationalQuadratic, got {type(map).__name__}")
        network = {"hidden": hidden, "context": context, "activation": activation, "map": map}
        masked = {"degrees": degrees, "residual": residual, "skip": skip, "generator": generator}
        if coupling:
            given = [name for name in ("residual", "skip") if masked[name]]
            if given:
                raise ValueError(f"{given[0]}: coupling transforms have plain networks, got True")
            stack = _couplings(features, transforms, batch_norm, standardize, network)
        else:
            options = {**network, **masked}
            stack = build_stack(MaskedAutoregressive, features, transforms, order, batch_norm, standardize, options)
        super().__init__(stack, base, embedding, memory)
        _begin_as_the_identity(stack, map)


@torch.no_grad()
def _begin_as_the_identity(stack: list[Transform], map: RationalQuadratic) -> None:
    """Small random raw numbers would move the knots by as much as the data's deviation, in every transform anew."""
    raw = torch.tensor(map.identity)
    last: Any
    for layer in stack:
        if isinstance(layer, MaskedAutoregressive):  # whose network gives the parameters of a feature together
            last = layer.network.layers[-2 if layer.network.skip else -1 :]
            biases = raw.repeat(layer.features)
        elif isinstance(layer, Coupling):
            last, biases = [layer.network[-1]], raw.repeat_interleave(layer.count)  # type: ignore[index]  # one that it made
        else:
            continue
        for linear in last:
            linear.weight.zero_()
            if linear.bias is not None:
                linear.bias.copy_(biases)


def _couplings(
    features: int, transforms: int, batch_norm: bool, standardize: Standardize | None, network: dict
) -> list[Transform]:
    """Coupling layers that transform the odd and the even features in turns."""
    stack = start_stack(standardize)
    for i in range(whole_number("transforms", transforms, 1)):
        stack.append(Coupling(features, mask="alternating", swap=i % 2 == 1, **network))
        if batch_norm:
            stack.append(BatchNorm(features))
    return stack
