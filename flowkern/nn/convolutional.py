"""Networks of convolutions that condition the couplings of images."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowkern._checks import whole_number, widths
from flowkern.config import configured
from flowkern.nn.activations import activation_layer


class ZeroConv2d(nn.Module):
    """A 3x3 convolution whose result is zero at first, times exp(3 l) with a learned l for each channel.

    Args:
        inputs, outputs: channels.

    Example:
        >>> import torch
        >>> bool((ZeroConv2d(3, 2)(torch.randn(1, 3, 4, 4)) == 0).all())
        True

    References:
        Glow: Generative Flow with Invertible 1x1 Convolutions (Kingma and Dhariwal, 2018), section 3.3.
    """

    @configured
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        inputs, outputs = whole_number("inputs", inputs, 1), whole_number("outputs", outputs, 1)
        self.weight = nn.Parameter(torch.zeros(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.log_scale = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        factor = (3 * self.log_scale).exp()
        return F.conv2d(x, self.weight * factor[:, None, None, None], self.bias * factor, padding=1)


class WeightNormConv2d(nn.Module):
    """A convolution whose filters are directions v / |v| times learned lengths g; the picture keeps its size.

    Args:
        inputs, outputs: channels.
        size: of the filters, odd.

    Example:
        >>> import torch
        >>> WeightNormConv2d(3, 2)(torch.randn(1, 3, 4, 4)).shape
        torch.Size([1, 2, 4, 4])

    References:
        Weight Normalization (Salimans and Kingma, 2016), equation 2.
    """

    @configured
    def __init__(self, inputs: int, outputs: int, size: int = 3) -> None:
        super().__init__()
        inputs, outputs = whole_number("inputs", inputs, 1), whole_number("outputs", outputs, 1)
        size = whole_number("size", size, 1)
        self.direction = nn.Parameter(torch.empty(outputs, inputs, size, size))
        self.length = nn.Parameter(torch.empty(outputs, 1, 1, 1))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.kaiming_uniform_(self.direction, a=5**0.5)
        with torch.no_grad():
            self.length.copy_(self.direction.flatten(1).norm(dim=1)[:, None, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, torch._weight_norm(self.direction, self.length), self.bias, padding="same")


class ConvNet(nn.Sequential):
    """Glow's network: a 3x3 convolution, 1x1 convolutions between the hidden layers, and a last 3x3 one that begins at zero.

    A coupling layer with it is at first nearly the identity.

    Args:
        inputs, outputs: channels.
        hidden: channels of the hidden layers; none leaves the last convolution alone.
        activation: one of :data:`flowkern.plan.ACTIVATIONS`.

    Example:
        >>> import torch
        >>> ConvNet(3, 6, (16, 16))(torch.randn(5, 3, 4, 4)).shape
        torch.Size([5, 6, 4, 4])

    References:
        Glow: Generative Flow with Invertible 1x1 Convolutions (Kingma and Dhariwal, 2018), section 3.3 and appendix B.
    """

    @configured
    def __init__(self, inputs: int, outputs: int, hidden: Sequence[int] = (512, 512), activation: str = "relu") -> None:
        inputs, outputs = whole_number("inputs", inputs, 1), whole_number("outputs", outputs, 1)
        sizes = [inputs, *widths("hidden", hidden)]
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(itertools.pairwise(sizes)):
            layers += [nn.Conv2d(a, b, 1 if i else 3, padding="same"), activation_layer(activation)]
        super().__init__(*layers, ZeroConv2d(sizes[-1], outputs))


class ResNet(nn.Module):
    """RealNVP's network: a 3x3 convolution, residual blocks of two, and a last 1x1 one, all with weight normalisation.

    Args:
        inputs, outputs: channels.
        hidden: channels of the first convolution, then of each block; all equal.
        activation: before each convolution but the first, one of :data:`flowkern.plan.ACTIVATIONS`.

    Raises:
        ValueError: for unequal widths, or none.

    Example:
        >>> import torch
        >>> ResNet(3, 6, (16, 16))(torch.randn(5, 3, 4, 4)).shape
        torch.Size([5, 6, 4, 4])

    References:
        Density estimation using Real NVP (Dinh et al., 2017), section 4.1.
    """

    @configured
    def __init__(self, inputs: int, outputs: int, hidden: Sequence[int] = (64, 64), activation: str = "relu") -> None:
        super().__init__()
        inputs, outputs = whole_number("inputs", inputs, 1), whole_number("outputs", outputs, 1)
        hidden = widths("hidden", hidden)
        if not hidden or len(set(hidden)) > 1:
            raise ValueError(f"hidden: residual blocks need one or more equal widths, got {hidden}")
        width = hidden[0]
        self.activation = activation_layer(activation)
        self.first, self.last = WeightNormConv2d(inputs, width), WeightNormConv2d(width, outputs, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(self.activation, WeightNormConv2d(width, width), self.activation, WeightNormConv2d(width, width))
            for _ in hidden[1:]
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(self.activation(x))
