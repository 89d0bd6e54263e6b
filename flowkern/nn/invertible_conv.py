"""Glow's invertible 1x1 convolution: a learned mixing of the channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from flowkern._checks import HALF, autocasts, check_generator
from flowkern.config import configured
from flowkern.nn.checks import event_of
from flowkern.nn.log_det import batch_log_det
from flowkern.nn.transform import Unconditional


class InvertibleConv1x1(Unconditional):
    r"""z = W x for the channels of every pixel, log_det = height width log|det W|.

    In the LU form W = P L (U + diag(sign exp(log_scale))), with L unit lower and U strictly upper triangular; the permutation
    P and the signs stay as they were drawn, so that W stays invertible and its determinant costs a sum. The inverse solves
    two triangular systems. In the plain form W is the parameter itself.

    A plain W that has become singular has a log-determinant of minus infinity.

    Args:
        features: number of features, which a vector's matrix mixes, or an image's shape (channels, height, width).
        lu: the LU form.
        generator: source of the rotation that W is at first.

    Raises:
        TypeError, ValueError: for what is no such number or shape.
        RuntimeError: from ``inverse`` in the plain form, if W is singular.

    Example:
        >>> import torch
        >>> mix, x = InvertibleConv1x1((4, 2, 2)), torch.randn(5, 4, 2, 2)
        >>> z, log_det = mix(x)
        >>> torch.allclose(mix.inverse(z)[0], x, atol=1e-5), torch.allclose(log_det, torch.zeros(5), atol=1e-5)
        (True, True)

    References:
        Glow: Generative Flow with Invertible 1x1 Convolutions (Kingma and Dhariwal, 2018), section 3.2.
    """

    lower: Tensor
    upper: Tensor
    weight: Tensor
    order: Tensor
    sign: Tensor

    @configured
    def __init__(self, features: int | Sequence[int], lu: bool = True, generator: torch.Generator | None = None) -> None:
        super().__init__()
        check_generator(generator)
        self._event_shape, self.lu = event_of(features), bool(lu)
        self.features = self._event_shape.numel()
        n = self._event_shape[0]
        for name in ("lower", "upper") if self.lu else ("weight",):
            self.register_parameter(name, nn.Parameter(torch.empty(n, n)))
        if self.lu:
            self.log_scale = nn.Parameter(torch.empty(n))
            self.register_buffer("order", torch.empty(n, dtype=torch.int64))
            self.register_buffer("sign", torch.empty(n))
        self.set_weight(torch.linalg.qr(torch.randn(n, n, generator=generator, device="cpu"))[0])

    @torch.no_grad()
    def set_weight(self, weight: Tensor) -> None:
        """Takes a matrix W (channels, channels).

        Raises:
            ValueError: if it has another shape, or is singular.
        """
        n = self._event_shape[0]
        if weight.shape != (n, n) or not bool(torch.linalg.slogdet(weight.double()).logabsdet.isfinite()):
            raise ValueError(f"weight: expected an invertible matrix ({n}, {n}), got {weight.tolist()}")
        if not self.lu:
            self.weight.copy_(weight)
            return
        permutation, lower, upper = torch.linalg.lu(weight.double())
        diagonal = upper.diagonal()
        self.order.copy_(permutation.argmax(1))
        self.lower.copy_(lower.tril(-1))
        self.upper.copy_(upper.triu(1))
        self.sign.copy_(diagonal.sign())
        self.log_scale.copy_(diagonal.abs().log())

    def _factors(self) -> tuple[Tensor, Tensor]:
        """L and U, whose product's rows are those of W in another order."""
        diagonal = torch.diag(self.sign * self.log_scale.exp())
        ones = torch.eye(len(diagonal), dtype=diagonal.dtype, device=diagonal.device)
        return self.lower.tril(-1) + ones, self.upper.triu(1) + diagonal

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("x", x, next(self.parameters()))
        # A product of lower precision could not be undone.
        with torch.autocast(x.device.type, enabled=False) if autocasts(x) else nullcontext():
            if self.lu:
                lower, upper = self._factors()
                weight = (lower @ upper)[self.order]
            else:
                weight = self.weight
            return self._mixed(x, lambda columns: weight @ columns), self._log_det(1, x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("z", z, next(self.parameters()))
        return self._mixed(z, self._solved), self._log_det(-1, z)

    def _solved(self, columns: Tensor) -> Tensor:
        right = _single(columns)
        if self.lu:
            lower, upper = map(_single, self._factors())
            permuted = right.index_select(-2, torch.argsort(self.order))
            right = torch.linalg.solve_triangular(lower, permuted, upper=False, unitriangular=True)
            return torch.linalg.solve_triangular(upper, right, upper=True).to(columns.dtype)
        try:
            return torch.linalg.solve(_single(self.weight), right).to(columns.dtype)
        except torch.linalg.LinAlgError:
            raise RuntimeError(f"InvertibleConv1x1: expected an invertible matrix, got {self.weight.tolist()}") from None

    def _mixed(self, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Columns of channels, (..., channels, pixels) or (channels, rows of vectors), through a function."""
        if len(self._event_shape) > 1:
            return function(x.flatten(-2)).reshape(x.shape)
        return function(x.reshape(-1, self.features).mT).mT.reshape(x.shape)

    def _log_det(self, sign: int, x: Tensor) -> Tensor:
        value = self.log_scale.sum() if self.lu else torch.linalg.slogdet(_single(self.weight)).logabsdet.to(x.dtype)
        return batch_log_det(sign * self._event_shape[1:].numel() * value, x, len(self._event_shape))

    def extra_repr(self) -> str:
        return f"{', '.join(map(str, self._event_shape))}, lu={self.lu}"


def _single(t: Tensor) -> Tensor:
    """At least single precision: LAPACK knows no less."""
    return t.float() if t.dtype in HALF else t
