"""Elementary functions, activations and univariate maps of the kernels.

Written with exp and log alone, so that the interpreter and every backend run them. Kinds and constants are constexpr:
the numbers of flowkern.plan.ACTIVATIONS, flowkern.univariate.SCALES and PLACEMENTS.
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


@triton.jit
def scale_of(a, SCALE: tl.constexpr, C0: tl.constexpr, C1: tl.constexpr):
    """s, log s and d log s / da of a raw scale."""
    if SCALE == 0:
        return tl.full(a.shape, 1, a.dtype), tl.zeros_like(a), tl.zeros_like(a)  # a is the shift: it may be infinite
    elif SCALE == 1:
        return tl.exp(a), a, a * 0 + 1
    elif SCALE == 2:  # the gradient passes straight through the clamp
        log_s = tl.where(a < C0, C0, tl.where(a > C1, C1, a))
        return tl.exp(log_s), log_s, a * 0 + 1
    elif SCALE == 3:
        d = 1 / (1 + tl.abs(a / C0))
        return tl.exp(a * d), a * d, d * d
    elif SCALE == 4:
        s = softplus(a) + C0
        return s, tl.log(s), sigmoid(a) / s
    elif SCALE == 5:
        b = a + C0
        p, q = sigmoid(b), sigmoid(-b)
        if C1 == 0:
            return p, log_sigmoid(b), q
        else:
            s = p + C1
            return s, tl.log(s), p * q / s
    else:
        h = tanh(a * C1)
        return tl.exp(h * C0), h * C0, C0 * C1 * tanh_slope(a * C1)


@triton.jit
def map_forward(u, t, a, SCALE: tl.constexpr, PLACEMENT: tl.constexpr, C0: tl.constexpr, C1: tl.constexpr):
    """v and log |dv/du|; the latter is NaN where u is not finite."""
    s, log_s, _ = scale_of(a, SCALE, C0, C1)
    finite = u - u
    if PLACEMENT == 0:
        return u * s + t, log_s + finite
    elif PLACEMENT == 1:
        return (u - t) / s, finite - log_s
    elif PLACEMENT == 2:
        return (u + t) * s, log_s + finite
    else:
        return s * u + (1 - s) * t, log_s + finite


@triton.jit
def map_inverse(v, t, a, SCALE: tl.constexpr, PLACEMENT: tl.constexpr, C0: tl.constexpr, C1: tl.constexpr):
    """u and log |du/dv|; the latter is NaN where v is not finite."""
    s, log_s, _ = scale_of(a, SCALE, C0, C1)
    finite = v - v
    if PLACEMENT == 0:
        return (v - t) / s, finite - log_s
    elif PLACEMENT == 1:
        return v * s + t, log_s + finite
    elif PLACEMENT == 2:
        return v / s - t, finite - log_s
    else:
        return (v - (1 - s) * t) / s, finite - log_s


@triton.jit
def map_backward(u, t, a, gv, gl, SCALE: tl.constexpr, PLACEMENT: tl.constexpr, C0: tl.constexpr, C1: tl.constexpr):
    """Cotangents of u, t and a from those of v and log |dv/du|."""
    s, _, slope = scale_of(a, SCALE, C0, C1)
    if PLACEMENT == 0:
        return gv * s, gv, (gv * u * s + gl) * slope
    elif PLACEMENT == 1:
        g = gv / s
        return g, -g, (-g * (u - t) - gl) * slope
    elif PLACEMENT == 2:
        g = gv * s
        return g, g, (g * (u + t) + gl) * slope
    else:
        return gv * s, gv * (1 - s), (gv * (u - t) * s + gl) * slope


@triton.jit
def map_slope(a, SCALE: tl.constexpr, PLACEMENT: tl.constexpr, C0: tl.constexpr, C1: tl.constexpr):
    """dv/du."""
    s, _, _ = scale_of(a, SCALE, C0, C1)
    return 1 / s if PLACEMENT == 1 else s
