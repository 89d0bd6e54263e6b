"""Masked network, univariate map and log-determinant in one launch, forward and backward; see _layers.py.

The last layer's epilogue applies the map: parameters stay in registers, and the backward pass computes them again from the
last activations rather than reading them. They come as tiles of blocks, one of each kind for a group of features; of a
spline these are matrices [element][bin], see _bins.py.
"""

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
from flowkern.kernels.maps import Words


@triton.jit
def parameters_of(
    j, act, width, rows, inside, i, packed, biases, addends, addend_rows, addend_columns, table, depth, like,
    KINDS: tl.constexpr, COLUMNS: tl.constexpr, ADDENDS: tl.constexpr, SKIP: tl.constexpr, BLOCK: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The parameters of one group of features."""
    found = ()
    for kind in tl.static_range(KINDS):
        value = linear_map(
            act, width, rows, inside, i, packed, biases, addends, addend_rows, addend_columns, table, depth, j * KINDS + kind,
            depth, like, ADDENDS, SKIP, BLOCK, PRECISION, UPCAST,
        )  # fmt: skip
        if COLUMNS > 1:
            value = tl.reshape(value, [value.shape[0] * (BLOCK // COLUMNS), COLUMNS])
        found = found + (value,)
    return found


@triton.jit
def elements(tile, COLUMNS: tl.constexpr):
    """A tile of numbers of a group, [row][feature], as the map takes them."""
    if COLUMNS > 1:
        return tl.reshape(tile, [tile.shape[0] * tile.shape[1]])
    else:
        return tile


@triton.jit
def map_features(
    source, source_row, source_column, target, target_row, at, read_at, write_at,
    act, width, rows, inside, i, packed, biases, addends, addend_rows, addend_columns, table, depth, groups, like,
    MAP: tl.constexpr, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr, KINDS: tl.constexpr, COLUMNS: tl.constexpr,
    ADDENDS: tl.constexpr, SKIP: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The last layer and the map: from rows ``at`` of ``source`` to those of ``target``; the sums of log-slopes.

    The tables ``read_at`` and ``write_at`` say which columns there the sorted features are.
    """
    SIZE: tl.constexpr = BLOCK // COLUMNS
    total = tl.sum(tl.zeros_like(like), 1, keep_dims=True)
    for j in range(groups):
        p = parameters_of(
            j, act, width, rows, inside, i, packed, biases, addends, addend_rows, addend_columns, table, depth, like,
            KINDS, COLUMNS, ADDENDS, SKIP, BLOCK, PRECISION, UPCAST,
        )  # fmt: skip
        c = j * SIZE + tl.arange(0, SIZE)
        d = tl.load(table + read_at + c)[None, :]
        there = inside & (d >= 0)
        u = tl.load(source + at * source_row + d * source_column, there, 0).to(like.dtype)  # unrounded, as act may not be
        v, log_slope = MAP(elements(u, COLUMNS), p, OPTIONS, CONSTANTS)
        d = tl.load(table + write_at + c)[None, :]
        tl.store(target + at * target_row + d, tl.reshape(v, u.shape).to(target.dtype.element_ty), there)
        total += tl.sum(tl.where(there, tl.reshape(log_slope, u.shape), 0), 1, keep_dims=True)
    return total


@triton.jit
def map_gradients(
    source, source_row, source_column, g_target, g_row, g_column, g_log_det, direct, direct_row, at, read_at, write_at,
    act, width, delta, delta_width, rows, inside, i, packed, biases, addends, addend_rows, addend_columns,
    g_addends, g_addend_rows, table, depth, groups, like,
    MAP: tl.constexpr, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr, KINDS: tl.constexpr, COLUMNS: tl.constexpr,
    ADDENDS: tl.constexpr, SKIP: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Cotangents of the parameters, to ``delta``, and those of what the map was given, to ``direct``."""
    SIZE: tl.constexpr = BLOCK // COLUMNS
    target = section(table, depth, TARGET)
    units = table + record(table, depth, UNITS)
    for j in range(groups):
        p = parameters_of(
            j, act, width, rows, inside, i, packed, biases, addends, addend_rows, addend_columns, table, depth, like,
            KINDS, COLUMNS, ADDENDS, SKIP, BLOCK, PRECISION, UPCAST,
        )  # fmt: skip
        c = j * SIZE + tl.arange(0, SIZE)[None, :]
        d = tl.load(table + read_at + c)
        there = inside & (d >= 0)
        u = tl.load(source + at * source_row + d * source_column, there, 0).to(like.dtype)
        e = tl.load(table + write_at + c)
        gv = tl.load(g_target + at * g_row + e * g_column, there, 0).to(like.dtype)
        gl = tl.broadcast_to(g_log_det, u.shape)
        gu, g_p = MAP(elements(u, COLUMNS), p, elements(gv, COLUMNS), elements(gl, COLUMNS), OPTIONS, CONSTANTS)
        tl.store(direct + at * direct_row + d, tl.reshape(gu, u.shape), there)
        theirs = elements(there, COLUMNS)
        if COLUMNS > 1:
            theirs = theirs[:, None]
        for kind in tl.static_range(KINDS):
            n = (j * KINDS + kind) * BLOCK + tl.arange(0, BLOCK)[None, :]
            g = tl.where(theirs, g_p[kind], 0)  # a map that is harmless at the data may overflow where there is none
            g = tl.reshape(g, like.shape)
            if ADDENDS > 0:
                unit = tl.load(units + n)
                put(g_addends, g_addend_rows, record(table, depth, ADDEND), rows, unit, inside & (unit >= 0), g, ADDENDS)
            tl.store(delta + i * delta_width + target + n, g.to(delta.dtype.element_ty))


@triton.jit
def autoregressive_forward(
    x, packed, biases, addends, z, log_det, act, pre, ungated, table, batch, x_row, x_column, addend_rows, addend_columns,
    width, features, depth, feature_blocks, groups, order_at,
    MAP: tl.constexpr, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr, KINDS: tl.constexpr, COLUMNS: tl.constexpr,
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
        total = map_features(
            x, x_row, x_column, z, features, rows, order_at, order_at,
            act_tile, width, rows, inside, i, packed, biases, addends, addend_rows, addend_columns, table, depth,
            groups, like, MAP, OPTIONS, CONSTANTS, KINDS, COLUMNS, ADDENDS, SKIP, BLOCK, PRECISION, UPCAST,
        )  # fmt: skip
        tl.store(log_det + rows, total.to(log_det.dtype.element_ty), inside)
        tl.debug_barrier()  # the scratch tile is written again


@triton.jit
def autoregressive_backward(
    x, packed, biases, addends, g_z, g_log_det, g_x, g_addends, act, pre, ungated, delta, outer, direct, table, batch,
    x_row, x_column, g_row, g_column, g_log_det_row, addend_rows, addend_columns, g_addend_rows,
    width, delta_width, features, depth, feature_blocks, groups, order_at,
    MAP: tl.constexpr, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr, KINDS: tl.constexpr, COLUMNS: tl.constexpr,
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
        gl = tl.load(g_log_det + rows * g_log_det_row, inside, 0).to(ACC)
        map_gradients(
            x, x_row, x_column, g_z, g_row, g_column, gl, direct, features, rows, order_at, order_at,
            act_tile, width, delta_tile, delta_width, rows, inside, i, packed, biases, addends, addend_rows, addend_columns,
            g_addends, g_addend_rows, table, depth, groups, like,
            MAP, OPTIONS, CONSTANTS, KINDS, COLUMNS, ADDENDS, SKIP, BLOCK, PRECISION, UPCAST,
        )  # fmt: skip
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
    network: Launches,
    map: Words,
    keep: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """z, log_det and what the backward pass needs (empty unless ``keep``)."""
    x, batch = _launch.near(x), x.shape[0]
    packed, packed_biases = pack(network.tables, weights, biases)
    z, log_det = torch.empty(x.shape, dtype=x.dtype, device=x.device), torch.empty(batch, dtype=x.dtype, device=x.device)
    kept = network.kept(batch, keep)
    if batch:
        act, pre, ungated = kept
        with _launch.on(x):
            autoregressive_forward[(network.programs(batch, keep),)](
                x=x, z=z, log_det=log_det, act=act, pre=pre, ungated=ungated, batch=batch, x_row=x.stride(0),
                x_column=x.stride(1), biases=packed_biases, features=network.plan.features, KEEP=keep,
                **network.of_map(map, "forward"),
                **network.reads(packed, addends), **network.constants,
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
    network: Launches,
    map: Words,
    parameters: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Cotangents of x, of all weights and of all biases as vectors (of no size unless ``parameters``), of the addends."""
    batch = x.shape[0]
    packed, packed_biases, act, pre, ungated = state
    x, g_z = _launch.near(x), _launch.near(g_z)
    g_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    direct = torch.empty(x.shape, dtype=network.acc_dtype, device=x.device)
    g_addends = [torch.zeros(a.shape, dtype=a.dtype, device=a.device) for a in addends]
    delta, outer = network.deltas(batch, parameters)
    if batch:
        g_pointers, g_rows, _ = network.terms(g_addends)
        with _launch.on(x):
            autoregressive_backward[(network.programs(batch, parameters),)](
                x=x, g_z=g_z, g_log_det=g_log_det, g_x=g_x, g_addends=g_pointers, act=act, pre=pre, ungated=ungated,
                delta=delta, outer=outer, direct=direct, batch=batch, x_row=x.stride(0), x_column=x.stride(1),
                g_row=g_z.stride(0), g_column=g_z.stride(1), g_log_det_row=g_log_det.stride(0), g_addend_rows=g_rows,
                delta_width=network.host.all_width, biases=packed_biases, features=network.plan.features, KEEP=parameters,
                **network.of_map(map, "backward"),
                **network.reads(packed, addends), **network.constants,
            )  # fmt: skip
    return g_x, *network.parameter_gradients(delta, act, weights, biases, parameters), g_addends
