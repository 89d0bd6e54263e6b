"""Affine maps: parameter 0 of a feature is the shift t, parameter 1 the raw scale a, which additive maps do not have.

OPTIONS holds the numbers of a scale map and a placement in flowkern.univariate.SCALES and PLACEMENTS.
"""

import triton
import triton.language as tl

from flowkern.kernels._math import atan, log_sigmoid, sigmoid, softplus, tanh, tanh_slope


@triton.jit
def scale_of(p, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    """s, log s and d log s / da of a raw scale."""
    if OPTIONS[0] == 0:
        t = p[0]
        return tl.full(t.shape, 1, t.dtype), tl.zeros_like(t), tl.zeros_like(t)
    else:
        return raw_scale(p[1], OPTIONS[0], CONSTANTS)


@triton.jit
def raw_scale(a, SCALE: tl.constexpr, CONSTANTS: tl.constexpr):
    """The same of a map that has one: code after a return is compiled too, and additive maps have no p[1]."""
    if SCALE == 1:
        return tl.exp(a), a, a * 0 + 1
    elif SCALE == 2:  # the gradient passes straight through the clamp
        log_s = tl.where(a < CONSTANTS[0], CONSTANTS[0], tl.where(a > CONSTANTS[1], CONSTANTS[1], a))
        return tl.exp(log_s), log_s, a * 0 + 1
    elif SCALE == 3:
        d = 1 / (1 + tl.abs(a / CONSTANTS[0]))
        return tl.exp(a * d), a * d, d * d
    elif SCALE == 4:
        s = softplus(a) + CONSTANTS[0]
        return s, tl.log(s), sigmoid(a) / s
    elif SCALE == 5:
        b = a + CONSTANTS[0]
        r, q = sigmoid(b), sigmoid(-b)
        if CONSTANTS[1] == 0:
            return r, log_sigmoid(b), q
        else:
            s = r + CONSTANTS[1]
            return s, tl.log(s), r * q / s
    elif SCALE == 6:
        h = tanh(a * CONSTANTS[1])
        slope = CONSTANTS[0] * CONSTANTS[1] * tanh_slope(a * CONSTANTS[1])
        return tl.exp(h * CONSTANTS[0]), h * CONSTANTS[0], slope
    else:
        b = a * CONSTANTS[1]
        log_s = atan(b) * CONSTANTS[0]
        return tl.exp(log_s), log_s, CONSTANTS[0] * CONSTANTS[1] / (1 + b * b)


@triton.jit
def forward(u, p, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    s, log_s, _ = scale_of(p, OPTIONS, CONSTANTS)
    t = p[0]
    finite = u - u
    if OPTIONS[1] == 0:
        return u * s + t, log_s + finite
    elif OPTIONS[1] == 1:
        return (u - t) / s, finite - log_s
    elif OPTIONS[1] == 2:
        return (u + t) * s, log_s + finite
    else:
        return s * u + (1 - s) * t, log_s + finite


@triton.jit
def inverse(v, p, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    s, log_s, _ = scale_of(p, OPTIONS, CONSTANTS)
    t = p[0]
    finite = v - v
    if OPTIONS[1] == 0:
        return (v - t) / s, finite - log_s
    elif OPTIONS[1] == 1:
        return v * s + t, log_s + finite
    elif OPTIONS[1] == 2:
        return v / s - t, finite - log_s
    else:
        return (v - (1 - s) * t) / s, finite - log_s


@triton.jit
def cotangents(u, t, s, slope, gv, gl, OPTIONS: tl.constexpr):
    """Those of u and of the parameters, given the scale and d log s / da."""
    if OPTIONS[1] == 0:
        gu, gt, ga = gv * s, gv, (gv * u * s + gl) * slope
    elif OPTIONS[1] == 1:
        g = gv / s
        gu, gt, ga = g, -g, (-g * (u - t) - gl) * slope
    elif OPTIONS[1] == 2:
        g = gv * s
        gu, gt, ga = g, g, (g * (u + t) + gl) * slope
    else:
        gu, gt, ga = gv * s, gv * (1 - s), (gv * (u - t) * s + gl) * slope
    if OPTIONS[0] == 0:
        return gu, (gt,)
    else:
        return gu, (gt, ga)


@triton.jit
def backward(u, p, gv, gl, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    s, _, slope = scale_of(p, OPTIONS, CONSTANTS)
    return cotangents(u, p[0], s, slope, gv, gl, OPTIONS)


@triton.jit
def backward_of_inverse(v, p, g, gl, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    u, _ = inverse(v, p, OPTIONS, CONSTANTS)
    s, _, slope = scale_of(p, OPTIONS, CONSTANTS)
    gv = g / (1 / s if OPTIONS[1] == 1 else s)
    _, found = cotangents(u, p[0], s, slope, -gv, gl, OPTIONS)
    return gv, found
