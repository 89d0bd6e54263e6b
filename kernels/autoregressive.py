"""Masked network, univariate map and log-determinant in one launch, forward and backward; see _network.py.

The last layer's epilogue applies the map: parameters per feature stay in registers, and the backward pass computes them
again from the last activations rather than reading them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from flowkern.kernels import _launch
from flowkern.kernels._math import map_backward, map_forward
from flowkern.kernels._network import (
    ADDEND,
    TARGET,
    UNITS,
    Network,
    feature_gradients,
    gather_features,
    hidden_backward,
    hidden_layers,
    linear_map,
    pack,
    place_of,
    put,
    record,
    section,
)


@triton.jit
def parameters_of(
    j, act, width, rows, inside, i, packed, biases, addends, addend_rows, addend_columns, table, depth, like,
    SCALE: tl.constexpr, ADDENDS: tl.constexpr, SKIP: tl.constexpr, BLOCK: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Shift and raw scale of one block of features."""
    count: tl.constexpr = 1 if SCALE == 0 else 2
    t = linear_map(
        act, width, rows, inside, i, packed, biases, addends, addend_rows, addend_columns, table, depth, j * count, depth,
        like, ADDENDS, SKIP, BLOCK, PRECISION, UPCAST,
    )  # fmt: skip
    a = t
    if SCALE != 0:
        a = linear_map(
            act, width, rows, inside, i, packed, biases, addends, addend_rows, addend_columns, table, depth, j * 2 + 1,
            depth, like, ADDENDS, SKIP, BLOCK, PRECISION, UPCAST,
        )  # fmt: skip
    return t, a


@triton.jit
def autoregressive_forward(
    x, packed, biases, addends, z, log_det, act, pre, ungated, table, batch, x_row, x_column, addend_rows, addend_columns,
    width, features, depth, feature_blocks, order_at,
    SCALE: tl.constexpr, PLACEMENT: tl.constexpr, C0: tl.constexpr, C1: tl.constexpr,
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
        total = tl.zeros([BLOCK_M, 1], ACC)
        for j in range(feature_blocks):
            t, a = parameters_of(
                j, act_tile, width, rows, inside, i, packed, biases, addends, addend_rows, addend_columns, table, depth, like,
                SCALE, ADDENDS, SKIP, BLOCK, PRECISION, UPCAST,
            )  # fmt: skip
            d = tl.load(table + order_at + j * BLOCK + tl.arange(0, BLOCK))[None, :]
            there = inside & (d >= 0)
            u = tl.load(x + rows * x_row + d * x_column, there, 0).to(ACC)  # unrounded, where act is of lower precision
            v, log_slope = map_forward(u, t, a, SCALE, PLACEMENT, C0, C1)
            tl.store(z + rows * features + d, v.to(z.dtype.element_ty), there)
            total += tl.sum(tl.where(there, log_slope, 0), 1, keep_dims=True)
        tl.store(log_det + rows, total.to(log_det.dtype.element_ty), inside)
        tl.debug_barrier()  # the scratch tile is written again


@triton.jit
def autoregressive_backward(
    x, packed, biases, addends, g_z, g_log_det, g_x, g_addends, act, pre, ungated, delta, outer, direct, table, batch,
    x_row, x_column, g_row, g_column, g_log_det_row, addend_rows, addend_columns, g_addend_rows,
    width, delta_width, features, depth, feature_blocks, order_at,
    SCALE: tl.constexpr, PLACEMENT: tl.constexpr, C0: tl.constexpr, C1: tl.constexpr,
    KEEP: tl.constexpr, KIND: tl.constexpr, C: tl.constexpr, PRE: tl.constexpr, GATES: tl.constexpr, SKIP: tl.constexpr,
    ADDENDS: tl.constexpr, ACC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    i = tl.arange(0, BLOCK_M)[:, None]
    like = tl.zeros([BLOCK_M, BLOCK], ACC)
    count: tl.constexpr = 1 if SCALE == 0 else 2
    for tile in range(tl.program_id(0), tl.cdiv(batch, BLOCK_M), tl.num_programs(0)):
        first, home, rows, inside = place_of(tile, batch, i, KEEP, BLOCK_M)
        at = first * width
        act_tile, pre_tile, ungated_tile = act + at, pre + at, ungated + at
        delta_tile, outer_tile = delta + home * delta_width, outer + home * delta_width
        gl = tl.load(g_log_det + rows * g_log_det_row, inside, 0).to(ACC)
        target = section(table, depth, TARGET)
        units = table + record(table, depth, UNITS)
        for j in range(feature_blocks):
            t, a = parameters_of(
                j, act_tile, width, rows, inside, i, packed, biases, addends, addend_rows, addend_columns, table, depth, like,
                SCALE, ADDENDS, SKIP, BLOCK, PRECISION, UPCAST,
            )  # fmt: skip
            c = tl.arange(0, BLOCK)[None, :]
            d = tl.load(table + order_at + j * BLOCK + c)
            there = inside & (d >= 0)
            u = tl.load(x + rows * x_row + d * x_column, there, 0).to(ACC)
            gv = tl.load(g_z + rows * g_row + d * g_column, there, 0).to(ACC)
            gu, gt, ga = map_backward(u, t, a, gv, gl, SCALE, PLACEMENT, C0, C1)
            # A map that is harmless at the data may overflow where there is none.
            gt, ga = tl.where(there, gt, 0), tl.where(there, ga, 0)
            tl.store(direct + rows * features + d, gu, there)
            for p in tl.static_range(count):
                n = (j * count + p) * BLOCK + c
                g = gt if p == 0 else ga
                if ADDENDS > 0:
                    put(g_addends, g_addend_rows, record(table, depth, ADDEND), rows, tl.load(units + n), there, g, ADDENDS)
                tl.store(delta_tile + i * delta_width + target + n, g.to(delta.dtype.element_ty))
        hidden_backward(
            act_tile, pre_tile, ungated_tile, width, delta_tile, outer_tile, delta_width, rows, inside, i, packed,
            addends, addend_rows, addend_columns, g_addends, g_addend_rows, table, depth, like,
            KIND, C, PRE, GATES, ADDENDS, BLOCK, PRECISION, UPCAST,
        )  # fmt: skip
        feature_gradients(
            direct, delta_tile, delta_width, rows, inside, i, packed, g_x, features, table, order_at, depth, feature_blocks,
            like, True, SKIP, BLOCK, PRECISION, UPCAST,
        )  # fmt: skip
        tl.debug_barrier()


def autoregressive(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    addends: Sequence[Tensor],
    network: Network,
    map: tuple[int, int, float, float],
    keep: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """z, log_det and what the backward pass needs (empty unless ``keep``)."""
    host, x, batch = network.host, _launch.near(x), x.shape[0]
    packed, packed_biases = pack(network.tables, weights, biases)
    z, log_det = torch.empty(x.shape, dtype=x.dtype, device=x.device), torch.empty(batch, dtype=x.dtype, device=x.device)
    kept = network.kept(batch, keep)
    if batch:
        pointers, *strides = network.terms(addends)
        with _launch.on(x):
            autoregressive_forward[(network.programs(batch, keep),)](
                x, packed, packed_biases, pointers, z, log_det, *kept, network.tables.table, batch, *x.stride(), *strides,
                host.width, network.plan.features, host.depth, network.blocks[0], host.order_at[0],
                *map, KEEP=keep, **network.constants,
            )  # fmt: skip
    return z, log_det, [packed, packed_biases, *kept] if keep else []


def autoregressive_gradients(
    g_z: Tensor,
    g_log_det: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    addends: Sequence[Tensor],
    state: Sequence[Tensor],
    network: Network,
    map: tuple[int, int, float, float],
    parameters: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Cotangents of x, of all weights and of all biases as vectors (of no size unless ``parameters``), of the addends."""
    host, features, batch = network.host, network.plan.features, x.shape[0]
    packed, packed_biases, act, pre, ungated = state
    x, g_z = _launch.near(x), _launch.near(g_z)
    g_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    direct = torch.empty(x.shape, dtype=network.acc_dtype, device=x.device)
    g_addends = [torch.zeros(a.shape, dtype=a.dtype, device=a.device) for a in addends]
    delta, outer = network.deltas(batch, parameters)
    if batch:
        pointers, *strides = network.terms(addends)
        g_pointers, g_rows, _ = network.terms(g_addends)
        with _launch.on(x):
            autoregressive_backward[(network.programs(batch, parameters),)](
                x, packed, packed_biases, pointers, g_z, g_log_det, g_x, g_pointers, act, pre, ungated, delta, outer, direct,
                network.tables.table, batch, *x.stride(), *g_z.stride(), *g_log_det.stride(), *strides, g_rows,
                host.width, host.all_width, features, host.depth, network.blocks[0], host.order_at[0],
                *map, KEEP=parameters, **network.constants,
            )  # fmt: skip
    return g_x, *network.parameter_gradients(delta, act, weights, biases, parameters), g_addends
