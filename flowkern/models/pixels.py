"""What the autoregressive models of images share: whole numbers, channel by channel, pixel by pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowkern import nn as fnn
from flowkern._checks import check_context, check_generator, check_tensor, chunks, sizes, whole_number
from flowkern.model import Model
from flowkern.nn.checks import check_event, check_support, event_of
from flowkern.nn.heads import divisor, holding


class PixelModel(Model):
    """p(x) = the product over pixels in raster order, and in each of them over its channels, of what is given those before.

    A subclass makes ``network``: parameters (batch, height, width, channels, outputs) of maps (batch, height, width,
    channels), and its ``player``, which does the same pixel by pixel.

    Args:
        features: the image's shape (channels, height, width), or the number of features of a vector, an image of one row.
        levels: values of a channel: whole numbers from 0 to levels - 1. Two have one logit, more a softmax.
    """

    takes_shapes = True
    conditional = False
    levels: int
    network: Any

    def __init__(self, features: int | Sequence[int], levels: int) -> None:
        super().__init__()
        self.event_shape = event_of(features)
        self.image = self.event_shape if len(self.event_shape) == 3 else torch.Size((1, 1, *self.event_shape))
        self.levels = whole_number("levels", levels, 2)
        self.head: fnn.Head = fnn.Bernoulli() if self.levels == 2 else fnn.Categorical(self.levels)

    @property
    def _exact(self) -> torch.dtype:
        """In which numbers are drawn and have probabilities, whatever the network computes in."""
        return torch.promote_types(self.network.last.weight.dtype, torch.float32)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-probability in nats, with the batch's shape, in float32 at least.

        Raises:
            TypeError, ValueError: for images of another shape; on the CPU also for values that are none of the levels.
        """
        self._check(x, context)
        images = x.reshape(-1, *self.image).to(self._exact)
        found = self.head.log_prob(images, self.parameters_of(images))
        return found.flatten(1).sum(-1).reshape(x.shape[: x.dim() - len(self.event_shape)])

    def parameters_of(self, images: Tensor) -> Tensor:
        """Parameters (batch, channels, height, width, outputs) of each number of images, from those before it."""
        encoded = self.head.encode(images).to(self.network.last.weight.dtype)
        return self.network(encoded.movedim(-3, -1)).movedim(-2, 1).to(self._exact)

    def _check(self, x: Tensor, context: Tensor | None, name: str = "x") -> None:
        check_tensor(name, x)
        check_event(name, x, self.event_shape)
        check_context("model", context, 0, x, name)
        check_support(name, x, self.head)

    @torch.no_grad()
    def sample(
        self,
        shape: Sequence[int] = (),
        context: Tensor | None = None,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        chunk_size: int | None = None,
    ) -> Tensor:
        """Samples (*shape, *event_shape), pixel by pixel: of each only what its own pixel adds is computed.

        They have the weights' dtype, or float32 where it does not hold all levels.

        Args:
            shape: sample shape, as in torch.distributions.
            context: none; these models take no condition.
            temperature: at least 0; below 1 samples are more probable, above 1 less: probabilities become
                p^(1 / temperature). What is below 1e-6 counts as this: the most probable value is drawn.
            generator: source of the random numbers.
            chunk_size: samples drawn at once; bounds the memory of the intermediate results. Random numbers are drawn pixel by
                pixel, so another chunk size gives other samples.
        """
        size = sizes("shape", shape)
        check_context("model", context, 0, self.network.last.weight, "the weights")
        weight = self.network.last.weight
        given = torch.zeros(self.image, dtype=torch.bool, device=weight.device)
        parts = [weight.new_zeros(rows, *self.image, dtype=self._exact) for rows in chunks(size.numel(), chunk_size)]
        drawn = torch.cat([self._drawn(part, given, temperature, generator) for part in parts])
        return drawn.reshape(*size, *self.event_shape)

    @torch.no_grad()
    def complete(
        self, x: Tensor, mask: Tensor, *, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Images of which a part is given; the rest is drawn, each number from all before it, given or drawn.

        What is given further down does not bear on what is drawn: only a model of another order could take it into account.

        Args:
            x: (..., *event_shape); what stands where nothing is given does not matter.
            mask: true where x is given, of a shape that broadcasts with the event's.
            temperature, generator: see :meth:`sample`.

        Raises:
            TypeError, ValueError: for arguments that do not fit, or given values that are none of the levels.
        """
        check_tensor("x", x)
        check_tensor("mask", mask)
        if mask.dtype is not torch.bool:
            raise TypeError(f"mask: expected dtype torch.bool, got {mask.dtype}")
        check_event("x", x, self.event_shape)
        try:
            given = mask.expand(self.event_shape)
        except RuntimeError:
            shape = tuple(self.event_shape)
            raise ValueError(f"mask: expected a shape that broadcasts to {shape}, got {tuple(mask.shape)}") from None
        known = torch.where(given, x, 0)
        self._check(known, None)
        drawn = self._drawn(known.reshape(-1, *self.image), given.reshape(self.image), temperature, generator)
        return drawn.reshape(x.shape)

    def _drawn(self, known: Tensor, given: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
        """Images (batch, channels, height, width), drawn where nothing is given."""
        check_generator(generator)
        temperature = divisor(temperature)
        _, height, width = self.image
        dtype, kept = self.network.last.weight.dtype, holding(self.levels, self.network.last.weight.dtype)
        x = known.to(self.network.last.weight.device, self._exact, copy=True)
        if len(x) == 0:
            return x.to(kept)

        def encoded(here: Tensor) -> Tensor:
            return self.head.encode(here).to(dtype)

        player, wanted = self.network.player(len(x), width), (~given).cpu()
        for row in range(height):
            player.begin_row()
            for column in range(width):
                here = x[:, :, row, column]
                for channel in wanted[:, row, column].nonzero().flatten().tolist():
                    parameters = player.pixel(column, encoded(here))[:, channel].to(self._exact)
                    here[:, channel] = self.head.sample(parameters / temperature, generator)
                if wanted[-1, row, column]:  # on its last channel nothing at a pixel itself depends
                    player.row[:, column] = encoded(here)
                else:
                    player.pixel(column, encoded(here))
        return x.to(kept)


def check_hidden(hidden: int, channels: int) -> int:
    """A number of features that the image's channels divide."""
    hidden = whole_number("hidden", hidden, 1)
    if hidden % channels:
        raise ValueError(f"hidden: expected a multiple of the image's {channels} channels, got {hidden}")
    return hidden
