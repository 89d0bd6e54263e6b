"""A whole masked network, forward and backward, in one launch each; see _layers.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from flowkern.kernels import _launch
from flowkern.kernels._layers import (
    ADDEND,
    TARGET,
    UNITS,
    feature_gradients,
    gather_features,
    hidden_backward,
    hidden_layers,
    linear_map,
    place_of,
    put,
    record,
    section,
)
from flowkern.kernels._network import Launches
from flowkern.kernels._pack import pack


@triton.jit
def masked_mlp_forward(
    x, packed, biases, addends, out, act, pre, ungated, table, batch, x_row, x_column, addend_rows, addend_columns,
    width, outputs, depth, feature_blocks, output_blocks, order_at,
    KEEP: tl.constexpr, KIND: tl.constexpr, C: tl.constexpr, PRE: tl.constexpr, GATES: tl.constexpr, SKIP: tl.constexpr,
    ADDENDS: tl.constexpr, ACC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    i = tl.arange(0, BLOCK_M)[:, None]
    like = tl.zeros([BLOCK_M, BLOCK], ACC)
    for tile in range(tl.program_id(0), tl.cdiv(batch, BLOCK_M), tl.num_programs(0)):
        _, home, rows, inside = place_of(tile, batch, i, KEEP, BLOCK_M)
        at = home * width
        act_tile, pre_tile, ungated_tile = act + at, pre + at, ungated + at
        gather_features(x, x_row, x_column, act_tile, table, order_at, rows, inside, i, width, feature_blocks, BLOCK)
        hidden_layers(
            act_tile, pre_tile, ungated_tile, width, rows, inside, i, packed, biases, addends, addend_rows, addend_columns,
            table, depth, like, KIND, C, PRE, GATES, ADDENDS, BLOCK, PRECISION, UPCAST,
        )  # fmt: skip
        for n in range(output_blocks):
            p = linear_map(
                act_tile, width, rows, inside, i, packed, biases, addends, addend_rows, addend_columns, table, depth, n, depth,
                like, ADDENDS, SKIP, BLOCK, PRECISION, UPCAST,
            )  # fmt: skip
            o = tl.load(table + record(table, depth, UNITS) + n * BLOCK + tl.arange(0, BLOCK))[None, :]
            tl.store(out + rows * outputs + o, p.to(out.dtype.element_ty), inside & (o >= 0))
        tl.debug_barrier()  # the scratch tile is written again


@triton.jit
def masked_mlp_backward(
    g, packed, addends, g_x, g_addends, act, pre, ungated, delta, outer, table, batch, g_row, g_column,
    addend_rows, addend_columns, g_addend_rows, width, delta_width, features, depth, feature_blocks, output_blocks, order_at,
    KEEP: tl.constexpr, KIND: tl.constexpr, C: tl.constexpr, PRE: tl.constexpr, GATES: tl.constexpr, SKIP: tl.constexpr,
    ADDENDS: tl.constexpr, ACC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    i = tl.arange(0, BLOCK_M)[:, None]
    like = tl.zeros([BLOCK_M, BLOCK], ACC)
    for tile in range(tl.program_id(0), tl.cdiv(batch, BLOCK_M), tl.num_programs(0)):
        first, home, rows, inside = place_of(tile, batch, i, KEEP, BLOCK_M)
        at = first * width
        act_tile, pre_tile, ungated_tile = act + at, pre + at, ungated + at
        delta_tile, outer_tile = delta + home * delta_width, outer + home * delta_width
        target = section(table, depth, TARGET)
        for n in range(output_blocks):
            c = n * BLOCK + tl.arange(0, BLOCK)[None, :]
            o = tl.load(table + record(table, depth, UNITS) + c)
            there = inside & (o >= 0)
            v = tl.load(g + rows * g_row + o * g_column, there, 0).to(ACC)
            if ADDENDS > 0:
                put(g_addends, g_addend_rows, record(table, depth, ADDEND), rows, o, there, v, ADDENDS)
            tl.store(delta_tile + i * delta_width + target + c, v.to(delta.dtype.element_ty))
        hidden_backward(
            act_tile, pre_tile, ungated_tile, width, delta_tile, outer_tile, delta_width, rows, inside, i, packed,
            addends, addend_rows, addend_columns, g_addends, g_addend_rows, table, depth, like,
            KIND, C, PRE, GATES, ADDENDS, BLOCK, PRECISION, UPCAST,
        )  # fmt: skip
        feature_gradients(
            g_x, delta_tile, delta_width, rows, inside, i, packed, g_x, features, table, order_at, depth, feature_blocks, like,
            False, SKIP, BLOCK, PRECISION, UPCAST,
        )  # fmt: skip
        tl.debug_barrier()


def masked_mlp(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], addends: Sequence[Tensor], network: Launches, keep: bool
) -> tuple[Tensor, list[Tensor]]:
    """Parameters (rows, features x parameters), and what the backward pass needs (of no size unless ``keep``)."""
    plan, x = network.plan, _launch.near(x)
    batch, outputs = x.shape[0], plan.features * plan.parameters
    packed, packed_biases = pack(network.tables, weights, biases)
    out = torch.empty(batch, outputs, dtype=x.dtype, device=x.device)
    kept = network.kept(batch, keep)
    if batch:
        act, pre, ungated = kept
        with _launch.on(x):
            masked_mlp_forward[(network.programs(batch, keep),)](
                x=x, biases=packed_biases, out=out, act=act, pre=pre, ungated=ungated, batch=batch, x_row=x.stride(0),
                x_column=x.stride(1), outputs=outputs, output_blocks=network.blocks[1], KEEP=keep,
                **network.reads(packed, addends), **network.constants,
            )  # fmt: skip
    return out, [packed, packed_biases, *kept] if keep else []


def masked_mlp_gradients(
    g: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    addends: Sequence[Tensor],
    state: Sequence[Tensor],
    network: Launches,
    parameters: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Cotangents of x, of all weights and of all biases as vectors (of no size unless ``parameters``), of the addends."""
    plan, g, batch = network.plan, _launch.near(g), g.shape[0]
    packed, _, act, pre, ungated = state
    g_x = torch.empty(batch, plan.features, dtype=g.dtype, device=g.device)
    g_addends = [torch.zeros(a.shape, dtype=a.dtype, device=a.device) for a in addends]
    delta, outer = network.deltas(batch, parameters)
    if batch:
        g_pointers, g_rows, _ = network.terms(g_addends)
        with _launch.on(g):
            masked_mlp_backward[(network.programs(batch, parameters),)](
                g=g, g_x=g_x, g_addends=g_pointers, act=act, pre=pre, ungated=ungated, delta=delta, outer=outer, batch=batch,
                g_row=g.stride(0), g_column=g.stride(1), g_addend_rows=g_rows, delta_width=network.host.all_width,
                features=plan.features, output_blocks=network.blocks[1], KEEP=parameters,
                **network.reads(packed, addends), **network.constants,
            )  # fmt: skip
    return g_x, *network.parameter_gradients(delta, act, weights, biases, parameters), g_addends
