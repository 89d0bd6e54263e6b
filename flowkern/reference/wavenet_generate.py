"""Oracle of ``wavenet_generate``: the network, and the loop that samples from it (WaveNet, van den Oord et al., 2016)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flowkern.reference.logistic_mixture_sample import chosen_component, logistic_mixture_sample
from flowkern.reference.wavenet_layer import gated, wavenet_layer


class WaveNetState(NamedTuple):
    """What a sampling loop continues from.

    ``previous``: the sample before the next one (batch,), a class (int64) or a number. ``queues``: what each layer read at its
    last times, (taps - 1) times its dilation of them, oldest first, layer after layer (batch, sum of these, residual channels).
    """

    previous: Tensor
    queues: Tensor


def wavenet_outputs(
    heard: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    dilations: Sequence[int],
    condition: Tensor | None = None,
    condition_weights: Sequence[Tensor] = (),
) -> tuple[Tensor, list[Tensor]]:
    """Parameters (batch, time, outputs) of the sample after each of ``heard`` (batch, time), and what each layer read.

    h = E_x + b; for each layer: (a, b) = a causal convolution of h + V_c of the condition, u = tanh(a) sigmoid(b),
    s = s + W_s u + b_s, h = h + W_r u + b_r; the parameters are W_2 relu(W_1 relu(s) + b_1) + b_2.
    """
    h = embedded(heard, weights[0], biases[0]).transpose(-1, -2)
    skips, read = None, []
    for layer, dilation in enumerate(dilations):
        read.append(h.transpose(-1, -2))
        pairs = zip(weights[3 * layer + 1 : 3 * layer + 4], biases[3 * layer + 1 : 3 * layer + 4], strict=True)
        given = (condition, condition_weights[layer]) if condition is not None else (None, None)
        h, skips = wavenet_layer(h, skips, *(t for pair in pairs for t in pair), *given, dilation=dilation)
    assert skips is not None
    return last_layers(skips.transpose(-1, -2), weights[-2:], biases[-2:]), read


def wavenet_generate(
    noise: Tensor,
    state: WaveNetState,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    dilations: Sequence[int],
    condition: Tensor | None = None,
    condition_weights: Sequence[Tensor] = (),
    *,
    output: str = "categorical",
    levels: int | None = None,
    log_scale_min: float = -math.inf,
    bound: float = math.inf,
) -> tuple[Tensor, WaveNetState]:
    """Samples (batch, time) drawn one after another, and the state, as `flowkern.ops.wavenet_generate` defines them."""
    weights, condition_weights = ([w.to(noise.dtype) for w in ws] for ws in (weights, condition_weights))
    gates = weights[1:-2:3]
    lengths = [(gate.shape[2] - 1) * dilation for gate, dilation in zip(gates, dilations, strict=True)]
    queues = [queue.clone() for queue in state.queues.split(lengths, 1)]
    previous, drawn = state.previous, []
    for t in range(noise.shape[1]):
        h, skips = embedded(previous, weights[0], biases[0]), torch.zeros(())
        for layer, (queue, dilation, length) in enumerate(zip(queues, dilations, lengths, strict=True)):
            gate, residual, skip = weights[3 * layer + 1 : 3 * layer + 4]
            gate_bias, residual_bias, skip_bias = biases[3 * layer + 1 : 3 * layer + 4]
            z = gate_bias + F.linear(h, gate[..., -1])
            for tap in range(gate.shape[2] - 1):
                z = z + F.linear(queue[:, (t + tap * dilation) % length], gate[..., tap])
            if condition is not None:
                z = z + F.linear(condition[..., t], condition_weights[layer])
            if length:
                queue[:, t % length] = h  # the oldest of them was read for the last time
            u = gated(z, -1)
            skips = skips + F.linear(u, skip, skip_bias)
            h = h + F.linear(u, residual, residual_bias)
        parameters = last_layers(skips, weights[-2:], biases[-2:])
        previous = sample_of(parameters, noise[:, t], output, levels, log_scale_min, bound)
        drawn.append(previous)
    time = noise.shape[1]
    rolled = [queue.roll(-(time % length), 1) if length else queue for queue, length in zip(queues, lengths, strict=True)]
    samples = torch.stack(drawn, 1) if drawn else previous.new_empty(len(previous), 0)
    return samples, WaveNetState(previous.clone(), torch.cat(rolled, 1))


def embedded(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What the first layer reads (..., residual) of samples: the row of a class, or a number times the only row."""
    return (x[..., None] * weight[0] if x.is_floating_point() else weight[x]) + bias


def last_layers(skips: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """From the summed skip connections to the parameters of a sample."""
    return F.linear(F.relu(F.linear(F.relu(skips), weights[0], biases[0])), weights[1], biases[1])


def sample_of(parameters: Tensor, noise: Tensor, output: str, levels: int | None, log_scale_min: float, bound: float) -> Tensor:
    """Samples (batch,) of their parameters (batch, outputs), made of random numbers (batch, numbers)."""
    if output == "categorical":
        return inverse_transform(parameters, noise[..., 0])
    logits, means, log_scales = parameters.unflatten(-1, (3, -1)).unbind(-2)
    choice, last = noise[..., :-1], noise[..., -1]
    if output == "logistics":
        drawn = logistic_mixture_sample(last, choice, logits, means, log_scales, levels, log_scale_min)
    else:
        chosen = chosen_component(choice, logits)
        mean, log_scale = means.gather(-1, chosen)[..., 0], log_scales.gather(-1, chosen)[..., 0]
        drawn = mean + torch.exp(log_scale.clamp(min=log_scale_min)) * last
    return drawn.clamp(-bound, bound)


def inverse_transform(logits: Tensor, uniform: Tensor) -> Tensor:
    """The first class whose cumulative probability exceeds a uniform number in [0, 1)."""
    below = torch.softmax(logits.double(), -1).cumsum(-1) <= uniform.double()[:, None]
    return below.sum(-1).clamp(max=logits.shape[-1] - 1)
