"""Glow's invertible 1x1 convolution: a learned mixing of the channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flowkern import ops
from flowkern._checks import check_generator, check_like, flag
from flowkern.config import configured
from flowkern.nn.checks import event_of
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
        self._event_shape, self.lu = event_of(features), flag("lu", lu)
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

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run("x", x, inverse=False)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run("z", z, inverse=True)

    def _run(self, name: str, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        own = next(self.parameters())
        self._check(name, x, own)
        check_like(name, x, own, "the layer")
        matrix = (self.lower, self.upper, self.log_scale, self.order, self.sign) if self.lu else (self.weight,)
        return ops.invertible_conv1x1(x, *matrix, dim=-len(self._event_shape), inverse=inverse)

    def extra_repr(self) -> str:
        return f"{', '.join(map(str, self._event_shape))}, lu={self.lu}"
