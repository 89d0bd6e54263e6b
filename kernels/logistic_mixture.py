"""Log-probabilities under mixtures, and their derivatives: one read of everything, one write."""

import math

import torch
import triton
import triton.language as tl

from flowkern.kernels import _launch
from flowkern.kernels._math import expm1
from flowkern.kernels._mixtures import elements_of, launch, load_components


@triton.jit
def density(m, log_scale):
    """Of a logistic distribution, where m = (x - mean) / scale; see ``interval``."""
    size = tl.abs(m)
    e = tl.exp(-size)
    r = 1 / (1 + e)
    t = (1 - e) * r  # tanh(|m| / 2)
    return -size - log_scale, r * r, tl.where(m < 0, t, -t), size * t - 1


@triton.jit
def normal_density(m, log_scale):
    """Of a normal distribution, in the same way."""
    return -0.5 * m * m - log_scale - 0.91893853320467274178, 1.0, -m, m * m - 1  # log(2 pi) / 2


@triton.jit
def interval(x, m, inverse, log_scale, HALF: tl.constexpr, LOG_HALF: tl.constexpr):
    """Probability of x - HALF to x + HALF: exp(high) factor, and the derivatives of its logarithm by m and log_scale.

    With d = HALF / scale it is sinh(d) / (cosh(m) + cosh(d)) = sigmoid(d - |m|) (1 - D^2) / (1 + E D), where E = exp(-|m|) and
    D = exp(-d): nothing cancels and nothing overflows. At an edge it is sigmoid(d - side m): E and D are zero, and |m|
    has a sign.
    """
    first, last = x < HALF - 1, x > 1 - HALF
    edge = first | last
    d = HALF * inverse
    side = tl.where(edge, tl.where(first, -1.0, 1.0), tl.where(m < 0, -1.0, 1.0)).to(m.dtype)
    size = side * m
    v = size - d
    f = tl.exp(-tl.abs(v))
    e = tl.where(edge, 0, tl.exp(-tl.where(edge, 0, size)))
    rest = tl.where(edge, 1, -expm1(-d))
    D = 1 - rest
    all = rest * (1 + D)  # 1 - D^2
    ratio = 1 / ((1 + f) * (1 + e * D))
    t = tl.where(v < 0, f, 1) * ratio
    slope = t * (1 - e * e)
    near = LOG_HALF - log_scale
    high = tl.where(v < 0, 0, -v) + tl.where(edge | (near > 0), 0, near)
    factor = all * ratio / tl.where(edge | (d > 1), 1, d)
    return high, factor, -side * slope, size * slope - d / all * t * ((1 + e * e) * (1 + D * D) + 4 * e * D)


@triton.jit
def logistic_mixture_kernel(
    x, logits, means, log_scales, out, by_logits, by_means, by_log_scales, count, columns, components,
    x_row, x_column, logits_at, means_at, log_scales_at,
    GAUSSIAN: tl.constexpr, DISCRETE: tl.constexpr, HALF: tl.constexpr, LOG_HALF: tl.constexpr, LEAST: tl.constexpr,
    KEEP: tl.constexpr, ACC: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    e, r, c, k, inside, given = elements_of(count, columns, components, BLOCK_E, BLOCK_K)
    value = tl.load(x + r * x_row + c * x_column, inside, 0).to(ACC)[:, None]
    logit = load_components(logits, logits_at, r, c, k, given, ACC)
    mean = load_components(means, means_at, r, c, k, given, ACC)
    raw = load_components(log_scales, log_scales_at, r, c, k, given, ACC)
    log_scale = tl.where(raw < LEAST, tl.full(raw.shape, LEAST, ACC), raw)
    inverse = tl.exp(-log_scale)
    m = (value - mean) * inverse
    if GAUSSIAN:
        high, factor, by_m, by_log_scale = normal_density(m, log_scale)
    elif DISCRETE:
        high, factor, by_m, by_log_scale = interval(value, m, inverse, log_scale, HALF, LOG_HALF)
    else:
        high, factor, by_m, by_log_scale = density(m, log_scale)
    real = (k < components)[None, :]
    logit = tl.where(real, logit, float("-inf"))
    high += logit
    largest, largest_logit = tl.max(high, 1)[:, None], tl.max(logit, 1)[:, None]
    part, weight = tl.exp(high - largest) * factor, tl.exp(logit - largest_logit)
    probability, weights = tl.sum(part, 1)[:, None], tl.sum(weight, 1)[:, None]
    log_prob = largest - largest_logit + tl.log(probability / weights)
    tl.store(out + e[:, None], log_prob, inside[:, None])
    if KEEP:
        at = e[:, None] * components + k[None, :]
        # The shares of the component in the probability and in the weights; of a single one the same number.
        share, scale = part * weights, 1 / (probability * weights)
        tl.store(by_logits + at, (share - weight * probability) * scale, given)
        tl.store(by_means + at, -share * scale * by_m * inverse, given)
        tl.store(by_log_scales + at, tl.where(raw < LEAST, 0, share * scale * by_log_scale), given)


def logistic_mixture(x, logits, means, log_scales, levels, log_scale_min, gaussian, keep):
    """Log-probabilities of x (rows, columns) and, where they are kept, their derivatives by the parameters.

    Parameters are (rows, columns, components), of any strides; ``levels`` is 0 for densities, which may be those of
    Gaussians. Derivatives are contiguous, in float32 at least.
    """
    exact = torch.promote_types(x.dtype, torch.float32)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    kept = [torch.empty(logits.shape, dtype=exact, device=x.device) for _ in range(3 if keep else 0)]
    half = 1 / (levels - 1) if levels else 1.0
    if x.numel():
        grid, arguments = launch(x, logits, means, log_scales, log_scale_min)
        by_logits, by_means, by_log_scales = kept or [out] * 3
        with _launch.on(x):
            logistic_mixture_kernel[grid](
                x=x, out=out, by_logits=by_logits, by_means=by_means, by_log_scales=by_log_scales, x_row=x.stride(0),
                x_column=x.stride(1), GAUSSIAN=gaussian, DISCRETE=levels > 0, HALF=half, LOG_HALF=math.log(half), KEEP=keep,
                **arguments,
            )  # fmt: skip
    return out, kept
