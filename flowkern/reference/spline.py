"""Oracle of ``spline`` (Neural Spline Flows, Durkan et al., 2019, section 3.1; circular: Rezende et al., 2020).

Rational-linear ones: Invertible Generative Modeling using Linear Rational Splines (Dolatabadi et al., 2020).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def bin_sizes(raw: Tensor, least: float, parametrization: str, settings: tuple[float, ...]) -> Tensor:
    """Positive sizes (..., bins) that sum to one."""
    if parametrization == "softplus":
        return least + (1 - least * raw.shape[-1]) * torch.softmax(settings[4] * raw, -1)
    return torch.softmax(raw / (1 + (2 * raw / math.log(settings[0])).abs()), -1)


def knot_derivatives(raw: Tensor, tails: str, parametrization: str, settings: tuple[float, ...]) -> Tensor:
    """The derivatives at all knots (..., bins + 1)."""
    if parametrization == "softplus":
        least, end = settings[2:4]
        inner = least - F.logsigmoid(-raw)
    else:
        end = 1.0
        inner = (raw / (1 + (raw / math.log(settings[0])).abs())).exp()
    if tails == "linear":
        return F.pad(inner, (1, 1), value=end)
    return torch.cat([inner, inner[..., :1]], -1) if tails == "circular" else inner


def spline(
    x: Tensor,
    widths: Tensor,
    heights: Tensor,
    derivatives: Tensor,
    lambdas: Tensor | None = None,
    *,
    interval: tuple[float, float] = (-5.0, 5.0),
    tails: str = "linear",
    parametrization: str = "soft_clipped_exp",
    settings: tuple[float, ...] = (1e-3,),
    shifted: bool = False,
    least_lambda: float = 0.025,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """z and log|dz/dx| of every x, as `flowkern.ops.spline` defines them; half precision is computed in float32.

    With ``lambdas`` a spline is rational-linear: they are raw numbers that say where in its bin a piece is divided.
    """
    if x.dtype in (torch.bfloat16, torch.float16):
        upcast = (None if t is None else t.float() for t in (x, widths, heights, derivatives, lambdas))
        options = {"interval": interval, "tails": tails, "parametrization": parametrization, "settings": settings}
        more = {"shifted": shifted, "least_lambda": least_lambda, "inverse": inverse}
        z, log_slope = spline(*upcast, **options, **more)  # type: ignore[arg-type, misc]
        return z.to(x.dtype), log_slope.to(x.dtype)
    lower, upper = interval
    length = upper - lower
    if shifted:
        x = turned(x, lower, length) if inverse else turned(x, 0, length) + lower
    # A row that is not finite has no log-det; the difference is zero for all others.
    finite = (x - x).detach()
    turns = ((x - lower) / length).floor().detach() * length if tails == "circular" else torch.zeros_like(x)
    u = x - turns
    inside = torch.ones_like(u, dtype=torch.bool) if tails == "circular" else (u >= lower) & (u < upper)

    least = settings[:2] if parametrization == "softplus" else (0.0, 0.0)
    w = length * bin_sizes(widths, least[0], parametrization, settings)
    h = length * bin_sizes(heights, least[1], parametrization, settings)
    d = knot_derivatives(derivatives, tails, parametrization, settings)
    left, bottom = (F.pad(lower + t.cumsum(-1)[..., :-1], (1, 0), value=lower) for t in (w, h))
    clipped = torch.where(inside, u, lower)[..., None]  # the branch that is not taken must have a gradient too
    k = (clipped >= (bottom if inverse else left)[..., 1:]).sum(-1, keepdim=True)

    def chosen(t: Tensor) -> Tensor:
        return t.expand(*k.shape[:-1], t.shape[-1]).gather(-1, k)

    x0, y0, w, h, d0, d1 = (chosen(t) for t in (left, bottom, w, h, d[..., :-1], d[..., 1:]))
    if lambdas is None:
        z, log_slope = rational_quadratic(clipped, x0, y0, w, h, d0, d1, inverse)
    else:
        divide = chosen(least_lambda + (1 - 2 * least_lambda) * lambdas.sigmoid())
        z, log_slope = rational_linear(clipped, divide, x0, y0, w, h, d0, d1, inverse)
    z, log_slope = z[..., 0] + turns, log_slope[..., 0]
    if tails == "unconstrained":
        end = u.detach().clamp(lower, upper)
        slope = torch.where(u < lower, d[..., 0], d[..., -1])
        outside = end + ((u - end) / slope if inverse else (u - end) * slope)
        z, log_slope = torch.where(inside, z, outside), torch.where(inside, log_slope, slope.log())
    else:
        z, log_slope = torch.where(inside, z, u), torch.where(inside, log_slope, 0)
    if shifted and inverse:
        z = turned(z, 0, length) + lower
    return z, (-log_slope if inverse else log_slope) + finite


def rational_quadratic(
    u: Tensor, x0: Tensor, y0: Tensor, w: Tensor, h: Tensor, d0: Tensor, d1: Tensor, inverse: bool
) -> tuple[Tensor, Tensor]:
    """The value in a bin, or that of the inverse, and the logarithm of the slope of the curve there."""
    s = h / w
    if inverse:
        t = within_a_bin((u - y0) / h)
        # The discriminant b^2 - 4 a c as a sum of squares, and b + its root without a difference of like numbers.
        q = d0 * (1 - t) - d1 * t
        product = 4 * s * s * t * (1 - t)
        root = (q * q + product).sqrt()
        theta = within_a_bin(2 * s * t / (2 * s * t + torch.where(q > 0, q + root, product / (root - q.clamp(max=0)))))
        z = x0 + w * theta
    else:
        theta = within_a_bin((u - x0) / w)
    rest = 1 - theta
    # s + (d0 + d1 - 2 s) theta (1 - theta), as a sum of positive numbers.
    denominator = s * (theta * theta + rest * rest) + (d0 + d1) * theta * rest
    if not inverse:
        z = y0 + h * (s * theta * theta + d0 * theta * rest) / denominator
    ratio = s / denominator
    log_slope = (ratio * (ratio * (d1 * theta * theta + 2 * s * theta * rest + d0 * rest * rest))).log()
    return z, log_slope


def rational_linear(
    u: Tensor, divide: Tensor, x0: Tensor, y0: Tensor, w: Tensor, h: Tensor, d0: Tensor, d1: Tensor, inverse: bool
) -> tuple[Tensor, Tensor]:
    """The same of a bin that is divided at a part of its width (Dolatabadi et al., 2020).

    Either half is seen from its own end of the bin, from where both are the same. The paper's weights, which are free but for
    a factor, are those with which the quotient is d length part / (s (1 - part) + middle part), a sum of positive numbers.
    """
    s, mean = h / w, (d0 * d1).sqrt()
    if inverse:
        t = within_a_bin((u - y0) / h)
        second = t * (divide * d0 + (1 - divide) * mean) > divide * d0
    else:
        theta = within_a_bin((u - x0) / w)
        second = theta > divide
    length, near = torch.where(second, 1 - divide, divide), torch.where(second, d1, d0)
    middle = length * near + (1 - length) * mean
    if inverse:
        across = torch.where(second, 1 - t, t)
        rest = length * near - across * middle  # zero where the halves meet, and below it by what rounding takes
        part = s * across / (s * across + rest + (rest.clamp(min=0) - rest).detach())
        theta = torch.where(second, 1 - length * part, length * part)
        z = x0 + w * theta
    else:
        part = torch.where(second, 1 - theta, theta) / length
    denominator = s * (1 - part) + middle * part
    if not inverse:
        up = near * length * part / denominator
        z = y0 + h * torch.where(second, 1 - up, up)
    ratio = s / denominator
    return z, (ratio * (ratio * near)).log()


def turned(x: Tensor, lower: float, length: float) -> Tensor:
    """By whole turns, to a number that is not below ``lower``."""
    return x - ((x - lower) / length).floor().detach() * length


def within_a_bin(t: Tensor) -> Tensor:
    """t without what rounding adds beyond 0 and 1; the gradient passes straight through."""
    return t + (t.clamp(0, 1) - t).detach()


def rational_quadratic_map(
    u: Tensor, *parameters: Tensor, bins: int, inverse: bool = False, **options: object
) -> tuple[Tensor, Tensor]:
    """The same with each parameter of a feature a tensor of its own: widths, heights, derivatives."""
    u, *parts = torch.broadcast_tensors(u, *parameters)
    raw = torch.stack(parts, -1)
    widths, heights, derivatives = raw.tensor_split([bins, 2 * bins], -1)
    return spline(u, widths, heights, derivatives, inverse=inverse, **options)  # type: ignore[arg-type]


def rational_linear_map(
    u: Tensor, *parameters: Tensor, bins: int, inverse: bool = False, **options: object
) -> tuple[Tensor, Tensor]:
    """The same of rational-linear splines: widths, heights, derivatives, lambdas."""
    u, *parts = torch.broadcast_tensors(u, *parameters)
    raw = torch.stack(parts, -1)
    widths, heights, derivatives, lambdas = raw.tensor_split([bins, 2 * bins, raw.shape[-1] - bins], -1)
    return spline(u, widths, heights, derivatives, lambdas, inverse=inverse, **options)  # type: ignore[arg-type]
