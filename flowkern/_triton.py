"""Registers the Triton kernels as operators of their own, so that torch.compile sees one opaque call each.

Triton and the kernels are imported at the first call. A plan travels as its key, since an operator takes tensors and
numbers only; the index tables on the GPU are found, or made, inside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flowkern.plan import AutoregressivePlan

_library = torch.library.Library("flowkern_triton", "DEF")
_MAP = "int scale, int placement, float c0, float c1"
_ROWS = f"Tensor? place, int begin, int step, int count, bool inverse, {_MAP}"
# How float32 products are multiplied is an argument: forward and backward must agree on the blocks that it leads to.
_NETWORK = "Tensor[] weights, Tensor[] biases, Tensor[] addends"
_PLAN = "str plan, str precision"


def _define(schema: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a function as the operator of a schema, for every device: the interpreter runs on the CPU."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        name = schema[: schema.index("(")]
        _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        _library.impl(name, function, "CompositeExplicitAutograd")
        return function

    return register


def _fake(name: str) -> Any:
    return torch.library.register_fake(f"flowkern_triton::{name}", lib=_library)


# -- rows -------------------------------------------------------------------------------------------------------------


@_define(f"coupling(Tensor x, Tensor shift, Tensor raw, {_ROWS}) -> (Tensor, Tensor)")
def _coupling(x, shift, raw, place, begin, step, count, inverse, *map):  # type: ignore[no-untyped-def]
    from flowkern.kernels.coupling import coupling

    return coupling(x, shift, raw, place, (begin, step, count), inverse, map)


@_fake("coupling")
def _(x, shift, raw, place, begin, step, count, inverse, *map):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape), x.new_empty(x.shape[0])


@_define(
    "coupling_backward(Tensor g_z, Tensor g_log_det, Tensor x, Tensor shift, Tensor raw, Tensor? place, int begin, int step, "
    f"int count, bool rebuild, bool inverse, {_MAP}) -> (Tensor, Tensor, Tensor)"
)
def _coupling_backward(g_z, g_log_det, x, shift, raw, place, begin, step, count, rebuild, inverse, *map):  # type: ignore[no-untyped-def]
    from flowkern.kernels.coupling import coupling_gradients

    return coupling_gradients(g_z, g_log_det, x, shift, raw, place, (begin, step, count), rebuild, inverse, map)


@_fake("coupling_backward")
def _(g_z, g_log_det, x, shift, raw, place, begin, step, count, rebuild, inverse, scale, *map):  # type: ignore[no-untyped-def]
    width = count if step else x.shape[1]
    return x.new_empty(x.shape), x.new_empty(x.shape[0], width), x.new_empty(x.shape[0] if scale else 0, width)


@_define("log_det(Tensor log_scale) -> Tensor")
def _log_det(log_scale: Tensor) -> Tensor:
    from flowkern.kernels.log_det import log_det

    return log_det(log_scale)


@_define("normal_log_prob(Tensor z, Tensor log_det) -> Tensor")
def _normal_log_prob(z: Tensor, log_det: Tensor) -> Tensor:
    from flowkern.kernels.normal_log_prob import normal_log_prob

    return normal_log_prob(z, log_det)


@_fake("log_det")
def _(log_scale: Tensor) -> Tensor:
    return log_scale.new_empty(log_scale.shape[0])


@_fake("normal_log_prob")
def _(z: Tensor, log_det: Tensor) -> Tensor:
    return z.new_empty(z.shape[0])


# -- masked networks --------------------------------------------------------------------------------------------------


def _network(plan: str, precision: str, weight: Tensor) -> Any:
    from flowkern.kernels._network import network_of

    return network_of(AutoregressivePlan.find(plan), weight.dtype, weight.device, precision)


@_define(f"masked_mlp(Tensor x, {_NETWORK}, {_PLAN}, bool keep) -> (Tensor, Tensor[])")
def _masked_mlp(x, weights, biases, addends, plan, precision, keep):  # type: ignore[no-untyped-def]
    from flowkern.kernels.masked_mlp import masked_mlp

    return masked_mlp(x, weights, biases, addends, _network(plan, precision, weights[0]), keep)


@_fake("masked_mlp")
def _(x, weights, biases, addends, plan, precision, keep):  # type: ignore[no-untyped-def]
    network = _network(plan, precision, weights[0])
    outputs = network.plan.features * network.plan.parameters
    return x.new_empty(x.shape[0], outputs), network.state_like(x, weights, biases, keep)


@_define(f"autoregressive(Tensor x, {_NETWORK}, {_PLAN}, {_MAP}, bool keep) -> (Tensor, Tensor, Tensor[])")
def _autoregressive(x, weights, biases, addends, plan, precision, scale, placement, c0, c1, keep):  # type: ignore[no-untyped-def]
    from flowkern.kernels.autoregressive import autoregressive

    return autoregressive(x, weights, biases, addends, _network(plan, precision, weights[0]), (scale, placement, c0, c1), keep)


@_fake("autoregressive")
def _(x, weights, biases, addends, plan, precision, scale, placement, c0, c1, keep):  # type: ignore[no-untyped-def]
    state = _network(plan, precision, weights[0]).state_like(x, weights, biases, keep)
    return x.new_empty(x.shape), x.new_empty(x.shape[0]), state


def _gradients_like(x, weights, biases, addends, parameters):  # type: ignore[no-untyped-def]
    sizes = [sum(t.numel() for t in part) if parameters else 0 for part in (weights, biases)]
    flat = weights[0].new_empty(sizes[0]), (biases[0] if biases else weights[0]).new_empty(sizes[1])
    return x.new_empty(x.shape[0], x.shape[1]), *flat, [a.new_empty(a.shape) for a in addends]


@_define(
    f"masked_mlp_backward(Tensor g, Tensor x, {_NETWORK}, Tensor[] state, {_PLAN}, bool parameters) -> "
    "(Tensor, Tensor, Tensor, Tensor[])"
)
def _masked_mlp_backward(g, x, weights, biases, addends, state, plan, precision, parameters):  # type: ignore[no-untyped-def]
    from flowkern.kernels.masked_mlp import masked_mlp_gradients

    return masked_mlp_gradients(g, weights, biases, addends, state, _network(plan, precision, weights[0]), parameters)


@_fake("masked_mlp_backward")
def _(g, x, weights, biases, addends, state, plan, precision, parameters):  # type: ignore[no-untyped-def]
    return _gradients_like(x, weights, biases, addends, parameters)


@_define(
    f"autoregressive_backward(Tensor g_z, Tensor g_log_det, Tensor x, {_NETWORK}, Tensor[] state, {_PLAN}, {_MAP}, "
    "bool parameters) -> (Tensor, Tensor, Tensor, Tensor[])"
)
def _autoregressive_backward(  # type: ignore[no-untyped-def]
    g_z, g_log_det, x, weights, biases, addends, state, plan, precision, scale, placement, c0, c1, parameters
):
    from flowkern.kernels.autoregressive import autoregressive_gradients

    network, map = _network(plan, precision, weights[0]), (scale, placement, c0, c1)
    return autoregressive_gradients(g_z, g_log_det, x, weights, biases, addends, state, network, map, parameters)


@_fake("autoregressive_backward")
def _(  # type: ignore[no-untyped-def]
    g_z, g_log_det, x, weights, biases, addends, state, plan, precision, scale, placement, c0, c1, parameters
):
    return _gradients_like(x, weights, biases, addends, parameters)
