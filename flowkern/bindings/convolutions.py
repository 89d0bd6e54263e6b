"""Causal convolutions: the shapes of the CPU operators."""

from __future__ import annotations

import torch
from torch import Tensor

from flowkern._library import BUILD_ERROR


def _causal_conv1d_like(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, groups: int) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0], x.shape[2])


def _gradients_like(g_y, x, weight, dilation, groups, of_x, of_weight, of_bias):  # type: ignore[no-untyped-def]
    wanted = ((of_x, x.shape), (of_weight, weight.shape), (of_bias, weight.shape[:1]))
    return [x.new_empty(shape) for wants, shape in wanted if wants]


def _update_like(x, state, step, weight, bias, dilation, groups):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[0], weight.shape[0])


def _layer_like(x, skips, gate_weight, gate_bias, residual_weight, residual_bias, skip_weight, *others):  # type: ignore[no-untyped-def]
    return torch.empty_like(x), x.new_empty(x.shape[0], skip_weight.shape[0], x.shape[2])


def _layer_gradients_like(  # type: ignore[no-untyped-def]
    g_y, g_skips, x, gate_weight, gate_bias, residual_weight, skip_weight, condition, condition_weight, dilation, *of
):
    parameters = [
        *(gate_weight.shape, gate_bias.shape, residual_weight.shape, residual_weight.shape[:1]),
        *(skip_weight.shape, skip_weight.shape[:1]),
    ]
    if condition is not None:
        parameters.append(condition_weight.shape)
    of_parameters, of_x, of_condition = of
    shapes = parameters if of_parameters else []
    shapes = [*shapes, *([x.shape] if of_x else []), *([condition.shape] if of_condition else [])]
    return [x.new_empty(shape) for shape in shapes]


def _generated_like(noise, previous, queues, *network_and_sampler):  # type: ignore[no-untyped-def]
    return previous.new_empty(noise.shape[:2]), torch.empty_like(queues)


_SHAPES = {
    "causal_conv1d": _causal_conv1d_like,
    "causal_conv1d_backward": _gradients_like,
    "causal_conv1d_update": _update_like,
    "wavenet_layer": _layer_like,
    "wavenet_layer_backward": _layer_gradients_like,
    "wavenet_generate": _generated_like,
}
if BUILD_ERROR is None:
    for _name, _like in _SHAPES.items():
        torch.library.register_fake(f"flowkern::{_name}")(_like)
