"""Neural spline flow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from flowkern._checks import flag, whole_number, widths
from flowkern.config import configured, plain
from flowkern.flows.base import Base, PartlyUniform
from flowkern.flows.flow import Flow
from flowkern.flows.maf import build_stack, start_stack
from flowkern.nn import BatchNorm, Coupling, MaskedAutoregressive, Standardize, Transform, Wrap
from flowkern.nn.periodic import circular_features
from flowkern.nn.reversible import Memory
from flowkern.univariate import RationalQuadratic

CIRCLE = (-math.pi, math.pi)


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
        circular: which features are circular, such as angles: ``True`` for all, or their numbers. Their density is continuous
            around the circle, and the same for angles whole turns apart; samples lie in ``circle``. Networks see them as points
            of a circle (in masked ones, which have relu then, of a polygon with 16 corners). Between transforms they are turned
            by half a period, since a spline leaves the ends of its interval where they are.
        circle: the interval of circular features, from which they keep their units, or an interval for each of them; (-pi, pi).
        features, transforms, hidden, context, activation, batch_norm, base, embedding, standardize, memory: as in
            :class:`flowkern.flows.MAF`.
        order, degrees, residual, skip, generator: of autoregressive transforms, as there.

    Raises:
        ValueError: for impossible sizes and unknown names, for masked networks' structure with ``coupling``, for a circle
            of no features, and for circular features with other tails, batch norm, or in masked networks another activation or
            structure.

    Example:
        >>> import torch, flowkern as fk
        >>> flow = fk.flows.NSF(3, transforms=2, hidden=(16, 16), context=4)
        >>> flow.log_prob(torch.randn(5, 3), torch.randn(5, 4)).shape
        torch.Size([5])
        >>> flow.sample((7,), torch.randn(5, 4)).shape
        torch.Size([7, 5, 3])
        >>> flow = fk.flows.NSF(3, transforms=2, hidden=(16, 16), circular=[1], circle=(0, 360))  # the second is in degrees
        >>> x = torch.tensor([[0.3, 10.0, -1.0], [0.3, 370.0, -1.0]])
        >>> torch.allclose(*flow.log_prob(x))
        True

    References:
        Neural Spline Flows (Durkan et al., 2019); Normalizing Flows on Tori and Spheres (Rezende et al., 2020).
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
        circular: bool | Sequence[int] = (),
        circle: Sequence[float] | Sequence[Sequence[float]] = CIRCLE,
        memory: Memory = "full",
    ) -> None:
        hidden, coupling, batch_norm = widths("hidden", hidden), flag("coupling", coupling), flag("batch_norm", batch_norm)
        if map is None:
            settings = (1e-3, 1e-3, 1e-3, 1.0, (hidden[-1] if hidden else 1) ** -0.5)
            map = RationalQuadratic(bins, interval, tails, "softplus", settings)  # type: ignore[arg-type]  # it checks
        elif not isinstance(map, RationalQuadratic):
            raise TypeError(f"map: expected a flowkern.univariate.RationalQuadratic, got {type(map).__name__}")
        chosen = circular_features(circular, features)
        if not chosen and plain(circle) != list(CIRCLE):
            raise ValueError(f"circle: expected circular features, whose interval it is, got {circle!r} and none of them")
        if chosen and batch_norm:
            raise ValueError("batch_norm: it would change the units of circular features, got True")
        network = {"hidden": hidden, "context": context, "activation": activation, "map": map, "circular": chosen}
        masked = {"degrees": degrees, "residual": residual, "skip": skip, "generator": generator}
        if coupling:
            given = [name for name in ("residual", "skip") if flag(name, masked[name])]
            if given:
                raise ValueError(f"{given[0]}: coupling transforms have plain networks, got True")
            stack = _couplings(features, transforms, batch_norm, standardize, network)
        else:
            options = {**network, **masked}
            stack = build_stack(MaskedAutoregressive, features, transforms, order, batch_norm, standardize, options)
        if chosen:
            stack = _around_circles(stack, features, chosen, circle, map.interval)
            base = PartlyUniform(features, chosen, map.interval) if base is None else base
        super().__init__(stack, base, embedding, memory)
        self.circular = chosen
        _begin_as_the_identity(stack)


@torch.no_grad()
def _begin_as_the_identity(stack: list[Transform]) -> None:
    """Small random raw numbers would move the knots by as much as the data's deviation, in every transform anew."""
    last: Any
    for layer in stack:
        if not isinstance(layer, (MaskedAutoregressive, Coupling)):
            continue
        raw = torch.tensor(layer.map.identity)  # type: ignore[attr-defined]  # a spline
        if isinstance(layer, MaskedAutoregressive):  # whose network gives the parameters of a feature together
            last = layer.network.layers[-2 if layer.network.skip else -1 :]
            biases = raw.repeat(layer.features)
        else:
            last = [module for module in layer.network.modules() if isinstance(module, nn.Linear)][-1:]
            biases = raw.repeat_interleave(layer.count)
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


def _around_circles(
    stack: list[Transform],
    features: int,
    circular: Sequence[int],
    circle: Sequence[float] | Sequence[Sequence[float]],
    interval: Sequence[float],
) -> list[Transform]:
    """The same transforms, with angles taken into the interval before the first one, and turned before each of the others."""
    around: list[Transform] = []
    for layer in stack:
        if not isinstance(layer, Standardize):
            first = not any(isinstance(before, Wrap) for before in around)
            around.append(Wrap(features, circular, circle if first else interval, interval, 0.0 if first else 0.5))
        around.append(layer)
    return around
