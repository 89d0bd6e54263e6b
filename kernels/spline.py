"""Splines of elements that bring their parameters along: one read, one write.

A program takes a block of elements with all their bins, [element][bin], so that what lies together in memory is read together
and no number of bins fills the registers of a thread. kernels/maps has what concerns one bin of either family.
"""

from itertools import zip_longest

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
from flowkern.kernels.maps import rational_linear, rational_quadratic

quadratic_curve, quadratic_root, quadratic_cotangents = (
    rational_quadratic.curve,
    rational_quadratic.root,
    rational_quadratic.cotangents,
)
linear_curve, linear_root, linear_cotangents = rational_linear.curve, rational_linear.root, rational_linear.cotangents
bounded, of_bin, part_of_bin, place_at = (
    rational_linear.bounded,
    rational_linear.of_bin,
    rational_linear.part_of_bin,
    rational_linear.place_at,
)

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
def evaluate(s, d0, d1, divide, t, INVERSE: tl.constexpr, DIVIDED: tl.constexpr):
    """Of a piece at the part t of one side of its bin: the part of the other side, and dv/du."""
    if DIVIDED:
        if INVERSE:
            second, part, rest = linear_root(s, d0, d1, divide, t)
            _, slope = linear_curve(s, d0, d1, divide, second, part, rest)
            return part_of_bin(divide, second, part), slope
        else:
            second, part, rest = place_at(divide, t)
            return linear_curve(s, d0, d1, divide, second, part, rest)
    else:
        if INVERSE:
            theta = quadratic_root(s, d0, d1, t)
            _, slope = quadratic_curve(s, d0, d1, theta)
            return theta, slope
        else:
            return quadratic_curve(s, d0, d1, t)


@triton.jit
def spline_forward(
    x, widths, heights, derivatives, lambdas, z, log_slope, elements,
    x_row, w_row, w_column, h_row, h_column, d_row, d_column, l_row, l_column,
    INVERSE: tl.constexpr, DIVIDED: tl.constexpr, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr, DERIVATIVES: tl.constexpr,
    ACC: tl.constexpr, BLOCK: tl.constexpr, BINS: tl.constexpr, KNOTS: tl.constexpr,
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
    divide = d0
    if DIVIDED:
        raw = raw_numbers(lambdas, l_row, l_column, e, inside, k, OPTIONS[0], ACC)
        divide, _ = bounded(at(k, index, raw), CONSTANTS)
    if INVERSE:
        theta, slope = evaluate(height / width, d0, d1, divide, part_of(u - turns, y0, height), True, DIVIDED)
        v, log_d = x0.to(ACC) + width * theta + turns, -tl.log(slope)
    else:
        part, slope = evaluate(height / width, d0, d1, divide, part_of(u - turns, x0, width), False, DIVIDED)
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
def cotangents(width, height, d0, d1, divide, theta, gv, gl, DIVIDED: tl.constexpr):
    """Those of u, the bin's width and height, the derivatives at both ends, and the division, for u at the part theta."""
    if DIVIDED:
        s = height / width
        second, part, rest = place_at(divide, theta)
        value, _ = linear_curve(s, d0, d1, divide, second, part, rest)
        of_theta, of_s, g0, g1, g_divide = linear_cotangents(s, height, d0, d1, divide, second, part, rest, gv, gl)
        gu, gw, gh = of_bin(of_theta, of_s, theta, value, width, height, gv)
        return gu, gw, gh, g0, g1, g_divide
    else:
        gu, gw, gh, g0, g1 = quadratic_cotangents(width, height, d0, d1, theta, gv, gl)
        return gu, gw, gh, g0, g1, gu


@triton.jit
def cancelled(width, height, d0, d1, divide, t, g, gl, within, beside, DIVIDED: tl.constexpr):
    """The cotangent of v, at the part t of its bin, with which that of u is -g, and the same as :func:`cotangents` for it.

    ``beside`` is what the former is outside of the interval, but for its sign.
    """
    s = height / width
    if DIVIDED:
        second, part, rest = linear_root(s, d0, d1, divide, t)
        value, slope = linear_curve(s, d0, d1, divide, second, part, rest)
        direct, _, _, _, _ = linear_cotangents(s, height, d0, d1, divide, second, part, rest, g * 0, gl)
        gv = -tl.where(within, (g + direct / width) / slope, beside)
        _, of_s, g0, g1, g_divide = linear_cotangents(s, height, d0, d1, divide, second, part, rest, gv, gl)
        theta = part_of_bin(divide, second, part)
        gu, gw, gh = of_bin(-g * width, of_s, theta, value, width, height, gv)
        return gv, gu, gw, gh, g0, g1, g_divide
    else:
        theta = quadratic_root(s, d0, d1, t)
        direct, _, _, _, _ = quadratic_cotangents(width, height, d0, d1, theta, g * 0, gl)
        _, slope = quadratic_curve(s, d0, d1, theta)
        gv = -tl.where(within, (g + direct) / slope, beside)
        gu, gw, gh, g0, g1 = quadratic_cotangents(width, height, d0, d1, theta, gv, gl)
        return gv, gu, gw, gh, g0, g1, gu


@triton.jit
def spline_backward(
    x, widths, heights, derivatives, lambdas, g_z, g_log_slope, g_x, g_widths, g_heights, g_derivatives, g_lambdas, elements,
    x_row, w_row, w_column, h_row, h_column, d_row, d_column, l_row, l_column, g_row, g_log_row,
    INVERSE: tl.constexpr, DIVIDED: tl.constexpr, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr, DERIVATIVES: tl.constexpr,
    ACC: tl.constexpr, BLOCK: tl.constexpr, BINS: tl.constexpr, KNOTS: tl.constexpr,
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
    divide, divide_slope = d0, d0
    if DIVIDED:
        raw = raw_numbers(lambdas, l_row, l_column, e, inside, k, OPTIONS[0], ACC)
        divide, divide_slope = bounded(at(k, index, raw), CONSTANTS)
    if INVERSE:  # from here on as for the other direction at the result u, with the cotangent that cancels the one of u
        t, everywhere, beside = part_of(at_u, y0, height), OPTIONS[1] == 1, gv if OPTIONS[1] == 0 else gv / d
        gl = -gl
        gv, gu, gw, gh, g0, g1, g_divide = cancelled(
            width, height, d0, d1, divide, t, gv, gl, within | everywhere, beside, DIVIDED
        )
        u = tl.where(within, u, end + (u - end) / d)
    else:
        gu, gw, gh, g0, g1, g_divide = cotangents(width, height, d0, d1, divide, part_of(at_u, x0, width), gv, gl, DIVIDED)
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
    if DIVIDED:
        found = tl.where(within, g_divide * divide_slope, 0)
        tl.store(g_lambdas + e[:, None] * OPTIONS[0] + k, tl.where(k == index[:, None], found[:, None], 0), own)


def spline(x, parameters, inverse, map):
    """z and log|dz/dx| of a vector x, given a matrix (elements, n) of each kind of parameter.

    ``map`` is a family, options and constants.
    """
    z, log_slope = torch.empty_like(x), torch.empty_like(x)
    if len(x):
        with _launch.on(x):
            arguments, grid = _given(x, parameters, inverse, map)
            spline_forward[grid](z=z, log_slope=log_slope, **arguments)
    return z, log_slope


def spline_gradients(g_z, g_log_slope, x, parameters, inverse, map):
    """Cotangents of x and of the parameters, contiguous."""
    g_x, *found = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (x, *parameters))
    if len(x):
        with _launch.on(x):
            arguments, grid = _given(x, parameters, inverse, map)
            names = {f"g_{kind}": g for kind, g in zip_longest(_KINDS, found, fillvalue=x)}
            spline_backward[grid](
                g_z=g_z, g_log_slope=g_log_slope, g_row=g_z.stride(0), g_log_row=g_log_slope.stride(0), g_x=g_x,
                **names, **arguments,
            )  # fmt: skip
    return g_x, found


_KINDS = "widths", "heights", "derivatives", "lambdas"  # the last of rational-linear splines only, whose bins are divided


def _given(x, parameters, inverse, map):
    """Arguments of both kernels, and their grid."""
    _, options, constants = map
    count, double = parameters[2].shape[1], x.dtype == torch.float64
    bins, knots = triton.next_power_of_2(options[0]), triton.next_power_of_2(count)
    block = max(_ELEMENTS // (2 if double else 1) // max(bins, knots), 1)
    kinds = dict(zip_longest(_KINDS, parameters, fillvalue=parameters[0]))
    strides = {f"{kind[0]}_{way}": t.stride(i) for kind, t in kinds.items() for i, way in enumerate(("row", "column"))}
    arguments = {
        "x": x, **kinds, "elements": len(x), "x_row": x.stride(0), **strides,
        "INVERSE": inverse, "DIVIDED": len(parameters) == len(_KINDS), "OPTIONS": tuple(options), "CONSTANTS": tuple(constants),
        "DERIVATIVES": count, "ACC": tl.float64 if double else tl.float32, "BLOCK": block, "BINS": bins, "KNOTS": knots,
        "num_warps": 4,
    }  # fmt: skip
    return arguments, (-(-len(x) // block),)
