"""Glow's activation normalisation: a shift and a scale per channel, taken from the first batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowkern import ops
from flowkern._checks import check_like
from flowkern.config import configured
from flowkern.nn.checks import channel_rows, event_of
from flowkern.nn.transform import Unconditional


class ActNorm(Unconditional):
    r"""z_c = (x_c + b_c) exp(l_c) for every channel c, log_det = height width sum(l).

    The first batch that ``forward`` sees in training sets b and l so that its result has mean 0 and deviation 1 in each
    channel; from then on they are parameters like others. Before, the layer is the identity. Processes that train together
    must see the same first batch, or begin after it; ``flowkern train`` and :meth:`flowkern.Model.fit` see to that.

    Args:
        features: number of features, or an image's shape (channels, height, width).

    Raises:
        TypeError, ValueError: for what is no such number or shape.

    Example:
        >>> import torch
        >>> norm = ActNorm((3, 4, 4))
        >>> z, log_det = norm(torch.randn(10, 3, 4, 4) * 5 + 2)
        >>> bool(z.mean().abs() < 1e-5), norm.initialised.item()
        (True, True)

    References:
        Glow: Generative Flow with Invertible 1x1 Convolutions (Kingma and Dhariwal, 2018), section 3.1.
    """

    initialised: Tensor

    @configured
    def __init__(self, features: int | Sequence[int]) -> None:
        super().__init__()
        self._event_shape = event_of(features)
        self.features = self._event_shape.numel()
        self.bias = nn.Parameter(torch.zeros(self._event_shape[0]))
        self.log_scale = nn.Parameter(torch.zeros(self._event_shape[0]))
        self.register_buffer("initialised", torch.zeros((), dtype=torch.bool))
        self._waits: bool | None = True  # for its first batch; None: as the buffer says, which a GPU is asked for once

    @property
    def waits(self) -> bool:
        """Whether the next batch in training sets the parameters."""
        if self._waits is None:
            self._waits = not bool(self.initialised)
        return self._waits

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("x", x, self.bias)
        if self.training and not torch.compiler.is_compiling() and self.waits and x.numel():
            self._initialise(x)
        return self._run("x", x, inverse=False)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("z", z, self.bias)
        return self._run("z", z, inverse=True)

    def _run(self, name: str, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        check_like(name, x, self.bias, "the layer")
        return ops.actnorm(x, self.bias, self.log_scale, dim=-len(self._event_shape), inverse=inverse)

    @torch.no_grad()
    def _initialise(self, x: Tensor) -> None:
        rows = channel_rows(x, self._event_shape)
        mean = rows.mean(0)
        self.bias.copy_(-mean)
        self.log_scale.copy_(-torch.log((rows - mean).square().mean(0).sqrt() + 1e-6))
        self.initialised.fill_(True)
        self._waits = False

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._waits = None

    def extra_repr(self) -> str:
        return ", ".join(map(str, self._event_shape))
