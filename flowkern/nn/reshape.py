"""Events of another shape: flattened, reshaped, squeezed. No number changes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowkern._checks import whole_number
from flowkern.config import configured
from flowkern.nn.checks import event_size
from flowkern.nn.log_det import batch_log_det
from flowkern.nn.transform import Unconditional


class Reshape(Unconditional):
    """The same elements in another shape, in the order of the memory; the log-determinant is zero.

    Args:
        event_shape: shape of the data.
        noise_shape: shape of the noise; flat, (features,), by default.

    Raises:
        TypeError, ValueError: if one is no shape of positive sizes, or they do not hold equally many elements.

    Example:
        >>> import torch, flowkern as fk
        >>> fk.nn.Reshape((1, 8, 8))(torch.zeros(5, 1, 8, 8))[0].shape
        torch.Size([5, 64])
    """

    @configured
    def __init__(self, event_shape: Sequence[int], noise_shape: Sequence[int] | None = None) -> None:
        super().__init__()
        self._event_shape = event_size("event_shape", event_shape)
        self.features = self._event_shape.numel()
        self._noise_shape = event_size("noise_shape", (self.features,) if noise_shape is None else noise_shape)
        if self._noise_shape.numel() != self.features:
            raise ValueError(
                f"noise_shape: expected {self.features} elements like event_shape {tuple(self._event_shape)}, "
                f"got {tuple(self._noise_shape)}"
            )

    @property
    def noise_shape(self) -> torch.Size:
        return self._noise_shape

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("x", x)
        event = len(self._event_shape)
        return x.reshape(*x.shape[:-event], *self._noise_shape), batch_log_det(x.new_zeros(()), x, event)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("z", z)
        event = len(self._noise_shape)
        return z.reshape(*z.shape[:-event], *self._event_shape), batch_log_det(z.new_zeros(()), z, event)

    def extra_repr(self) -> str:
        return f"{tuple(self._event_shape)}, {tuple(self._noise_shape)}"


class Squeeze(Unconditional):
    """Blocks of factor x factor pixels become channels: (c, h, w) to (c factor^2, h / factor, w / factor).

    Channel ``c factor^2 + i factor + j`` of the noise holds pixel (i, j) of every block of the data's channel c, as
    :func:`torch.nn.functional.pixel_unshuffle` has it. The log-determinant is zero.

    Args:
        event_shape: (channels, height, width), height and width multiples of the factor.
        factor: height and width of a block, at least 2.

    Raises:
        TypeError, ValueError: for a shape or a factor that does not fit.

    Example:
        >>> import torch, flowkern as fk
        >>> fk.nn.Squeeze((1, 2, 4))(torch.arange(8.0).reshape(1, 2, 4))[0].tolist()
        [[[0.0, 2.0]], [[1.0, 3.0]], [[4.0, 6.0]], [[5.0, 7.0]]]

    References:
        Density estimation using Real NVP (Dinh et al., 2017), section 3.6.
    """

    @configured
    def __init__(self, event_shape: Sequence[int], factor: int = 2) -> None:
        super().__init__()
        self._event_shape, self.factor = event_size("event_shape", event_shape), whole_number("factor", factor, 2)
        shape = tuple(self._event_shape)
        if len(shape) != 3 or shape[1] % self.factor or shape[2] % self.factor:
            raise ValueError(
                f"event_shape: expected (channels, height, width) with height and width multiples of {self.factor}, got {shape}"
            )
        self.features = self._event_shape.numel()

    @property
    def noise_shape(self) -> torch.Size:
        channels, height, width = self._event_shape
        return torch.Size((channels * self.factor**2, height // self.factor, width // self.factor))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("x", x)
        channels, height, width = self._event_shape
        f = self.factor  # not by pixel_unshuffle, which leaves an empty batch as it is
        blocks = x.reshape(*x.shape[:-3], channels, height // f, f, width // f, f).movedim((-3, -1), (-4, -3))
        return blocks.reshape(*x.shape[:-3], *self.noise_shape), batch_log_det(x.new_zeros(()), x, 3)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("z", z)
        channels, height, width = self._event_shape
        f = self.factor
        blocks = z.reshape(*z.shape[:-3], channels, f, f, height // f, width // f).movedim((-4, -3), (-3, -1))
        return blocks.reshape(*z.shape[:-3], *self._event_shape), batch_log_det(z.new_zeros(()), z, 3)

    def extra_repr(self) -> str:
        return f"{tuple(self._event_shape)}, factor={self.factor}"
