"""Rational-quadratic splines of elements that bring their parameters along: one read, one write.

A program takes a block of elements with all their bins, [element][bin], so that what lies together in memory is read together
and no number of bins fills the registers of a thread. kernels/maps/rational_quadratic.py has what concerns one bin.
"""

import torch
import triton
import triton.language as tl

from flowkern.kernels import _launch
from flowkern.kernels._splines import (
    derivative,
    end_beside,
    half_a_turn_on,
    inside_of,
    logit,
    turned_back,
    whole_turns,
    within_a_bin,
)
from flowkern.kernels.maps.rational_quadratic import cotangents, curve, root

_ELEMENTS = 512  # of a block and each kind of parameter: 4 per thread


@triton.jit
def raw_numbers(data, row, column, e, inside, k, COUNT: tl.constexpr, ACC: tl.constexpr):
    """Those of a block of elements, [element][number]."""
    return tl.load(data + e[:, None] * row + k * column, inside[:, None] & (k < COUNT), 0).to(ACC)


@triton.jit
def exponentials(raw, k, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    """Of the logits of all bins, which have a size of zero beyond the last one, and their sum; the slope of the logits."""
    a, slope = logit(raw, OPTIONS, CONSTANTS)
    a = tl.where(k < OPTIONS[0], a, -float("inf"))
    found = tl.exp(a - tl.max(a, 1)[:, None])
    return found, tl.sum(found, 1), slope


@triton.jit
def at(k, index, numbers):
    """The number of each element that its index says; zero where there is none."""
    return tl.sum(tl.where(k == index[:, None], numbers, 0), 1)


@triton.jit
def index_in(u, sizes, total, k, LEAST: tl.constexpr, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    """The bin of a number; beyond the ends the first or the last."""
    LENGTH: tl.constexpr = CONSTANTS[1] - CONSTANTS[0]
    unit = LENGTH * (1 - OPTIONS[0] * LEAST) / total
    knots = CONSTANTS[0] + LENGTH * LEAST * (k + 1).to(sizes.dtype) + unit[:, None] * tl.cumsum(sizes, 1)
    return tl.sum(((u[:, None] >= knots) & (k < OPTIONS[0] - 1)).to(tl.int32), 1)


@triton.jit
def placed(index, sizes, total, k, LEAST: tl.constexpr, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    """What is before the bin and in it, as parts of the exponentials; where it begins, in float64, and its size.

    A narrow bin magnifies what rounding takes from its start.
    """
    LENGTH: tl.constexpr = CONSTANTS[1] - CONSTANTS[0]
    SCALE: tl.constexpr = LENGTH * (1 - OPTIONS[0] * LEAST)
    exact = sizes.to(tl.float64)
    before, part = tl.sum(tl.where(k < index[:, None], exact, 0), 1), at(k, index, sizes)
    start = CONSTANTS[0] + LENGTH * LEAST * index.to(tl.float64) + SCALE * before / tl.sum(exact, 1)
    return before.to(sizes.dtype), part, start, LENGTH * LEAST + SCALE * part / total


@triton.jit
def part_of(u, start, size):
    """How far into its bin a number is, from 0 to 1."""
    return within_a_bin((u.to(tl.float64) - start).to(size.dtype) / size)


@triton.jit
def knots_of(index, OPTIONS: tl.constexpr):
    """Where the raw derivatives of both ends of a bin are."""
    if OPTIONS[1] == 0:
        return index - 1, index
    elif OPTIONS[1] == 1:
        return index, tl.where(index == OPTIONS[0] - 1, 0, index + 1)
    else:
        return index, index + 1


@triton.jit
def ends(index, raw, j, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    """The derivatives at both ends of a bin and their slopes."""
    first, second = knots_of(index, OPTIONS)
    d0, slope0 = derivative(at(j, first, raw), OPTIONS, CONSTANTS)
    d1, slope1 = derivative(at(j, second, raw), OPTIONS, CONSTANTS)
    if OPTIONS[1] == 0:
        d0 = tl.where(index == 0, CONSTANTS[5], d0)
        d1 = tl.where(index == OPTIONS[0] - 1, CONSTANTS[5], d1)
    return d0, d1, slope0, slope1


@triton.jit
def spline_forward(
    x, widths, heights, derivatives, z, log_slope, elements, x_row, w_row, w_column, h_row, h_column, d_row, d_column,
    INVERSE: tl.constexpr, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr, DERIVATIVES: tl.constexpr, ACC: tl.constexpr,
    BLOCK: tl.constexpr, BINS: tl.constexpr, KNOTS: tl.constexpr,
):  # fmt: skip
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    k, j, inside = tl.arange(0, BINS)[None, :], tl.arange(0, KNOTS)[None, :], e < elements
    u = tl.load(x + e * x_row, inside, 0).to(ACC)
    u = turned_back(u, OPTIONS, CONSTANTS) if INVERSE else half_a_turn_on(u, OPTIONS, CONSTANTS)
    raw = raw_numbers(widths, w_row, w_column, e, inside, k, OPTIONS[0], ACC)
    w, w_total, _ = exponentials(raw, k, OPTIONS, CONSTANTS)
    raw = raw_numbers(heights, h_row, h_column, e, inside, k, OPTIONS[0], ACC)
    h, h_total, _ = exponentials(raw, k, OPTIONS, CONSTANTS)
    turns = whole_turns(u, OPTIONS, CONSTANTS)
    if INVERSE:
        index = index_in(u - turns, h, h_total, k, CONSTANTS[3], OPTIONS, CONSTANTS)
    else:
        index = index_in(u - turns, w, w_total, k, CONSTANTS[2], OPTIONS, CONSTANTS)
    _, _, x0, width = placed(index, w, w_total, k, CONSTANTS[2], OPTIONS, CONSTANTS)
    _, _, y0, height = placed(index, h, h_total, k, CONSTANTS[3], OPTIONS, CONSTANTS)
    raw = raw_numbers(derivatives, d_row, d_column, e, inside, j, DERIVATIVES, ACC)
    d0, d1, _, _ = ends(index, raw, j, OPTIONS, CONSTANTS)
    if INVERSE:
        theta = root(height / width, d0, d1, part_of(u - turns, y0, height))
        _, slope = curve(height / width, d0, d1, theta)
        v, log_d = x0.to(ACC) + width * theta + turns, -tl.log(slope)
    else:
        part, slope = curve(height / width, d0, d1, part_of(u - turns, x0, width))
        v, log_d = y0.to(ACC) + height * part + turns, tl.log(slope)
    if OPTIONS[1] == 0:
        v, log_d = tl.where(inside_of(u, CONSTANTS), v, u), tl.where(inside_of(u, CONSTANTS), log_d, 0)
    elif OPTIONS[1] == 2:
        end, d = end_beside(u, CONSTANTS), tl.where(u < CONSTANTS[0], d0, d1)
        d = 1 / d if INVERSE else d
        v = tl.where(inside_of(u, CONSTANTS), v, end + (u - end) * d)
        log_d = tl.where(inside_of(u, CONSTANTS), log_d, tl.log(d))
    if INVERSE:
        v = half_a_turn_on(v, OPTIONS, CONSTANTS)
    tl.store(z + e, v, inside)
    tl.store(log_slope + e, log_d + (u - u), inside)


@triton.jit
def size_gradients(
    index, sizes, total, before, part, slope, k, g_start, g_size,
    LEAST: tl.constexpr, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr,
):  # fmt: skip
    """Cotangents of the raw sizes from those of the bin's start and size."""
    unit = (CONSTANTS[1] - CONSTANTS[0]) * (1 - OPTIONS[0] * LEAST) / total
    g_before, g_bin = unit * g_start, unit * g_size
    mean = (g_before * before + g_bin * part) / total
    i = index[:, None]
    g = tl.where(k < i, g_before[:, None], tl.where(k == i, g_bin[:, None], 0))
    return sizes * (g - mean[:, None]) * slope


@triton.jit
def spline_backward(
    x, widths, heights, derivatives, g_z, g_log_slope, g_x, g_widths, g_heights, g_derivatives, elements,
    x_row, w_row, w_column, h_row, h_column, d_row, d_column, g_row, g_log_row,
    INVERSE: tl.constexpr, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr, DERIVATIVES: tl.constexpr, ACC: tl.constexpr,
    BLOCK: tl.constexpr, BINS: tl.constexpr, KNOTS: tl.constexpr,
):  # fmt: skip
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    k, j, inside = tl.arange(0, BINS)[None, :], tl.arange(0, KNOTS)[None, :], e < elements
    u = tl.load(x + e * x_row, inside, 0).to(ACC)
    u = turned_back(u, OPTIONS, CONSTANTS) if INVERSE else half_a_turn_on(u, OPTIONS, CONSTANTS)
    gv = tl.load(g_z + e * g_row, inside, 0).to(ACC)
    gl = tl.load(g_log_slope + e * g_log_row, inside, 0).to(ACC)
    raw = raw_numbers(widths, w_row, w_column, e, inside, k, OPTIONS[0], ACC)
    w, w_total, w_slope = exponentials(raw, k, OPTIONS, CONSTANTS)
    raw = raw_numbers(heights, h_row, h_column, e, inside, k, OPTIONS[0], ACC)
    h, h_total, h_slope = exponentials(raw, k, OPTIONS, CONSTANTS)
    at_u = u - whole_turns(u, OPTIONS, CONSTANTS)
    if INVERSE:
        index = index_in(at_u, h, h_total, k, CONSTANTS[3], OPTIONS, CONSTANTS)
    else:
        index = index_in(at_u, w, w_total, k, CONSTANTS[2], OPTIONS, CONSTANTS)
    w_before, w_part, x0, width = placed(index, w, w_total, k, CONSTANTS[2], OPTIONS, CONSTANTS)
    h_before, h_part, y0, height = placed(index, h, h_total, k, CONSTANTS[3], OPTIONS, CONSTANTS)
    raw = raw_numbers(derivatives, d_row, d_column, e, inside, j, DERIVATIVES, ACC)
    d0, d1, slope0, slope1 = ends(index, raw, j, OPTIONS, CONSTANTS)
    within, d, end = inside_of(u, CONSTANTS), tl.where(u < CONSTANTS[0], d0, d1), end_beside(u, CONSTANTS)
    if INVERSE:  # from here on as for the other direction at the result u, with the cotangent that cancels the one of u
        gl = -gl
        theta = root(height / width, d0, d1, part_of(at_u, y0, height))
        direct, _, _, _, _ = cotangents(width, height, d0, d1, theta, gv * 0, gl)
        _, slope = curve(height / width, d0, d1, theta)
        beside = gv if OPTIONS[1] == 0 else gv / d
        gv = -(gv + direct) / slope if OPTIONS[1] == 1 else -tl.where(within, (gv + direct) / slope, beside)
        u = tl.where(within, u, end + (u - end) / d)
    else:
        theta = part_of(at_u, x0, width)
    gu, gw, gh, g0, g1 = cotangents(width, height, d0, d1, theta, gv, gl)
    gx0, gy0 = -gu, gv
    if OPTIONS[1] != 1:
        gx0, gw, gy0, gh = tl.where(within, gx0, 0), tl.where(within, gw, 0), tl.where(within, gy0, 0), tl.where(within, gh, 0)
        g0, g1 = tl.where(within, g0, 0), tl.where(within, g1, 0)
        if OPTIONS[1] == 0:
            gu = tl.where(within, gu, gv)
        else:
            gd = gv * (u - end) + gl / d
            gu = tl.where(within, gu, gv * d)
            g0 = tl.where(u < CONSTANTS[0], gd, g0)
            g1 = tl.where(u < CONSTANTS[1], g1, gd)
    tl.store(g_x + e, -gv if INVERSE else gu, inside)
    found = size_gradients(index, w, w_total, w_before, w_part, w_slope, k, gx0, gw, CONSTANTS[2], OPTIONS, CONSTANTS)
    own = inside[:, None] & (k < OPTIONS[0])
    tl.store(g_widths + e[:, None] * OPTIONS[0] + k, found, own)
    found = size_gradients(index, h, h_total, h_before, h_part, h_slope, k, gy0, gh, CONSTANTS[3], OPTIONS, CONSTANTS)
    tl.store(g_heights + e[:, None] * OPTIONS[0] + k, found, own)
    first, second = knots_of(index, OPTIONS)
    found = tl.where(j == first[:, None], (g0 * slope0)[:, None], 0) + tl.where(j == second[:, None], (g1 * slope1)[:, None], 0)
    tl.store(g_derivatives + e[:, None] * DERIVATIVES + j, found, inside[:, None] & (j < DERIVATIVES))


def spline(x, widths, heights, derivatives, inverse, map):
    """z and log|dz/dx| of a vector x, given a matrix (elements, n) of each kind of parameter.

    ``map`` is a family, options and constants.
    """
    z, log_slope = torch.empty_like(x), torch.empty_like(x)
    if len(x):
        with _launch.on(x):
            arguments, grid = _given(x, widths, heights, derivatives, inverse, map)
            spline_forward[grid](z=z, log_slope=log_slope, **arguments)
    return z, log_slope


def spline_gradients(g_z, g_log_slope, x, widths, heights, derivatives, inverse, map):
    """Cotangents of x and of the parameters, contiguous."""
    found = [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (x, widths, heights, derivatives)]
    if len(x):
        with _launch.on(x):
            arguments, grid = _given(x, widths, heights, derivatives, inverse, map)
            names = dict(zip(("g_x", "g_widths", "g_heights", "g_derivatives"), found, strict=True))
            spline_backward[grid](
                g_z=g_z, g_log_slope=g_log_slope, g_row=g_z.stride(0), g_log_row=g_log_slope.stride(0), **names, **arguments
            )
    return tuple(found)


def _given(x, widths, heights, derivatives, inverse, map):
    """Arguments of both kernels, and their grid."""
    _, options, constants = map
    count, double = derivatives.shape[1], x.dtype == torch.float64
    bins, knots = triton.next_power_of_2(options[0]), triton.next_power_of_2(count)
    block = max(_ELEMENTS // (2 if double else 1) // max(bins, knots), 1)
    strides = {
        f"{name}_{way}": t.stride(i)
        for name, t in (("w", widths), ("h", heights), ("d", derivatives))
        for i, way in enumerate(("row", "column"))
    }
    arguments = {
        "x": x, "widths": widths, "heights": heights, "derivatives": derivatives, "elements": len(x), "x_row": x.stride(0),
        **strides, "INVERSE": inverse, "OPTIONS": tuple(options), "CONSTANTS": tuple(constants), "DERIVATIVES": count,
        "ACC": tl.float64 if double else tl.float32, "BLOCK": block, "BINS": bins, "KNOTS": knots, "num_warps": 4,
    }  # fmt: skip
    return arguments, (-(-len(x) // block),)
