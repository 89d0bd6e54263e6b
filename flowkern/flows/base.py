"""Base distributions: what a flow asks of one."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import logsigmoid

from flowkern import ops
from flowkern._checks import check_float, sizes, whole_number
from flowkern._checks import interval as checked_interval
from flowkern.config import configured
from flowkern.nn.checks import check_event, event_size, flat
from flowkern.nn.constants import Constants
from flowkern.nn.heads import randn, uniform
from flowkern.nn.periodic import circular_features


class Base(Protocol):
    """The base of a flow: any object with these two methods, a torch.distributions.Distribution included.

    Its ``event_shape``, where it has one, must be that of the noise. One that has ``sample`` instead of ``rsample``, or
    whose ``has_rsample`` is False, gives samples without gradients. The methods may also take ``context``, ``generator`` and
    ``chunk_size`` keywords; they are passed where the signature has them. A base with an attribute ``conditional`` that is
    False is given no context.
    """

    def log_prob(self, z: Tensor) -> Tensor: ...

    def rsample(self, shape: torch.Size) -> Tensor: ...


INDEPENDENT = "a distribution of single numbers becomes one of vectors by torch.distributions.Independent"


class _Standard(nn.Module):
    """Independent numbers of one distribution, which has no parameters."""

    like: Tensor
    conditional = False

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        super().__init__()
        given = event_shape if isinstance(event_shape, Sequence) else (whole_number("event_shape", event_shape, 1),)
        self.event_shape = event_size("event_shape", given)
        self.features = self.event_shape.numel()
        self.register_buffer("like", torch.empty(0), persistent=False)  # follows the flow's device and dtype

    def _rows(self, z: Tensor) -> Tensor:
        check_float("z", z)
        check_event("z", z, self.event_shape)
        return flat(z, self.event_shape)


class StandardNormal(_Standard):
    """N(0, I) over the dimensions of an event.

    Args:
        event_shape: number of features, or any shape, such as (3, 8, 8).

    Example:
        >>> import torch
        >>> StandardNormal(2).log_prob(torch.zeros(3, 2))
        tensor([-1.8379, -1.8379, -1.8379])
    """

    @configured
    def __init__(self, event_shape: int | Sequence[int]) -> None:
        super().__init__(event_shape)

    def log_prob(self, z: Tensor) -> Tensor:
        return ops.normal_log_prob(self._rows(z))

    def rsample(self, shape: torch.Size, generator: torch.Generator | None = None) -> Tensor:
        return randn((*sizes("shape", shape), *self.event_shape), self.like, generator)


class StandardLogistic(_Standard):
    """Independent numbers with the density exp(-z) / (1 + exp(-z))^2, the prior of NICE.

    Args:
        event_shape: number of features, or any shape, such as (3, 8, 8).

    Example:
        >>> import torch
        >>> StandardLogistic(2).log_prob(torch.zeros(3, 2))
        tensor([-2.7726, -2.7726, -2.7726])

    References:
        NICE: Non-linear Independent Components Estimation (Dinh et al., 2015), section 3.4.
    """

    @configured
    def __init__(self, event_shape: int | Sequence[int]) -> None:
        super().__init__(event_shape)

    def log_prob(self, z: Tensor) -> Tensor:
        rows = self._rows(z)
        return (logsigmoid(rows) + logsigmoid(-rows)).sum(-1)

    def rsample(self, shape: torch.Size, generator: torch.Generator | None = None) -> Tensor:
        drawn = uniform((*sizes("shape", shape), *self.event_shape), self.like, generator)
        return drawn.log() - torch.log1p(-drawn)


class PartlyUniform(Constants, _Standard):
    """Uniform over an interval in some features, N(0, 1) in the others.

    Args:
        features: number of features.
        uniform: numbers of the uniform ones.
        interval: its ends.

    Example:
        >>> import torch
        >>> PartlyUniform(2, [0], (-1, 1)).log_prob(torch.zeros(3, 2))
        tensor([-1.6121, -1.6121, -1.6121])
    """

    chosen: Tensor
    rest: Tensor

    @configured
    def __init__(self, features: int, uniform: Sequence[int], interval: Sequence[float]) -> None:
        super().__init__(whole_number("features", features, 1))
        self.lower, upper = checked_interval("interval", interval)
        self.length, places = upper - self.lower, circular_features(uniform, features, "uniform")
        chosen = torch.tensor([d in places for d in range(features)], device="cpu")
        for name, t in {"chosen": chosen, "rest": ~chosen}.items():
            self.constant(name, t.nonzero().flatten())

    def log_prob(self, z: Tensor) -> Tensor:
        return ops.normal_log_prob(self._rows(z).index_select(-1, self.rest)) - len(self.chosen) * math.log(self.length)

    def rsample(self, shape: torch.Size, generator: torch.Generator | None = None) -> Tensor:
        size = sizes("shape", shape)
        drawn = randn((*size, *self.event_shape), self.like, generator)
        of_circles = uniform((*size, len(self.chosen)), self.like, generator)
        return drawn.index_copy_(-1, self.chosen, self.lower + self.length * of_circles)


def check_base(base: Any, event_shape: torch.Size) -> None:
    """Raises for what cannot be the base of a flow whose noise has this shape."""
    if not hasattr(base, "log_prob") or not (hasattr(base, "rsample") or hasattr(base, "sample")):
        raise TypeError(f"base: expected an object with log_prob and rsample, got {type(base).__name__}")
    given = getattr(base, "event_shape", event_shape)
    if tuple(given) != event_shape:
        hint = f"; {INDEPENDENT}" if isinstance(base, Distribution) else ""
        raise ValueError(f"base: expected event shape {tuple(event_shape)}, got {tuple(given)}{hint}")
    features = getattr(base, "features", None)
    if isinstance(features, int) and features != event_shape.numel():
        raise ValueError(f"base: expected {event_shape.numel()} features like the transforms, got {features}")


def has_rsample(base: Any) -> bool:
    """Whether the samples of a base carry gradients."""
    return getattr(base, "has_rsample", hasattr(base, "rsample"))


def takes_context(base: Any, method: Any) -> bool:
    """Whether a method of a base is given the flow's context: its signature says so, and the base depends on one."""
    return getattr(base, "conditional", True) and "context" in inspect.signature(method).parameters


def call_base(
    base: Any,
    method: Any,
    argument: Any,
    context: Tensor | None,
    generator: torch.Generator | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """Calls a method of a base with the context, the generator and the chunk size where it takes them."""
    options: dict[str, Any] = {"context": context} if takes_context(base, method) else {}
    if generator is not None:
        if "generator" not in inspect.signature(method).parameters:
            raise ValueError(f"generator: {type(base).__name__}.{method.__name__} takes none")
        options["generator"] = generator
    if chunk_size is not None and "chunk_size" in inspect.signature(method).parameters:
        options["chunk_size"] = chunk_size
    return method(argument, **options)
