"""Log-density of each element under its own mixture of Gaussians."""

from __future__ import annotations

import math

from torch import Tensor

from flowkern import reference
from flowkern.ops._mixtures import checked_call, log_probs


def gaussian_mixture(
    x: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor, *, log_scale_min: float = -math.inf
) -> Tensor:
    r"""log sum_k pi_k N(x; mean_k, scale_k^2) with pi = softmax(logits), element by element.

    Args:
        x: values (...).
        logits: unnormalised log-weights of the components (..., components).
        means, log_scales: of the components (..., components), the scale being the standard deviation; sensible from exp(-80)
            to exp(80) in float32.
        log_scale_min: log-scales below it count as this, and get no gradient.

    Returns:
        Log-densities in nats, with the broadcast shape of x.

    Raises:
        TypeError, ValueError: for arguments that do not fit each other.

    Example:
        >>> import torch
        >>> gaussian_mixture(torch.tensor(0.0), torch.zeros(2), torch.tensor([-1.0, 1.0]), torch.zeros(2))
        tensor(-1.4189)

    References:
        Masked Autoregressive Flow (Papamakarios et al., 2017), section 4.2 (MADE MoG); Mixture Density Networks (Bishop,
        1994), equation 22.
    """
    parameters = logits, means, log_scales
    call = checked_call("gaussian_mixture", ("x", x), parameters, None, log_scale_min)
    return log_probs(call, reference.gaussian_mixture, x, parameters)
