"""Transforms one after another."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from functools import reduce
from operator import add
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from flowkern import ops
from flowkern._checks import broadcast_batch
from flowkern.config import configured
from flowkern.nn import reversible
from flowkern.nn.checks import blame, flat, has_hooks
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
        self.memory = "full"
        self.guard = reversible.Guard()

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
        return self.run(x, context)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.run(z, context, inverse=True)

    def run(
        self, x: Tensor, context: Tensor | None = None, inverse: bool = False, normal: str | None = None
    ) -> tuple[Tensor, Tensor]:
        """Either direction; ``normal``: what is added to the log-determinant, see :func:`flowkern.ops.autoregressive_chain`."""
        self._check("z" if inverse else "x", x)
        transforms = self._all()
        if self.memory == "reversible" and reversible.records():
            return self._run_reversibly(x, context, inverse, normal)
        return _Run(x, context, inverse, normal).through(transforms[::-1] if inverse else transforms)

    def _run_reversibly(self, x: Tensor, context: Tensor | None, inverse: bool, normal: str | None) -> tuple[Tensor, Tensor]:
        """Without activations. What has stacks of its own inside, or runs hooks, is called as a module."""
        self.guard.settle()
        event = self._noise_shape if inverse else self._event_shape
        if context is not None and self.conditional:
            x = x.expand(*broadcast_batch(x, [context], "context", len(event)), *event)
        noise, totals = x, []
        layers = list(enumerate(self._all()))
        for alone, group in itertools.groupby(layers[::-1] if inverse else layers, lambda pair: _stands_alone(pair[1])):
            if alone:
                for _, layer in group:
                    x, log_det = (layer.inverse if inverse else layer)(x, context)
                    totals.append(log_det)
            else:
                x, log_det = reversible.run(self.guard, list(group), x, context, inverse)
                totals.append(log_det)
        self.guard.measures = False
        total = reduce(add, totals)
        if normal is None:
            return x, total
        rows = flat(noise if normal == "input" else x, self._noise_shape)
        return x, ops.normal_log_prob(rows, -total if normal == "input" else total)

    def calibrate(self, x: Tensor, context: Tensor | None, batch_size: int) -> Tensor:
        for transform in self._all():
            x = transform.calibrate(x, context, batch_size)
        return x


def _stands_alone(layer: Transform) -> bool:
    return has_hooks(layer) or any(isinstance(module, Compose) for module in layer.modules())


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


class _Run:
    """One way through transforms; neighbours that can share a kernel call do."""

    def __init__(self, x: Tensor, context: Tensor | None, inverse: bool, normal: str | None) -> None:
        self.x, self.context, self.inverse, self.normal = x, context, inverse, normal
        self.transforms: list[Transform] = []  # those that wait, and what they are as steps
        self.steps: list[ops.Step] = []
        self.network: ops.NetworkStep | ops.CouplingStep | None = None  # the first of these
        self.total: Tensor | None = None

    def through(self, transforms: Sequence[Transform]) -> tuple[Tensor, Tensor]:
        noise = self.x
        joining = not (torch.compiler.is_compiling() or torch.jit.is_tracing() or _has_any_global_hook())
        for transform in transforms:
            step = transform.step(self.x, self.inverse) if joining and not self._hooked(transform) else None
            if step is None:
                self._flush(last=False)
                self._one(transform)
                continue
            self.transforms.append(transform)
            self.steps.append(step)
            if self.network is None and isinstance(step, (ops.NetworkStep, ops.CouplingStep)):
                self.network = step
        self._flush(last=True)
        assert self.total is not None
        if self.normal is None:
            return self.x, self.total
        shape = transforms[0].noise_shape if self.inverse else transforms[-1].noise_shape
        rows = flat(noise if self.normal == "input" else self.x, shape)
        return self.x, ops.normal_log_prob(rows, -self.total if self.normal == "input" else self.total)

    def _hooked(self, transform: Transform) -> bool:
        """Whether a call of the module would do more than its class says; `inverse` is no call of a module."""
        return not self.inverse and (has_hooks(transform) or "forward" in transform.__dict__)

    def _one(self, transform: Transform) -> None:
        self.x, log_det = (transform.inverse if self.inverse else transform)(self.x, self.context)
        self.total = log_det if self.total is None else self.total + log_det

    def _flush(self, last: bool) -> None:
        """Runs what waits. The normal is part of it where one chain goes from end to end."""
        transforms, steps, network = self.transforms, self.steps, self.network
        self.transforms, self.steps, self.network = [], [], None
        if network is None:
            for transform in transforms:
                self._one(transform)
            return
        whole = last and self.total is None
        context = self.context
        if context is not None and not any(t.conditional for t in transforms):
            context = None
        try:
            self.x, log_det = ops.autoregressive_chain(self.x, steps, context, self.normal if whole else None)
        except (TypeError, ValueError):
            takes = max(getattr(t, "context", 0) for t in transforms)
            blame("z" if self.inverse else "x", self.x, network.arguments["weights"][0], self.context, takes)
            raise
        self.normal = None if whole else self.normal
        self.total = log_det if self.total is None else self.total + log_det
