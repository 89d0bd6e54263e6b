"""Monotonic rational-quadratic splines: parameters are the raw widths of the bins, their raw heights, the raw derivatives."""

import triton
import triton.language as tl

from flowkern.kernels._splines import (
    derivative_gradients,
    end_beside,
    find,
    half_a_turn_on,
    inside_of,
    of_bin,
    place,
    size_gradients,
    turned_back,
    whole_turns,
    within_a_bin,
)


@triton.jit
def curve(s, d0, d1, theta):
    """The part of the bin's height, and dv/du."""
    rest = 1 - theta
    denominator = s * (theta * theta + rest * rest) + (d0 + d1) * theta * rest
    ratio = s / denominator
    slope = ratio * (ratio * (d1 * theta * theta + 2 * s * theta * rest + d0 * rest * rest))
    return (s * theta * theta + d0 * theta * rest) / denominator, slope


@triton.jit
def root(s, d0, d1, t):
    """Where in its bin the curve has the part t of the height: the discriminant is a sum of squares."""
    q = d0 * (1 - t) - d1 * t
    product = 4 * s * s * t * (1 - t)
    r = tl.sqrt(q * q + product)
    total = tl.where(q > 0, q + r, product / (r - tl.where(q > 0, 0, q)))
    return within_a_bin(2 * s * t / (2 * s * t + total))


@triton.jit
def forward(u, p, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    u = half_a_turn_on(u, OPTIONS, CONSTANTS)
    turns = whole_turns(u, OPTIONS, CONSTANTS)
    index, offset, widths, heights, d0, d1, _, _ = find(u - turns, p, False, OPTIONS, CONSTANTS)
    _, w = place(index, widths, CONSTANTS[2], OPTIONS, CONSTANTS)
    y0, h = place(index, heights, CONSTANTS[3], OPTIONS, CONSTANTS)
    value, slope = curve(h / w, d0, d1, within_a_bin(offset / w))
    v, log_slope = y0 + h * value, tl.log(slope)
    inside, finite = inside_of(u, CONSTANTS), u - u
    if OPTIONS[1] == 0:
        return tl.where(inside, v, u), tl.where(inside, log_slope, 0) + finite
    elif OPTIONS[1] == 1:
        return v + turns, log_slope + finite
    else:
        end, d = end_beside(u, CONSTANTS), tl.where(u < CONSTANTS[0], d0, d1)
        return tl.where(inside, v, end + (u - end) * d), tl.where(inside, log_slope, tl.log(d)) + finite


@triton.jit
def inverse(v, p, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    v = turned_back(v, OPTIONS, CONSTANTS)
    turns = whole_turns(v, OPTIONS, CONSTANTS)
    index, offset, widths, heights, d0, d1, _, _ = find(v - turns, p, True, OPTIONS, CONSTANTS)
    x0, w = place(index, widths, CONSTANTS[2], OPTIONS, CONSTANTS)
    _, h = place(index, heights, CONSTANTS[3], OPTIONS, CONSTANTS)
    theta = root(h / w, d0, d1, within_a_bin(offset / h))
    _, slope = curve(h / w, d0, d1, theta)
    u, log_slope = x0 + w * theta, -tl.log(slope)
    inside, finite = inside_of(v, CONSTANTS), v - v
    if OPTIONS[1] == 0:
        return half_a_turn_on(tl.where(inside, u, v), OPTIONS, CONSTANTS), tl.where(inside, log_slope, 0) + finite
    elif OPTIONS[1] == 1:
        return u + turns, log_slope + finite
    else:
        end, d = end_beside(v, CONSTANTS), tl.where(v < CONSTANTS[0], d0, d1)
        return tl.where(inside, u, end + (v - end) / d), tl.where(inside, log_slope, -tl.log(d)) + finite


@triton.jit
def cotangents(s, h, d0, d1, theta, gv, gl):
    """Those of the part of the bin's width, the mean slope and the derivatives at both ends, see the CPU's header."""
    rest = 1 - theta
    product = theta * rest
    denominator = s * (theta * theta + rest * rest) + (d0 + d1) * product
    m = d1 * theta * theta + 2 * s * product + d0 * rest * rest
    value = (s * theta * theta + d0 * product) / denominator
    per_m, per_d, g = gl / m, 2 * gl / denominator, gv * h / denominator
    of_theta = g * s * m / denominator + per_m * 2 * (d1 * theta + s * (rest - theta) - d0 * rest)
    of_theta -= per_d * (rest - theta) * (d0 + d1 - 2 * s)
    of_s = g * product * (d1 * theta * theta - d0 * rest * rest) / denominator + 2 * gl / s
    of_s += per_m * 2 * product - per_d * (theta * theta + rest * rest)
    of_d0 = g * product * (s * rest * rest + d1 * product) / denominator + per_m * rest * rest - per_d * product
    of_d1 = per_m * theta * theta - g * product * value - per_d * product
    return of_theta, of_s, of_d0, of_d1


@triton.jit
def parameter_gradients(
    u, p, index, widths, heights, w, h, d0, d1, slope0, slope1, theta, value, of_piece, gv, gl,
    OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr,
):  # fmt: skip
    """The cotangent of u and a tuple of those of the parameters, from those of the piece of the bin that u is in."""
    of_theta, of_s, g0, g1 = of_piece
    gu, gw, gh = of_bin(of_theta, of_s, theta, value, w, h, gv)
    gx0, gy0 = -gu, gv
    if OPTIONS[1] != 1:
        inside = inside_of(u, CONSTANTS)
        gx0, gw, gy0, gh = tl.where(inside, gx0, 0), tl.where(inside, gw, 0), tl.where(inside, gy0, 0), tl.where(inside, gh, 0)
        g0, g1 = tl.where(inside, g0, 0), tl.where(inside, g1, 0)
        if OPTIONS[1] == 0:
            gu = tl.where(inside, gu, gv)
        else:
            below, d = u < CONSTANTS[0], tl.where(u < CONSTANTS[0], d0, d1)
            gd = gv * (u - end_beside(u, CONSTANTS)) + gl / d
            gu = tl.where(inside, gu, gv * d)
            g0 = tl.where(below, gd, g0)
            g1 = tl.where(u < CONSTANTS[1], g1, gd)
    of_widths = size_gradients(index, widths, p, gx0, gw, 0, CONSTANTS[2], OPTIONS, CONSTANTS)
    of_heights = size_gradients(index, heights, p, gy0, gh, OPTIONS[0], CONSTANTS[3], OPTIONS, CONSTANTS)
    return gu, of_widths + of_heights + derivative_gradients(index, g0 * slope0, g1 * slope1, OPTIONS)


@triton.jit
def backward(u, p, gv, gl, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    u = half_a_turn_on(u, OPTIONS, CONSTANTS)
    turns = whole_turns(u, OPTIONS, CONSTANTS)
    index, offset, widths, heights, d0, d1, slope0, slope1 = find(u - turns, p, False, OPTIONS, CONSTANTS)
    _, w = place(index, widths, CONSTANTS[2], OPTIONS, CONSTANTS)
    _, h = place(index, heights, CONSTANTS[3], OPTIONS, CONSTANTS)
    theta = within_a_bin(offset / w)
    value, _ = curve(h / w, d0, d1, theta)
    of_piece = cotangents(h / w, h, d0, d1, theta, gv, gl)
    return parameter_gradients(
        u, p, index, widths, heights, w, h, d0, d1, slope0, slope1, theta, value, of_piece, gv, gl, OPTIONS, CONSTANTS
    )


@triton.jit
def backward_of_inverse(v, p, g, gl, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    v = turned_back(v, OPTIONS, CONSTANTS)
    turns = whole_turns(v, OPTIONS, CONSTANTS)
    index, offset, widths, heights, d0, d1, slope0, slope1 = find(v - turns, p, True, OPTIONS, CONSTANTS)
    _, w = place(index, widths, CONSTANTS[2], OPTIONS, CONSTANTS)
    _, h = place(index, heights, CONSTANTS[3], OPTIONS, CONSTANTS)
    theta = root(h / w, d0, d1, within_a_bin(offset / h))
    direct, _, _, _ = cotangents(h / w, h, d0, d1, theta, g * 0, gl)
    value, slope = curve(h / w, d0, d1, theta)
    gv = (g + direct / w) / slope
    u = v
    if OPTIONS[1] != 1:  # on the same side of the interval as v
        inside, d = inside_of(v, CONSTANTS), tl.where(v < CONSTANTS[0], d0, d1)
        gv = tl.where(inside, gv, g if OPTIONS[1] == 0 else g / d)
        end = end_beside(v, CONSTANTS)
        u = tl.where(inside, v, end + (v - end) / d)
    _, of_s, g0, g1 = cotangents(h / w, h, d0, d1, theta, -gv, gl)
    of_piece = -g * w, of_s, g0, g1  # the first but for rounding, which a steep curve magnifies
    _, found = parameter_gradients(
        u, p, index, widths, heights, w, h, d0, d1, slope0, slope1, theta, value, of_piece, -gv, gl, OPTIONS, CONSTANTS
    )
    return gv, found


def kinds(options: tuple[int, ...]) -> tuple[int, ...]:
    """How many raw widths, heights and derivatives a feature has."""
    bins, tails, *_ = options
    return bins, bins, bins - 1 + tails
