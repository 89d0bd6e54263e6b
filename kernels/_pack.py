"""Packing: masked, sorted weights as blocks, and the sorted biases."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from flowkern.kernels import _launch
from flowkern.kernels._tables import DeviceTables


@triton.jit
def pack_kernel(
    weights, weight_rows, weight_columns, widths, biases, bias_steps, packed, packed_biases,
    table, gathered, bias_gathered, tile_linear_at, bias_linear_at, tiles,
    WEIGHTS: tl.constexpr, BIASES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program i < tiles writes one block of weights, masked entries as zeros; the others one block of biases each."""
    i = tl.program_id(0)
    if i < tiles:
        linear = tl.load(table + tile_linear_at + i)
        pack_block(weights, weight_rows, weight_columns, widths, packed, gathered, linear, i, WEIGHTS, BLOCK * BLOCK)
    else:
        linear = tl.load(table + bias_linear_at + i - tiles)
        pack_biases(biases, bias_steps, packed_biases, bias_gathered, linear, i - tiles, BIASES, BLOCK)


@triton.jit
def chosen(values, which, COUNT: tl.constexpr):
    """One of several numbers."""
    found = values[0]
    for j in tl.static_range(1, COUNT):
        found = tl.where(which == j, values[j], found)
    return found


@triton.jit
def chosen_pointer(tensors, which, COUNT: tl.constexpr):
    """One of several tensors: one gather serves all, however many a chain has."""
    found = tensors[0]
    for j in tl.static_range(1, COUNT):
        if which == j:
            found = tensors[j]
    return found


@triton.jit
def pack_block(
    weights, weight_rows, weight_columns, widths, packed, gathered, linear, i, WEIGHTS: tl.constexpr, SIZE: tl.constexpr
):  # fmt: skip
    e = i.to(tl.int64) * SIZE + tl.arange(0, SIZE)
    origin = tl.load(gathered + e)
    width = chosen(widths, linear, WEIGHTS)
    row, column = chosen(weight_rows, linear, WEIGHTS), chosen(weight_columns, linear, WEIGHTS)
    at = (origin // width).to(tl.int64) * row + origin % width * column
    tl.store(packed + e, tl.load(chosen_pointer(weights, linear, WEIGHTS) + at, origin >= 0, 0))


@triton.jit
def pack_biases(biases, bias_steps, packed, gathered, linear, i, BIASES: tl.constexpr, SIZE: tl.constexpr):
    e = i * SIZE + tl.arange(0, SIZE)
    origin = tl.load(gathered + e)
    at = origin * chosen(bias_steps, linear, BIASES)
    tl.store(packed + e, tl.load(chosen_pointer(biases, linear, BIASES) + at, origin >= 0, 0))


def pack(tables: DeviceTables, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Blocks of masked, sorted weights, and the sorted biases of all layers."""
    host, block = tables.host, tables.config.block
    found = iter(biases)
    # A layer without a bias is given another tensor, of which nothing is read.
    none = biases[0] if biases else weights[0]
    each = [next(found) if has else none for has in host.biased]
    packed = weights[0].new_empty(len(host.gathered))
    packed_biases = (biases[0] if biases else weights[0]).new_empty(host.bias_size)
    with _launch.on(packed):
        pack_kernel[(host.blocks + host.bias_size // block,)](
            weights=tuple(weights), weight_rows=tuple(w.stride(0) for w in weights),
            weight_columns=tuple(w.stride(1) for w in weights), widths=tuple(max(w.shape[1], 1) for w in weights),
            biases=tuple(each), bias_steps=tuple(b.stride(0) for b in each), packed=packed, packed_biases=packed_biases,
            table=tables.table, gathered=tables.gathered, bias_gathered=tables.bias_gathered,
            tile_linear_at=host.tile_linear_at, bias_linear_at=host.bias_linear_at, tiles=host.blocks,
            WEIGHTS=len(weights), BIASES=len(each), BLOCK=block, num_warps=8,
        )  # fmt: skip
    return packed, packed_biases
