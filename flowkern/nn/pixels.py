"""The networks of PixelRNN and PixelCNN: maps (batch, height, width, features) that see what comes before a pixel.

Each layer has a player beside it, which does the same pixel by pixel: ``begin_row`` computes what the rows above contribute
to all of a row, given the image's row before where a layer reads that, and ``pixel`` adds what the row itself does. A pixel
may be played again with another input, as it is for every channel of an image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowkern import ops
from flowkern.nn.masked_conv import MaskedConv2d, MaskedConvPlayer, shift_down
from flowkern.reference.row_lstm import lstm_cell
from flowkern.reference.wavenet_layer import gated


class StateToState(nn.Module):
    """The scan of an LSTM over images, and its input-to-state convolution, which sees its own pixel through mask ``kind``."""

    def __init__(self, inputs: int, hidden: int, channels: int, diagonal: bool, kind: str = "B") -> None:
        super().__init__()
        self.diagonal = diagonal
        self.input = MaskedConv2d(inputs, 4 * hidden, (1, 1 if diagonal else 3), kind, channels, parts=4)
        self.weight = nn.Parameter(torch.empty(4 * hidden, hidden, 2 if diagonal else 3))
        nn.init.uniform_(self.weight, -(hidden**-0.5), hidden**-0.5)

    def forward(self, x: Tensor, mirrored: bool = False) -> Tensor:
        z = self.input(x)
        return ops.diagonal_lstm(z, self.weight, mirrored=mirrored) if self.diagonal else ops.row_lstm(z, self.weight)


class LSTMLayer(nn.Module):
    """Maps + a convolution of what an LSTM makes of them: Row LSTM, or Diagonal BiLSTM.

    The mirrored direction is moved down by one row, since in its own row it has seen pixels that are still to come. It may
    then read the image besides the maps, and does: no map holds the last pixel of the row above but where the first
    convolution reaches it from.

    References:
        Pixel Recurrent Neural Networks (van den Oord et al., 2016), sections 3.1 to 3.3.
    """

    def __init__(self, features: int, channels: int, diagonal: bool) -> None:
        super().__init__()
        hidden = features // 2
        self.forwards = StateToState(features, hidden, channels, diagonal)
        self.mirrored = StateToState(features + channels, hidden, 1, True, "rows") if diagonal else None
        self.output = MaskedConv2d(hidden, features, channels=channels)

    def forward(self, maps: Tensor, image: Tensor) -> Tensor:
        h = self.forwards(maps)
        if self.mirrored is not None:
            h = h + shift_down(self.mirrored(torch.cat([maps, image], -1), mirrored=True))
        return maps + self.output(h)

    def player(self, batch: int, width: int) -> LSTMPlayer:
        return LSTMPlayer(self, batch, width)


class LSTMPlayer:
    """An :class:`LSTMLayer` pixel by pixel: it keeps the states and cells of the rows before."""

    def __init__(self, layer: LSTMLayer, batch: int, width: int) -> None:
        self.mirrored, self.width = layer.mirrored, width
        self.input = MaskedConvPlayer(layer.forwards.input, batch, width)
        self.weight, self.diagonal = layer.forwards.weight, layer.forwards.diagonal
        self.output = MaskedConvPlayer(layer.output, batch, width)
        hidden = self.weight.shape[1]
        self.states, self.cells = (self.weight.new_zeros(batch, width, hidden) for _ in range(2))
        self.above = torch.zeros_like(self.states)  # what the mirrored scan made of the row above, if there is one
        self.nothing = self.states[:, 0].clone()

    def begin_row(self, before: Tensor | None) -> None:
        if self.mirrored is not None and before is not None:
            self._see_from_the_right(self.mirrored, torch.cat([self.input.row, before], -1))
        self.input.begin_row()
        self.output.begin_row()
        side = 0 if self.diagonal else 1
        padded = F.pad(self.states, (0, 0, side, side))
        taps = self.weight.unbind(-1)[: 1 if self.diagonal else 3]
        self.sums = torch.stack([padded[:, j : j + self.width] @ tap.t() for j, tap in enumerate(taps)]).sum(0)
        self.cells_above, self.cells, self.states = self.cells, torch.zeros_like(self.cells), torch.zeros_like(self.states)

    def _see_from_the_right(self, mirrored: StateToState, row: Tensor) -> None:
        """The mirrored scan of the row that has ended: it is an image of its own, to which the one above has added."""
        z = mirrored.input(row[:, None]) + (self.above @ mirrored.weight[..., 0].t())[:, None]
        self.above = ops.diagonal_lstm(z, mirrored.weight, mirrored=True)[:, 0]

    def pixel(self, column: int, x: Tensor) -> Tensor:
        z = self.input.pixel(column, x) + self.sums[:, column]
        if self.diagonal:
            state, cell = (t[:, column - 1] if column else self.nothing for t in (self.states, self.cells))
            z = z + state @ self.weight[..., 1].t()
        else:
            cell = self.cells_above[:, column]
        h, c = lstm_cell(z, cell)
        self.states[:, column], self.cells[:, column] = h, c
        return x + self.output.pixel(column, h + self.above[:, column])


class ConvLayer(nn.Module):
    """A residual block of three convolutions, the middle one with a kernel.

    References:
        Pixel Recurrent Neural Networks (van den Oord et al., 2016), section 3.3, figure 5.
    """

    def __init__(self, features: int, channels: int, kernel: int) -> None:
        super().__init__()
        hidden = features // 2
        self.convolutions = nn.ModuleList(
            [
                MaskedConv2d(features, hidden, channels=channels),
                MaskedConv2d(hidden, hidden, (kernel, kernel), channels=channels),
                MaskedConv2d(hidden, features, channels=channels),
            ]
        )

    def forward(self, maps: Tensor, image: Tensor) -> Tensor:
        h = maps
        for convolution in self.convolutions:
            h = convolution(F.relu(h))
        return maps + h

    def player(self, batch: int, width: int) -> ConvPlayer:
        return ConvPlayer(self, batch, width)


class ConvPlayer:
    """A :class:`ConvLayer` pixel by pixel."""

    def __init__(self, layer: ConvLayer, batch: int, width: int) -> None:
        self.players = [MaskedConvPlayer(c, batch, width) for c in layer.convolutions]  # type: ignore[arg-type]

    def begin_row(self, before: Tensor | None) -> None:
        for player in self.players:
            player.begin_row()

    def pixel(self, column: int, x: Tensor) -> Tensor:
        h = x
        for player in self.players:
            h = player.pixel(column, F.relu(h))
        return x + h


class _Ended(nn.Module):
    """The two convolutions with which a network ends: parameters of every channel from the sum of what its layers skip."""

    def __init__(self, features: int, channels: int, outputs: int) -> None:
        super().__init__()
        self.channels = channels
        self.hidden = MaskedConv2d(features, features, channels=channels)
        self.last = MaskedConv2d(features, channels * outputs, channels=channels)

    def end(self, skipped: Tensor) -> Tensor:
        return self.last(F.relu(self.hidden(F.relu(skipped)))).unflatten(-1, (self.channels, -1))


class _EndedPlayer:
    """They pixel by pixel."""

    def __init__(self, network: _Ended, batch: int, width: int) -> None:
        self.channels = network.channels
        self.ends = [MaskedConvPlayer(end, batch, width) for end in (network.hidden, network.last)]
        self.row: Tensor | None = None  # of the image

    def end(self, column: int, skipped: Tensor) -> Tensor:
        for end in self.ends:
            skipped = end.pixel(column, F.relu(skipped))
        return skipped.unflatten(-1, (self.channels, -1))


class PixelNetwork(_Ended):
    """Parameters of every channel of every pixel from all that come before: mask A, residual layers, two more convolutions.

    The last two read the sum of what all layers skip to it.

    Args:
        channels: of the image.
        outputs: parameters of a channel.
        features: of the maps between layers, twice what is inside of a layer; the channels divide half of them.
        layers: their number.
        layer: makes one, of so many features.

    Shapes: x (batch, height, width, channels); the result (batch, height, width, channels, outputs).
    """

    def __init__(self, channels: int, outputs: int, features: int, layers: int, layer: Callable[[], nn.Module]) -> None:
        super().__init__(features, channels, outputs)
        self.first = MaskedConv2d(channels, features, (7, 7), "A", channels)
        self.layers: Any = nn.ModuleList(layer() for _ in range(layers))
        self.skips: Any = nn.ModuleList(MaskedConv2d(features, features, channels=channels) for _ in range(layers + 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        skipped = self.skips[0](h)
        for layer, skip in zip(self.layers, self.skips[1:], strict=True):
            h = layer(h, x)
            skipped = skipped + skip(h)
        return self.end(skipped)

    def player(self, batch: int, width: int) -> PixelPlayer:
        return PixelPlayer(self, batch, width)


class PixelPlayer(_EndedPlayer):
    """A :class:`PixelNetwork` pixel by pixel."""

    def __init__(self, network: PixelNetwork, batch: int, width: int) -> None:
        super().__init__(network, batch, width)
        self.first = MaskedConvPlayer(network.first, batch, width)
        self.layers = [layer.player(batch, width) for layer in network.layers]
        self.skips = [MaskedConvPlayer(skip, batch, width) for skip in network.skips]

    def begin_row(self) -> None:
        for layer in self.layers:
            layer.begin_row(self.row)
        for player in (self.first, *self.skips, *self.ends):
            player.begin_row()
        self.row = self.first.row

    def pixel(self, column: int, x: Tensor) -> Tensor:
        """The parameters (batch, channels, outputs) of a pixel, of which x (batch, channels) is as yet known."""
        h = self.first.pixel(column, x)
        skipped = self.skips[0].pixel(column, h)
        for layer, skip in zip(self.layers, self.skips[1:], strict=True):
            h = layer.pixel(column, h)
            skipped = skipped + skip.pixel(column, h)
        return self.end(column, skipped)


class GatedLayer(nn.Module):
    """A layer of two stacks: the vertical one sees all rows above, the horizontal one its own row and the vertical one's.

    References:
        Conditional Image Generation with PixelCNN Decoders (van den Oord et al., 2016), sections 2.2 and 2.3, figure 2.
    """

    def __init__(self, inputs: int, features: int, channels: int, kernel: int, kind: str, last: bool) -> None:
        super().__init__()
        self.residual = kind == "B"
        self.vertical = MaskedConv2d(inputs, 2 * features, (kernel, kernel), "rows")
        self.link = MaskedConv2d(2 * features, 2 * features, kind="rows")
        self.horizontal = MaskedConv2d(inputs, 2 * features, (1, kernel), kind, channels, parts=2)
        self.output = None if last else MaskedConv2d(features, features, channels=channels)
        self.skip = MaskedConv2d(features, features, channels=channels)

    def forward(self, v: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What either stack hands on, and what is skipped to the end."""
        z = self.vertical(v)
        u = gated(self.horizontal(h) + shift_down(self.link(z)), -1)
        if self.output is not None:
            h = h + self.output(u) if self.residual else self.output(u)
        return gated(z, -1), h, self.skip(u)


class GatedPlayer:
    """A :class:`GatedLayer` pixel by pixel: the vertical stack a row at a time, when that has ended."""

    def __init__(self, layer: GatedLayer, batch: int, width: int) -> None:
        self.layer = layer
        self.vertical, self.horizontal, self.skip, *self.outputs = (
            MaskedConvPlayer(c, batch, width)
            for c in (layer.vertical, layer.horizontal, layer.skip, layer.output)
            if c is not None
        )
        self.linked: Tensor = layer.link.weight.new_zeros(batch, width, layer.link.outputs)

    def see_row(self, v: Tensor) -> Tensor:
        """Goes to the next row of the vertical stack (batch, width, inputs), and computes what it hands on."""
        z = self.vertical.whole_row(v)
        self.linked = self.layer.link(z[:, None])[:, 0]
        return gated(z, -1)

    def begin_row(self) -> None:
        for player in (self.horizontal, self.skip, *self.outputs):
            player.begin_row()

    def pixel(self, column: int, h: Tensor) -> tuple[Tensor, Tensor]:
        u = gated(self.horizontal.pixel(column, h) + self.linked[:, column], -1)
        for output in self.outputs:  # the last layer has none
            h = h + output.pixel(column, u) if self.layer.residual else output.pixel(column, u)
        return h, self.skip.pixel(column, u)


class GatedPixelNetwork(_Ended):
    """As :class:`PixelNetwork`, of gated layers with two stacks: no pixel is in a blind spot."""

    def __init__(self, channels: int, outputs: int, features: int, layers: int, kernel: int) -> None:
        super().__init__(features, channels, outputs)
        first = GatedLayer(channels, features, channels, 7, "A", last=layers == 0)
        others = [GatedLayer(features, features, channels, kernel, "B", last=i == layers - 1) for i in range(layers)]
        self.layers: Any = nn.ModuleList([first, *others])

    def forward(self, x: Tensor) -> Tensor:
        v, h, skips = x, x, []
        for layer in self.layers:
            v, h, skip = layer(v, h)
            skips.append(skip)
        return self.end(sum(skips))

    def player(self, batch: int, width: int) -> GatedPixelPlayer:
        return GatedPixelPlayer(self, batch, width)


class GatedPixelPlayer(_EndedPlayer):
    """A :class:`GatedPixelNetwork` pixel by pixel."""

    def __init__(self, network: GatedPixelNetwork, batch: int, width: int) -> None:
        super().__init__(network, batch, width)
        self.layers = [GatedPlayer(layer, batch, width) for layer in network.layers]

    def begin_row(self) -> None:
        if self.row is not None:
            v = self.row
            for layer in self.layers:
                v = layer.see_row(v)
        for layer in self.layers:
            layer.begin_row()
        for end in self.ends:
            end.begin_row()
        self.row = self.layers[0].horizontal.row

    def pixel(self, column: int, x: Tensor) -> Tensor:
        """As :meth:`PixelPlayer.pixel`."""
        h, skips = x, []
        for layer in self.layers:
            h, skip = layer.pixel(column, h)
            skips.append(skip)
        return self.end(column, sum(skips))  # type: ignore[arg-type]
