"""What every data set has: three parts, and the way between their units and those of a flow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor


class DataError(ValueError):
    """Data that cannot be used: the message says which, where in it, and why."""


class Encoding(Protocol):
    """Between the units of the data and the numbers that a flow sees."""

    space: ClassVar[str]  # what to call the units of the flow

    def encode(self, rows: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Rows (n, features) as the flow sees them, float32."""

    def decode(self, z: Tensor) -> Tensor:
        """The flow's samples (n, features) in the units of the data."""

    def log_det(self, z: Tensor) -> Tensor:
        """log |dz / dx| per row (n,), float64: added to a flow's log-density it gives that of the data."""

    def constants(self) -> dict[str, Any]:
        """Numbers and tensors that decode needs, for a checkpoint."""


@dataclass
class Dataset:
    """Rows (n, features) in the units of the data, and their encoding."""

    name: str
    train: Tensor
    validation: Tensor
    test: Tensor
    encoding: Encoding

    @property
    def features(self) -> int:
        """Columns of a table, pixels of an image."""
        return self.train.shape[1]


def split(rows: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Row numbers for training, validation and test: 80, 10 and 10 % in an order that the seed gives.

    Example:
        >>> [len(part) for part in split(50, seed=0)]
        [40, 5, 5]
    """
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    held = max(rows // 10, 1)
    return order[2 * held :], order[held : 2 * held], order[:held]
