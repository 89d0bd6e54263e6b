"""The networks of WaveNet: the stack of gated dilated convolutions, and the way of a local condition into it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowkern import ops
from flowkern._checks import whole_number, widths
from flowkern.config import configured

MARGIN = 2  # frames to either side that a frame's samples see: 1 + 1/f + 1/f^2 + ... is less, for factors from 2 on


MOST_DOUBLINGS = 24  # of the dilation: a queue of 2^23 samples, minutes of audio


class WaveNet(nn.Module):
    r"""The parameters of the next sample at every time, from all samples before it.

    An embedding, L layers of dilated convolutions (:func:`flowkern.ops.wavenet_layer`) with dilations 1, 2, ..., 2^(cycle - 1),
    1, 2, ..., and two layers on the sum of their skips, of which the last computes in float32 at least.

    Args:
        outputs: parameters of a sample.
        inputs: number of classes of the samples that it hears, or 1 for numbers.
        layers: their number L.
        cycle: layers after which the dilation begins at 1 again.
        residual: channels that a layer reads, and of its gates.
        skip: channels of the sum that the last layers read.
        kernel: taps of a convolution.
        context: features of a global condition.
        channels: of a local condition.

    Shapes: heard (batch, time), whole numbers for classes; context (batch, context); condition (batch, channels, time);
    the result (batch, time, outputs).

    Raises:
        ValueError: for impossible sizes.

    Example:
        >>> import torch
        >>> net = WaveNet(256, inputs=256, layers=4, cycle=3, residual=8, skip=8)
        >>> net.receptive_field, net(torch.randint(256, (2, 50))).shape
        (9, torch.Size([2, 50, 256]))

    References:
        WaveNet: A Generative Model for Raw Audio (van den Oord et al., 2016), section 2.
    """

    @configured
    def __init__(
        self,
        outputs: int,
        inputs: int = 1,
        layers: int = 30,
        cycle: int = 10,
        residual: int = 64,
        skip: int = 128,
        kernel: int = 2,
        context: int = 0,
        channels: int = 0,
    ) -> None:
        super().__init__()
        inputs, residual = whole_number("inputs", inputs, 1), whole_number("residual", residual, 1)
        layers, cycle, skip = whole_number("layers", layers, 1), whole_number("cycle", cycle, 1), whole_number("skip", skip, 1)
        conditions = whole_number("context", context, 0), whole_number("channels", channels, 0)
        kernel = whole_number("kernel", kernel, 1)
        if min(layers, cycle) > MOST_DOUBLINGS:
            reach = f"dilations up to 2^{min(layers, cycle) - 1} samples, which no memory holds"
            raise ValueError(f"cycle: expected at most {MOST_DOUBLINGS}, got {cycle} with {layers} layers: {reach}")
        self.embedding = nn.Parameter(torch.randn(inputs, residual))
        self.bias = nn.Parameter(torch.zeros(residual))
        self.layers: Any = nn.ModuleList(
            WaveNetLayer(residual, skip, kernel, 2 ** (i % cycle), *conditions, last=i == layers - 1) for i in range(layers)
        )
        self.hidden = nn.Linear(skip, skip)
        self.last = nn.Linear(skip, whole_number("outputs", outputs, 1))

    @property
    def receptive_field(self) -> int:
        """Samples that a result depends on, the last that was heard included."""
        return 1 + sum(self._reaches)

    @property
    def _reaches(self) -> list[int]:
        return [layer.reach for layer in self.layers]

    def forward(self, heard: Tensor, context: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        h, skips = self._embedded(heard), None
        for layer in self.layers:
            h, skips = layer(h, skips, context, condition)
        assert skips is not None
        u = F.relu(self.hidden(F.relu(skips.transpose(-1, -2))))
        dtype = torch.promote_types(self.last.weight.dtype, torch.float32)  # 16 bits of audio are more than bfloat16 has
        with torch.autocast(u.device.type, enabled=False):
            return F.linear(u.to(dtype), self.last.weight.to(dtype), self.last.bias.to(dtype))

    def _embedded(self, heard: Tensor) -> Tensor:
        """What the first layer reads (batch, residual, time)."""
        if heard.is_floating_point():
            return (heard.to(self.bias.dtype)[..., None] * self.embedding + self.bias).transpose(-1, -2)
        return (F.embedding(heard, self.embedding) + self.bias).transpose(-1, -2)

    @torch.no_grad()
    def queues(self, heard: Tensor, context: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        """What the layers read last of what was heard: the queues of a :class:`flowkern.reference.WaveNetState`.

        Zeros stand for what was before. Of a long past the last ``receptive_field`` samples are enough.
        """
        if heard.shape[-1] == 0:
            return self.bias.new_zeros(len(heard), sum(self._reaches), len(self.bias))
        h, skips, read = self._embedded(heard), None, []
        for layer, reach in zip(self.layers, self._reaches, strict=True):
            read.append(F.pad(h, (reach, 0))[..., heard.shape[-1] :].transpose(-1, -2))
            if layer is not self.layers[-1]:
                h, skips = layer(h, skips, context, condition)
        return torch.cat(read, 1)

    @torch.no_grad()
    def generating(self, dtype: torch.dtype, context: Tensor | None = None) -> dict[str, Any]:
        """This network as the arguments of :func:`flowkern.ops.wavenet_generate`, for noise of a dtype.

        Weights in bfloat16 stay so.
        """

        def stored(w: Tensor) -> Tensor:
            return w if w.dtype is torch.bfloat16 else w.to(dtype)

        each = [layer.arguments(context) for layer in self.layers]
        last = self.hidden.weight, self.hidden.bias, self.last.weight, self.last.bias
        tensors = [self.embedding, self.bias, *(t for arguments in each for t in arguments), *last]
        return {
            "weights": [stored(w) for w in tensors[::2]],
            "biases": [b.to(dtype) for b in tensors[1::2]],
            "dilations": [layer.dilation for layer in self.layers],
            "condition_weights": [stored(layer.local.weight) for layer in self.layers if layer.local is not None],
        }


class WaveNetLayer(nn.Module):
    """The parameters of :func:`flowkern.ops.wavenet_layer`; the last layer of a network has none of the residual branch."""

    def __init__(
        self, residual: int, skip: int, kernel: int, dilation: int, context: int, channels: int, *, last: bool
    ) -> None:
        super().__init__()
        self.dilation, self.reach = dilation, (kernel - 1) * dilation
        self.gate = nn.Conv1d(residual, 2 * residual, kernel, dilation=dilation)
        self.residual = None if last else nn.Linear(residual, residual)
        self.skip = nn.Linear(residual, skip)
        self.context = nn.Linear(context, 2 * residual, bias=False) if context else None
        self.local = nn.Linear(channels, 2 * residual, bias=False) if channels else None

    def arguments(self, context: Tensor | None) -> tuple[Tensor, ...]:
        """Weight and bias of the gate, of the residual branch and of the skip."""
        gate, bias = self.gate.weight, self.gate.bias
        assert bias is not None
        if self.residual is None:  # nobody reads what the last layer would add
            residual = gate.new_zeros(gate.shape[1], gate.shape[1]), gate.new_zeros(gate.shape[1])
        else:
            residual = self.residual.weight, self.residual.bias
        given = bias if self.context is None else bias + self.context(context).to(bias.dtype)
        return gate, given, *residual, self.skip.weight, self.skip.bias

    def forward(
        self, x: Tensor, skips: Tensor | None, context: Tensor | None, condition: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        given = (None, None) if self.local is None else (condition, self.local.weight)
        return ops.wavenet_layer(x, skips, *self.arguments(context), *given, dilation=self.dilation)


def upsampling(name: str, given: Sequence[int]) -> tuple[int, ...]:
    """The factors of :class:`Upsample`."""
    factors = widths(name, given)
    if not factors or min(factors) < 2:
        raise ValueError(f"{name}: expected one or more of at least 2, got {factors}")
    return factors


class Upsample(nn.Module):
    """Frames of a local condition to samples: for each factor every frame is repeated, then smoothed channel by channel.

    The smoothing is learned, begins as an average over two frames, and sees zeros beyond the ends.

    Args:
        channels: of the condition.
        factors: each at least 2; a frame becomes as many samples as their product, ``hop``.

    Shapes: frames (batch, channels, frames), the result (batch, channels, hop frames).

    Raises:
        TypeError, ValueError: for impossible sizes.

    Example:
        >>> import torch
        >>> upsample = Upsample(80, (4, 4))
        >>> upsample.hop, upsample(torch.randn(2, 80, 5)).shape
        (16, torch.Size([2, 80, 80]))
    """

    @configured
    def __init__(self, channels: int, factors: Sequence[int]) -> None:
        super().__init__()
        channels, self.factors = whole_number("channels", channels, 1), upsampling("factors", factors)
        self.hop = math.prod(self.factors)
        self.smooth: Any = nn.ModuleList(
            nn.Conv1d(channels, channels, 2 * factor + 1, padding=factor, groups=channels, bias=False)
            for factor in self.factors
        )
        convolution: Any
        for convolution, factor in zip(self.smooth, self.factors, strict=True):
            nn.init.constant_(convolution.weight, 1 / (2 * factor + 1))

    def forward(self, frames: Tensor) -> Tensor:
        for convolution, factor in zip(self.smooth, self.factors, strict=True):
            frames = convolution(frames[..., None].expand(*frames.shape, factor).flatten(-2))
        return frames

    def between(self, frames: Tensor, start: int, stop: int) -> Tensor:
        """The result from one sample to another, without making the others."""
        first = max(0, start // self.hop - MARGIN)
        last = -(-stop // self.hop) + MARGIN
        return self(frames[..., first:last])[..., start - first * self.hop : stop - first * self.hop]
