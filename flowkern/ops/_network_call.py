"""One call of an operator on a masked network: what is constant about it, and the kernels' two signatures."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from flowkern import chain
from flowkern._compiling import constant_while_compiling
from flowkern.backends import Kernels
from flowkern.ops._context import outside
from flowkern.plan import AutoregressivePlan
from flowkern.univariate import UnivariateMap, check_map, chosen_map

Tensors = Sequence[Tensor]
Made = TypeVar("Made")  # the constants of a call


class Runs(Protocol):
    """What autograd is told of: a call, of one network or a chain, whose outputs and gradients kernels compute."""

    name: str
    solves: bool
    parameters: int

    def keeps_inputs(self, kernels: Kernels) -> bool: ...

    def run(
        self, kernels: Kernels, x: Tensor, context: Tensor | None, tensors: Tensors, packed: Tensors, keep: bool
    ) -> tuple[Tensors, Tensors]: ...

    def gradients(
        self,
        kernels: Kernels,
        grads: Sequence[Tensor | None],
        x: Tensor,
        context: Tensor | None,
        state: Tensors,
        tensors: Tensors,
        packed: Tensors,
        parameters: bool,
        wants_context: bool,
    ) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]: ...

    def in_plain_pytorch(self, x: Tensor, context: Tensor | None, *tensors: Tensor) -> Any: ...


class Call:
    """The constants of a call: which operator, on which network, with which univariate map. Made once per plan.

    Args:
        name: the operator.
        plan: the network.
        map: the univariate map; ``None`` for the network alone.
        oracle: (x, weights, biases, addends) -> outputs, for a plan without a context.
        plain: the same, at the cost of one pass where the oracle takes several.
        solves: whether the network reads the first output rather than the input.
        make: this call for another plan.
    """

    def __init__(
        self,
        name: str,
        plan: AutoregressivePlan,
        map: UnivariateMap | None,
        oracle: Callable[..., Any],
        plain: Callable[..., Any] | None = None,
        solves: bool = False,
        *,
        make: Callable[[AutoregressivePlan], Call],
    ) -> None:
        if not plan.reads_features:
            raise ValueError(f"plan: expected a network that reads features, got {plan}, which is one of a CouplingStep")
        self.name, self.plan, self.oracle, self.plain, self.solves = name, plan, oracle, plain or oracle, solves
        self.weights = len(plan.weight_shapes)
        self.parameters = self.weights + len(plan.bias_shapes)
        self.map = map
        self.make = make
        # The map as the kernels of a GPU take it.
        self.words = () if map is None else map.words
        # The CPU's kernels take a transform as a chain of one step.
        self.chain = None if map is None else chain.ChainPlan([chain.Network(solves, plan, map)])
        self.network_constants = (plan.meta, plan.mask_bytes)
        self.sizes = (plan.features * plan.parameters, plan.packed_size, plan.saved_rows)

    @property
    def outside(self) -> Call:
        """The same call of the network without a context."""
        return self.make(self.plan.outside)

    def keeps_inputs(self, kernels: Kernels) -> bool:
        """Whether the forward pass keeps what the backward one needs of the inputs, and that takes missing cotangents."""
        return kernels.on_cpu and self.chain is not None

    def split(self, tensors: Tensors) -> tuple[Tensors, Tensors, Tensors]:
        """Weights, biases, addends."""
        return tensors[: self.weights], tensors[self.weights : self.parameters], tensors[self.parameters :]

    def in_plain_pytorch(self, x: Tensor, context: Tensor | None, *tensors: Tensor) -> Any:
        """Outputs of the call, differentiable as often as one likes."""
        # Under autocast the weights are of lower precision; the oracles take one dtype.
        parts = self.split([t.to(x.dtype) for t in tensors])
        if context is None:
            return self.plain(x, *parts)
        return self.outside.plain(x, *outside(self.plan, *parts, context))

    def run(
        self, kernels: Kernels, x: Tensor, context: Tensor | None, tensors: Tensors, packed: Tensors, keep: bool
    ) -> tuple[Tensors, Tensors]:
        """Outputs, and what the backward pass needs, which is of no size unless ``keep``."""
        if not kernels.on_cpu:
            op = getattr(getattr(torch.ops, kernels.namespace), self.name)
            *outputs, state = op(x, *self.split(tensors), self.plan.key, kernels.precision, *self.words, keep)
            return outputs, state
        if self.chain is not None:
            return run_chain(self.chain, x, context, tensors[: self.parameters], tensors[self.parameters :], packed, keep)
        given = packed[0] if packed else None
        value, packed_now, saved = torch.ops.flowkern.masked_mlp(
            x, context, *self.split(tensors), given, *self.network_constants, *self.sizes, keep
        )
        return (value,), (packed_now if given is None else given, saved)

    def gradients(
        self,
        kernels: Kernels,
        grads: Sequence[Tensor | None],
        x: Tensor,
        context: Tensor | None,
        state: Tensors,
        tensors: Tensors,
        packed: Tensors,
        parameters: bool,
        wants_context: bool,
    ) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        """Cotangents of x, context, weights and biases, addends; those of weights and biases only where ``parameters``."""
        parts = self.split(tensors)
        if self.chain is not None and kernels.on_cpu:
            return chain_gradients(self.chain, grads, parts[2], packed, state, len(x), parameters, wants_context)
        op = getattr(getattr(torch.ops, kernels.namespace), self.name + "_backward")
        if not kernels.on_cpu:
            constants = self.plan.key, kernels.precision, *self.words
            g_x, *flat, g_addends = op(*grads, x, *parts, state, *constants, parameters)
            unflat = [g for f, part in zip(flat, parts, strict=False) for g in unflatten(f, part)]
            return g_x, g_x, unflat, g_addends
        return op(*grads, x, context, *state, *self.network_constants, *parts, parameters, wants_context)


def run_chain(
    plan: chain.ChainPlan, x: Tensor, context: Tensor | None, tensors: Tensors, addends: Tensors, packed: Tensors, keep: bool
) -> tuple[Tensors, Tensors]:
    """Outputs of the CPU kernel, and what its backward pass needs."""
    op = torch.ops.flowkern.autoregressive_chain.default
    z, log_det, own, saved = op(x, context, tensors, addends, packed, plan.program, plan.key, keep)
    return (z, log_det), (own, saved)


def chain_gradients(
    plan: chain.ChainPlan,
    grads: Sequence[Tensor | None],
    addends: Tensors,
    packed: Tensors,
    state: Tensors,
    batch: int,
    parameters: bool,
    wants_context: bool,
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Cotangents of x, context, tensors, addends."""
    op = torch.ops.flowkern.autoregressive_chain_backward.default
    return op(*grads, addends, packed, *state, plan.program, plan.key, batch, parameters, wants_context)


def unflatten(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of one vector with the shapes of some tensors; none where the vector is empty."""
    sizes = [t.numel() for t in like]
    if flat.numel() != sum(sizes):
        return []
    return [part.view(t.shape) for part, t in zip(flat.split(sizes), like, strict=True)]


def call_of(
    operator: Hashable,
    make: Callable[[AutoregressivePlan, UnivariateMap], Made],
    plan: AutoregressivePlan,
    scale: str,
    placement: str,
    constants: Sequence[float] | None,
    map: UnivariateMap | None,
) -> Made:
    """The constants of a call, made at the first one, and kept under names: torch.compile guards them."""
    given = constants if constants is None else tuple(constants)
    key = (operator, scale, placement, given) if map is None else (operator, check_map(map).key)
    if torch.compiler.is_compiling():  # nothing can be made while a call is traced, but before
        _remember(make, plan, key, scale, placement, given, map)
    return plan.calls.get(key) or plan.remember(key, make(plan, chosen_map(map, scale, placement, constants)))


@constant_while_compiling
def _remember(
    make: Callable[[AutoregressivePlan, UnivariateMap], Any],
    plan: AutoregressivePlan,
    key: Any,
    scale: str,
    placement: str,
    constants: tuple[float, ...] | None,
    map: UnivariateMap | None,
) -> bool:
    if key not in plan.calls:
        plan.remember(key, make(plan, chosen_map(map, scale, placement, constants)))
    return True


def check_count(plan: AutoregressivePlan, map: UnivariateMap) -> None:
    """Raises for a map that does not fit the plan."""
    if plan.parameters != map.count:
        raise ValueError(f"plan: {map} takes {map.count} parameters per feature, the plan has {plan.parameters}")
