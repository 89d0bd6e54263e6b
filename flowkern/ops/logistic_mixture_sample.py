"""A sample of each element's mixture of logistics, made of given uniform numbers."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flowkern import reference
from flowkern.ops._derivatives import plain_backward
from flowkern.ops._mixtures import Call, as_matrix, batch_of, checked_call
from flowkern.ops._rows import namespace


def logistic_mixture_sample(
    noise: Tensor,
    logits: Tensor,
    means: Tensor,
    log_scales: Tensor,
    *,
    levels: int | None = None,
    log_scale_min: float = -math.inf,
) -> Tensor:
    r"""mu_k + s_k log(u / (1 - u)) with k = argmax(logits - log(-log v)), element by element.

    With ``levels`` the result is the nearest of the values -1 + 2 i / (levels - 1): a sample of what
    :func:`logistic_mixture` evaluates. The derivative is that of the component that was chosen, with its choice held constant,
    and zero with levels.

    Args:
        noise: uniform numbers (..., components + 1), all between 0 and 1 but neither 0 nor 1: v and, in the end, u.
        logits, means, log_scales: the mixtures (..., components), as for :func:`logistic_mixture`.
        levels: number of values, or ``None`` for real numbers.
        log_scale_min: log-scales below it count as this.

    Returns:
        Samples with the broadcast batch shape.

    Raises:
        TypeError, ValueError: for arguments that do not fit each other.

    Example:
        >>> import torch
        >>> noise = torch.tensor([0.5, 0.5, 0.75])
        >>> logistic_mixture_sample(noise, torch.tensor([0.0, 9.0]), torch.tensor([-1.0, 0.5]), torch.zeros(2))
        tensor(1.5986)

    References:
        PixelCNN++ (Salimans et al., 2017), section 2.1; the choice of a component is Gumbel's.
    """
    parameters = logits, means, log_scales
    call = checked_call("logistic_mixture_sample", ("noise", noise), parameters, levels, log_scale_min)
    components = logits.shape[-1]
    if noise.dim() == 0 or noise.shape[-1] != components + 1:
        raise ValueError(f"noise: expected shape (..., {components + 1}), got {tuple(noise.shape)}")
    batch = batch_of("noise", noise.shape[:-1], parameters)
    if call.kernels.plain:
        return reference.logistic_mixture_sample(noise, *parameters, **call.options)
    dtype = noise.dtype
    noise = as_matrix(call.kernels, noise, batch, (components + 1,))
    parameters = tuple(as_matrix(call.kernels, t, batch, (components,)) for t in parameters)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (noise, *parameters)):
        out = LogisticMixtureSampleFunction.apply(call, noise, *parameters)
    else:
        out = _run(call, noise, *parameters)
    return out.reshape(batch).to(dtype)


def _run(call: Call, *tensors: Tensor) -> Tensor:
    return namespace(call.kernels).logistic_mixture_sample(*tensors, call.levels, call.log_scale_min)


class LogisticMixtureSampleFunction(torch.autograd.Function):
    """The gradient is plain PyTorch, so every derivative exists."""

    @staticmethod
    def forward(ctx: Any, call: Call, *tensors: Tensor) -> Tensor:
        ctx.call = call
        ctx.save_for_backward(*tensors)
        return _run(call, *tensors)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        oracle = partial(reference.logistic_mixture_sample, **ctx.call.options)
        return None, *plain_backward(oracle, ctx.saved_tensors, ctx.needs_input_grad[1:], (g,))
