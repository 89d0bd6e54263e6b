"""Convolutions of images that see nothing of what comes later in raster order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowkern._checks import one_of, whole_number
from flowkern.config import configured
from flowkern.nn.constants import Constants

KINDS = ("A", "B", "rows")


def colours(features: int, channels: int) -> Tensor:
    """The channel that each of some features belongs to: equal parts, in their order.

    >>> colours(6, 3).tolist()
    [0, 0, 1, 1, 2, 2]
    """
    return torch.arange(features, device="cpu") * channels // features


class MaskedConv2d(Constants, nn.Module):
    r"""A convolution of maps (..., height, width, inputs) that sees the rows above a pixel and the columns before it.

    Of the pixel itself it sees the channels before that of an output (mask A), or that one too (mask B): features belong to
    the image's channels in equal parts. Only the rows of the kernel that are seen are stored.

    Args:
        inputs, outputs: numbers of features.
        kernel: rows and columns of the whole kernel, both odd.
        kind: ``"A"``, ``"B"``, or ``"rows"``, which sees all of its own row too.
        channels: of the image, such as 3 for red, green, blue; they divide the features.
        parts: of the outputs that are ordered by channels each, such as the gates of an LSTM.

    Raises:
        ValueError: for impossible sizes, or an unknown kind.

    Example:
        >>> import torch
        >>> conv = MaskedConv2d(3, 6, (3, 3), "A", channels=3)
        >>> x = torch.randn(1, 4, 4, 3, requires_grad=True)
        >>> conv(x)[0, 2, 2, 2:4].sum().backward()  # green
        >>> [x.grad[0, 2, c].bool().int().tolist() for c in range(4)]
        [[0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 0, 0]]

    References:
        Pixel Recurrent Neural Networks (van den Oord et al., 2016), section 3.4.
    """

    mask: Tensor

    @configured
    def __init__(
        self, inputs: int, outputs: int, kernel: Sequence[int] = (1, 1), kind: str = "B", channels: int = 1, parts: int = 1
    ) -> None:
        super().__init__()
        self.inputs, self.outputs = whole_number("inputs", inputs, 1), whole_number("outputs", outputs, 1)
        if not isinstance(kernel, Sequence) or len(kernel) != 2:
            raise ValueError(f"kernel: expected rows and columns such as (3, 3), got {kernel!r}")
        rows, columns = (whole_number("kernel", size, 1) for size in kernel)
        channels, parts = whole_number("channels", channels, 1), whole_number("parts", parts, 1)
        if rows % 2 == 0 or columns % 2 == 0:
            raise ValueError(f"kernel: expected odd numbers of rows and columns, got {rows} and {columns}")
        one_of("kind", kind, KINDS)
        if inputs % channels or outputs % (channels * parts):
            raise ValueError(f"channels: expected a divisor of {inputs} inputs and {outputs // parts} outputs, got {channels}")
        self.above, self.side = rows // 2, columns // 2
        self.weight = nn.Parameter(torch.empty(outputs, inputs, self.above + 1, columns))
        self.bias = nn.Parameter(torch.empty(outputs))
        mask = torch.ones(self.weight.shape, device="cpu")
        if kind != "rows":
            read, to = colours(inputs, channels), colours(outputs // parts, channels).repeat(parts)
            mask[..., -1, self.side + 1 :] = 0
            mask[..., -1, self.side] = (read < to[:, None]) if kind == "A" else (read <= to[:, None])
        self.constant("mask", mask.bool())
        bound = float(mask[-1].sum().clamp(min=1)) ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def masked(self) -> Tensor:
        """The weight (outputs, inputs, rows, columns), zero where the mask is."""
        return torch.where(self.mask, self.weight, 0)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.masked()
        if weight[0, 0].numel() == 1:
            return F.linear(x, weight[..., 0, 0], self.bias)
        # A view of the maps as torch's memory format "channels last"; the rows that the padding adds below are dropped.
        y = F.conv2d(x.movedim(-1, -3), weight, self.bias, padding=(self.above, self.side))
        return y[..., : x.shape[-3], :].movedim(-3, -1)


def shift_down(x: Tensor) -> Tensor:
    """Maps (..., height, width, features) one row further down, zeros above."""
    return F.pad(x, (0, 0, 0, 0, 1, 0))[..., :-1, :, :]


class MaskedConvPlayer:
    """A :class:`MaskedConv2d` pixel by pixel: it keeps the rows of its input that are still read."""

    def __init__(self, conv: MaskedConv2d, batch: int, width: int) -> None:
        self.side, weight = conv.side, conv.masked()
        self.upper = weight[:, :, :-1] if conv.above else None
        self.whole, self.bias = weight, conv.bias
        self.left = weight[:, :, -1, : self.side + 1].transpose(1, 2).flatten(1)
        self.rows = weight.new_zeros(batch, conv.above + 1, width + 2 * self.side, conv.inputs)

    @property
    def row(self) -> Tensor:
        """The input of the present row (batch, width, inputs)."""
        return self.rows[:, -1, self.side : self.rows.shape[2] - self.side]

    def begin_row(self) -> None:
        """Goes to the next row, and computes what those above contribute to all of it."""
        self.rows = torch.cat([self.rows[:, 1:], torch.zeros_like(self.rows[:, :1])], 1)
        self.sums = self.bias if self.upper is None else self._convolved(self.rows[:, :-1], self.upper)

    def pixel(self, column: int, x: Tensor) -> Tensor:
        """The output (batch, outputs) at a column where the input is x (batch, inputs), those before it being known."""
        self.rows[:, -1, column + self.side] = x
        sums = self.sums if self.upper is None else self.sums[:, column]
        return sums + F.linear(self.rows[:, -1, column : column + self.side + 1].flatten(1), self.left)

    def whole_row(self, x: Tensor) -> Tensor:
        """Goes to the next row, whose input is x (batch, width, inputs): its output (batch, width, outputs)."""
        padded = F.pad(x, (0, 0, self.side, self.side))[:, None]
        self.rows = torch.cat([self.rows[:, 1:], padded], 1)
        return self._convolved(self.rows, self.whole)

    def _convolved(self, rows: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(rows.movedim(-1, 1), weight, self.bias)[:, :, 0].transpose(1, 2)
