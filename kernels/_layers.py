"""The layers of a masked network on one batch tile, both ways.

One program takes a tile of rows through the whole network: it writes every layer's activations to memory (kept for the
backward pass, or a scratch tile that stays in the cache), waits for its other threads, and reads them as the next layer's
input. So a transform is one launch, whatever its depth and widths, and the layers are a run-time loop over the records
of _tables.py. Index prefixes: c_ columns of a section, n and k row and column blocks of a weight matrix.

Pointers to activations and cotangents point at the tile's first row, and ``i`` [BLOCK_M, 1] counts from there in 32 bits:
addresses of 64 bits for every element would take half of the registers. ``rows`` are those of the whole batch.
"""

import triton
import triton.language as tl

from flowkern.kernels import _tables
from flowkern.kernels._math import activate, activation_slope

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
