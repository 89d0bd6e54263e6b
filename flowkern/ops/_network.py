"""What the three operators on masked networks share: checks, reshaping, the autograd Function.

Their native kernels take (x, packed weights, addends) and keep the pre-activations for one backward kernel each. A
backward pass that must itself be differentiated runs through plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowkern._checks import broadcast_batch, check_features, check_float, check_like, check_shapes
from flowkern.plan import AutoregressivePlan


@dataclass(frozen=True)
class Call:
    """The constants of one call: which operator, on which network, with which univariate map."""

    name: str
    plan: AutoregressivePlan
    map: tuple[int, int, float, float] | tuple[()]
    plain: Callable[..., Any]  # (x, weights, biases, addends) -> outputs, differentiable
    solves: bool = False  # the network reads the first output, not the input

    def split(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        w = len(self.plan.masks)
        b = w + sum(self.plan.biases)
        return list(tensors[:w]), list(tensors[w:b]), list(tensors[b:])

    def native(self, x: Tensor, packed: Tensor, addends: list[Tensor], save: bool) -> tuple[Tensor, ...]:
        op = getattr(torch.ops.flowkern, self.name)
        plan = self.plan
        if self.name == "masked_mlp":
            return op(x, packed, addends, plan.meta, plan.features * plan.parameters, plan.saved_rows, save)
        return op(x, packed, addends, plan.meta, plan.saved_rows, *self.map, save)

    def native_backward(
        self, grads: Sequence[Tensor], x: Tensor, packed: Tensor, saved: Tensor, tensors: Sequence[Tensor], parameters: bool
    ) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
        op = getattr(torch.ops.flowkern, self.name + "_backward")
        weights, biases, addends = self.split(tensors)
        plan = self.plan
        # An expanded cotangent of the log-det arrives from .sum() or .mean(): any stride will do.
        return op(*grads, x, packed, saved, plan.meta, plan.mask_bytes, weights, biases, addends, *self.map, parameters)


def pack(plan: AutoregressivePlan, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """The masked, sorted and packed weights: what the kernels read. Runs at memory speed on every call."""
    return torch.ops.flowkern.pack(weights, biases, plan.meta, plan.mask_bytes, plan.packed_size)


class NetworkFunction(torch.autograd.Function):
    """Native forward and backward of one call; second derivatives through plain PyTorch."""

    @staticmethod
    def forward(ctx: Any, call: Call, packed: Tensor | None, x: Tensor, *tensors: Tensor) -> Any:
        weights, biases, addends = call.split(tensors)
        if packed is None:
            packed = pack(call.plan, weights, biases)
        *outputs, saved = call.native(x, packed, addends, True)
        ctx.call = call
        ctx.save_for_backward(x, outputs[0] if call.solves else x, packed, saved, *tensors)
        return tuple(outputs) if len(outputs) > 1 else outputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, seen, packed, saved, *tensors = ctx.saved_tensors
        call, needs = ctx.call, ctx.needs_input_grad[2:]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return None, None, *_plain_backward(call, grads, (x, *tensors), needs)
        split = len(call.plan.masks) + sum(call.plan.biases)
        g_x, *lists = call.native_backward(grads, seen, packed, saved, tensors, any(needs[1 : split + 1]))
        g_tensors = [g for part in lists for g in part]
        if len(g_tensors) < len(tensors):  # the weights need none
            g_tensors = [*[None] * split, *g_tensors]
        return None, None, g_x, *g_tensors


def _plain_backward(
    call: Call, grads: Sequence[Tensor], inputs: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor | None]:
    """The cotangents as a differentiable function of everything they depend on."""
    # Aliases, so that an input that is itself a function of another gets its partial derivative only.
    alias = [t.view_as(t) if need else t for t, need in zip(inputs, needs, strict=True)]
    weights, biases, addends = call.split(alias[1:])
    outputs = call.plain(alias[0], weights, biases, addends)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    wanted = [t for t, need in zip(alias, needs, strict=True) if need]
    found = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=True, allow_unused=True, materialize_grads=True))
    return [next(found) if need else None for need in needs]


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
    check_shapes("weights", weights, plan.weight_shapes)
    check_shapes("biases", biases, plan.bias_shapes)
    if len(addends) != len(plan.addends):
        raise ValueError(f"addends: the plan takes {len(plan.addends)}, got {len(addends)}")
    for i, t in enumerate(weights):
        check_like(f"weights[{i}]", t, x, name)
    for i, t in enumerate(biases):
        check_like(f"biases[{i}]", t, x, name)
    for i, (t, width) in enumerate(zip(addends, plan.addend_widths, strict=True)):
        check_features(f"addends[{i}]", t, width)
        check_like(f"addends[{i}]", t, x, name)


def run(call: Call, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], addends: Sequence[Tensor],
        packed: Tensor | None) -> Any:
    """Runs a checked call natively: compute dtype, two dimensions, autograd only where something needs it."""
    dtype, batch = x.dtype, x.shape[:-1]
    if addends:
        batch = broadcast_batch(x, addends, "addends")
        addends = [a.expand(*batch, a.shape[-1]).reshape(-1, a.shape[-1]) for a in addends]
        x = x.expand(*batch, x.shape[-1])
    flat = x.dim() == 2
    tensors = [*weights, *biases, *addends]
    if not flat:
        x = x.reshape(-1, x.shape[-1])
    if torch.is_autocast_enabled("cpu"):
        low = torch.get_autocast_dtype("cpu")
        w = len(weights)
        tensors = [t.to(low).to(dtype) if i < w else t for i, t in enumerate(tensors)]
        packed = None
    if dtype in (torch.bfloat16, torch.float16):  # float32 inside: the packed weights and every sum
        x, tensors = x.float(), [t.float() for t in tensors]
    if packed is not None and packed.dtype != x.dtype:
        raise TypeError(f"packed: expected dtype {x.dtype} like x, got {packed.dtype}")
    if torch.is_grad_enabled() and (x.requires_grad or any(t.requires_grad for t in tensors)):
        out = NetworkFunction.apply(call, packed, x, *tensors)
        outputs = out if isinstance(out, tuple) else (out,)
    else:
        w, b, a = call.split(tensors)
        outputs = call.native(x, pack(call.plan, w, b) if packed is None else packed, a, False)[:-1]
    if outputs[0].dtype != dtype:
        outputs = tuple(t.to(dtype) for t in outputs)
    if not flat:
        outputs = tuple(t.reshape(batch + t.shape[1:]) for t in outputs)
    return outputs


def optional_biases(plan: AutoregressivePlan, biases: Sequence[Tensor]) -> list[Tensor | None]:
    """One entry per layer, as the oracles take them."""
    found = iter(biases)
    return [next(found) if has else None for has in plan.biases]
