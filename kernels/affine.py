"""A univariate map of some or all features, with its log-determinant: one read, one write, one reduction.

The kernels serve ``affine`` and ``iaf_step``, where every feature is transformed, and ``coupling``, where some pass.
A program takes BLOCK_R rows and walks over one part of their columns; rows longer than PART are split over programs,
whose partial log-determinants a second, deterministic reduction adds.
"""

import torch
import triton
import triton.language as tl

from flowkern.kernels import _launch
from flowkern.kernels.log_det import log_det
from flowkern.kernels.maps import functions


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
def load_parameters(tensors, rows_at, columns_at, r, p, moved, ACC: tl.constexpr, COUNT: tl.constexpr):
    """The parameters of a block of features, each from its matrix."""
    found = ()
    for i in tl.static_range(COUNT):
        found = found + (tl.load(tensors[i] + r[:, None] * rows_at[i] + p[None, :] * columns_at[i], moved, 0).to(ACC),)
    return found


@triton.jit
def affine_forward(
    x, parameters, place, z, log_det, rows, columns, begin, count, x_row, x_column, given_rows, given_columns,
    MAP: tl.constexpr, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr, COUNT: tl.constexpr,
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
        given = load_parameters(parameters, given_rows, given_columns, r, p, moved, ACC, COUNT)
        v, log_slope = MAP(u, given, OPTIONS, CONSTANTS)
        if STEP != 0:
            v, log_slope = tl.where(moved, v, u), tl.where(moved, log_slope, u - u)
        total += tl.where(inside, log_slope, 0)
        tl.store(z + r[:, None] * columns + c[None, :], v, inside)
    tl.store(log_det + r * tl.num_programs(1) + tl.program_id(1), tl.sum(total, 1), r < rows)


@triton.jit
def affine_backward(
    x, parameters, place, g_z, g_log_det, g_x, g_parameters, rows, columns, begin, count,
    x_row, x_column, given_rows, given_columns, g_row, g_column, g_log_det_row,
    BACK: tl.constexpr, BACKWARD: tl.constexpr,
    OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr, COUNT: tl.constexpr, REBUILD: tl.constexpr, INVERTED: tl.constexpr,
    STEP: tl.constexpr, ACC: tl.constexpr, PART: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
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
        given = load_parameters(parameters, given_rows, given_columns, r, p, moved, ACC, COUNT)
        if REBUILD:  # x holds z
            v, _ = BACK(v, given, OPTIONS, CONSTANTS)
        gu, found = BACKWARD(v, given, g, -gl if INVERTED else gl, OPTIONS, CONSTANTS)
        tl.store(g_x + r[:, None] * columns + c[None, :], tl.where(moved, gu, g), inside)
        at = r[:, None] * count + p[None, :]
        for i in tl.static_range(COUNT):
            tl.store(g_parameters[i] + at, found[i], moved)


def affine(x, parameters, place, transformed, inverse, map):
    """z and log_det of a matrix x (rows, columns), given a matrix (rows, count) for each parameter of the map.

    ``place`` is an int64 table or None; ``transformed`` the begin, step and count of the features that are
    transformed, step 0 where all are. ``map`` is a family, options and constants.
    """
    rows, columns = x.shape
    z = torch.empty(rows, columns, dtype=x.dtype, device=x.device)
    config = _launch.rows(rows, columns, x.dtype, len(parameters))
    partial = torch.empty(rows, config.parts, dtype=x.dtype if config.parts == 1 else config.torch_acc, device=x.device)
    if rows and columns:
        with _launch.on(x):
            affine_forward[config.grid](
                x=x, z=z, log_det=partial, rows=rows, columns=columns, x_row=x.stride(0), x_column=x.stride(1),
                **_given(x, parameters, place, transformed), **functions(map, MAP="inverse" if inverse else "forward"),
                **_constants(config),
            )  # fmt: skip
    elif rows:
        partial.zero_()
    return z, log_det(partial).to(x.dtype) if config.parts > 1 else partial.view(rows)


# Of a map, and of its inverse: what finds the input from the output, and the cotangents.
_BACKWARDS = ({"BACK": "inverse", "BACKWARD": "backward"}, {"BACK": "forward", "BACKWARD": "backward_of_inverse"})


def affine_gradients(g_z, g_log_det, x, parameters, place, transformed, rebuild, inverse, map):
    """Cotangents of x and of the parameters, contiguous. With ``rebuild``, ``x`` holds z, and the input is found from it."""
    rows, columns = x.shape
    _, step, count = transformed
    g_x = torch.empty(rows, columns, dtype=x.dtype, device=x.device)
    make = torch.empty if place is None else torch.zeros  # a table may leave out columns
    g_parameters = [make(rows, count if step else columns, dtype=x.dtype, device=x.device) for _ in parameters]
    config = _launch.rows(rows, columns, x.dtype, len(parameters))
    if rows and columns:
        with _launch.on(x):
            affine_backward[config.grid](
                x=x, g_z=g_z, g_log_det=g_log_det, g_x=g_x, g_parameters=tuple(g_parameters), rows=rows, columns=columns,
                x_row=x.stride(0), x_column=x.stride(1), g_row=g_z.stride(0), g_column=g_z.stride(1),
                g_log_det_row=g_log_det.stride(0), **_given(x, parameters, place, transformed),
                **functions(map, **_BACKWARDS[inverse]),
                REBUILD=rebuild, INVERTED=inverse, **_constants(config),
            )  # fmt: skip
    return g_x, g_parameters


def _given(x, parameters, place, transformed):
    """The parameters and which features they belong to, as both kernels take them."""
    begin, step, count = transformed
    return {
        "parameters": tuple(parameters),
        "given_rows": tuple(p.stride(0) for p in parameters),
        "given_columns": tuple(p.stride(1) for p in parameters),
        "place": x if place is None else place,
        "begin": begin,
        "count": count if step else x.shape[1],
        "STEP": -1 if place is not None else step,
        "COUNT": len(parameters),
    }


def _constants(config):
    names = {"ACC": config.acc, "PART": config.part, "BLOCK_R": config.block_r, "BLOCK_C": config.block_c}
    return {**names, **config.options}
