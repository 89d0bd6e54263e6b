"""RealNVP: affine couplings, of tables and, at several scales, of images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from flowkern._checks import flag, whole_number
from flowkern.config import configured
from flowkern.flows.base import Base
from flowkern.flows.flow import Flow
from flowkern.flows.images import levels_of_vectors, squeezes_of
from flowkern.flows.maf import start_stack
from flowkern.nn import AffineCoupling, BatchNorm, Compose, MultiScale, ResNet, Squeeze, Standardize, Transform
from flowkern.nn.checks import event_of
from flowkern.nn.reversible import Memory


class RealNVP(Flow):
    r"""Affine couplings with a bounded log-scale, tanh; both directions cost one pass.

    Of vectors: couplings of the even and the odd features in turn. Of images, in levels: couplings of the pixels of a
    checkerboard, a squeeze, couplings of the channels, after which half of the numbers are noise; the last level has
    checkerboards only, one more.

    Args:
        features: number of features D, at least 2, or an image's shape (channels, height, width).
        couplings: of vectors in all, of images in each half of a level.
        hidden: widths of the hidden layers of each network; for images those of a :class:`flowkern.nn.ResNet`, all equal.
        levels: of images, each half as high and wide as the one before; none: as many as leave 4 x 4 pixels, at most 3.
        context: number of context features (after the embedding).
        activation: one of :data:`flowkern.plan.ACTIVATIONS`.
        batch_norm: a :class:`flowkern.nn.BatchNorm` after each coupling, as in the paper.
        base: see :class:`Flow`; the noise of images is a vector.
        embedding, standardize, memory: see :class:`flowkern.flows.MAF`.

    Raises:
        TypeError, ValueError: for impossible sizes, such as images that cannot be squeezed so often.

    Example:
        >>> import torch, flowkern as fk
        >>> fk.flows.RealNVP(4, hidden=(16,)).log_prob(torch.randn(5, 4)).shape
        torch.Size([5])
        >>> images = fk.flows.RealNVP((1, 8, 8), couplings=2, hidden=(8, 8))
        >>> images.log_prob(torch.randn(5, 1, 8, 8)).shape, images.sample((2,)).shape
        (torch.Size([5]), torch.Size([2, 1, 8, 8]))

    References:
        Density estimation using Real NVP (Dinh et al., 2017), sections 3 and 4.1.
    """

    takes_shapes = True

    @configured
    def __init__(
        self,
        features: int | Sequence[int],
        couplings: int | None = None,
        hidden: Sequence[int] = (64, 64, 64),
        levels: int | None = None,
        context: int = 0,
        activation: str = "relu",
        *,
        batch_norm: bool = False,
        base: Base | None = None,
        embedding: nn.Module | None = None,
        standardize: Standardize | None = None,
        memory: Memory = "full",
    ) -> None:
        event, batch_norm = event_of(features, 2), flag("batch_norm", batch_norm)
        count = whole_number("couplings", (3 if len(event) > 1 else 8) if couplings is None else couplings, 1)

        def couple(event: torch.Size, mask: str, count: int) -> list[Transform]:
            layers: list[Transform] = []
            for i in range(count):
                layers.append(_coupling(event, mask, bool(i % 2), hidden, context, activation))
                if batch_norm:
                    layers.append(BatchNorm(event))
            return layers

        stack = start_stack(standardize)
        if len(event) == 1:
            levels_of_vectors(levels)
            super().__init__([*stack, *couple(event, "alternating", count)], base, embedding, memory)
            return
        asked = None if levels is None else whole_number("levels", levels, 1) - 1
        parts: list[Transform] = []
        for _ in range(squeezes_of(event, asked, smallest=4, more=1)):
            squeeze = Squeeze(event)
            deep = squeeze.noise_shape
            parts.append(Compose([*couple(event, "checkerboard", count), squeeze, *couple(deep, "halves", count)]))
            event = torch.Size((deep[0] // 2, *deep[1:]))
        if event[1:].numel() == 1:
            raise ValueError(f"levels: expected at least 2 pixels at the last, got {tuple(event)} from {tuple(features)}")  # type: ignore[arg-type]
        parts.append(Compose(couple(event, "checkerboard", count + 1)))
        super().__init__([*stack, MultiScale(parts)], base, embedding, memory)


def _coupling(event: torch.Size, mask: str, swap: bool, hidden: Sequence[int], context: int, activation: str) -> AffineCoupling:
    """One layer, which is the identity at first: a deep stack of others loses digits. An image's has residual blocks."""
    if len(event) == 1:
        layer = AffineCoupling(event, hidden, context, mask, swap, activation, "tanh")
        layer.start_at_zero()
        return layer
    channels = event[0]
    seen, outputs = (channels - channels // 2, 2 * (channels // 2)) if mask == "halves" else (2 * channels, 2 * channels)
    network = ResNet(seen + context, outputs, hidden, activation)
    nn.init.zeros_(network.last.length)
    return AffineCoupling(event, (), context, mask, swap, activation, "tanh", network=network)
