"""A sample of each element's mixture of logistics, made of given uniform numbers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from flowkern import reference
from flowkern._checks import check_float, check_like
from flowkern.ops._mixtures import Call, as_matrix, batch_of, checked_call
from flowkern.ops._rows import namespace
from flowkern.reference.logistic_mixture_sample import chosen_component


def logistic_mixture_sample(
    u: Tensor,
    choice: Tensor,
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
        u: uniform numbers (...) between 0 and 1, which are neither.
        choice: more of them (..., components): v.
        logits, means, log_scales: the mixtures (..., components), as for :func:`logistic_mixture`.
        levels: number of values, or ``None`` for real numbers.
        log_scale_min: log-scales below it count as this.

    Returns:
        Samples with the broadcast batch shape.

    Raises:
        TypeError, ValueError: for arguments that do not fit each other.

    Example:
        >>> import torch
        >>> u, choice = torch.tensor(0.75), torch.tensor([0.5, 0.5])
        >>> logistic_mixture_sample(u, choice, torch.tensor([0.0, 9.0]), torch.tensor([-1.0, 0.5]), torch.zeros(2))
        tensor(1.5986)

    References:
        PixelCNN++ (Salimans et al., 2017), section 2.1; the choice of a component is Gumbel's.
    """
    parameters = logits, means, log_scales
    call = checked_call("logistic_mixture_sample", ("u", u), parameters, levels, log_scale_min)
    check_float("choice", choice)
    check_like("choice", choice, u, "u")
    components = logits.shape[-1]
    if choice.dim() == 0 or choice.shape[-1] != components:
        raise ValueError(f"choice: expected shape (..., {components}), got {tuple(choice.shape)}")
    batch = batch_of("u", u.shape, (choice, *parameters))
    if call.kernels.plain:
        return reference.logistic_mixture_sample(u, choice, *parameters, **call.options)
    dtype = u.dtype
    given = [as_matrix(call.kernels, t, batch, (components,)) for t in (choice, *parameters)]
    tensors = as_matrix(call.kernels, u, batch), *given
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        out = LogisticMixtureSampleFunction.apply(call, *tensors)
    else:
        out = _run(call, tensors)
    return out.reshape(batch).to(dtype)


def _run(call: Call, tensors: tuple[Tensor, ...]) -> Tensor:
    return namespace(call.kernels).logistic_mixture_sample(*tensors, call.levels, call.log_scale_min)


class LogisticMixtureSampleFunction(torch.autograd.Function):
    """The gradient is plain PyTorch, so every derivative exists."""

    @staticmethod
    def forward(ctx: Any, call: Call, *tensors: Tensor) -> Tensor:
        ctx.call = call
        ctx.save_for_backward(*tensors)
        return _run(call, tensors)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        u, choice, logits, _, log_scales = ctx.saved_tensors
        if ctx.call.levels:
            return None, *(torch.zeros_like(t) for t in ctx.saved_tensors)
        chosen = chosen_component(choice, logits)
        mine = torch.arange(logits.shape[-1], device=u.device) == chosen
        log_scale = log_scales.gather(-1, chosen).squeeze(-1).clamp(min=ctx.call.log_scale_min)
        g_logistic = g * torch.exp(log_scale)
        g_log_scale = g_logistic * (torch.log(u) - torch.log1p(-u))
        g_log_scales = torch.where(mine & (log_scales >= ctx.call.log_scale_min), g_log_scale.unsqueeze(-1), 0)
        g_means = torch.where(mine, g.unsqueeze(-1), 0)
        nothing = 0 * g_means  # which can be differentiated
        return None, g_logistic / (u * (1 - u)), nothing, nothing, g_means, g_log_scales
