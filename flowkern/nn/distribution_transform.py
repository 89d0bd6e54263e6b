"""A transform with the interface of torch.distributions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions import transforms as td

if TYPE_CHECKING:
    from flowkern.nn.transform import Transform


def real(event_dims: int) -> constraints.Constraint:
    """Events of any real numbers, of so many dimensions."""
    return constraints.real_vector if event_dims == 1 else constraints.independent(constraints.real, event_dims)


class DistributionTransform(td.Transform):
    """What :meth:`Transform.as_distribution_transform` gives: from noise to data, as torch.distributions has it.

    It remembers the last log-determinant, which the protocol gives with the value.
    """

    bijective = True

    def __init__(self, transform: Transform, context: Tensor | None, cache_size: int = 0) -> None:
        super().__init__(cache_size=cache_size)
        self.transform = transform
        self.context = context
        self.domain, self.codomain = real(len(transform.noise_shape)), real(len(transform.event_shape))
        self._last: tuple[Tensor, Tensor, Tensor, bool] | None = None

    def with_cache(self, cache_size: int = 1) -> td.Transform:
        return self if cache_size == self._cache_size else DistributionTransform(self.transform, self.context, cache_size)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, DistributionTransform) and (
            self.transform is other.transform and self.context is other.context
        )

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        return _exchanged(shape, self.transform.noise_shape, self.transform.event_shape)

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        return _exchanged(shape, self.transform.event_shape, self.transform.noise_shape)

    def _call(self, z: Tensor) -> Tensor:
        x, log_det = self.transform.inverse(z, self.context)
        self._last = z, x, log_det, torch.is_grad_enabled()
        return x

    def _inverse(self, x: Tensor) -> Tensor:
        z, log_det = self.transform(x, self.context)
        self._last = z, x, -log_det, torch.is_grad_enabled()
        return z

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        last, self._last = self._last, None  # good for one use: parameters may change after it
        if last is not None and last[0] is x and last[1] is y and last[3] == torch.is_grad_enabled():
            return last[2]
        return -self.transform(y, self.context)[1]


def _exchanged(shape: torch.Size, event: torch.Size, other: torch.Size) -> torch.Size:
    """A shape that ends with one event shape, ending with the other instead."""
    batch = len(shape) - len(event)
    if batch < 0 or shape[batch:] != event:
        raise ValueError(f"shape: expected (..., {', '.join(map(str, event))}), got {tuple(shape)}")
    return torch.Size((*shape[:batch], *other))
