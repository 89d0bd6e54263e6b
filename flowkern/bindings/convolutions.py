"""Causal convolutions: the operators of the CUDA kernels, and the shapes of the CPU operators."""

from __future__ import annotations

import torch
from torch import Tensor

from flowkern._library import BUILD_ERROR
from flowkern.bindings.namespaces import CUDA


@CUDA.define(
    "wavenet_generate(Tensor noise, Tensor previous, Tensor queues, Tensor[] weights, Tensor[] biases, int[] dilations, "
    "Tensor? condition, Tensor[] condition_weights, str output, int? levels, float log_scale_min, float bound) -> "
    "(Tensor, Tensor)"
)
def _wavenet_generate(*arguments):  # type: ignore[no-untyped-def]
    from flowkern.cuda.wavenet_generate import wavenet_generate

    return wavenet_generate(*arguments)


@CUDA.fake("wavenet_generate")
def _(noise, previous, queues, weights, biases, dilations, condition, *_):  # type: ignore[no-untyped-def]
    from flowkern.cuda.wavenet_generate import prepare

    prepare(weights, dilations, condition, noise.dtype)
    return previous.new_empty(noise.shape[:2]), torch.empty_like(queues, memory_format=torch.contiguous_format)


def _causal_conv1d_like(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, groups: int) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0], x.shape[2])


def _gradients_like(g_y, x, weight, dilation, groups, of_x, of_weight, of_bias):  # type: ignore[no-untyped-def]
    wanted = ((of_x, x.shape), (of_weight, weight.shape), (of_bias, weight.shape[:1]))
    return [x.new_empty(shape) for wants, shape in wanted if wants]


def _update_like(x, state, step, weight, bias, dilation, groups):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[0], weight.shape[0])


def _generated_like(uniform, previous, queues, weights, biases, dilations):  # type: ignore[no-untyped-def]
    return previous.new_empty(uniform.shape), torch.empty_like(queues)


_SHAPES = {
    "causal_conv1d": _causal_conv1d_like,
    "causal_conv1d_backward": _gradients_like,
    "causal_conv1d_update": _update_like,
    "wavenet_generate": _generated_like,
}
if BUILD_ERROR is None:
    for _name, _like in _SHAPES.items():
        torch.library.register_fake(f"flowkern::{_name}")(_like)
