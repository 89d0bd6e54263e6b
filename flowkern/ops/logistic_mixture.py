"""Log-probability of each element under its own mixture of logistics."""

from __future__ import annotations

import math

from torch import Tensor

from flowkern import reference
from flowkern.ops._mixtures import checked_call, log_probs


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
    return log_probs(call, reference.logistic_mixture, x, parameters)
