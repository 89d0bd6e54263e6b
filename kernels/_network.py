"""What the masked-network kernels share: packing, the layers of one batch tile both ways, weight gradients.

One program takes a tile of rows through the whole network: it writes every layer's activations to memory (kept for the
backward pass, or a scratch tile that stays in the cache), waits for its other threads, and reads them as the next layer's
input. So a transform is one launch, whatever its depth and widths, and the layers are a run-time loop over the records
of _tables.py. Index prefixes: c_ columns of a section, n and k row and column blocks of a weight matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from flowkern.kernels import _launch, _tables
from flowkern.kernels._math import activate, activation_slope
from flowkern.kernels._tables import DeviceTables, config_of, device_tables, host_tables
from flowkern.plan import AutoregressivePlan

# The integers that _tables.py writes for each linear map.
SOURCE, TARGET, ROW_BLOCKS, COUNTS, BIAS, ACTIVATED, RESIDUAL, RESIDUAL_UNITS, ADDEND, GATE, UNITS, READERS = (
    tl.constexpr(i) for i in range(_tables.READERS + 1)
)
FIELDS = tl.constexpr(_tables.FIELDS)


@triton.jit
def record(table, linear, FIELD: tl.constexpr):
    return tl.load(table + linear * FIELDS + FIELD)


@triton.jit
def section(table, linear, FIELD: tl.constexpr):
    """The first column of a section; whole blocks of columns lie before it."""
    return tl.multiple_of(tl.load(table + linear * FIELDS + FIELD), 32)


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """acc + a b. The interpreter multiplies the bit patterns of bfloat16, hence UPCAST there."""
    if UPCAST:
        a, b = a.to(acc.dtype), b.to(acc.dtype)
    return tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=acc.dtype)


@triton.jit
def take(tensors, rows_at, columns_at, which, at, columns, inside, COUNT: tl.constexpr, like):
    """Rows and columns of one of several matrices of any strides, zero outside."""
    value = tl.zeros_like(like)
    for i in tl.static_range(COUNT):
        if which == i:
            value = tl.load(tensors[i] + at * rows_at[i] + columns * columns_at[i], inside, 0).to(like.dtype)
    return value


# -- packing ----------------------------------------------------------------------------------------------------------


@triton.jit
def pack_kernel(
    weights, weight_rows, weight_columns, widths, biases, bias_steps, packed, packed_biases,
    table, gathered, bias_gathered, tile_linear_at, bias_linear_at, tiles,
    LINEARS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program i < tiles writes one block of weights, masked entries as zeros; the others one block of biases each."""
    i = tl.program_id(0)
    if i < tiles:
        linear = tl.load(table + tile_linear_at + i)
        pack_block(weights, weight_rows, weight_columns, widths, packed, gathered, linear, i, LINEARS, BLOCK * BLOCK)
    else:
        linear = tl.load(table + bias_linear_at + i - tiles)
        pack_biases(biases, bias_steps, packed_biases, bias_gathered, linear, i - tiles, LINEARS, BLOCK)


@triton.jit
def pack_block(
    weights, weight_rows, weight_columns, widths, packed, gathered, linear, i, LINEARS: tl.constexpr, SIZE: tl.constexpr
):  # fmt: skip
    e = i.to(tl.int64) * SIZE + tl.arange(0, SIZE)
    origin = tl.load(gathered + e)
    value = tl.zeros([SIZE], packed.dtype.element_ty)
    for j in tl.static_range(LINEARS):
        if linear == j:
            at = (origin // widths[j]).to(tl.int64) * weight_rows[j] + origin % widths[j] * weight_columns[j]
            value = tl.load(weights[j] + at, origin >= 0, 0)
    tl.store(packed + e, value)


@triton.jit
def pack_biases(biases, bias_steps, packed, gathered, linear, i, LINEARS: tl.constexpr, SIZE: tl.constexpr):
    e = i * SIZE + tl.arange(0, SIZE)
    origin = tl.load(gathered + e)
    value = tl.zeros([SIZE], packed.dtype.element_ty)
    for j in tl.static_range(LINEARS):
        if linear == j:
            value = tl.load(biases[j] + origin * bias_steps[j], origin >= 0, 0)
    tl.store(packed + e, value)


def pack(tables: DeviceTables, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Blocks of masked, sorted weights, and the sorted biases of all layers."""
    host, plan, block = tables.host, tables.host.plan, tables.config.block
    found = iter(biases)
    # A layer without a bias is given another tensor, of which nothing is read.
    none = biases[0] if biases else weights[0]
    each = [next(found) if has else none for has in plan.biases]
    packed = weights[0].new_empty(len(host.gathered))
    packed_biases = (biases[0] if biases else weights[0]).new_empty(host.bias_size)
    with _launch.on(packed):
        pack_kernel[(host.blocks + host.bias_size // block,)](
            tuple(weights), tuple(w.stride(0) for w in weights), tuple(w.stride(1) for w in weights),
            tuple(max(w.shape[1], 1) for w in weights), tuple(each), tuple(b.stride(0) for b in each), packed, packed_biases,
            tables.table, tables.gathered, tables.bias_gathered, host.tile_linear_at, host.bias_linear_at, host.blocks,
            len(weights), block, num_warps=8,
        )  # fmt: skip
    return packed, packed_biases


# -- one batch tile ---------------------------------------------------------------------------------------------------
#
# Pointers to activations and cotangents point at the tile's first row, and ``i`` [BLOCK_M, 1] counts from there in 32 bits:
# addresses of 64 bits for every element would take half of the registers. ``rows`` are those of the whole batch.


@triton.jit
def place_of(tile, batch, i, KEEP: tl.constexpr, BLOCK_M: tl.constexpr):
    """First row of a tile, first row of its place in the buffers, all of its rows, and which of them there are.

    Where nothing is kept a program has one place for all of its tiles.
    """
    program = tl.program_id(0).to(tl.int64)
    first = (program * 0 + tile) * BLOCK_M  # 64 bits: the variable of `range` has 32, and is a plain int in the interpreter
    return first, first if KEEP else program * BLOCK_M, first + i, first + i < batch


@triton.jit
def gather_features(
    x, x_row, x_column, act, table, order_at, rows, inside, i, width, tiles, BLOCK: tl.constexpr
):  # fmt: skip
    """Copies the features in sorted order to the first section."""
    for j in range(tiles):
        c = j * BLOCK + tl.arange(0, BLOCK)
        d = tl.load(table + order_at + c)
        value = tl.load(x + rows * x_row + d[None, :] * x_column, inside & (d >= 0)[None, :], 0)
        tl.store(act + i * width + c[None, :], value.to(act.dtype.element_ty))


@triton.jit
def product(
    acc, act, width, i, packed, table, linear, n, BLOCK: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr
):  # fmt: skip
    """acc plus row block n of a linear map's weights times its input, as far as the staircase reaches."""
    e = tl.arange(0, BLOCK)
    at = record(table, linear, COUNTS) + n
    count = tl.load(table + at)
    base = tl.load(table + at + record(table, linear, ROW_BLOCKS)).to(tl.int64)
    p_h = act + i * width + section(table, linear, SOURCE) + e[None, :]
    p_w = packed + base * BLOCK * BLOCK + e[:, None] * BLOCK + e[None, :]
    for k in range(count):
        h = tl.load(p_h + k * BLOCK)
        w = tl.load(p_w + k * BLOCK * BLOCK)
        acc = dot(h, tl.trans(w), acc, PRECISION, UPCAST)
    return acc


@triton.jit
def linear_map(
    act, width, rows, inside, i, packed, biases, addends, addend_rows, addend_columns, table, linear, n, depth, like,
    ADDENDS: tl.constexpr, SKIP: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Row block n of W h + b plus the addend of the layer, and the direct connection for the outputs."""
    acc = product(tl.zeros_like(like), act, width, i, packed, table, linear, n, BLOCK, PRECISION, UPCAST)
    if SKIP:
        if linear == depth:
            acc = product(acc, act, width, i, packed, table, linear + 1, n, BLOCK, PRECISION, UPCAST)
    c = n * BLOCK + tl.arange(0, BLOCK)
    acc += tl.load(biases + record(table, linear, BIAS) + c).to(like.dtype)[None, :]
    if ADDENDS > 0:
        unit = tl.load(table + record(table, linear, UNITS) + c)[None, :]
        which = record(table, linear, ADDEND)
        acc += take(addends, addend_rows, addend_columns, which, rows, unit, inside & (unit >= 0), ADDENDS, like)
    return acc


@triton.jit
def hidden_layers(
    act, pre, ungated, width, rows, inside, i, packed, biases, addends, addend_rows, addend_columns, table, depth, like,
    KIND: tl.constexpr, C: tl.constexpr, PRE: tl.constexpr, GATES: tl.constexpr,
    ADDENDS: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """All hidden layers of a tile: activations to ``act``; pre-activations to ``pre`` where PRE."""
    for layer in range(depth):
        tl.debug_barrier()  # the layer before was written by other threads of this program
        target = section(table, layer, TARGET)
        for n in range(record(table, layer, ROW_BLOCKS)):
            c = n * BLOCK + tl.arange(0, BLOCK)[None, :]
            p = linear_map(
                act, width, rows, inside, i, packed, biases, addends, addend_rows, addend_columns, table, layer, n, depth,
                like, ADDENDS, False, BLOCK, PRECISION, UPCAST,
            )  # fmt: skip
            if GATES:
                which = record(table, layer, GATE)
                if which >= 0:
                    tl.store(ungated + i * width + target + c, p.to(ungated.dtype.element_ty))
                    unit = tl.load(table + record(table, layer, UNITS) + c)
                    p *= take(addends, addend_rows, addend_columns, which, rows, unit, inside & (unit >= 0), ADDENDS, like)
            if PRE:
                source = record(table, layer, RESIDUAL)
                if source >= 0:
                    place = tl.load(table + record(table, layer, RESIDUAL_UNITS) + c)
                    p += tl.load(pre + i * width + source + place, inside & (place >= 0), 0).to(like.dtype)
                tl.store(pre + i * width + target + c, p.to(pre.dtype.element_ty))
            h = p if record(table, layer, ACTIVATED) == 0 else activate(p, KIND, C)
            # Rows beyond the batch are zero: their cotangents are, and the product of both must be.
            tl.store(act + i * width + target + c, tl.where(inside, h, 0).to(act.dtype.element_ty))
    tl.debug_barrier()


@triton.jit
def slope_of(act, pre, at, like, KIND: tl.constexpr, C: tl.constexpr, PRE: tl.constexpr):
    """The activation's derivative, from the pre-activation where it was kept, else from the activation itself."""
    if PRE:
        return activation_slope(tl.load(pre + at).to(like.dtype), KIND, C)
    h = tl.load(act + at).to(like.dtype)
    if KIND == 3:
        return tl.where(h > 0, 1.0, h + C)
    elif KIND == 6:
        return 1 - h * h
    elif KIND == 7:
        return h * (1 - h)
    elif KIND == 8:
        return 1 - tl.exp(-h)
    else:
        return activation_slope(h, KIND, C)


@triton.jit
def transposed_product(
    acc, delta, delta_width, i, packed, table, linear, k,
    BLOCK: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """acc plus column block k of the transposed weights times the cotangents of a linear map's result."""
    e = tl.arange(0, BLOCK)
    blocks = record(table, linear, ROW_BLOCKS)
    bases = table + record(table, linear, COUNTS) + blocks
    first = tl.load(bases + blocks + k)
    p_g = delta + i * delta_width + section(table, linear, TARGET) + e[None, :]
    p_w = packed + (e[:, None] * BLOCK + e[None, :])
    for n in range(first, blocks):
        g = tl.load(p_g + n * BLOCK)
        w = tl.load(p_w + (tl.load(bases + n) + k).to(tl.int64) * BLOCK * BLOCK)
        acc = dot(g, w, acc, PRECISION, UPCAST)
    return acc


@triton.jit
def hidden_backward(
    act, pre, ungated, width, delta, outer, delta_width, rows, inside, i, packed,
    addends, addend_rows, addend_columns, g_addends, g_addend_rows, table, depth, like,
    KIND: tl.constexpr, C: tl.constexpr, PRE: tl.constexpr, GATES: tl.constexpr, ADDENDS: tl.constexpr,
    BLOCK: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Cotangents of all hidden layers' linear maps, from the last to the first, given those of the outputs in ``delta``.

    Where a layer has a gate, ``outer`` holds the cotangent of its output, which a residual connection passes on as it is, and
    ``delta`` that times the gate, the cotangent of its linear map.
    """
    for step in range(depth):
        tl.debug_barrier()
        layer = depth - 1 - step
        target = section(table, layer, TARGET)
        for k in range(record(table, layer, ROW_BLOCKS)):
            c = k * BLOCK + tl.arange(0, BLOCK)[None, :]
            g = tl.zeros_like(like)
            g = transposed_product(g, delta, delta_width, i, packed, table, layer + 1, k, BLOCK, PRECISION, UPCAST)
            if record(table, layer, ACTIVATED) != 0:
                g *= slope_of(act, pre, i * width + target + c, like, KIND, C, PRE)
            readers = table + record(table, layer, READERS)
            for j in range(tl.load(readers)):
                later = tl.load(readers + 1 + 2 * j)
                place = tl.load(table + tl.load(readers + 2 + 2 * j) + c)
                g += tl.load(outer + i * delta_width + later + place, place >= 0, 0).to(like.dtype)
            g = tl.where(inside, g, 0)
            unit = tl.load(table + record(table, layer, UNITS) + c)
            there = inside & (unit >= 0)
            if PRE:
                tl.store(outer + i * delta_width + target + c, g.to(outer.dtype.element_ty))
            if GATES:
                which = record(table, layer, GATE)
                if which >= 0:
                    u = tl.load(ungated + i * width + target + c).to(like.dtype)
                    put(g_addends, g_addend_rows, which, rows, unit, there, g * u, ADDENDS)
                    g *= take(addends, addend_rows, addend_columns, which, rows, unit, there, ADDENDS, like)
            if ADDENDS > 0:
                put(g_addends, g_addend_rows, record(table, layer, ADDEND), rows, unit, there, g, ADDENDS)
            tl.store(delta + i * delta_width + target + c, g.to(delta.dtype.element_ty))
    tl.debug_barrier()


@triton.jit
def put(tensors, rows_at, which, rows, columns, inside, value, COUNT: tl.constexpr):
    """Stores into one of several matrices whose columns are contiguous."""
    for i in tl.static_range(COUNT):
        if which == i:
            tl.store(tensors[i] + rows * rows_at[i] + columns, value.to(tensors[i].dtype.element_ty), inside)


@triton.jit
def feature_gradients(
    direct, delta, delta_width, rows, inside, i, packed, g_x, features, table, order_at, depth, tiles, like,
    DIRECT: tl.constexpr, SKIP: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Cotangents of the features, scattered to their places; plus those that lie in the section ``direct`` already."""
    for k in range(tiles):
        c = k * BLOCK + tl.arange(0, BLOCK)
        g = tl.zeros_like(like)
        g = transposed_product(g, delta, delta_width, i, packed, table, 0, k, BLOCK, PRECISION, UPCAST)
        if SKIP:
            g = transposed_product(g, delta, delta_width, i, packed, table, depth + 1, k, BLOCK, PRECISION, UPCAST)
        d = tl.load(table + order_at + c)[None, :]
        there = inside & (d >= 0)
        if DIRECT:
            g += tl.load(direct + rows * features + d, there, 0).to(like.dtype)
        tl.store(g_x + rows * features + d, g.to(g_x.dtype.element_ty), there)


# -- gradients of weights ---------------------------------------------------------------------------------------------


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


def weight_gradients(network: Network, delta: Tensor, act: Tensor, bias_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
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
            delta, delta.shape[1], act, act.shape[1], partial, tables.table,
            host.sources_at, host.targets_at, host.tile_biases_at, len(host.gathered), rows, part, size,
            network.acc, step, tables.config.block, network.precision, network.upcast,
            num_warps=tables.config.warps, num_stages=tables.config.stages,
        )  # fmt: skip
        unpack_kernel[(-(-count // 1024),)](partial, tables.positions, out, out_biases, weights, count, splits, size, 1024)
    return out, out_biases


# -- the host's side --------------------------------------------------------------------------------------------------

_NEEDS_PRE = {"gelu", "silu"}


class Network:
    """Constants of the launches for one plan, dtype and device."""

    def __init__(self, plan: AutoregressivePlan, dtype: torch.dtype, device: torch.device, precision: str) -> None:
        self.plan, self.dtype, self.device, self.precision = plan, dtype, device, precision
        self.config = config_of(plan, dtype, self.precision)
        self.host = host_tables(plan, self.config.block)
        self.acc, self.acc_dtype = (tl.float64, torch.float64) if dtype == torch.float64 else (tl.float32, torch.float32)
        self.upcast = _launch.INTERPRETED and dtype in (torch.bfloat16, torch.float16)
        self.gates = bool(plan.gates)
        residual = any(r is not None for r in plan.residuals)
        negative = plan.activation in ("leaky_relu", "elu") and plan.constant < 0
        self.pre = residual or self.gates or negative or plan.activation in _NEEDS_PRE
        self.kind = plan.activation_index

    @cached_property
    def tables(self) -> DeviceTables:
        """The index tables on the device."""
        return device_tables(self.plan, self.config, self.device)

    def state_like(self, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], keep: bool) -> list[Tensor]:
        """The shapes of what a forward pass keeps. Traced calls begin here: now is the time to bring tables to a device."""
        if self.device.type != "meta":
            _ = self.tables
        if not keep:
            return []
        packed = weights[0].new_empty(len(self.host.gathered))
        packed_biases = (biases[0] if biases else weights[0]).new_empty(self.host.bias_size)
        return [packed, packed_biases, *self.kept(x.shape[0], keep)]

    def rows(self, batch: int) -> int:
        """Rows of whole tiles."""
        return -(-batch // self.config.block_m) * self.config.block_m

    def programs(self, batch: int, keep: bool) -> int:
        """One per tile; where nothing is kept, no more than stay resident, each with a scratch tile of its own."""
        tiles = self.rows(batch) // self.config.block_m
        return tiles if keep else min(tiles, _launch.resident_programs(self.device))

    def kept(self, batch: int, keep: bool) -> list[Tensor]:
        """Where the forward pass writes activations, pre-activations, and the latter before the gates."""
        return self._buffers(batch, self.host.width, keep, (True, self.pre, self.gates))

    def deltas(self, batch: int, keep: bool) -> list[Tensor]:
        """Where the backward pass writes the cotangents of all layers, and those before the gates."""
        return self._buffers(batch, self.host.all_width, keep, (True, self.pre))

    def _buffers(self, batch: int, width: int, keep: bool, used: Sequence[bool]) -> list[Tensor]:
        """Matrices over the rows of the tiles at work, of no size where not used."""
        rows = (self.rows(batch) if keep else self.programs(batch, False) * self.config.block_m) if batch else 0
        return [torch.empty(rows if use else 0, width, dtype=self.dtype, device=self.device) for use in used]

    @cached_property
    def blocks(self) -> tuple[int, int]:
        """Numbers of feature and of output blocks."""
        features = len(self.host.orders[0]) // self.config.block
        return features, features * self.plan.parameters

    def terms(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], tuple[int, ...], tuple[int, ...]]:
        """Addends and gates as the kernels take them: tensors, row and column strides."""
        tensors = [_launch.near(t) for t in tensors]
        return tuple(tensors), tuple(t.stride(0) for t in tensors), tuple(t.stride(1) for t in tensors)

    def parameter_gradients(
        self, delta: Tensor, act: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], wanted: bool
    ) -> tuple[Tensor, Tensor]:
        """Gradients of all weights and of all biases, each as one vector; of no size unless wanted."""
        dtype = biases[0].dtype if biases else act.dtype
        if wanted:
            return weight_gradients(self, delta, act, dtype)
        return act.new_empty(0), act.new_empty(0, dtype=dtype)

    @cached_property
    def constants(self) -> dict[str, Any]:
        """Arguments that every kernel of a tile takes by name."""
        return {
            "KIND": self.kind,
            "C": self.plan.constant,
            "PRE": self.pre,
            "GATES": self.gates,
            "SKIP": self.plan.skip,
            "ADDENDS": len(self.plan.addend_widths),
            "ACC": self.acc,
            "BLOCK_M": self.config.block_m,
            "BLOCK": self.config.block,
            "PRECISION": self.precision,
            "UPCAST": self.upcast,
            "num_warps": self.config.warps,
            "num_stages": self.config.stages,
            **_launch.registers(255),
        }


def network_of(plan: AutoregressivePlan, dtype: torch.dtype, device: torch.device, precision: str) -> Network:
    """The launches' constants; the first call makes them."""
    key = dtype, device, precision
    return plan.at_first_call(key, torch.device("cpu"), lambda: Network(plan, *key))
