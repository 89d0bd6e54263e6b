"""Fixed standardisation of the data."""

from __future__ import annotations

import torch
from torch import Tensor

from flowkern._checks import check_float
from flowkern.nn.transform import Unconditional, batch_log_det


class Standardize(Unconditional):
    r"""z = (x - mean) / std with constants of the training set; the first transform of a flow.

    Args:
        mean: (features,).
        std: (features,), positive.

    Raises:
        ValueError: if the shapes differ or a deviation is not positive.

    Example:
        >>> import torch
        >>> x = torch.randn(1000, 2) * 5 + 3
        >>> z, log_det = Standardize.fit(x)(x)
        >>> bool(z.std() < 1.1)
        True
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        mean, std = torch.as_tensor(mean), torch.as_tensor(std)
        check_float("mean", mean)
        check_float("std", std)
        if mean.dim() != 1 or mean.shape != std.shape:
            raise ValueError(f"mean, std: expected the shape (features,), got {tuple(mean.shape)} and {tuple(std.shape)}")
        if not bool((std > 0).all()):
            raise ValueError("std: expected positive deviations; a constant feature has no density")
        self.features = len(mean)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    @classmethod
    def fit(cls, x: Tensor) -> Standardize:
        """The layer that standardises the rows of x (n, features)."""
        return cls(x.mean(0), x.std(0))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("x", x)
        return (x - self.mean.to(x)) / self.std.to(x), batch_log_det(-self.std.to(x).log().sum(), x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("z", z)
        return z * self.std.to(z) + self.mean.to(z), batch_log_det(self.std.to(z).log().sum(), z)
