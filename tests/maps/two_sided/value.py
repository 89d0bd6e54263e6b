"""A family of maps that nobody asked for: v = t + s (u - kink), with a slope of its own on either side of the kink."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowkern.univariate import UnivariateMap


@dataclass(unsafe_hash=True)
class TwoSided(UnivariateMap):
    """Parameters: t, log s above the kink, log s below it."""

    kink: float = 0.0

    family: ClassVar[str] = "two_sided"
    kind: ClassVar[int] = 1000
    names: ClassVar[tuple[str, ...]] = ("shift", "above", "below")
    options: ClassVar[tuple[int, ...]] = ()

    @property
    def constants(self) -> tuple[float, ...]:
        return (self.kink,)

    def oracle(self, u: Tensor, *parameters: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        shift, above, below = parameters
        finite = (u - u).detach()
        if inverse:
            w = u - shift
            log_s = torch.where(w > 0, above, below)
            return (-log_s).exp() * w + self.kink, finite - log_s
        d = u - self.kink
        log_s = torch.where(d > 0, above, below)
        return shift + log_s.exp() * d, log_s + finite
