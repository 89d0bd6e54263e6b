"""One call of an operator on a masked network: what is constant about it, and the kernels' two signatures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flowkern.backends import Kernels
from flowkern.plan import AutoregressivePlan
from flowkern.univariate import UnivariateMap, check_map, chosen_map


class Call:
    """The constants of a call: which operator, on which network, with which univariate map. Made once per plan.

    Args:
        name: the operator.
        plan: the network.
        map: the univariate map; ``None`` for the network alone.
        oracle: (x, weights, biases, addends) -> outputs.
        plain: the same, at the cost of one pass where the oracle takes several.
        solves: whether the network reads the first output rather than the input.
    """

    def __init__(
        self,
        name: str,
        plan: AutoregressivePlan,
        map: UnivariateMap | None,
        oracle: Callable[..., Any],
        plain: Callable[..., Any] | None = None,
        solves: bool = False,
    ) -> None:
        self.name, self.plan, self.oracle, self.plain, self.solves = name, plan, oracle, plain or oracle, solves
        self.weights = len(plan.masks)
        self.parameters = self.weights + sum(plan.biases)
        self.map = map
        outputs = (plan.features * plan.parameters,) if map is None else ()
        # The map as the CPU kernels take it, and as those of a GPU.
        self.numbers = () if map is None else (map.numbers,)
        self.words = () if map is None else map.words
        self.forward_constants = (plan.meta, plan.mask_bytes, *outputs, plan.packed_size, plan.saved_rows, *self.numbers)

    def split(self, tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
        """Weights, biases, addends."""
        return tensors[: self.weights], tensors[self.weights : self.parameters], tensors[self.parameters :]

    def run(
        self, kernels: Kernels, x: Tensor, tensors: Sequence[Tensor], packed: Tensor | None, keep: bool
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Outputs, and what the backward pass needs, which is of no size unless ``keep``."""
        op = getattr(getattr(torch.ops, kernels.namespace), self.name)
        if not kernels.on_cpu:
            *outputs, state = op(x, *self.split(tensors), self.plan.key, kernels.precision, *self.words, keep)
            return outputs, state
        *outputs, packed_now, saved = op(x, *self.split(tensors), packed, *self.forward_constants, keep)
        return outputs, (packed_now if packed is None else packed, saved)

    def gradients(
        self,
        kernels: Kernels,
        grads: Sequence[Tensor],
        x: Tensor,
        state: Sequence[Tensor],
        tensors: Sequence[Tensor],
        parameters: bool,
    ) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
        """Cotangents of x, weights, biases, addends; those of weights and biases only where ``parameters``."""
        parts = self.split(tensors)
        op = getattr(getattr(torch.ops, kernels.namespace), self.name + "_backward")
        if not kernels.on_cpu:
            constants = self.plan.key, kernels.precision, *self.words
            g_x, *flat, g_addends = op(*grads, x, *parts, state, *constants, parameters)
            return g_x, *(_unflatten(g, part) for g, part in zip(flat, parts, strict=False)), g_addends
        return op(*grads, x, *state, self.plan.meta, self.plan.mask_bytes, *parts, *self.numbers, parameters)


def _unflatten(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of one vector with the shapes of some tensors; none where the vector is empty."""
    sizes = [t.numel() for t in like]
    if flat.numel() != sum(sizes):
        return []
    return [part.view(t.shape) for part, t in zip(flat.split(sizes), like, strict=True)]


def call_of(
    operator: str,
    make: Callable[[AutoregressivePlan, UnivariateMap], Call],
    plan: AutoregressivePlan,
    scale: str,
    placement: str,
    constants: Sequence[float] | None,
    map: UnivariateMap | None,
) -> Call:
    """The constants of a call, made at the first one, and kept under names: torch.compile guards them."""
    given = constants if constants is None else tuple(constants)
    key = (operator, scale, placement, given) if map is None else (operator, check_map(map).key)
    return plan.calls.get(key) or plan.remember(key, make(plan, chosen_map(map, scale, placement, constants)))


def check_count(plan: AutoregressivePlan, map: UnivariateMap) -> None:
    """Raises for a map that does not fit the plan."""
    if plan.parameters != map.count:
        raise ValueError(f"plan: {map} takes {map.count} parameters per feature, the plan has {plan.parameters}")
