"""One way through a peer's layers: neighbours that can share a call of the operators do."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import _has_any_global_hook

from flowkern import ops
from flowkern._tensors import outside_modes, version
from flowkern.adapters.calls import steps_in_chain
from flowkern.backends import exporting

_DTYPES = (torch.float32, torch.float64)


def joinable(x: Any) -> bool:
    """Whether layers may share a call on x: eager calls on the CPU, whose kernels run a chain."""
    return (
        isinstance(x, Tensor)
        and x.dtype in _DTYPES
        and x.is_cpu
        and x.dim() > 0
        and not torch.compiler.is_compiling()
        and not exporting()
        and not torch._C._are_functorch_transforms_active()
        and not torch.is_autocast_enabled("cpu")
        and not _has_any_global_hook()
    )


def touched(module: Any, methods: frozenset[str], hooks: bool = True) -> bool:
    """Whether a call would do more than the module's class says: methods replaced in it, hooks where these would run."""
    own = vars(module)
    return not methods.isdisjoint(own) or (
        hooks
        and bool(own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"])
    )


def of_vectors(transform: Any) -> bool:
    """Whether events of a transform of torch.distributions are vectors, or numbers, on either side."""
    return transform.domain.event_dim < 2 and transform.codomain.event_dim == transform.domain.event_dim


class Run:
    """One way through layers.

    Args:
        x: where it begins.
        context: of the networks.
        alone: (layer, x) -> (y, log_det), by the library's own code.
        normal: what is added to the log-determinant, see :func:`flowkern.ops.autoregressive_chain`.
    """

    def __init__(
        self,
        x: Tensor,
        context: Tensor | None,
        alone: Callable[[Any, Tensor], tuple[Tensor, Tensor]],
        normal: str | None = None,
    ) -> None:
        self.x, self.context, self.alone, self.normal = x, context, alone, normal
        self._noise = x
        self._total: Tensor | None = None
        self._steps: list[ops.Step] = []
        self._layers: list[Any] = []
        self._networks = False

    def network(self, layer: Any, inverse: bool, name: Any = None) -> None:
        """An accelerated layer; ``name``: what ``alone`` knows it by, if not by itself."""
        steps = steps_in_chain(layer, self.x, self.context, inverse, self._networks)
        if steps is None:
            self.add(None, layer if name is None else name)
            return
        self._steps += steps
        self._layers += [layer if name is None else name] * len(steps)
        self._networks = True

    def add(self, step: ops.Step | None, layer: Any = None) -> None:
        """A layer, and what it is as a step; ``None`` where it must run alone. A step without a layer is nobody's."""
        if step is not None:
            self._steps.append(step)
            self._layers.append(layer)
            return
        self._flush(None)
        self._take(*self.alone(layer, self.x))

    def end(self) -> tuple[Tensor, Tensor]:
        """The result, and the log-determinant or the log-density."""
        whole = self._total is None and self._networks
        self._flush(self.normal if whole else None)
        total = self.x.new_zeros(self.x.shape[:-1]) if self._total is None else self._total
        if self.normal is None or whole:
            return self.x, total
        if self.normal == "output":
            return self.x, ops.normal_log_prob(self.x, total)
        return self.x, ops.normal_log_prob(self._noise, -total)

    def _take(self, x: Tensor, log_det: Tensor) -> None:
        self.x, self._total = x, log_det if self._total is None else self._total + log_det

    def _flush(self, normal: str | None) -> None:
        """Runs what is pending: as one call if there is a network in it."""
        steps, self._steps = self._steps, []
        layers, self._layers = self._layers, []
        networks, self._networks = self._networks, False
        if networks:
            self._take(*ops.autoregressive_chain(self.x, steps, self.context, normal))  # all networks read the context, or none
            return
        for step, layer in zip(steps, layers, strict=True):
            self._take(*(self.alone(layer, self.x) if layer is not None else ops.autoregressive_chain(self.x, [step])))


# -- steps that are no networks ---------------------------------------------------------------------------------------


def elementwise(x: Tensor, inverse: bool, shift: Any, scale: Any) -> ops.ElementwiseStep | None:
    """v = u scale + shift or its inverse, if these are numbers per feature, or one for all, in the dtype of x."""
    features = x.shape[-1]
    found = [_per_feature(t, features) for t in (shift, scale) if isinstance(t, Tensor) and t.dtype is x.dtype and t.is_cpu]
    return None if len(found) < 2 or any(t is None for t in found) else ops.ElementwiseStep(inverse, *found)


def _per_feature(t: Tensor, features: int) -> Any:
    """(features,) from that, from (1, features), or from one number."""
    shape = t.shape
    if len(shape) == 1 and shape[0] == features:
        return t
    if t.numel() == 1:
        return t.reshape(1).expand(features)
    return t.reshape(features) if shape[-1] == features == t.numel() else None


_permutations: dict[int, tuple[Any, ...]] = {}  # by the id of a tensor: itself, its version, both steps


def permutation(order: Any, inverse: bool, features: int) -> ops.PermutationStep | None:
    """v_i = u_order[i] or its inverse. What a tensor holds is looked at again only after a change."""
    if not isinstance(order, Tensor):
        return None
    known = _permutations.get(id(order))
    if known is None or known[0]() is not order or known[1] != version(order):
        place = id(order)
        seen = weakref.ref(order, lambda _: _permutations.pop(place, None))
        known = _permutations[place] = seen, version(order), *_orders(order)
    step: ops.PermutationStep | None = known[3 if inverse else 2]
    return step if step is not None and len(step.order) == features else None


def _orders(order: Tensor) -> tuple[ops.PermutationStep | None, ops.PermutationStep | None]:
    if order.is_meta or order.dim() != 1:
        return None, None
    with outside_modes():
        there = order.tolist()
    back = sorted(range(len(there)), key=there.__getitem__)
    if sorted(there) != list(range(len(there))):
        return None, None
    return ops.PermutationStep(tuple(there)), ops.PermutationStep(tuple(back))
