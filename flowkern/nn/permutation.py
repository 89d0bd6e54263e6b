"""Permutations of the features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowkern import ops
from flowkern._checks import permutation, whole_number
from flowkern._tensors import version
from flowkern.config import configured
from flowkern.nn.log_det import batch_log_det
from flowkern.nn.transform import Unconditional


class Permutation(Unconditional):
    r"""z_i = x_{order[i]}; the log-determinant is zero.

    Args:
        order: a permutation of 0 to features - 1.

    Raises:
        ValueError: if it is none.

    Example:
        >>> import torch
        >>> Permutation([2, 0, 1])(torch.tensor([10.0, 20.0, 30.0]))[0]
        tensor([30., 10., 20.])

    References:
        Density estimation using Real NVP (Dinh et al., 2017), section 3.5.
    """

    order: Tensor
    back: Tensor

    @configured
    def __init__(self, order: Sequence[int] | Tensor) -> None:
        super().__init__()
        device = order.device if isinstance(order, Tensor) else torch.get_default_device()
        places = permutation("order", order)
        self.features = len(places)
        self.register_buffer("order", places.to(device))
        self.register_buffer("back", torch.argsort(places).to(device))
        self._steps: tuple[tuple[Tensor, int], tuple[ops.Step, ops.Step]] | None = None

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("x", x, self.order)
        return x[..., self.order], batch_log_det(x.new_zeros(()), x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("z", z, self.back)
        return z[..., self.back], batch_log_det(z.new_zeros(()), z)

    def step(self, x: Tensor, inverse: bool) -> ops.Step | None:
        if type(self) not in (Permutation, Reverse) or self.order.device.type != "cpu":
            return None
        state = self.order, version(self.order)  # a checkpoint brings an order of its own
        if self._steps is None or self._steps[0][0] is not state[0] or self._steps[0][1] != state[1]:
            there, back = (ops.PermutationStep(tuple(t.tolist())) for t in (self.order, self.back))
            self._steps = state, (there, back)
        return self._steps[1][inverse]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_steps": None}


class Reverse(Permutation):
    """The permutation that reverses the features.

    Example:
        >>> import torch
        >>> Reverse(3)(torch.tensor([10.0, 20.0, 30.0]))[0]
        tensor([30., 20., 10.])
    """

    @configured
    def __init__(self, features: int) -> None:
        super().__init__(range(whole_number("features", features, 1))[::-1])
