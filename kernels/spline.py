"""Splines of elements that bring their parameters along: one read, one write; see _bins.py."""

from itertools import zip_longest

import torch
import triton
import triton.language as tl

from flowkern.kernels import _bins, _launch

_ELEMENTS = 512  # of a block and each kind of parameter: 4 per thread


@triton.jit
def raw_numbers(data, row, column, e, inside, COUNT: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr):
    """Those of a block of elements, [element][number]."""
    k = tl.arange(0, COLUMNS)[None, :]
    return tl.load(data + e[:, None] * row + k * column, inside[:, None] & (k < COUNT), 0).to(ACC)


@triton.jit
def parameters_of(
    widths, heights, derivatives, lambdas, e, inside,
    w_row, w_column, h_row, h_column, d_row, d_column, l_row, l_column,
    DIVIDED: tl.constexpr, OPTIONS: tl.constexpr, DERIVATIVES: tl.constexpr, ACC: tl.constexpr,
    BINS: tl.constexpr, KNOTS: tl.constexpr,
):  # fmt: skip
    """A matrix of each kind."""
    w = raw_numbers(widths, w_row, w_column, e, inside, OPTIONS[0], BINS, ACC)
    h = raw_numbers(heights, h_row, h_column, e, inside, OPTIONS[0], BINS, ACC)
    d = raw_numbers(derivatives, d_row, d_column, e, inside, DERIVATIVES, KNOTS, ACC)
    if DIVIDED:
        return w, h, d, raw_numbers(lambdas, l_row, l_column, e, inside, OPTIONS[0], BINS, ACC)
    else:
        return w, h, d


@triton.jit
def spline_forward(
    x, widths, heights, derivatives, lambdas, z, log_slope, elements,
    x_row, w_row, w_column, h_row, h_column, d_row, d_column, l_row, l_column,
    MAP: tl.constexpr, DIVIDED: tl.constexpr, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr, DERIVATIVES: tl.constexpr,
    ACC: tl.constexpr, BLOCK: tl.constexpr, BINS: tl.constexpr, KNOTS: tl.constexpr,
):  # fmt: skip
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = e < elements
    u = tl.load(x + e * x_row, inside, 0).to(ACC)
    p = parameters_of(
        widths, heights, derivatives, lambdas, e, inside, w_row, w_column, h_row, h_column, d_row, d_column, l_row, l_column,
        DIVIDED, OPTIONS, DERIVATIVES, ACC, BINS, KNOTS,
    )  # fmt: skip
    v, log_d = MAP(u, p, OPTIONS, CONSTANTS)
    tl.store(z + e, v, inside)
    tl.store(log_slope + e, log_d, inside)


@triton.jit
def put_numbers(target, numbers, e, inside, COUNT: tl.constexpr):
    """Those of a block of elements, to a contiguous matrix."""
    k = tl.arange(0, numbers.shape[1])[None, :]
    tl.store(target + e[:, None] * COUNT + k, numbers, inside[:, None] & (k < COUNT))


@triton.jit
def spline_backward(
    x, widths, heights, derivatives, lambdas, g_z, g_log_slope, g_x, g_widths, g_heights, g_derivatives, g_lambdas, elements,
    x_row, w_row, w_column, h_row, h_column, d_row, d_column, l_row, l_column, g_row, g_log_row,
    MAP: tl.constexpr, INVERTED: tl.constexpr,
    DIVIDED: tl.constexpr, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr, DERIVATIVES: tl.constexpr,
    ACC: tl.constexpr, BLOCK: tl.constexpr, BINS: tl.constexpr, KNOTS: tl.constexpr,
):  # fmt: skip
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = e < elements
    u = tl.load(x + e * x_row, inside, 0).to(ACC)
    gv = tl.load(g_z + e * g_row, inside, 0).to(ACC)
    gl = tl.load(g_log_slope + e * g_log_row, inside, 0).to(ACC)
    p = parameters_of(
        widths, heights, derivatives, lambdas, e, inside, w_row, w_column, h_row, h_column, d_row, d_column, l_row, l_column,
        DIVIDED, OPTIONS, DERIVATIVES, ACC, BINS, KNOTS,
    )  # fmt: skip
    gu, found = MAP(u, p, gv, -gl if INVERTED else gl, OPTIONS, CONSTANTS)
    tl.store(g_x + e, gu, inside)
    put_numbers(g_widths, found[0], e, inside, OPTIONS[0])
    put_numbers(g_heights, found[1], e, inside, OPTIONS[0])
    put_numbers(g_derivatives, found[2], e, inside, DERIVATIVES)
    if DIVIDED:
        put_numbers(g_lambdas, found[3], e, inside, OPTIONS[0])


def spline(x, parameters, inverse, map):
    """z and log|dz/dx| of a vector x, given a matrix (elements, n) of each kind of parameter.

    ``map`` is a family, options and constants.
    """
    z, log_slope = torch.empty_like(x), torch.empty_like(x)
    if len(x):
        with _launch.on(x):
            arguments, grid = _given(x, parameters, map)
            spline_forward[grid](z=z, log_slope=log_slope, MAP=_bins.inverse if inverse else _bins.forward, **arguments)
    return z, log_slope


def spline_gradients(g_z, g_log_slope, x, parameters, inverse, map):
    """Cotangents of x and of the parameters, contiguous."""
    g_x, *found = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (x, *parameters))
    if len(x):
        with _launch.on(x):
            arguments, grid = _given(x, parameters, map)
            names = {f"g_{kind}": g for kind, g in zip_longest(_KINDS, found, fillvalue=x)}
            spline_backward[grid](
                g_z=g_z, g_log_slope=g_log_slope, g_row=g_z.stride(0), g_log_row=g_log_slope.stride(0), g_x=g_x,
                MAP=_bins.backward_of_inverse if inverse else _bins.backward, INVERTED=inverse, **names, **arguments,
            )  # fmt: skip
    return g_x, found


_KINDS = "widths", "heights", "derivatives", "lambdas"  # the last of rational-linear splines only, whose bins are divided


def _given(x, parameters, map):
    """Arguments of both kernels, and their grid."""
    _, options, constants = map
    count, double = parameters[2].shape[1], x.dtype == torch.float64
    bins, knots = triton.next_power_of_2(options[0]), triton.next_power_of_2(count)
    block = max(_ELEMENTS // (2 if double else 1) // max(bins, knots), 1)
    kinds = dict(zip_longest(_KINDS, parameters, fillvalue=parameters[0]))
    strides = {f"{kind[0]}_{way}": t.stride(i) for kind, t in kinds.items() for i, way in enumerate(("row", "column"))}
    arguments = {
        "x": x, **kinds, "elements": len(x), "x_row": x.stride(0), **strides,
        "DIVIDED": len(parameters) == len(_KINDS), "OPTIONS": tuple(options), "CONSTANTS": tuple(constants),
        "DERIVATIVES": count, "ACC": tl.float64 if double else tl.float32, "BLOCK": block, "BINS": bins, "KNOTS": knots,
        "num_warps": 4,
    }  # fmt: skip
    return arguments, (-(-len(x) // block),)
