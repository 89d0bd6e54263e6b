"""Batch normalisation as an invertible layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from flowkern import ops
from flowkern._checks import number
from flowkern.config import configured
from flowkern.nn.checks import channel_rows, event_of, wide
from flowkern.nn.log_det import batch_log_det
from flowkern.nn.transform import Unconditional


class _Sum(torch.autograd.Function):
    """The sum over all processes, at each of them; so its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)


class BatchNorm(Unconditional):
    r"""z = exp(g) (x - m) / sqrt(v + eps) + beta, log_det = sum(g - log(v + eps) / 2).

    In training m and v are the mean and the biased variance of the batch, and gradients flow through them; the density
    of a row then depends on its batch. ``inverse`` in training uses the statistics of the last ``forward``. In
    evaluation m and v are the running statistics, or those of a whole data set after :meth:`set_statistics` (which
    ``flow.calibrate`` calls for each such layer of a flow, as the paper does before validation).

    With ``synchronised`` set to True, m and v in training are those of the batches of all torch.distributed's processes.

    Args:
        features: number of features, or an image's shape (channels, height, width), which is normalised channel by channel.
        eps: added to the variance.
        momentum: weight of the new batch in the running statistics; ``None`` keeps them as they are.

    Raises:
        RuntimeError: from ``inverse`` in training before any ``forward``.

    Example:
        >>> import torch
        >>> norm = BatchNorm(2)
        >>> z, log_det = norm(torch.randn(100, 2) * 3 + 1)
        >>> bool(z.mean().abs() < 1e-5)
        True

    References:
        Masked Autoregressive Flow for Density Estimation (Papamakarios et al., 2017), appendix B;
        Density estimation using Real NVP (Dinh et al., 2017), section 3.7.
    """

    running_mean: Tensor
    running_var: Tensor

    @configured
    def __init__(self, features: int | Sequence[int], eps: float = 1e-5, momentum: float | None = 0.1) -> None:
        super().__init__()
        event = event_of(features)
        eps = number("eps", eps, least=0)
        a_number = isinstance(momentum, (int, float)) and not isinstance(momentum, bool)
        if momentum is not None and not (a_number and 0 <= momentum <= 1):
            raise ValueError(f"momentum: expected a number between 0 and 1, or None, got {momentum!r}")
        self._event_shape, self.features, self.eps, self.momentum = event, event.numel(), eps, momentum
        self.log_gamma = nn.Parameter(torch.zeros(event[0]))
        self.beta = nn.Parameter(torch.zeros(event[0]))
        self.register_buffer("running_mean", torch.zeros(event[0]))
        self.register_buffer("running_var", torch.ones(event[0]))
        self._last: tuple[Tensor, Tensor] | None = None
        self.synchronised = False

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("x", x, self.running_mean)
        if self.training:
            mean, var = self._statistics(channel_rows(x, self._event_shape))
            self._last = mean.detach(), var.detach()
            if self.momentum is not None:
                with torch.no_grad():
                    self.running_mean.lerp_(mean.detach().to(self.running_mean), self.momentum)
                    self.running_var.lerp_(var.detach().to(self.running_var), self.momentum)
        else:
            mean, var = self.running_mean, self.running_var
        return self._normalised(x, mean, var)

    def _normalised(self, x: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        factor = torch.rsqrt(var + self.eps) * self.log_gamma.exp()
        z = (x - self._wide(mean)) * self._wide(factor) + self._wide(self.beta)
        return z, batch_log_det(self._log_det(var), x, len(self._event_shape))

    def _statistics(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of the batch, of all processes' parts of it where the layer is synchronised."""
        if len(rows) == 0:
            raise ValueError("x: an empty batch has no statistics to train with")
        if not self.synchronised:
            return rows.mean(0), rows.var(0, unbiased=False)
        total = _Sum.apply(torch.cat([rows.sum(0), rows.new_full((1,), len(rows))]))
        mean = total[:-1] / total[-1]
        return mean, _Sum.apply((rows - mean).square().sum(0)) / total[-1].detach()

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("z", z, self.running_mean)
        if self.training:
            if self._last is None:
                raise RuntimeError(
                    "BatchNorm: inverse in training uses the statistics of the last forward call, and there was none; "
                    "call forward first, or eval()"
                )
            mean, var = self._last
        else:
            mean, var = self.running_mean, self.running_var
        return self._restored(z, mean, var)

    def _restored(self, z: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        factor = (-self.log_gamma).exp() * torch.sqrt(var + self.eps)
        x = (z - self._wide(self.beta)) * self._wide(factor) + self._wide(mean)
        return x, batch_log_det(-self._log_det(var), z, len(self._event_shape))

    def _wide(self, t: Tensor) -> Tensor:
        return wide(t, self._event_shape)

    def memo(self) -> tuple[Tensor, Tensor] | None:
        return self._last if self.training else None

    def rebuild(self, output: Tensor, context: Tensor | None, inverse: bool, memo: Any = None) -> tuple[Tensor, Tensor, Tensor]:
        if memo is None:
            return super().rebuild(output, context, inverse)
        with torch.no_grad():
            x, _ = (self._normalised if inverse else self._restored)(output, *memo)
        x.requires_grad_()
        last = self._last
        found = self._restored(x, *memo) if inverse else self(x)
        self._last = last  # not of the call that was last
        return x, *found

    def step(self, x: Tensor, inverse: bool) -> ops.Step | None:
        mean, var = self.running_mean, self.running_var
        if (
            type(self) is not BatchNorm
            or self.training
            or len(self._event_shape) > 1
            or mean.device != x.device
            or mean.dtype is not x.dtype
        ):
            return None
        std = torch.sqrt(var + self.eps) * (-self.log_gamma).exp()
        return ops.ElementwiseStep(not inverse, mean - self.beta * std, std)

    def calibrate(self, x: Tensor, context: Tensor | None, batch_size: int) -> Tensor:
        self.set_statistics(x)
        return super().calibrate(x, context, batch_size)

    @torch.no_grad()
    def set_statistics(self, x: Tensor) -> None:
        """Takes the mean and the biased variance of the rows of x (n, *event_shape) for evaluation."""
        self._check("x", x, self.running_mean)
        if x.dim() != 1 + len(self._event_shape) or len(x) == 0:
            expected = ", ".join(map(str, self._event_shape))
            raise ValueError(f"x: expected shape (n, {expected}) with at least one row, got {tuple(x.shape)}")
        rows = channel_rows(x, self._event_shape)
        self.running_mean.copy_(rows.mean(0))
        self.running_var.copy_(rows.var(0, unbiased=False))

    def _log_det(self, var: Tensor) -> Tensor:
        return (self.log_gamma - 0.5 * torch.log(var + self.eps)).sum() * self._event_shape[1:].numel()

    def extra_repr(self) -> str:
        return f"{', '.join(map(str, self._event_shape))}, eps={self.eps}, momentum={self.momentum}"
