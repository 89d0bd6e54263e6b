"""Oracle of ``autoregressive_chain``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from flowkern.reference.autoregressive import autoregressive
from flowkern.reference.autoregressive_inverse import autoregressive_inverse


def autoregressive_chain(x: Tensor, steps: Sequence[tuple[bool, dict[str, Any]]]) -> tuple[Tensor, Tensor]:
    """(z, log_det) of the steps (inverse, keyword arguments of the oracle of that direction), one after another."""
    total = x.new_zeros(x.shape[:-1])
    for inverse, arguments in steps:
        x, log_det = (autoregressive_inverse if inverse else autoregressive)(x, **arguments)
        total = total + log_det
    return x, total
