"""Glow: activation normalisation, invertible 1x1 convolutions and affine couplings, at several levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from flowkern._checks import whole_number
from flowkern.config import configured
from flowkern.flows.base import Base
from flowkern.flows.flow import Flow
from flowkern.flows.images import levels_of_vectors, squeezes_of
from flowkern.flows.maf import start_stack
from flowkern.nn import ActNorm, AffineCoupling, Compose, InvertibleConv1x1, MultiScale, Squeeze, Standardize, Transform
from flowkern.nn.checks import event_of
from flowkern.nn.reversible import Memory


class Glow(Flow):
    r"""Steps of a :class:`flowkern.nn.ActNorm`, a :class:`flowkern.nn.InvertibleConv1x1` and an affine coupling of channels.

    Of images, in levels: a squeeze, the steps, and half of the channels are noise, with a mean and a deviation for each number
    that a network takes from the half that goes on. A context conditions all couplings and these priors. The first batch in
    training sets the normalisations.

    Of vectors: the steps alone.

    Args:
        features: number of features D, at least 2, or an image's shape (channels, height, width).
        steps: number of steps K of each level.
        levels: number of levels L of images; none: as many as the image can be squeezed, at most 3.
        hidden: widths of the hidden layers of each network; for images those of a :class:`flowkern.nn.ConvNet`.
        context: number of context features (after the embedding).
        activation: one of :data:`flowkern.plan.ACTIVATIONS`.
        lu: the LU form of the convolutions.
        generator: source of the rotations that these are at first.
        base: see :class:`Flow`; the noise of images is a vector.
        embedding, standardize, memory: see :class:`flowkern.flows.MAF`.

    Raises:
        TypeError, ValueError: for impossible sizes, such as images that cannot be squeezed so often.

    Example:
        >>> import torch, flowkern as fk
        >>> flow = fk.flows.Glow((1, 8, 8), steps=2, hidden=(8, 8), context=10)
        >>> x, digit = torch.randn(5, 1, 8, 8), torch.eye(10)[:5]
        >>> flow.log_prob(x, digit).shape, flow.sample((2,), digit, temperature=0.7).shape
        (torch.Size([5]), torch.Size([2, 5, 1, 8, 8]))

    References:
        Glow: Generative Flow with Invertible 1x1 Convolutions (Kingma and Dhariwal, 2018), sections 3 and 5.
    """

    takes_shapes = True

    @configured
    def __init__(
        self,
        features: int | Sequence[int],
        steps: int = 32,
        levels: int | None = None,
        hidden: Sequence[int] = (512, 512),
        context: int = 0,
        activation: str = "relu",
        *,
        lu: bool = True,
        base: Base | None = None,
        embedding: nn.Module | None = None,
        standardize: Standardize | None = None,
        generator: torch.Generator | None = None,
        memory: Memory = "full",
    ) -> None:
        event, steps = event_of(features, 2), whole_number("steps", steps, 1)

        def step(event: torch.Size) -> list[Transform]:
            mix = InvertibleConv1x1(event, lu, generator)
            coupling = AffineCoupling(event, hidden, context, activation=activation, scale="sigmoid", placement="shift_scale")
            if len(event) == 1:
                coupling.start_at_zero()  # as the networks of convolutions do
            return [ActNorm(event), mix, coupling]

        stack = start_stack(standardize)
        if len(event) == 1:
            levels_of_vectors(levels)
            super().__init__([*stack, *(layer for _ in range(steps) for layer in step(event))], base, embedding, memory)
            return
        count = squeezes_of(event, None if levels is None else whole_number("levels", levels, 1), smallest=1)
        parts: list[Transform] = []
        for i in range(count):
            squeeze = Squeeze(event)
            event = squeeze.noise_shape
            layers: list[Transform] = [squeeze, *(layer for _ in range(steps) for layer in step(event))]
            if i + 1 < count:
                layers.append(_prior(event, context))
                event = torch.Size((event[0] // 2, *event[1:]))
            parts.append(Compose(layers))
        if not parts:
            raise ValueError(f"features: expected an image of even height and width, got {tuple(event)}")
        super().__init__([*stack, MultiScale(parts)], base, embedding, memory)


def _prior(event: torch.Size, context: int) -> AffineCoupling:
    """The half that leaves becomes standard normal: (z - mean) / deviation, both of the half that goes on."""
    return AffineCoupling(event, (), context, swap=True, scale="soft_clipped_exp", placement="standardize")
