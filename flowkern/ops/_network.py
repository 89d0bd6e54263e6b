"""What the three operators on masked networks share: checks, reshaping, the autograd Function.

Their kernels take (x, weights, biases, addends), pack the weights, and keep what the layers computed for one backward
kernel each. A backward pass that must itself be differentiated runs through plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flowkern._checks import HALF, autocasts, broadcast_batch, check_features, check_float, check_like, check_shapes
from flowkern.backends import chosen_backend, obstacle, product_precision
from flowkern.ops._derivatives import plain_backward, wants_plain
from flowkern.plan import AutoregressivePlan, version

Kernels = tuple[str, str | None]  # a namespace of operators; how it multiplies float32 matrices, None on the CPU


def kernels_of(chosen: str, x: Tensor) -> Kernels:
    """The operators that serve a backend on the device of ``x``."""
    if chosen == "triton":
        return "flowkern_triton", product_precision()
    return ("flowkern_cuda", product_precision()) if x.is_cuda else ("flowkern", None)


class Call:
    """The constants of a call: which operator, on which network, with which univariate map. Made once per plan.

    Args:
        name: the operator.
        plan: the network.
        map: scale, placement and two constants as numbers; empty for the network alone.
        oracle: (x, weights, biases, addends) -> outputs.
        plain: the same, at the cost of one pass where the oracle takes several.
        solves: whether the network reads the first output rather than the input.
    """

    def __init__(
        self,
        name: str,
        plan: AutoregressivePlan,
        map: tuple[int, int, float, float] | tuple[()],
        oracle: Callable[..., Any],
        plain: Callable[..., Any] | None = None,
        solves: bool = False,
    ) -> None:
        self.name, self.plan, self.oracle, self.plain, self.solves = name, plan, oracle, plain or oracle, solves
        self.weights = len(plan.masks)
        self.parameters = self.weights + sum(plan.biases)
        self.map = map
        outputs = (plan.features * plan.parameters,) if name == "masked_mlp" else ()
        self.forward_constants = (plan.meta, plan.mask_bytes, *outputs, plan.packed_size, plan.saved_rows, *map)

    def split(self, tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
        """Weights, biases, addends."""
        return tensors[: self.weights], tensors[self.weights : self.parameters], tensors[self.parameters :]

    def run(
        self, kernels: Kernels, x: Tensor, tensors: Sequence[Tensor], packed: Tensor | None, keep: bool
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Outputs, and what the backward pass needs, which is of no size unless ``keep``."""
        namespace, precision = kernels
        op = getattr(getattr(torch.ops, namespace), self.name)
        if precision is not None:
            *outputs, state = op(x, *self.split(tensors), self.plan.key, precision, *self.map, keep)
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
        parts, (namespace, precision) = self.split(tensors), kernels
        op = getattr(getattr(torch.ops, namespace), self.name + "_backward")
        if precision is not None:
            g_x, *flat, g_addends = op(*grads, x, *parts, state, self.plan.key, precision, *self.map, parameters)
            return g_x, *(_unflatten(g, part) for g, part in zip(flat, parts, strict=False)), g_addends
        return op(*grads, x, *state, self.plan.meta, self.plan.mask_bytes, *parts, *self.map, parameters)


def _unflatten(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of one vector with the shapes of some tensors; none where the vector is empty."""
    sizes = [t.numel() for t in like]
    if flat.numel() != sum(sizes):
        return []
    return [part.view(t.shape) for part, t in zip(flat.split(sizes), like, strict=True)]


def pack(plan: AutoregressivePlan, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """The masked, sorted and packed weights that the kernels read; every call makes them unless it is given them.

    Args:
        plan: the network.
        weights, biases: its float32 or float64 parameters on the CPU.

    Returns:
        One vector of their dtype, in the layout of the plan.

    Raises:
        TypeError, ValueError: for parameters that do not fit the plan.
        RuntimeError: where there is no native kernel that would read the result.
    """
    check_parameters(weights, biases, plan)
    if weights[0].dtype in HALF:
        raise TypeError(f"weights: expected float32 or float64, got {weights[0].dtype}")
    reason = obstacle(weights[0])
    if reason is not None:
        raise RuntimeError(f"pack: {reason}")
    return torch.ops.flowkern.pack(weights, biases, plan.meta, plan.mask_bytes, plan.packed_size)


def _outlives(t: Tensor) -> bool:
    """Whether a tensor is there without the graph: a leaf, or a view of one. Computed weights would be kept alive."""
    return t.is_leaf or (t._base is not None and t._base.is_leaf)


class NetworkFunction(torch.autograd.Function):
    """Forward and backward kernels of one call; second derivatives through plain PyTorch."""

    @staticmethod
    def forward(ctx: Any, call: Call, kernels: Kernels, packed: Tensor | None, x: Tensor, *tensors: Tensor) -> Any:
        outputs, state = call.run(kernels, x, tensors, packed, True)
        ctx.call, ctx.kernels, ctx.count = call, kernels, len(tensors)
        kept = [x, *tensors]
        ctx.aside, ctx.versions = [None] * len(kept), []
        if kernels[0] != "flowkern_cuda" and not torch.compiler.is_compiling():
            # The backward kernels read the packed weights, of these only the sizes: an optimiser may step before they run,
            # as it may where a library multiplies by masks. Autograd, which refuses that, is not told of them. Nor of the
            # input of an inverse, which only its output needs.
            spared = range(0 if call.solves else 1, call.parameters + 1)
            ctx.aside = [t if i in spared and _outlives(t) else None for i, t in enumerate(kept)]
            ctx.versions = [version(t) for t in ctx.aside if t is not None]
            kept = [t for t, aside in zip(kept, ctx.aside, strict=True) if aside is None]
        # A copy of the solution: the caller may write into what is returned.
        ctx.save_for_backward(outputs[0].clone() if call.solves else x, *kept, *state)
        return tuple(outputs) if len(outputs) > 1 else outputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        seen, *state = ctx.saved_tensors
        x, *tensors = [state.pop(0) if t is None else t for t in ctx.aside]
        call, needs = ctx.call, ctx.needs_input_grad[3:]
        if wants_plain(grads):
            if [version(t) for t in ctx.aside if t is not None] != ctx.versions:
                raise RuntimeError(
                    f"{call.name}: second derivatives and batched gradients need the weights and inputs of the forward pass, "
                    "which were modified by an inplace operation since"
                )
            # Under autocast the weights are of lower precision; the oracle takes one dtype.
            plain = lambda x, *rest: call.plain(x, *call.split([t.to(x.dtype) for t in rest]))  # noqa: E731
            return None, None, None, *plain_backward(plain, (x, *tensors), needs, grads)
        parameters = any(needs[1 : call.parameters + 1])
        g_x, *lists = call.gradients(ctx.kernels, grads, seen, state, tensors, parameters)
        g_tensors = [g for part in lists for g in part]
        if not parameters:
            g_tensors = [*[None] * call.parameters, *g_tensors]
        return None, None, None, g_x, *g_tensors


def check_parameters(weights: Sequence[Tensor], biases: Sequence[Tensor], plan: AutoregressivePlan) -> None:
    """Raises for weights and biases that do not fit the plan or each other."""
    if [t.shape for t in weights] != plan.weight_shapes or [t.shape for t in biases] != plan.bias_shapes:
        check_shapes("weights", weights, plan.weight_shapes)
        check_shapes("biases", biases, plan.bias_shapes)
    first = weights[0]
    dtype, device = first.dtype, first.device
    check_float("weights[0]", first)
    for t in (*weights, *biases):
        if t.dtype is not dtype or t.device != device:
            for kind, part in (("weights", weights), ("biases", biases)):
                for i, other in enumerate(part):
                    check_like(kind, other, first, "weights[0]", i)


def check_packed(packed: Tensor, plan: AutoregressivePlan, x: Tensor) -> None:
    """Raises for packed weights that are not of this plan, or not of the dtype and device of x."""
    check_like("packed", packed, x)
    if packed.shape != (plan.packed_size,):
        raise ValueError(f"packed: expected shape ({plan.packed_size},) for this plan, got {tuple(packed.shape)}")


def check_network(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    plan: AutoregressivePlan,
    addends: Sequence[Tensor],
    name: str = "x",
) -> None:
    """Raises for arguments that do not fit the plan or each other."""
    check_float(name, x)
    check_features(name, x, plan.features)
    check_parameters(weights, biases, plan)
    check_like(name, x, weights[0], "weights[0]")
    if len(addends) != len(plan.addend_widths):
        raise ValueError(f"addends: the plan takes {len(plan.addend_widths)}, got {len(addends)}")
    for i, (t, width) in enumerate(zip(addends, plan.addend_widths, strict=True)):
        check_features(f"addends[{i}]", t, width)
        check_like("addends", t, weights[0], "weights[0]", i)


def dispatch(
    call: Call,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    addends: Sequence[Tensor],
    packed: Tensor | None,
    name: str = "x",
) -> tuple[Tensor, ...]:
    """Checks the arguments, chooses the backend and runs the call; always a tuple."""
    chosen = chosen_backend(x, call.name)
    device = x.device.type
    if autocasts(x) and weights[0].dtype is not torch.float64:
        # The products use weights of autocast's dtype, in both directions alike; all else stays as it is.
        low, dtype = torch.get_autocast_dtype(device), weights[0].dtype
        x, addends = x.to(dtype), [a.to(dtype) for a in addends]
        check_network(x, weights, biases, call.plan, addends, name)
        weights = [w.to(low) for w in weights]
        if kernels_of(chosen, x)[1] is None:  # which do not multiply in that dtype
            weights = [w.to(dtype) for w in weights]
        with torch.autocast(device, enabled=False):
            return _run(call, chosen, x, weights, biases, addends, None)
    check_network(x, weights, biases, call.plan, addends, name)
    return _run(call, chosen, x, weights, biases, addends, packed)


def _run(
    call: Call,
    chosen: str,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    addends: Sequence[Tensor],
    packed: Tensor | None,
) -> tuple[Tensor, ...]:
    """Runs a checked call: compute dtype, two dimensions, autograd only where something needs it."""
    if chosen not in ("native", "triton"):
        outputs = (call.oracle if chosen == "reference" else call.plain)(x, weights, biases, addends)
        return outputs if isinstance(outputs, tuple) else (outputs,)
    dtype = x.dtype
    x, addends, batch = as_rows(x, addends)
    tensors = [*weights, *biases, *addends]
    kernels = kernels_of(chosen, x)
    if kernels[1] is None and dtype in HALF:  # on the CPU: float32 inside, the packed weights and every sum
        x, tensors, packed = x.float(), [t.float() for t in tensors], None
    if packed is not None:
        check_packed(packed, call.plan, x)
    if torch.is_grad_enabled() and (x.requires_grad or any(t.requires_grad for t in tensors)):
        if not torch.compiler.is_compiling() and x.is_inference():
            x = x.clone()  # inference tensors cannot be kept for a backward pass
        out = NetworkFunction.apply(call, kernels, packed, x, *tensors)
        outputs = out if isinstance(out, tuple) else (out,)
    else:
        outputs, _ = call.run(kernels, x, tensors, packed, False)
    if outputs[0].dtype is not dtype:
        outputs = tuple(t.to(dtype) for t in outputs)
    return tuple(outputs) if len(batch) == 1 else tuple(t.reshape(batch + t.shape[1:]) for t in outputs)


def as_rows(x: Tensor, addends: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor], torch.Size]:
    """x and the addends as matrices over their common batch, and the shape of that."""
    batch = x.shape[:-1]
    if addends:
        batch = broadcast_batch(x, addends, "addends")
        addends = [a.expand(*batch, a.shape[-1]).reshape(-1, a.shape[-1]) for a in addends]
        x = x.expand(*batch, x.shape[-1])
    return x if x.dim() == 2 else x.reshape(batch.numel(), x.shape[-1]), addends, batch


def optional_biases(plan: AutoregressivePlan, biases: Sequence[Tensor]) -> list[Tensor | None]:
    """One entry per layer, as the oracles take them."""
    found = iter(biases)
    return [next(found) if has else None for has in plan.biases]
