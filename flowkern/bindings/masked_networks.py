"""The operators on masked networks: those of the Triton and CUDA kernels, and the shapes of all for torch.compile.

On a GPU a plan travels as its key, since an operator takes tensors and numbers only. What kernels need of a plan on a device is
found, or made, inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowkern._library import _C
from flowkern.bindings.namespaces import CUDA, MAP, NETWORK, PLAN, TRITON
from flowkern.chain import ChainPlan
from flowkern.plan import AutoregressivePlan

# -- Triton -----------------------------------------------------------------------------------------------------------


def _gradients_like(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], addends: Sequence[Tensor], parameters: bool
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Shapes of a network's gradients on a GPU: of x, of all weights and all biases as vectors, of the addends."""
    sizes = [sum(t.numel() for t in part) if parameters else 0 for part in (weights, biases)]
    flat = weights[0].new_empty(sizes[0]), (biases[0] if biases else weights[0]).new_empty(sizes[1])
    return x.new_empty(x.shape), *flat, [a.new_empty(a.shape) for a in addends]


def _network(plan: str, precision: str, weight: Tensor, map: Any = None) -> Any:
    from flowkern.kernels._network import network_of

    return network_of(AutoregressivePlan.find(plan), weight.dtype, weight.device, precision, map)


@TRITON.define(f"masked_mlp(Tensor x, {NETWORK}, {PLAN}, bool keep) -> (Tensor, Tensor[])")
def _masked_mlp(x, weights, biases, addends, plan, precision, keep):  # type: ignore[no-untyped-def]
    from flowkern.kernels.masked_mlp import masked_mlp

    return masked_mlp(x, weights, biases, addends, _network(plan, precision, weights[0]), keep)


@TRITON.fake("masked_mlp")
def _(x, weights, biases, addends, plan, precision, keep):  # type: ignore[no-untyped-def]
    network = _network(plan, precision, weights[0])
    outputs = network.plan.features * network.plan.parameters
    return x.new_empty(x.shape[0], outputs), network.state_like(x, weights, biases, keep)


@TRITON.define(f"autoregressive(Tensor x, {NETWORK}, {PLAN}, {MAP}, bool keep) -> (Tensor, Tensor, Tensor[])")
def _autoregressive(x, weights, biases, addends, plan, precision, family, options, constants, keep):  # type: ignore[no-untyped-def]
    from flowkern.kernels.autoregressive import autoregressive

    map = family, options, constants
    return autoregressive(x, weights, biases, addends, _network(plan, precision, weights[0], map), map, keep)


@TRITON.fake("autoregressive")
def _(x, weights, biases, addends, plan, precision, family, options, constants, keep):  # type: ignore[no-untyped-def]
    network = _network(plan, precision, weights[0], (family, options, constants))
    return x.new_empty(x.shape), x.new_empty(x.shape[0]), network.state_like(x, weights, biases, keep)


@TRITON.define(
    f"masked_mlp_backward(Tensor g, Tensor x, {NETWORK}, Tensor[] state, {PLAN}, bool parameters) -> "
    "(Tensor, Tensor, Tensor, Tensor[])"
)
def _masked_mlp_backward(g, x, weights, biases, addends, state, plan, precision, parameters):  # type: ignore[no-untyped-def]
    from flowkern.kernels.masked_mlp import masked_mlp_gradients

    return masked_mlp_gradients(g, weights, biases, addends, state, _network(plan, precision, weights[0]), parameters)


@TRITON.fake("masked_mlp_backward")
def _(g, x, weights, biases, addends, state, plan, precision, parameters):  # type: ignore[no-untyped-def]
    return _gradients_like(x, weights, biases, addends, parameters)


@TRITON.define(
    f"autoregressive_backward(Tensor g_z, Tensor g_log_det, Tensor x, {NETWORK}, Tensor[] state, {PLAN}, {MAP}, "
    "bool parameters) -> (Tensor, Tensor, Tensor, Tensor[])"
)
def _autoregressive_backward(  # type: ignore[no-untyped-def]
    g_z, g_log_det, x, weights, biases, addends, state, plan, precision, family, options, constants, parameters
):
    from flowkern.kernels.autoregressive import autoregressive_gradients

    map = family, options, constants
    network = _network(plan, precision, weights[0], map)
    return autoregressive_gradients(g_z, g_log_det, x, weights, biases, addends, state, network, map, parameters)


@TRITON.fake("autoregressive_backward")
def _(  # type: ignore[no-untyped-def]
    g_z, g_log_det, x, weights, biases, addends, state, plan, precision, family, options, constants, parameters
):
    return _gradients_like(x, weights, biases, addends, parameters)


def _chain(key: int, precision: str, weight: Tensor) -> Any:
    from flowkern.kernels.autoregressive_chain import launches_of

    return launches_of(ChainPlan.find(key), weight.dtype, weight.device, precision)


@TRITON.define(f"autoregressive_chain(Tensor x, {NETWORK}, int chain, str precision, bool keep) -> (Tensor, Tensor, Tensor[])")
def _autoregressive_chain(x, weights, biases, addends, chain, precision, keep):  # type: ignore[no-untyped-def]
    from flowkern.kernels.autoregressive_chain import autoregressive_chain

    return autoregressive_chain(x, weights, biases, addends, _chain(chain, precision, weights[0]), keep)


@TRITON.fake("autoregressive_chain")
def _(x, weights, biases, addends, chain, precision, keep):  # type: ignore[no-untyped-def]
    state = _chain(chain, precision, weights[0]).state_like(x, weights, biases, keep)
    return x.new_empty(x.shape), x.new_empty(x.shape[0]), state


@TRITON.define(
    f"autoregressive_chain_backward(Tensor? g_z, Tensor? g_log_det, Tensor x, {NETWORK}, Tensor[] state, int chain, "
    "str precision, bool parameters) -> (Tensor, Tensor, Tensor, Tensor)"
)
def _autoregressive_chain_backward(  # type: ignore[no-untyped-def]
    g_z, g_log_det, x, weights, biases, addends, state, chain, precision, parameters
):
    from flowkern.kernels.autoregressive_chain import autoregressive_chain_gradients

    network = _chain(chain, precision, weights[0])
    return autoregressive_chain_gradients(g_z, g_log_det, x, weights, biases, addends, state, network, parameters)


@TRITON.fake("autoregressive_chain_backward")
def _(g_z, g_log_det, x, weights, biases, addends, state, chain, precision, parameters):  # type: ignore[no-untyped-def]
    g_x, g_weights, g_biases, _ = _gradients_like(x, weights, biases, [], parameters)
    return g_x, g_weights, g_biases, x.new_empty(x.shape[0], sum(a.shape[1] for a in addends))


# -- CUDA -------------------------------------------------------------------------------------------------------------


@CUDA.define(f"autoregressive_inverse(Tensor z, {NETWORK}, {PLAN}, {MAP}, bool keep) -> (Tensor, Tensor, Tensor[])")
def _autoregressive_inverse(z, weights, biases, addends, plan, precision, family, options, constants, keep):  # type: ignore[no-untyped-def]
    from flowkern.cuda.autoregressive_inverse import autoregressive_inverse

    found, map = AutoregressivePlan.find(plan), (family, options, constants)
    return autoregressive_inverse(z, weights, biases, addends, found, precision, map, keep)


@CUDA.fake("autoregressive_inverse")
def _(z, weights, biases, addends, plan, precision, family, options, constants, keep):  # type: ignore[no-untyped-def]
    from flowkern.cuda.autoregressive_inverse import prepare
    from flowkern.cuda.launch import accumulated

    found = AutoregressivePlan.find(plan)
    prepare(found, weights[0])
    state = [z.new_empty(found.saved_rows, z.shape[0], dtype=accumulated(weights[0].dtype))] if keep else []
    return z.new_empty(z.shape), z.new_empty(z.shape[0]), state


@CUDA.define(
    f"autoregressive_inverse_backward(Tensor g_x, Tensor g_log_det, Tensor x, {NETWORK}, Tensor[] state, {PLAN}, {MAP}, "
    "bool parameters) -> (Tensor, Tensor, Tensor, Tensor[])"
)
def _autoregressive_inverse_backward(  # type: ignore[no-untyped-def]
    g_x, g_log_det, x, weights, biases, addends, state, plan, precision, family, options, constants, parameters
):
    from flowkern.cuda.autoregressive_inverse import autoregressive_inverse_gradients

    found, map = AutoregressivePlan.find(plan), (family, options, constants)
    return autoregressive_inverse_gradients(
        g_x, g_log_det, x, weights, biases, addends, state, found, precision, map, parameters
    )


@CUDA.fake("autoregressive_inverse_backward")
def _(  # type: ignore[no-untyped-def]
    g_x, g_log_det, x, weights, biases, addends, state, plan, precision, family, options, constants, parameters
):
    return _gradients_like(x, weights, biases, addends, parameters)


# -- the CPU ----------------------------------------------------------------------------------------------------------


def _register_native_fakes() -> None:
    """Of the CPU kernels."""
    fake = torch.library.register_fake
    tiles = {torch.float32: _C.tile_rows(4), torch.float64: _C.tile_rows(8)}

    def kept(x: Tensor, rows: int, save: bool) -> Tensor:
        """What the backward pass needs of every tile."""
        size = tiles[x.dtype]
        return x.new_empty((x.shape[0] + size - 1) // size if save else 0, rows * size)

    @fake("flowkern::pack")
    def _(weights: list[Tensor], biases: list[Tensor], plan: Tensor, mask: Tensor, packed_size: int) -> Tensor:
        return weights[0].new_empty(packed_size)

    @fake("flowkern::masked_mlp")
    def _(x, context, weights, biases, addends, packed, plan, mask, outputs, packed_size, saved_rows, save):  # type: ignore[no-untyped-def]
        packed_now = x.new_empty(packed_size if save and packed is None else 0)
        return x.new_empty(x.shape[0], outputs), packed_now, kept(x, saved_rows, save)

    @fake("flowkern::masked_mlp_backward")
    def _(g, x, context, packed, saved, plan, mask, weights, biases, addends, parameters, wants_context):  # type: ignore[no-untyped-def]
        like = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in weights + biases] if parameters else []
        g_context = x.new_empty(x.shape[0] if wants_context else 0, 0 if context is None else context.shape[1])
        return x.new_empty(x.shape), g_context, like, [t.new_empty(t.shape) for t in addends]

    @fake("flowkern::autoregressive_chain")
    def _(x, context, tensors, addends, packed, program, key, save):  # type: ignore[no-untyped-def]
        chain = ChainPlan.find(key)
        own = x.new_empty(chain.packed_size if save else 0)
        return x.new_empty(x.shape), x.new_empty(x.shape[0]), own, kept(x, chain.kept_rows, save)

    @fake("flowkern::autoregressive_chain_backward")
    def _(g_value, g_log_det, addends, packed, own, saved, program, key, batch, parameters, wants_context):  # type: ignore[no-untyped-def]
        chain = ChainPlan.find(key)
        g_context = saved.new_empty(batch if wants_context else 0, chain.context)
        like = [saved.new_empty(shape) for shape in chain.shapes] if parameters else []
        return saved.new_empty(batch, chain.features), g_context, like, [t.new_empty(t.shape) for t in addends]


if _C is not None:
    _register_native_fakes()
