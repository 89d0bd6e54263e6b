"""Elementary functions and activations of the kernels.

Written with exp and log alone, so that the interpreter and every backend run them. Kinds and constants are constexpr:
the numbers of flowkern.plan.ACTIVATIONS.
"""

import triton
import triton.language as tl


@triton.jit
def log1p(x):
    """log(1 + x) for x >= 0, to full relative precision: the rounding of 1 + x is divided out."""
    w = 1 + x
    return tl.where(w == 1, x, tl.log(w) * (x / tl.where(w == 1, 1, w - 1)))


@triton.jit
def expm1(x):
    """exp(x) - 1 for x <= 0, by Kahan's quotient."""
    u = tl.exp(x)
    inner = (u != 1) & (u > 0)
    return tl.where(u == 1, x, tl.where(inner, (u - 1) * (x / tl.log(tl.where(inner, u, 2))), u - 1))


@triton.jit
def sigmoid(x):
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0, e, 1) / (1 + e)


@triton.jit
def softplus(x):
    return tl.where(x < 0, 0, x) + log1p(tl.exp(-tl.abs(x)))


@triton.jit
def log_sigmoid(x):
    return tl.where(x < 0, x, 0) - log1p(tl.exp(-tl.abs(x)))


@triton.jit
def tanh(x):
    m = expm1(-2 * tl.abs(x))
    t = -m / (2 + m)
    return tl.where(x < 0, -t, t)


@triton.jit
def tanh_slope(x):
    """1 - tanh(x)^2, without its cancellation."""
    e = tl.exp(-2 * tl.abs(x))
    return 4 * e / ((1 + e) * (1 + e))


@triton.jit
def atan(x):
    """Of |x|: 0, pi/4 or pi/2 and the arctangent of s, a quotient with |s| <= tan(pi/8), by its series."""
    a = tl.abs(x)
    middle, upper = a > 0.4142135623730951, a > 2.414213562373095
    s = tl.where(upper, -1, tl.where(middle, a - 1, a)) / tl.where(upper, a, tl.where(middle, a + 1, 1))
    TERMS: tl.constexpr = 20 if x.dtype == tl.float64 else 9
    q, p = s * s, s * 0 + 1 / (2 * TERMS - 1)
    for i in tl.static_range(2, TERMS + 1):
        p = 1 / (2 * TERMS - 2 * i + 1) - p * q
    eighths = tl.where(upper, 2, tl.where(middle, 1, s * 0))
    r = eighths * 0.7853981633974483 + s * p
    return tl.where(x < 0, -r, r)


@triton.jit
def normal_cdf(x):
    return 0.5 * (1 + tl.erf(x * 0.7071067811865476))


@triton.jit
def activate(x, KIND: tl.constexpr, C: tl.constexpr):
    if KIND == 1:
        return tl.where(x < 0, 0, x)
    elif KIND == 2:
        return tl.where(x < 0, C * x, x)
    elif KIND == 3:
        return tl.where(x > 0, x, C * expm1(tl.where(x > 0, 0, x)))
    elif KIND == 4:
        return x * normal_cdf(x)
    elif KIND == 5:
        return x * sigmoid(x)
    elif KIND == 6:
        return tanh(x)
    elif KIND == 7:
        return sigmoid(x)
    elif KIND == 8:
        return softplus(x)
    else:
        return x


@triton.jit
def activation_slope(x, KIND: tl.constexpr, C: tl.constexpr):
    """The derivative at the pre-activation x."""
    if KIND == 1:
        return tl.where(x > 0, 1.0, 0.0)
    elif KIND == 2:
        return tl.where(x > 0, 1.0, tl.full(x.shape, C, x.dtype))
    elif KIND == 3:
        return tl.where(x > 0, 1.0, C * tl.exp(tl.where(x > 0, 0, x)))
    elif KIND == 4:
        return normal_cdf(x) + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
    elif KIND == 5:
        s = sigmoid(x)
        return s * (1 + x * (1 - s))
    elif KIND == 6:
        return tanh_slope(x)
    elif KIND == 7:
        s = sigmoid(x)
        return s * (1 - s)
    elif KIND == 8:
        return sigmoid(x)
    else:
        return x * 0 + 1
