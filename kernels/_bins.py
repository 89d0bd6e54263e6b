"""Splines of elements with all their bins, [element][bin]: what is read, or multiplied, together stays together, and no number
of bins fills the registers of a thread.

The functions are those of :mod:`flowkern.kernels.maps`, for both families: ``u`` is a vector of elements, and ``p`` has a
matrix of each kind of parameter: raw widths, raw heights, raw derivatives and, of rational-linear splines, the raw numbers that
say where bins are divided. Columns beyond the numbers of a kind are not looked at; of zeros there the cotangents are zeros.
"""

import triton
import triton.language as tl

from flowkern.kernels._splines import (
    derivative,
    end_beside,
    half_a_turn_on,
    inside_of,
    logit,
    lost,
    of_bin,
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
bounded, part_of_bin, place_at = rational_linear.bounded, rational_linear.part_of_bin, rational_linear.place_at


@triton.jit
def columns(t):
    """The numbers of a matrix's columns, as its row."""
    return tl.arange(0, t.shape[1])[None, :]


@triton.jit
def exponentials(raw, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    """Of the logits of all bins, which have a size of zero beyond the last one, and their sum; the slope of the logits."""
    a, slope = logit(raw, OPTIONS, CONSTANTS)
    a = tl.where(columns(raw) < OPTIONS[0], a, -float("inf"))
    found = tl.exp(a - tl.max(a, 1)[:, None])
    return found, tl.sum(found, 1), slope


@triton.jit
def at(index, numbers):
    """The number of each element that its index says; zero where there is none."""
    return tl.sum(tl.where(columns(numbers) == index[:, None], numbers, 0), 1)


@triton.jit
def index_in(u, sizes, LEAST: tl.constexpr, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    """The bin of a number; beyond the ends the first or the last."""
    LENGTH: tl.constexpr = CONSTANTS[1] - CONSTANTS[0]
    found, total, _ = sizes
    k = columns(found)
    unit = LENGTH * (1 - OPTIONS[0] * LEAST) / total
    knots = CONSTANTS[0] + LENGTH * LEAST * (k + 1).to(u.dtype) + unit[:, None] * tl.cumsum(found, 1)
    return tl.sum(((u[:, None] >= knots) & (k < OPTIONS[0] - 1)).to(tl.int32), 1)


@triton.jit
def placed(index, sizes, LEAST: tl.constexpr, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    """What is before the bin and in it, as parts of the exponentials; where it begins, and its size."""
    LENGTH: tl.constexpr = CONSTANTS[1] - CONSTANTS[0]
    SCALE: tl.constexpr = LENGTH * (1 - OPTIONS[0] * LEAST)
    found, total, _ = sizes
    before, part = tl.sum(tl.where(columns(found) < index[:, None], found, 0), 1), at(index, found)
    start = CONSTANTS[0] + LENGTH * LEAST * index.to(found.dtype) + SCALE * before / total
    return before, part, start, LENGTH * LEAST + SCALE * part / total


@triton.jit
def offset_in(u, index, sizes, LEAST: tl.constexpr, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    """How far a number is beyond the start of its bin, from float64: a narrow bin magnifies what rounding takes from the start.

    The exponentials are one at most. Rounded to the last digit of 192 the sum of 128 of them is exact, and what that leaves of
    each is small.
    """
    LENGTH: tl.constexpr = CONSTANTS[1] - CONSTANTS[0]
    SCALE: tl.constexpr = LENGTH * (1 - OPTIONS[0] * LEAST)
    found, _, _ = sizes
    high = (found + 192.0) - 192.0
    low, earlier = found - high, columns(found) < index[:, None]
    total, low_total = tl.sum(high, 1).to(tl.float64), tl.sum(low, 1).to(tl.float64)
    before = tl.sum(tl.where(earlier, high, 0), 1).to(tl.float64)
    low_before = tl.sum(tl.where(earlier, low, 0), 1).to(tl.float64)
    part = before / total
    beside = (tl.fma(-part, total, before) + low_before - part * low_total) / total
    exact, least = u.to(tl.float64), LENGTH * LEAST * index.to(tl.float64)
    along = exact - CONSTANTS[0]
    beyond = along - least
    rest = lost(exact, -CONSTANTS[0], along) + lost(along, -least, beyond) - SCALE * beside
    return (tl.fma(tl.full(part.shape, -SCALE, tl.float64), part, beyond) + rest).to(u.dtype)


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
def ends(index, raw, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    """The derivatives at both ends of a bin and their slopes."""
    first, second = knots_of(index, OPTIONS)
    d0, slope0 = derivative(at(first, raw), OPTIONS, CONSTANTS)
    d1, slope1 = derivative(at(second, raw), OPTIONS, CONSTANTS)
    if OPTIONS[1] == 0:
        d0 = tl.where(index == 0, CONSTANTS[5], d0)
        d1 = tl.where(index == OPTIONS[0] - 1, CONSTANTS[5], d1)
    return d0, d1, slope0, slope1


@triton.jit
def division(index, p, CONSTANTS: tl.constexpr):
    """The part of its width at which a bin is divided, and its slope; of a family without divisions neither is looked at."""
    if len(p) == 4:
        return bounded(at(index, p[3]), CONSTANTS)
    else:
        return 0.5, 0.0


@triton.jit
def find(u, p, HEIGHTS: tl.constexpr, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    """The bin of a number among the heights, or the widths.

    Its index, which part of it is below the number; of widths and of heights the exponentials, and what :func:`placed` says.
    """
    widths, heights = exponentials(p[0], OPTIONS, CONSTANTS), exponentials(p[1], OPTIONS, CONSTANTS)
    LEAST: tl.constexpr = CONSTANTS[3] if HEIGHTS else CONSTANTS[2]
    compared = heights if HEIGHTS else widths
    index = index_in(u, compared, LEAST, OPTIONS, CONSTANTS)
    knots = ends(index, p[2], OPTIONS, CONSTANTS)
    of_width = placed(index, widths, CONSTANTS[2], OPTIONS, CONSTANTS)
    of_height = placed(index, heights, CONSTANTS[3], OPTIONS, CONSTANTS)
    size = of_height[3] if HEIGHTS else of_width[3]
    t = within_a_bin(offset_in(u, index, compared, LEAST, OPTIONS, CONSTANTS) / size)
    return index, t, widths, heights, of_width, of_height, knots


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
def mapped(u, p, INVERSE: tl.constexpr, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    """The spline, or its inverse, of a number, and the logarithm of the slope; beyond the ends its tails."""
    turns = whole_turns(u, OPTIONS, CONSTANTS)
    index, t, _, _, of_width, of_height, knots = find(u - turns, p, INVERSE, OPTIONS, CONSTANTS)
    _, _, x0, w = of_width
    _, _, y0, h = of_height
    d0, d1, _, _ = knots
    divide, _ = division(index, p, CONSTANTS)
    if INVERSE:
        theta, slope = evaluate(h / w, d0, d1, divide, t, True, len(p) == 4)
        v, log_slope = x0 + w * theta + turns, -tl.log(slope)
    else:
        part, slope = evaluate(h / w, d0, d1, divide, t, False, len(p) == 4)
        v, log_slope = y0 + h * part + turns, tl.log(slope)
    inside = inside_of(u, CONSTANTS)
    if OPTIONS[1] == 0:
        v, log_slope = tl.where(inside, v, u), tl.where(inside, log_slope, 0)
    elif OPTIONS[1] == 2:
        end, d = end_beside(u, CONSTANTS), tl.where(u < CONSTANTS[0], d0, d1)
        d = 1 / d if INVERSE else d
        v, log_slope = tl.where(inside, v, end + (u - end) * d), tl.where(inside, log_slope, tl.log(d))
    return v, log_slope + (u - u)


@triton.jit
def forward(u, p, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    return mapped(half_a_turn_on(u, OPTIONS, CONSTANTS), p, False, OPTIONS, CONSTANTS)


@triton.jit
def inverse(v, p, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    u, log_slope = mapped(turned_back(v, OPTIONS, CONSTANTS), p, True, OPTIONS, CONSTANTS)
    return half_a_turn_on(u, OPTIONS, CONSTANTS), log_slope


@triton.jit
def cotangents(w, h, d0, d1, divide, theta, gv, gl, DIVIDED: tl.constexpr):
    """Those of u, the bin's width and height, the derivatives at both ends, and the division, for u at the part theta."""
    s = h / w
    if DIVIDED:
        second, part, rest = place_at(divide, theta)
        value, _ = linear_curve(s, d0, d1, divide, second, part, rest)
        of_theta, of_s, g0, g1, g_divide = linear_cotangents(s, h, d0, d1, divide, second, part, rest, gv, gl)
    else:
        value, _ = quadratic_curve(s, d0, d1, theta)
        of_theta, of_s, g0, g1 = quadratic_cotangents(s, h, d0, d1, theta, gv, gl)
        g_divide = g0
    gu, gw, gh = of_bin(of_theta, of_s, theta, value, w, h, gv)
    return gu, gw, gh, g0, g1, g_divide


@triton.jit
def cancelled(w, h, d0, d1, divide, t, g, gl, within, beside, DIVIDED: tl.constexpr):
    """The cotangent of v, at the part t of its bin, with which that of u is -g, and the same as :func:`cotangents` for it.

    ``beside`` is what the former is outside of the interval, but for its sign.
    """
    s = h / w
    if DIVIDED:
        second, part, rest = linear_root(s, d0, d1, divide, t)
        value, slope = linear_curve(s, d0, d1, divide, second, part, rest)
        direct, _, _, _, _ = linear_cotangents(s, h, d0, d1, divide, second, part, rest, g * 0, gl)
        gv = -tl.where(within, (g + direct / w) / slope, beside)
        _, of_s, g0, g1, g_divide = linear_cotangents(s, h, d0, d1, divide, second, part, rest, gv, gl)
        theta = part_of_bin(divide, second, part)
    else:
        theta = quadratic_root(s, d0, d1, t)
        value, slope = quadratic_curve(s, d0, d1, theta)
        direct, _, _, _ = quadratic_cotangents(s, h, d0, d1, theta, g * 0, gl)
        gv = -tl.where(within, (g + direct / w) / slope, beside)
        _, of_s, g0, g1 = quadratic_cotangents(s, h, d0, d1, theta, gv, gl)
        g_divide = g0
    # That of theta is -g w but for rounding, which a steep curve magnifies.
    gu, gw, gh = of_bin(-g * w, of_s, theta, value, w, h, gv)
    return gv, gu, gw, gh, g0, g1, g_divide


@triton.jit
def size_gradients(index, sizes, of_size, g_start, g_size, LEAST: tl.constexpr, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    """Cotangents of the raw sizes from those of the bin's start and size."""
    found, total, slope = sizes
    before, part, _, _ = of_size
    unit = (CONSTANTS[1] - CONSTANTS[0]) * (1 - OPTIONS[0] * LEAST) / total
    g_before, g_bin = unit * g_start, unit * g_size
    mean = (g_before * before + g_bin * part) / total
    i, k = index[:, None], columns(found)
    g = tl.where(k < i, g_before[:, None], tl.where(k == i, g_bin[:, None], 0))
    return found * (g - mean[:, None]) * slope


@triton.jit
def gradients(u, p, gv, gl, INVERSE: tl.constexpr, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    """Cotangents of u and of the parameters; of the inverse those of its argument, which is called u too."""
    turns = whole_turns(u, OPTIONS, CONSTANTS)
    index, t, widths, heights, of_width, of_height, knots = find(u - turns, p, INVERSE, OPTIONS, CONSTANTS)
    w, h = of_width[3], of_height[3]
    d0, d1, slope0, slope1 = knots
    divide, divide_slope = division(index, p, CONSTANTS)
    within, d, end = inside_of(u, CONSTANTS), tl.where(u < CONSTANTS[0], d0, d1), end_beside(u, CONSTANTS)
    if INVERSE:  # from here on as for the other direction at the result u, with the cotangent that cancels the one of u
        everywhere, beside = OPTIONS[1] == 1, gv if OPTIONS[1] == 0 else gv / d
        gv, gu, gw, gh, g0, g1, g_divide = cancelled(
            w, h, d0, d1, divide, t, gv, gl, within | everywhere, beside, len(p) == 4
        )  # fmt: skip
        u = tl.where(within, u, end + (u - end) / d)
    else:
        gu, gw, gh, g0, g1, g_divide = cotangents(w, h, d0, d1, divide, t, gv, gl, len(p) == 4)
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
    of_widths = size_gradients(index, widths, of_width, gx0, gw, CONSTANTS[2], OPTIONS, CONSTANTS)
    of_heights = size_gradients(index, heights, of_height, gy0, gh, CONSTANTS[3], OPTIONS, CONSTANTS)
    first, second = knots_of(index, OPTIONS)
    j = columns(p[2])
    of_derivatives = tl.where(j == first[:, None], (g0 * slope0)[:, None], 0)
    of_derivatives += tl.where(j == second[:, None], (g1 * slope1)[:, None], 0)
    found = of_widths, of_heights, of_derivatives
    if len(p) == 4:
        g = tl.where(within, g_divide * divide_slope, 0)
        found = found + (tl.where(columns(p[3]) == index[:, None], g[:, None], 0),)
    return -gv if INVERSE else gu, found


@triton.jit
def backward(u, p, gv, gl, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    return gradients(half_a_turn_on(u, OPTIONS, CONSTANTS), p, gv, gl, False, OPTIONS, CONSTANTS)


@triton.jit
def backward_of_inverse(v, p, g, gl, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    return gradients(turned_back(v, OPTIONS, CONSTANTS), p, g, gl, True, OPTIONS, CONSTANTS)
