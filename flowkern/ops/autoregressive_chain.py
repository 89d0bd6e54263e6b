"""Several transforms, one after another, in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowkern import reference
from flowkern._checks import HALF, autocasts, check_features, check_float, check_like, check_tensor
from flowkern._library import MAPS
from flowkern.backends import Kernels, has_triton_map, kernels_for
from flowkern.chain import NORMALS, ChainPlan, Elementwise, LULinear, Network, Permute, vector_sizes
from flowkern.ops._context import outside
from flowkern.ops._coupling import CouplingCall, CouplingStep, check_coupling, coupling_call
from flowkern.ops._network import as_rows, with_gradients
from flowkern.ops._network_call import Call, chain_gradients, run_chain, unflatten
from flowkern.ops._network_checks import check_network, check_packed
from flowkern.ops.autoregressive import autoregressive, forward_call
from flowkern.ops.autoregressive_inverse import autoregressive_inverse, inverse_call
from flowkern.ops.normal_log_prob import normal_log_prob
from flowkern.reference.autoregressive_chain import Transform


class NetworkStep(NamedTuple):
    """:func:`autoregressive`, or :func:`autoregressive_inverse`, with these keyword arguments; the context is the chain's."""

    inverse: bool
    arguments: dict[str, Any]


class PermutationStep(NamedTuple):
    """v_i = u_order[i]."""

    order: tuple[int, ...]


class ElementwiseStep(NamedTuple):
    """v = u scale + shift, or its inverse (u - shift) / scale; shift and scale are (features,) each."""

    inverse: bool
    shift: Tensor
    scale: Tensor


class LULinearStep(NamedTuple):
    """v = L U u + bias, or its inverse.

    L has ones on its diagonal. ``lower`` are its entries below it and ``upper`` those of U above its own, row by row, each
    (features (features - 1) / 2,); ``diagonal`` of U and ``bias`` are (features,).
    """

    inverse: bool
    lower: Tensor
    upper: Tensor
    diagonal: Tensor
    bias: Tensor


Step = NetworkStep | CouplingStep | PermutationStep | ElementwiseStep | LULinearStep
_is_meta = attrgetter("is_meta")


def autoregressive_chain(
    x: Tensor, steps: Sequence[Step], context: Tensor | None = None, normal: str | None = None
) -> tuple[Tensor, Tensor]:
    r"""The steps one after another, and the sum of their log-determinants, or a log-density.

    The kernels pack all weights at once and take each tile of rows through the whole chain, and back for the gradients: a
    small flow costs one call forward and one back, instead of some per transform. A GPU's do where all networks are
    narrow and of one kind, none of them inverse; else the steps are called one by one.

    Args:
        x: input (..., features).
        steps: :class:`NetworkStep` or :class:`CouplingStep`, at least one of either, :class:`PermutationStep`,
            :class:`ElementwiseStep` and :class:`LULinearStep`.
        context: of the networks whose plans take one (..., context features).
        normal: ``"output"`` adds the standard-normal log-density of the result to the log-determinant, which gives the
            log-density of x under a flow from data to noise; with ``"input"`` the second result is the standard-normal
            log-density of x minus the log-determinant, that of the result where x is the noise.

    Returns:
        The output of the last step (..., features), and log_det, or the log-density, with the batch's shape.

    Raises:
        TypeError, ValueError: for arguments that do not fit each other.

    Example:
        >>> import torch
        >>> from flowkern import AutoregressivePlan
        >>> plan = AutoregressivePlan([torch.tensor([[0, 0], [0, 0], [1, 0], [1, 0]])])
        >>> step = {"weights": [torch.randn(4, 2)], "biases": [torch.zeros(4)], "plan": plan}
        >>> steps = [NetworkStep(False, step), PermutationStep((1, 0)), PermutationStep((1, 0)), NetworkStep(True, step)]
        >>> x, log_det = autoregressive_chain(torch.ones(1, 2), steps)
        >>> torch.allclose(x, torch.ones(1, 2)), torch.allclose(log_det, torch.zeros(1), atol=1e-6)
        (True, True)

    References:
        Masked Autoregressive Flow for Density Estimation (Papamakarios et al., 2017), section 3.1.
    """
    if not steps:
        raise ValueError("steps: expected at least one")
    if normal not in NORMALS:
        raise ValueError(f"normal: expected 'output', 'input' or None, got {normal!r}")
    check_float("x", x)
    kernels = kernels_for(x, "autoregressive_chain")
    lowered = autocasts(x)
    if kernels.plain or torch.compiler.is_compiling() or (kernels.on_cpu and (lowered or x.dtype in HALF)):
        return _one_by_one(kernels, x, steps, context, normal)
    try:
        call, tensors, addends, packed = _gather(x, steps, context, normal)
        if call is None or not call.serves(kernels, lowered or x.dtype in HALF):
            return _one_by_one(kernels, x, steps, context, normal)
        if any(map(_is_meta, tensors)) or any(map(_is_meta, packed)):
            raise RuntimeError("tensors without values would reach the operator's fake, not its kernel")
        if not kernels.on_cpu:
            return _on_a_gpu(call, kernels, x, steps, tensors, addends, context)
        check_features("x", x, call.chain.features)
        if (context is None) != (call.chain.context == 0):
            raise RuntimeError("a context is missing, or is one too many")
        rows, conditions, added, batch = as_rows(x, context, addends)
        z, log_det = with_gradients(call, kernels, rows, conditions, [*tensors, *added], packed)
    except (AttributeError, RuntimeError):
        _explain(x, steps, context)  # the kernel only says that something does not fit
        raise
    return _shaped(z, log_det, batch)


def _on_a_gpu(
    call: ChainCall,
    kernels: Kernels,
    x: Tensor,
    steps: Sequence[Step],
    tensors: Sequence[Tensor],
    addends: Sequence[Tensor],
    context: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Its kernels check nothing, multiply in autocast's dtype, and are given what the context contributes."""
    dtype = tensors[0].dtype
    if autocasts(x) and dtype is not torch.float64:
        x, addends, context = x.to(dtype), [a.to(dtype) for a in addends], context if context is None else context.to(dtype)
        _explain(x, steps, context)
        tensors = call.lowered(tensors, torch.get_autocast_dtype(x.device.type))
    else:
        _explain(x, steps, context)
    if context is not None:
        call, tensors, addends = call.outside, *call.given(tensors, addends, context)
    rows, _, added, batch = as_rows(x, None, addends)
    z, log_det = with_gradients(call, kernels, rows, None, [*tensors, *added], ())
    z, log_det = _shaped(z, log_det, batch)
    return z, log_det if context is None else log_det + (context - context).detach().sum(-1)


def _shaped(z: Tensor, log_det: Tensor, batch: torch.Size) -> tuple[Tensor, Tensor]:
    return (z, log_det) if len(batch) == 1 else (z.reshape(*batch, z.shape[-1]), log_det.reshape(batch))


class ChainCall:
    """The constants of a chain, and how it runs; what :class:`Call` is to one network."""

    name, solves = "autoregressive_chain", False

    def __init__(self, parts: Sequence[Part], normal: str | None) -> None:
        self.parts, self.normal = parts, normal
        self.chain = ChainPlan([_planned(p) for p in parts], normal)
        self.parameters = len(self.chain.shapes)
        self.places = self._places()
        self.on_cpu = any(isinstance(p, (CouplingCall, LULinear)) for p in parts)
        maps = [s.map for s in self.chain.joined if not isinstance(s, (Elementwise, LULinear))]
        self.native = all(m.kind in MAPS for m in maps)
        self.compiled = all(has_triton_map(m.family) for m in maps)

    @cached_property
    def outside(self) -> ChainCall:
        """The same chain of networks without a context."""
        return ChainCall([p.outside if isinstance(p, Call) else p for p in self.parts], self.normal)

    def serves(self, kernels: Kernels, low: bool) -> bool:
        """Whether the kernels take all steps at once.

        Where products are of low precision, those of a GPU keep the cotangents of shifts and scales in it too, which would
        be more rounding than the steps one by one have.
        """
        if kernels.on_cpu:
            return self.native
        alike = self.compiled and not self.on_cpu and self.outside.chain.alike
        return alike and not (low and any(isinstance(p, Elementwise) for p in self.parts))

    def keeps_inputs(self, kernels: Kernels) -> bool:
        return True

    def _places(self) -> list[list[int]]:
        """Where among the tensors the weights are, and all others, which are packed as biases are."""
        places: list[list[int]] = [[], []]
        at = 0
        for part in self.parts:
            if isinstance(part, Permute):
                continue
            weights, count = (part.weights, part.parameters) if isinstance(part, (Call, CouplingCall)) else (0, _vectors(part))
            places[0] += range(at, at + weights)
            places[1] += range(at + weights, at + count)
            at += count
        return places

    def split(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Weights; biases, shifts and scales; addends."""
        weights, others = ([tensors[i] for i in places] for places in self.places)
        return weights, others, list(tensors[self.parameters :])

    def lowered(self, tensors: Sequence[Tensor], low: torch.dtype) -> list[Tensor]:
        """The tensors with all weights in a lower precision."""
        weights = set(self.places[0])
        return [t.to(low) if i in weights else t for i, t in enumerate(tensors)]

    def given(self, tensors: Sequence[Tensor], addends: Sequence[Tensor], context: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Tensors and addends of the chain without a context."""
        left, terms = iter(tensors), iter(addends)
        inner: list[Tensor] = []
        added: list[Tensor] = []
        for part in self.parts:
            if isinstance(part, Call):
                own = [next(left) for _ in range(part.parameters)]
                weights, biases, new = own[: part.weights], own[part.weights :], [next(terms) for _ in part.plan.addend_widths]
                if part.plan.context:
                    weights, biases, new = outside(part.plan, weights, biases, new, context)
                inner += [*weights, *biases]
                added += new
            elif isinstance(part, Elementwise):
                inner += [next(left), next(left)]
        return inner, added

    def run(
        self,
        kernels: Kernels,
        x: Tensor,
        context: Tensor | None,
        tensors: Sequence[Tensor],
        packed: Sequence[Tensor],
        keep: bool,
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        n = self.parameters
        if kernels.on_cpu:
            return run_chain(self.chain, x, context, tensors[:n], tensors[n:], packed, keep)
        op = getattr(torch.ops, kernels.namespace).autoregressive_chain
        *outputs, state = op(x, *self.split(tensors), self.chain.key, kernels.precision, keep)
        return outputs, state

    def gradients(
        self,
        kernels: Kernels,
        grads: Sequence[Tensor | None],
        x: Tensor,
        context: Tensor | None,
        state: Sequence[Tensor],
        tensors: Sequence[Tensor],
        packed: Sequence[Tensor],
        parameters: bool,
        wants_context: bool,
    ) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        parts = self.split(tensors)
        if kernels.on_cpu:
            return chain_gradients(self.chain, grads, parts[2], packed, state, len(x), parameters, wants_context)
        op = getattr(torch.ops, kernels.namespace).autoregressive_chain_backward
        g_x, *flat, g_added = op(*grads, x, *parts, state, self.chain.key, kernels.precision, parameters)
        found = [g for f, part in zip(flat, parts, strict=False) for g in unflatten(f, part)]
        places = dict(zip([*self.places[0], *self.places[1]], found, strict=False))
        g_addends = g_added.split([a.shape[1] for a in parts[2]], 1) if parts[2] else []
        return g_x, g_x, [places[i] for i in range(len(places))], list(g_addends)

    def in_plain_pytorch(self, x: Tensor, context: Tensor | None, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Differentiable as often as one likes."""
        given, addends = iter(tensors[: self.parameters]), iter(tensors[self.parameters :])
        steps: list[Transform] = []
        for part in self.parts:
            if isinstance(part, (Call, CouplingCall)):
                own = [next(given) for _ in range(part.parameters)] + [next(addends) for _ in part.plan.addend_widths]
                steps.append(_with(part.in_plain_pytorch, context if part.plan.context else None, *own))
            elif isinstance(part, Permute):
                steps.append(partial(reference.permutation, order=part.order))
            else:
                oracle = reference.elementwise if isinstance(part, Elementwise) else reference.lu_linear
                steps.append(_with(oracle, *(next(given) for _ in range(_vectors(part))), part.inverse))
        return reference.autoregressive_chain(x, steps, self.normal)


Part = Call | CouplingCall | Permute | Elementwise | LULinear


def _vectors(part: Elementwise | LULinear) -> int:
    """How many vectors a step has."""
    return len(vector_sizes(part, 1))


def _planned(part: Part) -> Any:
    """A step as the plan of a chain has it."""
    if isinstance(part, CouplingCall):
        return part.step
    return Network(part.solves, part.plan, part.map) if isinstance(part, Call) and part.map is not None else part


def _with(function: Callable[..., Any], *given: Any) -> Transform:
    """A step as a function of its input alone."""
    return lambda x: function(x, *given)


def _gather(
    x: Tensor, steps: Sequence[Step], context: Tensor | None, normal: str | None
) -> tuple[ChainCall | None, list[Tensor], list[Tensor], list[Tensor]]:
    """The call, made at the first time and kept with the plan of the first network; tensors, addends, packed weights."""
    key: list[Any] = [normal]
    tensors: list[Tensor] = []
    addends: list[Tensor] = []
    packed: list[Tensor] = []
    first, networks = None, 0
    for step in steps:
        if isinstance(step, (NetworkStep, CouplingStep)):
            arguments = step.arguments
            get, plan = arguments.get, arguments["plan"]
            map = get("map")
            constants = get("constants")
            key += (step.inverse, plan, *(tuple(part) for part in step[2:]))  # of a coupling what passes, what is transformed
            key += (
                (get("scale", "exp"), get("placement", "standardize"), constants and tuple(constants))
                if map is None
                else (map.key,)
            )
            weights, biases, terms = arguments["weights"], arguments["biases"], get("addends", ())
            if (len(weights), len(biases), len(terms)) != plan.counts:
                raise RuntimeError("a step's tensors do not belong to its plan")
            tensors += weights
            tensors += biases
            addends += terms
            if get("packed") is not None:
                packed.append(arguments["packed"])
            first, networks = first or plan, networks + 1
        elif isinstance(step, PermutationStep):
            key.append(tuple(step.order))
        elif isinstance(step, (ElementwiseStep, LULinearStep)):
            key += (type(step), step.inverse)
            tensors += step[1:]
        else:
            raise RuntimeError("this is no step")
    if first is None:
        return None, tensors, addends, packed
    known = tuple(key)
    call = first.chains.get(known)
    if call is None:
        _explain(x, steps, context)
        call = first.chains[known] = _make(steps, normal)
    return call, tensors, addends, packed if len(packed) == networks else []


def _make(steps: Sequence[Step], normal: str | None) -> ChainCall:
    parts: list[Part] = []
    for step in steps:
        if isinstance(step, CouplingStep):
            parts.append(coupling_call(step))
        elif isinstance(step, NetworkStep):
            get = step.arguments.get
            placed = get("scale", "exp"), get("placement", "standardize"), get("constants"), get("map")
            parts.append((inverse_call if step.inverse else forward_call)(step.arguments["plan"], *placed))
        else:
            parts.append(Permute(step.order) if isinstance(step, PermutationStep) else _of_vectors(step))
    return ChainCall(parts, normal)


def _of_vectors(step: ElementwiseStep | LULinearStep) -> Elementwise | LULinear:
    return Elementwise(step.inverse) if isinstance(step, ElementwiseStep) else LULinear(step.inverse)


def _one_by_one(
    kernels: Kernels, x: Tensor, steps: Sequence[Step], context: Tensor | None, normal: str | None
) -> tuple[Tensor, Tensor]:
    # Autocast takes any dtypes; a compiler may take the sizes of plans for symbols, which cannot be compared like this.
    if not (autocasts(x) or torch.compiler.is_compiling()):
        _explain(x, steps, context)
    transforms = [_alone(step, context) for step in steps]
    if kernels.plain or normal is None:
        return reference.autoregressive_chain(x, transforms, normal)
    value, log_det = reference.autoregressive_chain(x, transforms)
    return value, normal_log_prob(x, -log_det) if normal == "input" else normal_log_prob(value, log_det)  # rounded once


def _alone(step: Step, context: Tensor | None) -> Transform:
    """A step as a function of its input alone, by the operator that it is."""
    if isinstance(step, PermutationStep):
        return partial(reference.permutation, order=step.order)
    if isinstance(step, ElementwiseStep):
        return _with(reference.elementwise, *step[1:], step.inverse)
    if isinstance(step, LULinearStep):
        return _with(reference.lu_linear, *step[1:], step.inverse)
    if isinstance(step, CouplingStep):
        tensors = *step.arguments["weights"], *step.arguments["biases"]
        return _with(coupling_call(step).by_operator, context, *tensors)
    operator = autoregressive_inverse if step.inverse else autoregressive
    return partial(operator, **step.arguments, context=context if step.arguments["plan"].context else None)


def _explain(x: Tensor, steps: Sequence[Step], context: Tensor | None) -> None:
    """Raises for what does not fit, naming the step."""
    takes_context = False
    for i, step in enumerate(steps):
        try:
            if isinstance(step, NetworkStep):
                a = step.arguments
                own = context if a["plan"].context else None
                check_network(x, a["weights"], a["biases"], a["plan"], a.get("addends", ()), own)
                if a.get("packed") is not None:
                    check_packed(a["packed"], a["plan"], x)
                takes_context = takes_context or a["plan"].context > 0
            elif isinstance(step, CouplingStep):
                takes_context = check_coupling(x, step, context) or takes_context
            elif isinstance(step, (ElementwiseStep, LULinearStep)):
                for name, t, size in zip(step._fields[1:], step[1:], vector_sizes(_of_vectors(step), x.shape[-1]), strict=True):
                    check_tensor(name, t)
                    check_like(name, t, x, "x")
                    if t.shape != (size,):
                        raise ValueError(f"{name}: expected shape ({size},), got {tuple(t.shape)}")
            elif not isinstance(step, PermutationStep):
                names = "NetworkStep, CouplingStep, PermutationStep, ElementwiseStep or LULinearStep"
                raise TypeError(f"expected {names}, got {type(step).__name__}")
            elif sorted(step.order) != list(range(x.shape[-1])):
                raise ValueError(f"order: expected a permutation of 0 to {x.shape[-1] - 1}, got {step.order}")
        except (TypeError, ValueError) as error:
            raise type(error)(f"steps[{i}]: {error}") from None
    if context is not None and not takes_context:
        raise ValueError(f"context: no step takes one, got shape {tuple(context.shape)}")
