"""What monotonic splines have in common, see csrc/include/flowkern/splines.h: parameters are the raw widths of the bins, their
raw heights, the raw derivatives.

OPTIONS holds the number of bins, the numbers of tails and a parametrization in flowkern.univariate.TAILS and
PARAMETRIZATIONS, and whether numbers are shifted first; CONSTANTS the ends of the interval, the least width, height and
derivative, the derivative at the ends, and the gain of the logits, or the reciprocal of the logarithm of the slope. A bin
is found by comparing with every knot.
"""

import triton
import triton.language as tl

from flowkern.kernels._math import sigmoid, softplus


@triton.jit
def logit(a, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    """What the exponentials are of, and its slope."""
    if OPTIONS[2] == 1:
        return a * CONSTANTS[6], CONSTANTS[6]
    else:
        q = 1 / (1 + tl.abs(2 * CONSTANTS[6] * a))
        return a * q, q * q


@triton.jit
def derivative(a, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    """The derivative at a knot, and its slope."""
    if OPTIONS[2] == 1:
        return CONSTANTS[4] + softplus(a), sigmoid(a)
    else:
        q = 1 / (1 + tl.abs(CONSTANTS[6] * a))
        d = tl.exp(a * q)
        return d, d * q * q


@triton.jit
def exponentials(p, FIRST: tl.constexpr, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    """Those of the bins' logits, and their sum."""
    most, _ = logit(p[FIRST], OPTIONS, CONSTANTS)
    for k in tl.static_range(1, OPTIONS[0]):
        a, _ = logit(p[FIRST + k], OPTIONS, CONSTANTS)
        most = tl.maximum(most, a)
    found = ()
    total = most * 0
    for k in tl.static_range(OPTIONS[0]):
        a, _ = logit(p[FIRST + k], OPTIONS, CONSTANTS)
        e = tl.exp(a - most)
        found = found + (e,)
        total += e
    return found, total


@triton.jit
def raw_derivative(p, K: tl.constexpr, OPTIONS: tl.constexpr):
    """That of knot K; zero where it is given."""
    FIRST: tl.constexpr = 2 * OPTIONS[0]
    if OPTIONS[1] == 0:
        if K == 0 or OPTIONS[0] == K:
            return p[0] * 0
        else:
            return p[FIRST + K - 1]
    elif OPTIONS[1] == 1:
        if OPTIONS[0] == K:
            return p[FIRST]
        else:
            return p[FIRST + K]
    else:
        return p[FIRST + K]


@triton.jit
def lost(a, b, total):
    """a + b less their rounded sum."""
    rest = total - a
    return (a - (total - rest)) + (b - rest)


@triton.jit
def find(u, p, HEIGHTS: tl.constexpr, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    """The bin of a number among the heights, or the widths; beyond the ends the first or the last.

    Its index, what u is beyond its start; its widths and heights as exponentials: of all bins, the sum, of those before the
    bin, of the bin; the derivatives at its ends and their slopes.
    """
    BINS: tl.constexpr = OPTIONS[0]
    LENGTH: tl.constexpr = CONSTANTS[1] - CONSTANTS[0]
    LEAST: tl.constexpr = CONSTANTS[3] if HEIGHTS else CONSTANTS[2]
    widths, width_sum = exponentials(p, 0, OPTIONS, CONSTANTS)
    heights, height_sum = exponentials(p, BINS, OPTIONS, CONSTANTS)
    unit = LENGTH * (1 - BINS * LEAST) / (height_sum if HEIGHTS else width_sum)
    index = tl.zeros(u.shape, tl.int32)
    width_before, width_part = u * 0, widths[0] + u * 0
    height_before, height_part = u * 0, heights[0] + u * 0
    raw0, raw1 = raw_derivative(p, 0, OPTIONS), raw_derivative(p, 1, OPTIONS)
    width, height = widths[0], heights[0]
    low, low_before = width * 0, u * 0  # what rounding took from the sum that is compared: a narrow bin magnifies it
    for k in tl.static_range(1, BINS):
        past = u >= CONSTANTS[0] + LENGTH * LEAST * k + unit * (height if HEIGHTS else width)
        index = tl.where(past, k, index)
        width_before, width_part = tl.where(past, width, width_before), tl.where(past, widths[k], width_part)
        height_before, height_part = tl.where(past, height, height_before), tl.where(past, heights[k], height_part)
        raw0 = tl.where(past, raw_derivative(p, k, OPTIONS), raw0)
        raw1 = tl.where(past, raw_derivative(p, k + 1, OPTIONS), raw1)
        low_before = tl.where(past, low, low_before)
        if HEIGHTS:
            low += lost(height, heights[k], height + heights[k])
        else:
            low += lost(width, widths[k], width + widths[k])
        width += widths[k]
        height += heights[k]
    SCALE: tl.constexpr = LENGTH * (1 - BINS * LEAST)
    total = height if HEIGHTS else width
    part = (height_before if HEIGHTS else width_before) / total
    beyond = (u - CONSTANTS[0]) - LENGTH * LEAST * index.to(part.dtype) - SCALE * part
    offset = beyond - SCALE * (low_before - part * low) / total
    d0, slope0 = derivative(raw0, OPTIONS, CONSTANTS)
    d1, slope1 = derivative(raw1, OPTIONS, CONSTANTS)
    if OPTIONS[1] == 0:
        d0 = tl.where(index == 0, CONSTANTS[5], d0)
        d1 = tl.where(index == BINS - 1, CONSTANTS[5], d1)
    return (
        index, offset, (widths, width_sum, width_before, width_part), (heights, height_sum, height_before, height_part),
        d0, d1, slope0, slope1,
    )  # fmt: skip


@triton.jit
def place(index, sizes, LEAST: tl.constexpr, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    """Where the bin begins, and its size."""
    LENGTH: tl.constexpr = CONSTANTS[1] - CONSTANTS[0]
    unit = LENGTH * (1 - OPTIONS[0] * LEAST) / sizes[1]
    return CONSTANTS[0] + LENGTH * LEAST * index.to(unit.dtype) + unit * sizes[2], LENGTH * LEAST + unit * sizes[3]


@triton.jit
def within_a_bin(t):
    return tl.where(t < 0, 0, tl.where(t > 1, 1, t))


@triton.jit
def whole_turns(u, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    if OPTIONS[1] == 1:
        LENGTH: tl.constexpr = CONSTANTS[1] - CONSTANTS[0]
        return tl.floor((u - CONSTANTS[0]) / LENGTH) * LENGTH
    else:
        return u * 0


@triton.jit
def turned_back(v, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    """Of a spline that is shifted: into its interval, by whole turns."""
    if OPTIONS[3] == 1:
        LENGTH: tl.constexpr = CONSTANTS[1] - CONSTANTS[0]
        return v - tl.floor((v - CONSTANTS[0]) / LENGTH) * LENGTH
    else:
        return v


@triton.jit
def half_a_turn_on(u, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    """Of a spline that is shifted: into its interval, half a turn on."""
    if OPTIONS[3] == 1:
        LENGTH: tl.constexpr = CONSTANTS[1] - CONSTANTS[0]
        return u - tl.floor(u / LENGTH) * LENGTH + CONSTANTS[0]
    else:
        return u


@triton.jit
def inside_of(u, CONSTANTS: tl.constexpr):
    return (u >= CONSTANTS[0]) & (u < CONSTANTS[1])


@triton.jit
def end_beside(u, CONSTANTS: tl.constexpr):
    return tl.where(u < CONSTANTS[0], CONSTANTS[0], CONSTANTS[1]) + u * 0


@triton.jit
def of_bin(of_theta, of_s, theta, value, w, h, gv):
    """The cotangents of u and of the bin's width and height, from those of the part of the width and the mean slope."""
    return of_theta / w, -(of_theta * theta + of_s * (h / w)) / w, gv * value + of_s / w


@triton.jit
def size_gradients(
    index, sizes, p, g_start, g_size, FIRST: tl.constexpr, LEAST: tl.constexpr, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr
):
    """Cotangents of the raw sizes from those of the bin's start and size."""
    LENGTH: tl.constexpr = CONSTANTS[1] - CONSTANTS[0]
    unit = LENGTH * (1 - OPTIONS[0] * LEAST) / sizes[1]
    before, of_bin = unit * g_start, unit * g_size
    mean = (before * sizes[2] + of_bin * sizes[3]) / sizes[1]
    found = ()
    for k in tl.static_range(OPTIONS[0]):
        _, slope = logit(p[FIRST + k], OPTIONS, CONSTANTS)
        g = tl.where(index > k, before, tl.where(index == k, of_bin, 0))
        found = found + (sizes[0][k] * (g - mean) * slope,)
    return found


@triton.jit
def derivative_gradients(index, g0, g1, OPTIONS: tl.constexpr):
    BEGIN: tl.constexpr = 1 if OPTIONS[1] == 0 else 0
    END: tl.constexpr = OPTIONS[0] + 1 if OPTIONS[1] == 2 else OPTIONS[0]
    found = ()
    for k in tl.static_range(BEGIN, END):
        before = index == (OPTIONS[0] - 1 if OPTIONS[1] == 1 and k == 0 else k - 1)  # the bin that ends at the knot
        found = found + (tl.where(index == k, g0, 0) + tl.where(before, g1, 0),)
    return found
