"""The gradients of weights and biases: products over the rows of what a backward pass kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from flowkern.kernels import _launch
from flowkern.kernels._layers import dot

if TYPE_CHECKING:
    from flowkern.kernels._network import Launches


@triton.jit
def weight_gradient_kernel(
    delta, delta_width, act, width, partial, table, sources_at, targets_at, tile_biases_at, biases_at, rows, part, size,
    ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Program (block, part) sums one block of weight gradients, and of bias gradients, over one part of the rows."""
    tile = tl.program_id(0)
    split = tl.program_id(1).to(tl.int64)
    source = tl.multiple_of(tl.load(table + sources_at + tile), 32)
    target = tl.multiple_of(tl.load(table + targets_at + tile), 32)
    bias = tl.load(table + tile_biases_at + tile)
    i, r = tl.arange(0, BLOCK)[None, :], tl.arange(0, BLOCK_R)[:, None]
    acc = tl.zeros([BLOCK, BLOCK], ACC)
    bias_acc = tl.zeros([BLOCK], ACC)
    first = split * part
    for r0 in range(first, tl.minimum(first + part, rows), BLOCK_R):
        g = tl.load(delta + (r0 + r) * delta_width + target + i)
        h = tl.load(act + (r0 + r) * width + source + i)
        acc = dot(tl.trans(g), h, acc, PRECISION, UPCAST)
        bias_acc += tl.sum(g.to(ACC), 0)
    out = partial + split * size
    e = tl.arange(0, BLOCK)
    tl.store(out + tile.to(tl.int64) * BLOCK * BLOCK + e[:, None] * BLOCK + e[None, :], acc)
    if bias >= 0:
        tl.store(out + biases_at + bias + e, bias_acc)


@triton.jit
def unpack_kernel(partial, positions, out, out_biases, weights, count, splits, size, BLOCK: tl.constexpr):
    """Dense gradients: the sum over parts of what each weight and bias has in ``partial``, zero where masked."""
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    at = tl.load(positions + e, e < count, -1).to(tl.int64)
    total = tl.zeros([BLOCK], partial.dtype.element_ty)
    for s in range(splits):
        total += tl.load(partial + s * size + at, at >= 0, 0)
    tl.store(out + e, total.to(out.dtype.element_ty), e < weights)
    tl.store(out_biases + e - weights, total.to(out_biases.dtype.element_ty), (e >= weights) & (e < count))


_PROGRAMS = 528  # four for each of the 132 multiprocessors of an H200
_GRADIENT_ROWS = 32


def weight_gradients(network: Launches, delta: Tensor, act: Tensor, bias_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Gradients of all weights, and of all biases, each as one vector in the order of the plan."""
    tables, host = network.tables, network.tables.host
    size = len(host.gathered) + host.bias_size
    most = max(_PROGRAMS // host.blocks, 1)
    rows = delta.shape[0]
    step = min(tables.config.block_m, _GRADIENT_ROWS)  # rows are whole tiles
    part = max(-(-rows // (most * step)), 1) * step
    splits = max(-(-rows // part), 1)
    partial = torch.empty(splits, size, dtype=network.acc_dtype, device=act.device)
    weights, count = host.dense_starts[-1], len(host.positions)
    out = torch.empty(weights, dtype=act.dtype, device=act.device)
    out_biases = torch.empty(count - weights, dtype=bias_dtype, device=act.device)
    with _launch.on(act):
        weight_gradient_kernel[(host.blocks, splits)](
            delta=delta, delta_width=delta.shape[1], act=act, width=act.shape[1], partial=partial, table=tables.table,
            sources_at=host.sources_at, targets_at=host.targets_at, tile_biases_at=host.tile_biases_at,
            biases_at=len(host.gathered), rows=rows, part=part, size=size, ACC=network.acc, BLOCK_R=step,
            BLOCK=tables.config.block, PRECISION=network.precision, UPCAST=network.upcast,
            num_warps=tables.config.warps, num_stages=tables.config.stages,
        )  # fmt: skip
        unpack_kernel[(-(-count // 1024),)](partial, tables.positions, out, out_biases, weights, count, splits, size, 1024)
    return out, out_biases
