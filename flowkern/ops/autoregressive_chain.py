"""Several transforms, one after another, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowkern._checks import HALF, check_features, check_float, check_like, check_tensor
from flowkern._library import MAPS
from flowkern.backends import Kernels, kernels_for
from flowkern.chain import NORMALS, ChainPlan, Elementwise, Network, Permute
from flowkern.ops._network import as_rows, with_gradients
from flowkern.ops._network_call import Call, chain_gradients, run_chain
from flowkern.ops._network_checks import check_network, check_packed
from flowkern.ops.autoregressive import autoregressive, forward_call
from flowkern.ops.autoregressive_inverse import autoregressive_inverse, inverse_call
from flowkern.ops.normal_log_prob import normal_log_prob


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


Step = NetworkStep | PermutationStep | ElementwiseStep
_is_meta = attrgetter("is_meta")


def autoregressive_chain(
    x: Tensor, steps: Sequence[Step], context: Tensor | None = None, normal: str | None = None
) -> tuple[Tensor, Tensor]:
    r"""The steps one after another, and the sum of their log-determinants, or a log-density.

    The native kernel packs all weights at once and takes each tile of rows through the whole chain while it is in the
    cache, and back for the gradients: a small flow costs one call forward and one back, instead of some per transform.
    Elsewhere the steps are called one by one.

    Args:
        x: input (..., features).
        steps: :class:`NetworkStep`, at least one, :class:`PermutationStep` and :class:`ElementwiseStep`.
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
    kernels = kernels_for(x, "autoregressive")
    if not kernels.on_cpu or x.dtype in HALF or torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
        return _one_by_one(x, steps, context, normal)
    try:
        call, tensors, addends, packed = _gather(x, steps, context, normal)
        if call is None:
            return _one_by_one(x, steps, context, normal)
        if any(map(_is_meta, tensors)) or any(map(_is_meta, packed)):
            raise RuntimeError("tensors without values would reach the operator's fake, not its kernel")
        check_features("x", x, call.chain.features)
        if (context is None) != (call.chain.context == 0):
            raise RuntimeError("a context is missing, or is one too many")
        rows, conditions, added, batch = as_rows(x, context, addends)
        z, log_det = with_gradients(call, kernels, rows, conditions, [*tensors, *added], packed)
    except RuntimeError:
        _explain(x, steps, context)  # the kernel only says that something does not fit
        raise
    return (z, log_det) if len(batch) == 1 else (z.reshape(*batch, z.shape[-1]), log_det.reshape(batch))


class ChainCall:
    """The constants of a chain, and how it runs; what :class:`Call` is to one network."""

    name, solves = "autoregressive_chain", False

    def __init__(self, parts: Sequence[Call | Permute | Elementwise], normal: str | None) -> None:
        self.parts, self.normal = parts, normal
        steps = [Network(p.solves, p.plan, p.map) if isinstance(p, Call) else p for p in parts]  # type: ignore[arg-type]
        self.chain = ChainPlan(steps, normal)
        self.parameters = len(self.chain.shapes)
        self.native = all(s.map.kind in MAPS for s in steps if isinstance(s, Network))

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
        return run_chain(self.chain, x, context, tensors[:n], tensors[n:], packed, keep)

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
        added = tensors[self.parameters :]
        return chain_gradients(self.chain, grads, added, packed, state, len(x), parameters, wants_context)

    def in_plain_pytorch(self, x: Tensor, context: Tensor | None, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Differentiable as often as one likes."""
        given, addends = iter(tensors[: self.parameters]), iter(tensors[self.parameters :])
        noise, total = x, x.new_zeros(x.shape[:-1])
        for part in self.parts:
            if isinstance(part, Call):
                own = [next(given) for _ in range(part.parameters)] + [next(addends) for _ in part.plan.addend_widths]
                x, log_det = part.in_plain_pytorch(x, context if part.plan.context else None, *own)
            else:
                x, log_det = _simple(x, part, *([next(given), next(given)] if isinstance(part, Elementwise) else []))
            total = total + log_det
        return x, _with_normal(noise, x, total, self.normal)


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
        if isinstance(step, NetworkStep):
            arguments = step.arguments
            get, plan = arguments.get, arguments["plan"]
            map = get("map")
            constants = get("constants")
            key += (step.inverse, plan)
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
            key.append(step.order)
        elif isinstance(step, ElementwiseStep):
            key.append(step.inverse)
            tensors += (step.shift, step.scale)
        else:
            raise TypeError(f"steps: expected NetworkStep, PermutationStep or ElementwiseStep, got {type(step).__name__}")
    if first is None:
        return None, tensors, addends, packed
    known = tuple(key)
    call = first.chains.get(known)
    if call is None:
        _explain(x, steps, context)
        call = first.chains[known] = _make(steps, normal)
    return call if call.native else None, tensors, addends, packed if len(packed) == networks else []


def _make(steps: Sequence[Step], normal: str | None) -> ChainCall:
    parts: list[Call | Permute | Elementwise] = []
    for step in steps:
        if isinstance(step, NetworkStep):
            get = step.arguments.get
            placed = get("scale", "exp"), get("placement", "standardize"), get("constants"), get("map")
            parts.append((inverse_call if step.inverse else forward_call)(step.arguments["plan"], *placed))
        else:
            parts.append(Permute(step.order) if isinstance(step, PermutationStep) else Elementwise(step.inverse))
    return ChainCall(parts, normal)


def _one_by_one(x: Tensor, steps: Sequence[Step], context: Tensor | None, normal: str | None) -> tuple[Tensor, Tensor]:
    noise, total = x, x.new_zeros(x.shape[:-1])
    for step in steps:
        if isinstance(step, NetworkStep):
            operator = autoregressive_inverse if step.inverse else autoregressive
            own = {} if not step.arguments["plan"].context else {"context": context}
            x, log_det = operator(x, **step.arguments, **own)
        else:
            tensors = (step.shift, step.scale) if isinstance(step, ElementwiseStep) else ()
            x, log_det = _simple(x, step, *tensors)
        total = total + log_det
    return x, _with_normal(noise, x, total, normal)


def _simple(x: Tensor, step: Any, shift: Tensor | None = None, scale: Tensor | None = None) -> tuple[Tensor, Any]:
    """A step that is no network, in plain PyTorch, and its log-determinant."""
    if shift is None or scale is None:
        return x[..., list(step.order)], 0
    log_det = scale.abs().log().sum()
    return ((x - shift) / scale, -log_det) if step.inverse else (x * scale + shift, log_det)


def _with_normal(x: Tensor, z: Tensor, log_det: Tensor, normal: str | None) -> Tensor:
    if normal == "output":
        return normal_log_prob(z, log_det)
    return log_det if normal is None else normal_log_prob(x, -log_det)


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
            elif isinstance(step, ElementwiseStep):
                for name, t in (("shift", step.shift), ("scale", step.scale)):
                    check_tensor(name, t)
                    check_like(name, t, x, "x")
                    if t.shape != x.shape[-1:]:
                        raise ValueError(f"{name}: expected shape ({x.shape[-1]},), got {tuple(t.shape)}")
            elif sorted(step.order) != list(range(x.shape[-1])):
                raise ValueError(f"order: expected a permutation of 0 to {x.shape[-1] - 1}, got {step.order}")
        except (TypeError, ValueError) as error:
            raise type(error)(f"steps[{i}]: {error}") from None
    if context is not None and not takes_context:
        raise ValueError(f"context: no step takes one, got shape {tuple(context.shape)}")
