"""Transforms one after another."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from functools import reduce
from operator import add
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from flowkern import ops
from flowkern.config import configured
from flowkern.nn.checks import blame
from flowkern.nn.log_det import show_context
from flowkern.nn.transform import Transform


class Compose(Transform):
    """Transforms one after another, the first one next to the data.

    Raises:
        TypeError, ValueError: if one is no transform, or takes events of another shape than the one before it gives.

    Example:
        >>> import torch, flowkern as fk
        >>> t = fk.nn.Compose([fk.nn.Reverse(3), fk.nn.MaskedAutoregressive(3, hidden=(8,))])
        >>> z, log_det = t(torch.randn(5, 3))
        >>> z.shape, log_det.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    @configured
    def __init__(self, transforms: Iterable[Transform]) -> None:
        super().__init__()
        transforms = all_transforms("transforms", transforms)
        for i, (before, after) in enumerate(itertools.pairwise(transforms), 1):
            if after.event_shape != before.noise_shape:
                raise ValueError(
                    f"transforms[{i}]: expected event shape {tuple(before.noise_shape)} like the noise of the one before, "
                    f"got {tuple(after.event_shape)}"
                )
        self.features = transforms[0].features
        self._event_shape, self._noise_shape = transforms[0].event_shape, transforms[-1].noise_shape
        self.transforms = nn.ModuleList(transforms)

    @property
    def event_shape(self) -> torch.Size:
        return self._event_shape

    @property
    def noise_shape(self) -> torch.Size:
        return self._noise_shape

    @property
    def conditional(self) -> bool:
        return any(t.conditional for t in self._all())

    def _all(self) -> list[Transform]:
        layers = self._modules["transforms"]  # the attribute takes nn.Module's slow look-up
        return cast("list[Transform]", list(layers._modules.values()))  # type: ignore[union-attr]

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("x", x)
        return _chain(x, context, self._all(), inverse=False)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("z", z)
        return _chain(z, context, self._all()[::-1], inverse=True)

    def calibrate(self, x: Tensor, context: Tensor | None, batch_size: int) -> Tensor:
        for transform in self._all():
            x = transform.calibrate(x, context, batch_size)
        return x


def all_transforms(name: str, given: Any) -> list[Transform]:
    """At least one transform, and nothing else."""
    if not isinstance(given, Iterable):
        raise TypeError(f"{name}: expected a sequence of transforms, got {type(given).__name__}")
    transforms = list(given)
    if not transforms:
        raise ValueError(f"{name}: expected at least one")
    for i, transform in enumerate(transforms):
        if not isinstance(transform, Transform):
            raise TypeError(f"{name}[{i}]: expected a flowkern.nn.Transform, got {type(transform).__name__}")
    return transforms


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
