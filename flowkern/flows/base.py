"""Base distributions: what a flow asks of one."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flowkern import ops


class Base(Protocol):
    """The base of a flow: any object with these two methods, a torch.distributions.Distribution included.

    The methods may also take ``context`` and ``generator`` keywords; they are passed where the signature has them. A base
    with an attribute ``conditional`` that is False is given no context.
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
    conditional = False

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("like", torch.empty(0), persistent=False)  # follows the flow's device and dtype

    def log_prob(self, z: Tensor) -> Tensor:
        return ops.normal_log_prob(z)

    def rsample(self, shape: torch.Size, generator: torch.Generator | None = None) -> Tensor:
        size = (*shape, self.features)
        return torch.randn(size, generator=generator, dtype=self.like.dtype, device=self.like.device)


def sample_size(shape: Sequence[int]) -> torch.Size:
    """A sample shape, checked."""
    if isinstance(shape, int):
        raise TypeError(f"shape: expected a tuple of sizes such as ({shape},), got {shape}")
    return torch.Size(shape)


def takes_context(base: Any, method: Any) -> bool:
    """Whether a method of a base is given the flow's context: its signature says so, and the base depends on one."""
    return getattr(base, "conditional", True) and "context" in inspect.signature(method).parameters


def call_base(
    base: Any, method: Any, argument: Any, context: Tensor | None, generator: torch.Generator | None = None
) -> Tensor:
    """Calls a method of a base with the context and the generator where it takes them."""
    options: dict[str, Any] = {"context": context} if takes_context(base, method) else {}
    if generator is not None:
        if "generator" not in inspect.signature(method).parameters:
            raise ValueError(f"generator: {type(base).__name__}.{method.__name__} takes none")
        options["generator"] = generator
    return method(argument, **options)
