"""v = t + s (u - kink) with a slope of its own on either side of the kink; parameters t, log s above, log s below."""

import triton
import triton.language as tl


@triton.jit
def forward(u, p, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    d = u - CONSTANTS[0]
    log_s = tl.where(d > 0, p[1], p[2])
    return p[0] + tl.exp(log_s) * d, log_s + (u - u)


@triton.jit
def inverse(v, p, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    w = v - p[0]
    log_s = tl.where(w > 0, p[1], p[2])
    return tl.exp(-log_s) * w + CONSTANTS[0], (v - v) - log_s


@triton.jit
def backward(u, p, gv, gl, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    d = u - CONSTANTS[0]
    s = tl.exp(tl.where(d > 0, p[1], p[2]))
    g = gv * s * d + gl
    return gv * s, (gv, tl.where(d > 0, g, 0), tl.where(d > 0, 0, g))


@triton.jit
def backward_of_inverse(v, p, g, gl, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr):
    u, _ = inverse(v, p, OPTIONS, CONSTANTS)
    gv = g / tl.exp(tl.where(u - CONSTANTS[0] > 0, p[1], p[2]))
    _, found = backward(u, p, -gv, gl, OPTIONS, CONSTANTS)
    return gv, found
