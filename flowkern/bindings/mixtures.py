"""The operators on mixtures: those of the Triton kernels, and the shapes of all for torch.compile."""

from __future__ import annotations

import torch
from torch import Tensor

from flowkern._library import BUILD_ERROR
from flowkern.bindings.namespaces import TRITON

_MIXTURE = "Tensor logits, Tensor means, Tensor log_scales, int levels, float log_scale_min"


@TRITON.define(f"logistic_mixture(Tensor x, {_MIXTURE}, bool gaussian, bool keep) -> (Tensor, Tensor[])")
def _logistic_mixture(x, logits, means, log_scales, levels, log_scale_min, gaussian, keep):  # type: ignore[no-untyped-def]
    from flowkern.kernels.logistic_mixture import logistic_mixture

    return logistic_mixture(x, logits, means, log_scales, levels, log_scale_min, gaussian, keep)


@TRITON.define(f"logistic_mixture_sample(Tensor u, Tensor choice, {_MIXTURE}) -> Tensor")
def _logistic_mixture_sample(u, choice, logits, means, log_scales, levels, log_scale_min):  # type: ignore[no-untyped-def]
    from flowkern.kernels.logistic_mixture_sample import logistic_mixture_sample

    return logistic_mixture_sample(u, choice, logits, means, log_scales, levels, log_scale_min)


def _log_probs_like(x, logits, means, log_scales, levels, log_scale_min, gaussian, keep):  # type: ignore[no-untyped-def]
    exact = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(x.shape), [t.new_empty(t.shape, dtype=exact) for t in (logits, means, log_scales) if keep]


def _samples_like(u: Tensor, *rest: object) -> Tensor:
    return u.new_empty(u.shape)


_SHAPES = {"logistic_mixture": _log_probs_like, "logistic_mixture_sample": _samples_like}
for _name, _like in _SHAPES.items():
    TRITON.fake(_name)(_like)
    if BUILD_ERROR is None:
        torch.library.register_fake(f"flowkern::{_name}")(_like)
