"""The operators that Triton kernels serve. The index tables of a plan on the GPU are found, or made, inside."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from flowkern._opaque import MAP, NETWORK, PLAN, Namespace, gradients_like
from flowkern.plan import AutoregressivePlan

_FEATURES = "Tensor? place, int begin, int step, int count"
_namespace = Namespace("flowkern_triton")


# -- rows -------------------------------------------------------------------------------------------------------------


@_namespace.define(f"coupling(Tensor x, Tensor shift, Tensor raw, {_FEATURES}, bool inverse, {MAP}) -> (Tensor, Tensor)")
def _coupling(x, shift, raw, place, begin, step, count, inverse, *map):  # type: ignore[no-untyped-def]
    from flowkern.kernels.coupling import coupling

    return coupling(x, shift, raw, place, (begin, step, count), inverse, map)


@_namespace.fake("coupling")
def _(x, shift, raw, place, begin, step, count, inverse, *map):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape), x.new_empty(x.shape[0])


@_namespace.define(
    f"coupling_backward(Tensor g_z, Tensor g_log_det, Tensor x, Tensor shift, Tensor raw, {_FEATURES}, bool rebuild, "
    f"bool inverse, {MAP}) -> (Tensor, Tensor, Tensor)"
)
def _coupling_backward(g_z, g_log_det, x, shift, raw, place, begin, step, count, rebuild, inverse, *map):  # type: ignore[no-untyped-def]
    from flowkern.kernels.coupling import coupling_gradients

    return coupling_gradients(g_z, g_log_det, x, shift, raw, place, (begin, step, count), rebuild, inverse, map)


@_namespace.fake("coupling_backward")
def _(g_z, g_log_det, x, shift, raw, place, begin, step, count, rebuild, inverse, scale, *map):  # type: ignore[no-untyped-def]
    width = count if step else x.shape[1]
    return x.new_empty(x.shape), x.new_empty(x.shape[0], width), x.new_empty(x.shape[0] if scale else 0, width)


@_namespace.define("log_det(Tensor log_scale) -> Tensor")
def _log_det(log_scale: Tensor) -> Tensor:
    from flowkern.kernels.log_det import log_det

    return log_det(log_scale)


@_namespace.define("normal_log_prob(Tensor z, Tensor log_det) -> Tensor")
def _normal_log_prob(z: Tensor, log_det: Tensor) -> Tensor:
    from flowkern.kernels.normal_log_prob import normal_log_prob

    return normal_log_prob(z, log_det)


@_namespace.fake("log_det")
def _(log_scale: Tensor) -> Tensor:
    return log_scale.new_empty(log_scale.shape[0])


@_namespace.fake("normal_log_prob")
def _(z: Tensor, log_det: Tensor) -> Tensor:
    return z.new_empty(z.shape[0])


# -- masked networks --------------------------------------------------------------------------------------------------


def _network(plan: str, precision: str, weight: Tensor) -> Any:
    from flowkern.kernels._network import network_of

    return network_of(AutoregressivePlan.find(plan), weight.dtype, weight.device, precision)


@_namespace.define(f"masked_mlp(Tensor x, {NETWORK}, {PLAN}, bool keep) -> (Tensor, Tensor[])")
def _masked_mlp(x, weights, biases, addends, plan, precision, keep):  # type: ignore[no-untyped-def]
    from flowkern.kernels.masked_mlp import masked_mlp

    return masked_mlp(x, weights, biases, addends, _network(plan, precision, weights[0]), keep)


@_namespace.fake("masked_mlp")
def _(x, weights, biases, addends, plan, precision, keep):  # type: ignore[no-untyped-def]
    network = _network(plan, precision, weights[0])
    outputs = network.plan.features * network.plan.parameters
    return x.new_empty(x.shape[0], outputs), network.state_like(x, weights, biases, keep)


@_namespace.define(f"autoregressive(Tensor x, {NETWORK}, {PLAN}, {MAP}, bool keep) -> (Tensor, Tensor, Tensor[])")
def _autoregressive(x, weights, biases, addends, plan, precision, scale, placement, c0, c1, keep):  # type: ignore[no-untyped-def]
    from flowkern.kernels.autoregressive import autoregressive

    return autoregressive(x, weights, biases, addends, _network(plan, precision, weights[0]), (scale, placement, c0, c1), keep)


@_namespace.fake("autoregressive")
def _(x, weights, biases, addends, plan, precision, scale, placement, c0, c1, keep):  # type: ignore[no-untyped-def]
    state = _network(plan, precision, weights[0]).state_like(x, weights, biases, keep)
    return x.new_empty(x.shape), x.new_empty(x.shape[0]), state


@_namespace.define(
    f"masked_mlp_backward(Tensor g, Tensor x, {NETWORK}, Tensor[] state, {PLAN}, bool parameters) -> "
    "(Tensor, Tensor, Tensor, Tensor[])"
)
def _masked_mlp_backward(g, x, weights, biases, addends, state, plan, precision, parameters):  # type: ignore[no-untyped-def]
    from flowkern.kernels.masked_mlp import masked_mlp_gradients

    return masked_mlp_gradients(g, weights, biases, addends, state, _network(plan, precision, weights[0]), parameters)


@_namespace.fake("masked_mlp_backward")
def _(g, x, weights, biases, addends, state, plan, precision, parameters):  # type: ignore[no-untyped-def]
    return gradients_like(x, weights, biases, addends, parameters)


@_namespace.define(
    f"autoregressive_backward(Tensor g_z, Tensor g_log_det, Tensor x, {NETWORK}, Tensor[] state, {PLAN}, {MAP}, "
    "bool parameters) -> (Tensor, Tensor, Tensor, Tensor[])"
)
def _autoregressive_backward(  # type: ignore[no-untyped-def]
    g_z, g_log_det, x, weights, biases, addends, state, plan, precision, scale, placement, c0, c1, parameters
):
    from flowkern.kernels.autoregressive import autoregressive_gradients

    network, map = _network(plan, precision, weights[0]), (scale, placement, c0, c1)
    return autoregressive_gradients(g_z, g_log_det, x, weights, biases, addends, state, network, map, parameters)


@_namespace.fake("autoregressive_backward")
def _(  # type: ignore[no-untyped-def]
    g_z, g_log_det, x, weights, biases, addends, state, plan, precision, scale, placement, c0, c1, parameters
):
    return gradients_like(x, weights, biases, addends, parameters)
