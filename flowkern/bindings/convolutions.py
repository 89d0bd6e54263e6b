"""Causal convolutions: the operators of the Triton and CUDA kernels, and the shapes of the CPU operators."""

from __future__ import annotations

import torch

from flowkern._library import BUILD_ERROR
from flowkern.bindings.namespaces import CUDA, TRITON

_LAYER = "Tensor gate_weight, Tensor gate_bias, Tensor residual_weight, "

# -- Triton -----------------------------------------------------------------------------------------------------------


@TRITON.define("causal_conv1d(Tensor x, Tensor weight, Tensor? bias, int dilation, int groups, str precision) -> Tensor")
def _causal_conv1d(*arguments):  # type: ignore[no-untyped-def]
    from flowkern.kernels.causal_conv1d import causal_conv1d

    return causal_conv1d(*arguments)


@TRITON.define(
    "causal_conv1d_backward(Tensor g_y, Tensor x, Tensor weight, int dilation, int groups, str precision, bool of_x, "
    "bool of_weight, bool of_bias) -> Tensor[]"
)
def _causal_conv1d_backward(*arguments):  # type: ignore[no-untyped-def]
    from flowkern.kernels.causal_conv1d import causal_conv1d_gradients

    return causal_conv1d_gradients(*arguments)


@TRITON.define(
    f"wavenet_layer(Tensor x, Tensor? skips, {_LAYER}Tensor residual_bias, Tensor skip_weight, Tensor skip_bias, "
    "Tensor? condition, Tensor? condition_weight, int dilation, str precision) -> (Tensor, Tensor)"
)
def _wavenet_layer(*arguments):  # type: ignore[no-untyped-def]
    from flowkern.kernels.wavenet_layer import wavenet_layer

    return wavenet_layer(*arguments)


@TRITON.define(
    f"wavenet_layer_backward(Tensor g_y, Tensor g_skips, Tensor x, {_LAYER}Tensor skip_weight, Tensor? condition, "
    "Tensor? condition_weight, int dilation, str precision, bool parameters, bool of_x, bool of_condition) -> Tensor[]"
)
def _wavenet_layer_backward(*arguments):  # type: ignore[no-untyped-def]
    from flowkern.kernels.wavenet_layer import wavenet_layer_gradients

    return wavenet_layer_gradients(*arguments)


# -- CUDA -------------------------------------------------------------------------------------------------------------


@CUDA.define(
    "wavenet_generate(Tensor noise, Tensor previous, Tensor queues, Tensor[] weights, Tensor[] biases, int[] dilations, "
    "Tensor? condition, Tensor[] condition_weights, int output, int levels, float log_scale_min, float bound) -> "
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


# -- shapes ----------------------------------------------------------------------------------------------------------


def _causal_conv1d_like(x, weight, *bias_and_constants):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[0], weight.shape[0], x.shape[2])


def _gradients_like(g_y, x, weight, *constants):  # type: ignore[no-untyped-def]
    *_, of_x, of_weight, of_bias = constants
    wanted = ((of_x, x.shape), (of_weight, weight.shape), (of_bias, weight.shape[:1]))
    return [x.new_empty(shape) for wants, shape in wanted if wants]


def _update_like(x, state, step, weight, bias, dilation, groups):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[0], weight.shape[0])


def _layer_like(x, skips, gate_weight, gate_bias, residual_weight, residual_bias, skip_weight, *others):  # type: ignore[no-untyped-def]
    return torch.empty_like(x), x.new_empty(x.shape[0], skip_weight.shape[0], x.shape[2])


def _layer_gradients_like(  # type: ignore[no-untyped-def]
    g_y, g_skips, x, gate_weight, gate_bias, residual_weight, skip_weight, condition, condition_weight, *constants
):
    parameters = [
        *(gate_weight.shape, gate_bias.shape, residual_weight.shape, residual_weight.shape[:1]),
        *(skip_weight.shape, skip_weight.shape[:1]),
    ]
    if condition is not None:
        parameters.append(condition_weight.shape)
    *_, of_parameters, of_x, of_condition = constants
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
for _name in ("causal_conv1d", "causal_conv1d_backward", "wavenet_layer", "wavenet_layer_backward"):
    TRITON.fake(_name)(_SHAPES[_name])
if BUILD_ERROR is None:
    for _name, _like in _SHAPES.items():
        torch.library.register_fake(f"flowkern::{_name}")(_like)
