"""Monotonic rational-linear splines: parameters are the raw widths of the bins, their raw heights, the raw derivatives, and raw
numbers that say where the bins are divided, for which CONSTANTS ends with the least part. The formulas are explained in
csrc/include/flowkern/maps/rational_linear.h.
"""

import triton
import triton.language as tl

from flowkern.kernels._math import sigmoid
from flowkern.kernels._splines import derivative_gradients, find, inside_of, of_bin, place, size_gradients, within_a_bin


@triton.jit
def division(index, p, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    """The part of its width at which a bin is divided, and its slope."""
    FIRST: tl.constexpr = 3 * OPTIONS[0] - 1
    raw = p[FIRST]
    for k in tl.static_range(1, OPTIONS[0]):
        raw = tl.where(index == k, p[FIRST + k], raw)
    return bounded(raw, CONSTANTS)


@triton.jit
def bounded(raw, CONSTANTS: tl.constexpr):
    """The part that a raw number says, and its slope."""
    SPREAD: tl.constexpr = 1 - 2 * CONSTANTS[7]
    part = sigmoid(raw)
    return CONSTANTS[7] + SPREAD * part, SPREAD * part * (1 - part)


@triton.jit
def half(second, d0, d1, divide):
    """The length of a half, the derivative at its end of the bin, the mean of both, and the weight where the halves meet."""
    length, near, mean = tl.where(second, 1 - divide, divide), tl.where(second, d1, d0), tl.sqrt(d0 * d1)
    return length, near, mean, length * near + (1 - length) * mean


@triton.jit
def from_end(second, t):
    """The part t of a bin seen from the end of a half, and back."""
    return tl.where(second, 1 - t, t)


@triton.jit
def place_at(divide, theta):
    """Whether a part of a bin is in the second half, how far into its half it is from the end, and what is left."""
    second = theta > divide
    part = from_end(second, theta) / tl.where(second, 1 - divide, divide)
    return second, part, 1 - part


@triton.jit
def root(s, d0, d1, divide, t):
    """The place where the curve has the part t of the height."""
    second = t * (divide * d0 + (1 - divide) * tl.sqrt(d0 * d1)) > divide * d0
    length, near, _, middle = half(second, d0, d1, divide)
    across = from_end(second, t)
    rest = length * near - across * middle  # zero where the halves meet
    part, rest = s * across, tl.where(rest > 0, rest, 0)
    return second, part / (part + rest), rest / (part + rest)


@triton.jit
def part_of_bin(divide, second, part):
    return from_end(second, tl.where(second, 1 - divide, divide) * part)


@triton.jit
def curve(s, d0, d1, divide, second, part, rest):
    """The part of the bin's height, and dv/du."""
    length, near, _, middle = half(second, d0, d1, divide)
    denominator = s * rest + middle * part
    return from_end(second, near * length * part / denominator), s / denominator * (s / denominator * near)


@triton.jit
def forward(u, p, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    index, offset, widths, heights, d0, d1, _, _ = find(u, p, False, OPTIONS, CONSTANTS)
    divide, _ = division(index, p, OPTIONS, CONSTANTS)
    _, w = place(index, widths, CONSTANTS[2], OPTIONS, CONSTANTS)
    y0, h = place(index, heights, CONSTANTS[3], OPTIONS, CONSTANTS)
    second, part, rest = place_at(divide, within_a_bin(offset / w))
    value, slope = curve(h / w, d0, d1, divide, second, part, rest)
    inside = inside_of(u, CONSTANTS)
    return tl.where(inside, y0 + h * value, u), tl.where(inside, tl.log(slope), 0) + (u - u)


@triton.jit
def inverse(v, p, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    index, offset, widths, heights, d0, d1, _, _ = find(v, p, True, OPTIONS, CONSTANTS)
    divide, _ = division(index, p, OPTIONS, CONSTANTS)
    x0, w = place(index, widths, CONSTANTS[2], OPTIONS, CONSTANTS)
    _, h = place(index, heights, CONSTANTS[3], OPTIONS, CONSTANTS)
    second, part, rest = root(h / w, d0, d1, divide, within_a_bin(offset / h))
    _, slope = curve(h / w, d0, d1, divide, second, part, rest)
    inside = inside_of(v, CONSTANTS)
    return tl.where(inside, x0 + w * part_of_bin(divide, second, part), v), tl.where(inside, -tl.log(slope), 0) + (v - v)


@triton.jit
def cotangents(s, h, d0, d1, divide, second, part, rest, gv, gl):
    """Those of the part of the bin's width, the mean slope, the derivatives at both ends, and the division."""
    length, near, mean, middle = half(second, d0, d1, divide)
    far, sign = tl.where(second, d0, d1), tl.where(second, -1, 1)
    across, denominator = length * part, s * rest + middle * part
    g, up, per_d = sign * gv * h / denominator, near * across / denominator, 2 * gl / denominator
    of_d, of_mean = -(g * up + per_d), (1 - length) * mean / 2
    of_near = g * across / denominator * (s * rest + part * of_mean) + gl / near - per_d * part * (length + of_mean / near)
    of_far = of_d * part * of_mean / far
    of_s = of_d * rest + 2 * gl / s
    of_theta = gv * h * near * s / denominator / denominator - sign * per_d * (middle - s) / length
    of_divide = sign * of_d * part * (s - mean) / length
    return of_theta, of_s, tl.where(second, of_far, of_near), tl.where(second, of_near, of_far), of_divide


@triton.jit
def parameter_gradients(
    u, p, index, widths, heights, w, h, slope0, slope1, divide_slope, theta, value, of_piece, gv,
    OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr,
):  # fmt: skip
    """The cotangent of u and a tuple of those of the parameters, from those of the piece of the bin that u is in."""
    of_theta, of_s, g0, g1, g_divide = of_piece
    gu, gw, gh = of_bin(of_theta, of_s, theta, value, w, h, gv)
    inside = inside_of(u, CONSTANTS)
    gx0, gw, gy0, gh = tl.where(inside, -gu, 0), tl.where(inside, gw, 0), tl.where(inside, gv, 0), tl.where(inside, gh, 0)
    g0, g1, g_divide = tl.where(inside, g0, 0), tl.where(inside, g1, 0), tl.where(inside, g_divide, 0)
    of_widths = size_gradients(index, widths, p, gx0, gw, 0, CONSTANTS[2], OPTIONS, CONSTANTS)
    of_heights = size_gradients(index, heights, p, gy0, gh, OPTIONS[0], CONSTANTS[3], OPTIONS, CONSTANTS)
    found = of_widths + of_heights + derivative_gradients(index, g0 * slope0, g1 * slope1, OPTIONS)
    for k in tl.static_range(OPTIONS[0]):
        found = found + (tl.where(index == k, g_divide * divide_slope, 0),)
    return tl.where(inside, gu, gv), found


@triton.jit
def backward(u, p, gv, gl, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    index, offset, widths, heights, d0, d1, slope0, slope1 = find(u, p, False, OPTIONS, CONSTANTS)
    divide, divide_slope = division(index, p, OPTIONS, CONSTANTS)
    _, w = place(index, widths, CONSTANTS[2], OPTIONS, CONSTANTS)
    _, h = place(index, heights, CONSTANTS[3], OPTIONS, CONSTANTS)
    theta = within_a_bin(offset / w)
    second, part, rest = place_at(divide, theta)
    value, _ = curve(h / w, d0, d1, divide, second, part, rest)
    of_piece = cotangents(h / w, h, d0, d1, divide, second, part, rest, gv, gl)
    return parameter_gradients(
        u, p, index, widths, heights, w, h, slope0, slope1, divide_slope, theta, value, of_piece, gv, OPTIONS, CONSTANTS
    )


@triton.jit
def backward_of_inverse(v, p, g, gl, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    index, offset, widths, heights, d0, d1, slope0, slope1 = find(v, p, True, OPTIONS, CONSTANTS)
    divide, divide_slope = division(index, p, OPTIONS, CONSTANTS)
    _, w = place(index, widths, CONSTANTS[2], OPTIONS, CONSTANTS)
    _, h = place(index, heights, CONSTANTS[3], OPTIONS, CONSTANTS)
    second, part, rest = root(h / w, d0, d1, divide, within_a_bin(offset / h))
    direct, _, _, _, _ = cotangents(h / w, h, d0, d1, divide, second, part, rest, g * 0, gl)
    value, slope = curve(h / w, d0, d1, divide, second, part, rest)
    gv = tl.where(inside_of(v, CONSTANTS), (g + direct / w) / slope, g)
    _, of_s, g0, g1, g_divide = cotangents(h / w, h, d0, d1, divide, second, part, rest, -gv, gl)
    of_piece = -g * w, of_s, g0, g1, g_divide  # the first but for rounding, which a steep curve magnifies
    theta = part_of_bin(divide, second, part)
    _, found = parameter_gradients(  # v is inside where u is
        v, p, index, widths, heights, w, h, slope0, slope1, divide_slope, theta, value, of_piece, -gv, OPTIONS, CONSTANTS
    )
    return gv, found


def kinds(options: tuple[int, ...]) -> tuple[int, ...]:
    """How many raw widths, heights and derivatives a feature has, and numbers that say where its bins are divided."""
    return options[0], options[0], options[0] - 1, options[0]
