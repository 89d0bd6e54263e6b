"""The operators on mixtures of logistics: those of the Triton kernels, and the shapes of all for torch.compile."""

from __future__ import annotations

import torch
from torch import Tensor

from flowkern._library import BUILD_ERROR
from flowkern.bindings.namespaces import TRITON

_MIXTURE = "Tensor logits, Tensor means, Tensor log_scales, int levels, float log_scale_min"


@TRITON.define(f"logistic_mixture(Tensor x, {_MIXTURE}) -> Tensor")
def _logistic_mixture(x, logits, means, log_scales, levels, log_scale_min):  # type: ignore[no-untyped-def]
    from flowkern.kernels.logistic_mixture import logistic_mixture

    return logistic_mixture(x, logits, means, log_scales, levels, log_scale_min)


@TRITON.define(f"logistic_mixture_backward(Tensor g, Tensor x, {_MIXTURE}) -> (Tensor, Tensor, Tensor, Tensor)")
def _logistic_mixture_backward(g, x, logits, means, log_scales, levels, log_scale_min):  # type: ignore[no-untyped-def]
    from flowkern.kernels.logistic_mixture import logistic_mixture_gradients

    return logistic_mixture_gradients(g, x, logits, means, log_scales, levels, log_scale_min)


@TRITON.define(f"logistic_mixture_sample(Tensor noise, {_MIXTURE}) -> Tensor")
def _logistic_mixture_sample(noise, logits, means, log_scales, levels, log_scale_min):  # type: ignore[no-untyped-def]
    from flowkern.kernels.logistic_mixture_sample import logistic_mixture_sample

    return logistic_mixture_sample(noise, logits, means, log_scales, levels, log_scale_min)


def _elements_like(x: Tensor, *rest: object) -> Tensor:
    return x.new_empty(x.shape[:2])


def _gradients_like(g: Tensor, *tensors: Tensor | float) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in tensors[:4] if isinstance(t, Tensor))


_SHAPES = {
    "logistic_mixture": _elements_like,
    "logistic_mixture_backward": _gradients_like,
    "logistic_mixture_sample": _elements_like,
}
for _name, _like in _SHAPES.items():
    TRITON.fake(_name)(_like)
    if BUILD_ERROR is None:
        torch.library.register_fake(f"flowkern::{_name}")(_like)
