"""Encoders and decoders of a VAE that are built by their sizes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flowkern._checks import widths
from flowkern.nn.activations import activation_layer, mlp


def encoder(
    network: str, event_shape: torch.Size, outputs: int, hidden: Sequence[int], channels: Sequence[int], activation: str
) -> nn.Module:
    """From events (rows, *event_shape) to numbers (rows, outputs), which are zero at first."""
    stages, sizes = _stages(network, event_shape, channels)
    down = [_Down(a, b, activation) for a, b in itertools.pairwise(stages)]
    end = mlp([math.prod((stages[-1], *sizes[-1])), *widths("hidden", hidden), outputs], activation)
    for parameter in end[-1].parameters():
        nn.init.zeros_(parameter)  # the posterior begins near the prior, whatever the units of x
    return nn.Sequential(*down, nn.Flatten(), *end)


def decoder(
    network: str,
    latent: int,
    event_shape: torch.Size,
    outputs: int,
    hidden: Sequence[int],
    channels: Sequence[int],
    activation: str,
) -> nn.Module:
    """The encoder's mirror, from z (rows, latent) to ``outputs`` numbers for each feature.

    Those of a channel lie next to each other: (rows, channels x outputs, height, width), or this as a vector.
    """
    stages, sizes = _stages(network, event_shape, channels)
    last = stages[-1] * (outputs if len(stages) == 1 else 1)
    start = mlp([latent, *widths("hidden", hidden)[::-1], math.prod((last, *sizes[-1]))], activation)
    if len(stages) == 1:
        return start
    turned = list(zip(stages, sizes, strict=True))[::-1]
    up = [_Up(a, b, before, after, activation) for (a, before), (b, after) in itertools.pairwise(turned[:-1])]
    final = _Up(turned[-2][0], event_shape[0] * outputs, turned[-2][1], turned[-1][1], activation)
    return nn.Sequential(*start, nn.Unflatten(1, (last, *sizes[-1])), *up, final)


def _stages(network: str, event_shape: torch.Size, channels: Sequence[int]) -> tuple[list[int], list[torch.Size]]:
    """Channels and sizes of the picture before each stage and after the last; of an MLP there are none but the event's."""
    stages, sizes = [event_shape[0]], [event_shape[1:]]
    if network == "mlp":
        return stages, sizes
    if len(event_shape) != 3:
        raise ValueError(f"network: a resnet takes images (channels, height, width), got features {tuple(event_shape)}")
    stages += channels
    if len(stages) == 1:
        raise ValueError("channels: expected one or more widths, got ()")
    for _ in stages[1:]:
        sizes.append(torch.Size((n + 1) // 2 for n in sizes[-1]))
    return stages, sizes


class _Residual(nn.Module):
    """x + convolution(activation(convolution(activation(x))))."""

    def __init__(self, channels: int, activation: str) -> None:
        super().__init__()
        act = activation_layer(activation)
        first, second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.branch = nn.Sequential(act, first, act, second)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class _Down(nn.Sequential):
    """To half of the size, rounded up, then a residual block."""

    def __init__(self, inputs: int, outputs: int, activation: str) -> None:
        halving = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
        super().__init__(halving, _Residual(outputs, activation), activation_layer(activation))


class _Up(nn.Sequential):
    """A residual block, then from the size ``before`` to about twice of it, ``after``."""

    def __init__(self, inputs: int, outputs: int, before: torch.Size, after: torch.Size, activation: str) -> None:
        rows, columns = (a - (2 * b - 1) for b, a in zip(before, after, strict=True))
        doubling = nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=(rows, columns))
        super().__init__(_Residual(inputs, activation), activation_layer(activation), doubling)
