"""An affine univariate map of some or all features, with its log-determinant: one read, one write, one reduction.

The kernels serve ``affine`` and ``iaf_step``, where every feature is transformed, and ``coupling``, where some pass.
A program takes BLOCK_R rows and walks over one part of their columns; rows longer than PART are split over programs,
whose partial log-determinants a second, deterministic reduction adds.
"""

import torch
import triton
import triton.language as tl

from flowkern.kernels import _launch
from flowkern.kernels._math import map_backward, map_forward, map_inverse, map_slope
from flowkern.kernels.log_det import log_det


@triton.jit
def parameter_columns(c, columns, place, begin, count, STEP: tl.constexpr):
    """For each feature the column of its parameters, and whether it is transformed.

    STEP 0: every feature has its own column; n > 0: every n-th feature from ``begin`` on; -1: the table ``place`` says.
    """
    inside = c < columns
    if STEP == 0:
        return c, inside
    elif STEP > 0:
        p = (c - begin) // STEP
        return p, inside & (c >= begin) & (p < count) & ((c - begin) % STEP == 0)
    else:
        p = tl.load(place + c, inside, -1)
        return p, inside & (p >= 0) & (p < count)


@triton.jit
def affine_forward(
    x, shift, raw, place, z, log_det, rows, columns, begin, count,
    x_row, x_column, shift_row, shift_column, raw_row, raw_column,
    SCALE: tl.constexpr, PLACEMENT: tl.constexpr, C0: tl.constexpr, C1: tl.constexpr, INVERSE: tl.constexpr,
    STEP: tl.constexpr, ACC: tl.constexpr, PART: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    first = tl.program_id(1).to(tl.int64) * PART
    in_rows = (r < rows)[:, None]
    total = tl.zeros([BLOCK_R, BLOCK_C], ACC)
    for c0 in range(0, PART, BLOCK_C):
        c = first + c0 + tl.arange(0, BLOCK_C)
        p, moved = parameter_columns(c, columns, place, begin, count, STEP)
        inside, moved = in_rows & (c < columns)[None, :], in_rows & moved[None, :]
        u = tl.load(x + r[:, None] * x_row + c[None, :] * x_column, inside, 0).to(ACC)
        t = tl.load(shift + r[:, None] * shift_row + p[None, :] * shift_column, moved, 0).to(ACC)
        a = t if SCALE == 0 else tl.load(raw + r[:, None] * raw_row + p[None, :] * raw_column, moved, 0).to(ACC)
        if INVERSE:
            v, log_slope = map_inverse(u, t, a, SCALE, PLACEMENT, C0, C1)
        else:
            v, log_slope = map_forward(u, t, a, SCALE, PLACEMENT, C0, C1)
        if STEP != 0:
            v, log_slope = tl.where(moved, v, u), tl.where(moved, log_slope, u - u)
        total += tl.where(inside, log_slope, 0)
        tl.store(z + r[:, None] * columns + c[None, :], v, inside)
    tl.store(log_det + r * tl.num_programs(1) + tl.program_id(1), tl.sum(total, 1), r < rows)


@triton.jit
def affine_backward(
    x, shift, raw, place, g_z, g_log_det, g_x, g_shift, g_raw, rows, columns, begin, count,
    x_row, x_column, shift_row, shift_column, raw_row, raw_column, g_row, g_column, g_log_det_row,
    SCALE: tl.constexpr, PLACEMENT: tl.constexpr, C0: tl.constexpr, C1: tl.constexpr, REBUILD: tl.constexpr,
    INVERSE: tl.constexpr, STEP: tl.constexpr, ACC: tl.constexpr, PART: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    first = tl.program_id(1).to(tl.int64) * PART
    in_rows = (r < rows)[:, None]
    gl = tl.load(g_log_det + r * g_log_det_row, r < rows, 0).to(ACC)[:, None]
    for c0 in range(0, PART, BLOCK_C):
        c = first + c0 + tl.arange(0, BLOCK_C)
        p, moved = parameter_columns(c, columns, place, begin, count, STEP)
        inside, moved = in_rows & (c < columns)[None, :], in_rows & moved[None, :]
        v = tl.load(x + r[:, None] * x_row + c[None, :] * x_column, inside, 0).to(ACC)
        g = tl.load(g_z + r[:, None] * g_row + c[None, :] * g_column, inside, 0).to(ACC)
        t = tl.load(shift + r[:, None] * shift_row + p[None, :] * shift_column, moved, 0).to(ACC)
        a = t if SCALE == 0 else tl.load(raw + r[:, None] * raw_row + p[None, :] * raw_column, moved, 0).to(ACC)
        if REBUILD:  # x holds z
            if INVERSE:
                v, _ = map_forward(v, t, a, SCALE, PLACEMENT, C0, C1)
            else:
                v, _ = map_inverse(v, t, a, SCALE, PLACEMENT, C0, C1)
        if INVERSE:  # implicit differentiation of v = f(u; t, a) at u = f^-1(v)
            w = g / map_slope(a, SCALE, PLACEMENT, C0, C1)
            u, _ = map_inverse(v, t, a, SCALE, PLACEMENT, C0, C1)
            _, gt, ga = map_backward(u, t, a, -w, -gl, SCALE, PLACEMENT, C0, C1)
            gu = w
        else:
            gu, gt, ga = map_backward(v, t, a, g, gl, SCALE, PLACEMENT, C0, C1)
        tl.store(g_x + r[:, None] * columns + c[None, :], tl.where(moved, gu, g), inside)
        at = r[:, None] * count + p[None, :]
        tl.store(g_shift + at, gt, moved)
        if SCALE != 0:
            tl.store(g_raw + at, ga, moved)


def affine(x, shift, raw, place, transformed, inverse, map):
    """z and log_det of matrices x (rows, columns), shift and raw (rows, count).

    ``place`` is an int64 table or None; ``transformed`` the begin, step and count of the features that are
    transformed, step 0 where all are. ``map`` is scale, placement and two constants as numbers.
    """
    rows, columns = x.shape
    z = torch.empty(rows, columns, dtype=x.dtype, device=x.device)
    config = _launch.rows(rows, columns, x.dtype)
    partial = torch.empty(rows, config.parts, dtype=x.dtype if config.parts == 1 else config.torch_acc, device=x.device)
    if rows and columns:
        begin, step, count = transformed
        with _launch.on(x):
            affine_forward[config.grid](
                x, shift, raw, x if place is None else place, z, partial, rows, columns, begin, count,
                *x.stride(), *shift.stride(), *raw.stride(),
                *map, inverse, -1 if place is not None else step,
                config.acc, config.part, config.block_r, config.block_c, **config.options,
            )  # fmt: skip
    elif rows:
        partial.zero_()
    return z, log_det(partial).to(x.dtype) if config.parts > 1 else partial.view(rows)


def affine_gradients(g_z, g_log_det, x, shift, raw, place, transformed, rebuild, inverse, map):
    """Cotangents of x, shift and raw, contiguous; that of raw is empty where there is no scale.

    With ``rebuild``, ``x`` holds z, and the input is found from it.
    """
    rows, columns = x.shape
    begin, step, count = transformed
    count = columns if step == 0 else count
    g_x = torch.empty(rows, columns, dtype=x.dtype, device=x.device)
    make = torch.empty if place is None else torch.zeros  # a table may leave out columns
    g_shift = make(rows, count, dtype=x.dtype, device=x.device)
    g_raw = make(0 if map[0] == 0 else rows, count, dtype=x.dtype, device=x.device)
    config = _launch.rows(rows, columns, x.dtype)
    if rows and columns:
        with _launch.on(x):
            affine_backward[config.grid](
                x, shift, raw, x if place is None else place, g_z, g_log_det, g_x, g_shift, g_raw,
                rows, columns, begin, count,
                *x.stride(), *shift.stride(), *raw.stride(), *g_z.stride(), *g_log_det.stride(),
                *map, rebuild, inverse, -1 if place is not None else step,
                config.acc, config.part, config.block_r, config.block_c, **config.options,
            )  # fmt: skip
    return g_x, g_shift, g_raw
