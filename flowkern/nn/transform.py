"""The protocol of invertible layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import reduce
from operator import add
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions import transforms as td
from torch.nn.modules.module import _has_any_global_hook

from flowkern import ops
from flowkern._checks import broadcast_batch, check_device, check_features, check_float, check_like


class Transform(nn.Module):
    r"""An invertible map between data x and noise z, both (..., features).

    ``z, log_det = t(x, context)`` with log_det = log|det dz/dx|, and ``x, log_det = t.inverse(z, context)`` with
    log_det = log|det dx/dz|. ``log_det`` has the batch's shape. ``context`` is (..., context features), its batch shape
    broadcast with that of x.
    """

    features: int

    @property
    def conditional(self) -> bool:
        """Whether the transform may depend on a context; a subclass that does not says so."""
        return True

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to noise."""
        raise NotImplementedError

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Noise to data."""
        raise NotImplementedError

    def step(self, context: Tensor | None, inverse: bool) -> ops.Step | None:
        """This transform as a step of :func:`flowkern.ops.autoregressive_chain`, or ``None`` where it is no such step."""
        return None

    def as_distribution_transform(self, context: Tensor | None = None) -> td.Transform:
        """This transform as torch.distributions sees it: from the base distribution to the data.

        Example:
            >>> import torch, flowkern as fk
            >>> base = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(3), torch.ones(3)), 1)
            >>> t = fk.nn.MaskedAutoregressive(3, hidden=(8,)).as_distribution_transform()
            >>> torch.distributions.TransformedDistribution(base, [t]).sample((5,)).shape
            torch.Size([5, 3])
        """
        return _DistributionTransform(self, context)

    def _check(self, name: str, x: Tensor, own: Tensor | None = None) -> None:
        """Of the input; ``own`` is a tensor of the layer, where the operators do not look at its device."""
        check_float(name, x)
        check_features(name, x, self.features)
        if own is not None:
            check_device(name, x, own, "the layer")


class _DistributionTransform(td.Transform):
    """The torch.distributions view; remembers the last log-determinant, which the protocol gives with the value."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, transform: Transform, context: Tensor | None, cache_size: int = 0) -> None:
        super().__init__(cache_size=cache_size)
        self.transform = transform
        self.context = context
        self._last: tuple[Tensor, Tensor, Tensor, bool] | None = None

    def with_cache(self, cache_size: int = 1) -> td.Transform:
        return self if cache_size == self._cache_size else _DistributionTransform(self.transform, self.context, cache_size)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, _DistributionTransform) and (
            self.transform is other.transform and self.context is other.context
        )

    def _call(self, z: Tensor) -> Tensor:
        x, log_det = self.transform.inverse(z, self.context)
        self._last = z, x, log_det, torch.is_grad_enabled()
        return x

    def _inverse(self, x: Tensor) -> Tensor:
        z, log_det = self.transform(x, self.context)
        self._last = z, x, -log_det, torch.is_grad_enabled()
        return z

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        last, self._last = self._last, None  # good for one use: parameters may change after it
        if last is not None and last[0] is x and last[1] is y and last[3] == torch.is_grad_enabled():
            return last[2]
        return -self.transform(y, self.context)[1]


class Unconditional(Transform):
    """A transform that takes a context, as the protocol has it, and ignores it."""

    @property
    def conditional(self) -> bool:
        return False


class Compose(Transform):
    """Transforms one after another, the first one next to the data.

    Example:
        >>> import torch, flowkern as fk
        >>> t = fk.nn.Compose([fk.nn.Reverse(3), fk.nn.MaskedAutoregressive(3, hidden=(8,))])
        >>> z, log_det = t(torch.randn(5, 3))
        >>> z.shape, log_det.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(self, transforms: Iterable[Transform]) -> None:
        super().__init__()
        if not isinstance(transforms, Iterable):
            raise TypeError(f"transforms: expected a sequence of transforms, got {type(transforms).__name__}")
        transforms = list(transforms)
        if not transforms:
            raise ValueError("transforms: expected at least one")
        for i, transform in enumerate(transforms):
            if not isinstance(transform, Transform):
                raise TypeError(f"transforms[{i}]: expected a flowkern.nn.Transform, got {type(transform).__name__}")
        widths = [t.features for t in transforms]
        if len(set(widths)) > 1:
            raise ValueError(f"transforms: expected one number of features, got {widths}")
        self.features = widths[0]
        self.transforms = nn.ModuleList(transforms)

    @property
    def conditional(self) -> bool:
        return any(t.conditional for t in self._all())

    def _all(self) -> list[Transform]:
        layers = self._modules["transforms"]  # the attribute takes nn.Module's slow look-up
        return cast("list[Transform]", list(layers._modules.values()))  # type: ignore[union-attr]

    def leaves(self) -> Iterator[Transform]:
        """The transforms in order, nested ones resolved."""
        for transform in self._all():
            yield from transform.leaves() if isinstance(transform, Compose) else (transform,)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("x", x)
        return _chain(x, context, self._all(), inverse=False)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("z", z)
        return _chain(z, context, self._all()[::-1], inverse=True)


def _chain(x: Tensor, context: Tensor | None, transforms: Iterable[Transform], inverse: bool) -> tuple[Tensor, Tensor]:
    """The transforms in the order given; without a gradient, neighbours that can share a kernel call do."""
    terms: list[Tensor] = []
    run: list[ops.Step] = []
    tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()
    joining = not torch.is_grad_enabled() and not tracing and not _has_any_global_hook()

    def flush() -> None:
        nonlocal x
        if run:
            try:
                x, log_det = ops.autoregressive_chain(x, run)
            except (TypeError, ValueError):
                blame("z" if inverse else "x", x, run[0][1]["weights"][0], context)
                raise
            terms.append(show_context(log_det, context))
            run.clear()

    for transform in transforms:
        hooked = not inverse and (transform._forward_hooks or transform._forward_pre_hooks)
        step = transform.step(context, inverse) if joining and not hooked else None
        if step is not None:
            run.append(step)
            continue
        flush()
        x, log_det = transform.inverse(x, context) if inverse else transform(x, context)
        terms.append(log_det)
    flush()
    return x, reduce(add, terms)


def blame(name: str, x: Tensor, weight: Tensor, context: Tensor | None) -> None:
    """Raises in the words of a layer what an operator refused in its own; looking before each call would cost too much."""
    if context is not None:
        broadcast_batch(x, [context], "context")
    check_like(name, x, weight, "the weights")


def show_context(log_det: Tensor, context: Tensor | None) -> Tensor:
    """The log-determinant, not finite where the context is not: an infinite one may vanish in the network."""
    return log_det if context is None else log_det + (context - context).detach().sum(-1)


def batch_log_det(value: Tensor, x: Tensor) -> Tensor:
    """A log-determinant that does not depend on the row, for every row of x; not finite where the row is not."""
    return value + (x - x).detach().sum(-1)
