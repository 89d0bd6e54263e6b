"""Images of few grey levels, as real numbers that have a density."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from flowkern._optional import optional
from flowkern.data.dataset import Dataset, split


@dataclass
class Dequantised:
    """Images of n levels, as real numbers y = logit(margin + (1 - 2 margin) (k + u) / n) with u uniform in [0, 1).

    Args:
        levels: n; pixels are whole numbers k from 0 to n - 1.
        side: images are of side x side pixels.
        margin: keeps the logit finite; the paper's lambda.

    Example:
        >>> images = Dequantised(levels=17, side=8)
        >>> generator = torch.Generator().manual_seed(0)
        >>> k = torch.randint(17, (5, 64), generator=generator)
        >>> bool((images.decode(images.encode(k, generator)) == k).all())
        True

    References:
        Masked Autoregressive Flow for Density Estimation (Papamakarios et al., 2017), appendix D.
    """

    levels: int
    side: int
    margin: float = 0.05
    space: ClassVar[str] = "logit"

    def encode(self, rows: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Levels (n, pixels) with noise, which is fresh in every call, as logits."""
        x = (rows + torch.rand(rows.shape, generator=generator)) / self.levels
        return torch.logit(self.margin + (1 - 2 * self.margin) * x)

    def decode(self, z: Tensor) -> Tensor:
        """The levels that logits come from: the noise is cut off, as whole numbers were before it."""
        x = (torch.sigmoid(z) - self.margin) / (1 - 2 * self.margin)
        return (x * self.levels).floor().clamp(0, self.levels - 1)

    def log_det(self, z: Tensor) -> Tensor:
        """log |dz / d(k + u)| per row, float64; with it the mean is a lower bound of the images' log-probability."""
        z = z.double()
        slope = math.log((1 - 2 * self.margin) / self.levels)
        return (slope - logsigmoid(z) - logsigmoid(-z)).sum(-1)

    def constants(self) -> dict[str, Any]:
        """The arguments of this class."""
        return asdict(self)


def digits(seed: int) -> Dataset:
    """scikit-learn's digits: 1,797 images of 8 x 8 with 17 levels, float32, split by the seed."""
    rows = torch.from_numpy(optional("sklearn.datasets", "demo").load_digits().data).float()
    train, validation, test = (rows[part] for part in split(len(rows), seed))
    return Dataset("digits", train, validation, test, Dequantised(levels=17, side=8))
