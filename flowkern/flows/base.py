"""Base distributions: what a flow asks of one."""

from __future__ import annotations

import inspect
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flowkern import ops


class Base(Protocol):
    """The base of a flow: any object with these two methods, a torch.distributions.Distribution included.

    A module's methods may also take ``context`` and ``generator`` keywords; they are passed where the signature has
    them.
    """

    def log_prob(self, z: Tensor) -> Tensor: ...

    def rsample(self, shape: torch.Size) -> Tensor: ...


class StandardNormal(nn.Module):
    """N(0, I) over the last dimension.

    Example:
        >>> import torch
        >>> StandardNormal(2).log_prob(torch.zeros(3, 2))
        tensor([-1.8379, -1.8379, -1.8379])
    """

    like: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("like", torch.empty(0), persistent=False)  # follows the flow's device and dtype

    def log_prob(self, z: Tensor) -> Tensor:
        return ops.normal_log_prob(z)

    def rsample(self, shape: torch.Size, generator: torch.Generator | None = None) -> Tensor:
        size = (*shape, self.features)
        return torch.randn(size, generator=generator, dtype=self.like.dtype, device=self.like.device)


def call_base(method: Any, argument: Any, **options: Any) -> Tensor:
    """Calls a method of a base with those options that it knows; an option that it does not know must be ``None``."""
    known = inspect.signature(method).parameters
    for name in [n for n in options if n not in known]:
        if options.pop(name) is not None and name == "generator":
            raise ValueError(f"generator: {type(method.__self__).__name__}.{method.__name__} takes none")
    return method(argument, **options)
