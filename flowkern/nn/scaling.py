"""NICE's diagonal scaling."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flowkern._checks import whole_number
from flowkern.config import configured
from flowkern.nn.log_det import batch_log_det
from flowkern.nn.transform import Unconditional


class Scaling(Unconditional):
    r"""z_d = x_d exp(s_d), log_det = sum(s); s is zero at first.

    Args:
        features: number of features.

    Example:
        >>> import torch
        >>> Scaling(2)(torch.ones(1, 2))[0].tolist()
        [[1.0, 1.0]]

    References:
        NICE: Non-linear Independent Components Estimation (Dinh et al., 2015), section 3.3.
    """

    @configured
    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = whole_number("features", features, 1)
        self.log_scale = nn.Parameter(torch.zeros(self.features))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("x", x, self.log_scale)
        return x * self.log_scale.exp(), batch_log_det(self.log_scale.sum(), x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("z", z, self.log_scale)
        return z * (-self.log_scale).exp(), batch_log_det(-self.log_scale.sum(), z)

    def extra_repr(self) -> str:
        return str(self.features)
