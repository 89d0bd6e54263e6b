"""Fixed standardisation of the data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowkern import ops
from flowkern._checks import check_float, check_like, numbers
from flowkern.config import configured
from flowkern.nn.log_det import batch_log_det
from flowkern.nn.transform import Unconditional


class Standardize(Unconditional):
    r"""z = (x - mean) / std with constants of the training set; the first transform of a flow.

    Args:
        mean: (features,), or any other event shape, such as (channels, height, width).
        std: of the same shape, positive.

    Raises:
        TypeError, ValueError: if the two do not fit each other, are not finite, or a deviation is not positive.

    Example:
        >>> import torch
        >>> x = torch.randn(1000, 2) * 5 + 3
        >>> z, log_det = Standardize.fit(x)(x)
        >>> bool(z.std() < 1.1)
        True
    """

    mean: Tensor
    std: Tensor

    @configured
    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        mean, std = numbers("mean", mean), numbers("std", std)
        check_float("mean", mean)
        check_like("std", std, mean, "mean")
        if mean.dim() == 0 or mean.shape != std.shape or mean.numel() == 0:
            raise ValueError(
                "mean, std: expected the shape (features,), or one event shape for both, "
                f"got {tuple(mean.shape)} and {tuple(std.shape)}"
            )
        if not mean.isfinite().all():
            raise ValueError(f"mean: expected finite numbers, got {mean.tolist()}")
        bad = [tuple(place) for place in (~((std > 0) & std.isfinite())).nonzero().tolist()]
        if bad:
            raise ValueError(
                f"std: expected positive deviations; a constant feature has no density; got {std[bad[0]].item()} for feature "
                f"{', '.join(map(str, bad[0]))}" + (f" and {len(bad) - 1} more" if len(bad) > 1 else "")
            )
        self.features = mean.numel()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    @classmethod
    def fit(cls, x: Tensor, keep: Sequence[int] = ()) -> Standardize:
        """The layer that standardises the rows of x (n, *event shape), n of at least 2, but for the features ``keep``."""
        x = numbers("x", x)
        check_float("x", x)
        if x.dim() < 2 or len(x) < 2:
            raise ValueError(f"x: expected shape (n, *event shape) with at least two rows, got {tuple(x.shape)}")
        mean, std = x.mean(0), x.std(0)
        mean[list(keep)], std[list(keep)] = 0, 1
        return cls(mean, std)

    @property
    def event_shape(self) -> torch.Size:
        return self.mean.shape

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("x", x, self.mean)
        return (x - self.mean.to(x)) / self.std.to(x), self._log_det(-1, x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("z", z, self.mean)
        return z * self.std.to(z) + self.mean.to(z), self._log_det(1, z)

    def step(self, x: Tensor, inverse: bool) -> ops.Step | None:
        if type(self) is not Standardize or self.mean.dim() != 1 or self.mean.device != x.device:
            return None
        return ops.ElementwiseStep(not inverse, self.mean.to(x), self.std.to(x))

    def _log_det(self, sign: int, x: Tensor) -> Tensor:
        return batch_log_det(sign * self.std.to(x).log().sum(), x, self.mean.dim())
