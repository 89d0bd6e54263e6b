"""The operators that CUDA kernels serve. The program of a plan's sweep on the GPU is found, or made, inside."""

from __future__ import annotations

from flowkern._opaque import MAP, NETWORK, PLAN, Namespace, gradients_like
from flowkern.plan import AutoregressivePlan

_namespace = Namespace("flowkern_cuda")


@_namespace.define(f"autoregressive_inverse(Tensor z, {NETWORK}, {PLAN}, {MAP}, bool keep) -> (Tensor, Tensor, Tensor[])")
def _autoregressive_inverse(z, weights, biases, addends, plan, precision, scale, placement, c0, c1, keep):  # type: ignore[no-untyped-def]
    from flowkern.cuda.autoregressive_inverse import autoregressive_inverse

    found, map = AutoregressivePlan.find(plan), (scale, placement, c0, c1)
    return autoregressive_inverse(z, weights, biases, addends, found, precision, map, keep)


@_namespace.fake("autoregressive_inverse")
def _(z, weights, biases, addends, plan, precision, scale, placement, c0, c1, keep):  # type: ignore[no-untyped-def]
    from flowkern.cuda.autoregressive_inverse import prepare
    from flowkern.cuda.launch import accumulated

    found = AutoregressivePlan.find(plan)
    prepare(found, weights[0])
    state = [z.new_empty(found.saved_rows, z.shape[0], dtype=accumulated(weights[0].dtype))] if keep else []
    return z.new_empty(z.shape), z.new_empty(z.shape[0]), state


@_namespace.define(
    f"autoregressive_inverse_backward(Tensor g_x, Tensor g_log_det, Tensor x, {NETWORK}, Tensor[] state, {PLAN}, {MAP}, "
    "bool parameters) -> (Tensor, Tensor, Tensor, Tensor[])"
)
def _autoregressive_inverse_backward(  # type: ignore[no-untyped-def]
    g_x, g_log_det, x, weights, biases, addends, state, plan, precision, scale, placement, c0, c1, parameters
):
    from flowkern.cuda.autoregressive_inverse import autoregressive_inverse_gradients

    found, map = AutoregressivePlan.find(plan), (scale, placement, c0, c1)
    return autoregressive_inverse_gradients(
        g_x, g_log_det, x, weights, biases, addends, state, found, precision, map, parameters
    )


@_namespace.fake("autoregressive_inverse_backward")
def _(  # type: ignore[no-untyped-def]
    g_x, g_log_det, x, weights, biases, addends, state, plan, precision, scale, placement, c0, c1, parameters
):
    return gradients_like(x, weights, biases, addends, parameters)
