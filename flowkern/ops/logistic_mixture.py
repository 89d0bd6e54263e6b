"""Log-probability of each element under its own mixture of logistics."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flowkern import reference
from flowkern.ops._derivatives import plain_backward, wants_plain
from flowkern.ops._mixtures import Call, as_matrix, batch_of, checked_call
from flowkern.ops._rows import namespace


def logistic_mixture(
    x: Tensor,
    logits: Tensor,
    means: Tensor,
    log_scales: Tensor,
    *,
    levels: int | None = None,
    log_scale_min: float = -math.inf,
) -> Tensor:
    r"""log sum_k pi_k p_k(x) with pi = softmax(logits), element by element.

    Without ``levels`` p_k is the density of a logistic distribution. With them x takes the values -1 + 2 i / (levels - 1),
    and p_k is the probability of the interval half a level to either side, which for the first and the last level has no
    end: the probabilities of all levels sum to 1. It is evaluated without cancellation, so that it has all digits in the tails,
    at the edges, and for scales much larger or smaller than a level. A value between two levels counts as the middle of such an
    interval.

    Args:
        x: values (...), for levels from -1 to 1.
        logits: unnormalised log-weights of the components (..., components).
        means, log_scales: of the components (..., components); scales are sensible from exp(-80) to exp(80) in float32.
        levels: number of values of x, such as 256 or 65536, or ``None`` for real numbers.
        log_scale_min: log-scales below it count as this, and get no gradient.

    Returns:
        Log-probabilities in nats, for real numbers log-densities, with the broadcast shape of x.

    Raises:
        TypeError, ValueError: for arguments that do not fit each other.

    Example:
        >>> import torch
        >>> x = torch.arange(256) * (2 / 255) - 1
        >>> logits, means, log_scales = torch.zeros(2), torch.tensor([-0.5, 0.5]), torch.tensor([-2.0, -3.0])
        >>> log_prob = logistic_mixture(x, logits, means, log_scales, levels=256)
        >>> log_prob.shape, round(float(log_prob.exp().sum()), 4)
        (torch.Size([256]), 1.0)

    References:
        PixelCNN++ (Salimans et al., 2017), equation 2.
    """
    parameters = logits, means, log_scales
    call = checked_call("logistic_mixture", ("x", x), parameters, levels, log_scale_min)
    batch = batch_of("x", x.shape, parameters)
    if call.kernels.plain:
        return reference.logistic_mixture(x, *parameters, **call.options)
    dtype, components = x.dtype, logits.shape[-1]
    given = [as_matrix(call.kernels, t, batch, (components,)) for t in parameters]
    tensors = as_matrix(call.kernels, x, batch), *given
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        out = LogisticMixtureFunction.apply(call, *tensors)
    else:
        out, _ = _run(call, tensors, keep=False)
    return out.reshape(batch).to(dtype)


def _run(call: Call, tensors: tuple[Tensor, ...], keep: bool) -> tuple[Tensor, list[Tensor]]:
    """Log-probabilities and, where they are kept, their derivatives by the parameters."""
    return namespace(call.kernels).logistic_mixture(*tensors, call.levels, call.log_scale_min, keep)


class LogisticMixtureFunction(torch.autograd.Function):
    """The kernel makes the derivatives too, second ones go through the oracle."""

    @staticmethod
    def forward(ctx: Any, call: Call, *tensors: Tensor) -> Tensor:
        out, kept = _run(call, tensors, keep=True)
        ctx.call, ctx.inputs = call, len(tensors)
        ctx.save_for_backward(*tensors, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        tensors, kept = ctx.saved_tensors[: ctx.inputs], ctx.saved_tensors[ctx.inputs :]
        if wants_plain((g,)):
            oracle = partial(reference.logistic_mixture, **ctx.call.options)
            return None, *plain_backward(oracle, tensors, ctx.needs_input_grad[1:], (g,))
        found = [g.unsqueeze(-1) * derivative for derivative in kept]
        g_x = -found[1].sum(-1) if ctx.needs_input_grad[1] else None  # x and the means are only seen as a difference
        return None, g_x, *(t.to(g.dtype) for t in found)
