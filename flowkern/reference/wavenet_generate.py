"""Oracle of ``wavenet_generate``: the network, and the loop that samples from it (WaveNet, van den Oord et al., 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flowkern.reference.causal_conv1d import causal_conv1d


class WaveNetState(NamedTuple):
    """What a sampling loop continues from.

    ``previous``: the class before the next one (batch,). ``queues``: what each layer read at its last times, as many as its
    dilation, oldest first, layer after layer (batch, sum of dilations, residual channels).
    """

    previous: Tensor
    queues: Tensor


def wavenet_logits(
    classes: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], dilations: Sequence[int]
) -> tuple[Tensor, list[Tensor]]:
    """Logits (batch, time, classes) of the class after each of ``classes`` (batch, time), and what each layer read.

    h = embedding of the class; for each layer: (a, b) = a causal convolution of h with two taps, u = tanh(a) sigmoid(b),
    s = s + W_s u + b_s, h = h + W_r u + b_r; the logits are W_2 relu(W_1 relu(s) + b_1) + b_2.
    """
    embedding, *rest = weights
    h, skips, read = embedding[classes], torch.zeros(()), []
    for layer, dilation in enumerate(dilations):
        gate, residual, skip = rest[3 * layer : 3 * layer + 3]
        gate_bias, residual_bias, skip_bias = biases[3 * layer : 3 * layer + 3]
        read.append(h)
        z = causal_conv1d(h.transpose(-1, -2), gate, gate_bias, dilation=dilation).transpose(-1, -2)
        u = gated(z)
        skips = skips + F.linear(u, skip, skip_bias)
        h = h + F.linear(u, residual, residual_bias)
    return outputs(skips, rest[-2:], biases[-2:]), read


def wavenet_generate(
    uniform: Tensor, state: WaveNetState, weights: Sequence[Tensor], biases: Sequence[Tensor], dilations: Sequence[int]
) -> tuple[Tensor, WaveNetState]:
    """Classes (batch, time) drawn one after another, and the state, as `flowkern.ops.wavenet_generate` defines them."""
    embedding, *rest = weights
    queues = [queue.clone() for queue in state.queues.split(list(dilations), 1)]
    gates = [gate.transpose(1, 2).flatten(1) for gate in rest[: 3 * len(dilations) : 3]]  # columns of the past, of the present
    previous, drawn = state.previous, []
    for t in range(uniform.shape[1]):
        h, skips = embedding[previous], torch.zeros(())
        for layer, (queue, dilation) in enumerate(zip(queues, dilations, strict=True)):
            _, residual, skip = rest[3 * layer : 3 * layer + 3]
            gate_bias, residual_bias, skip_bias = biases[3 * layer : 3 * layer + 3]
            oldest = queue[:, t % dilation]
            u = gated(F.linear(torch.cat([oldest, h], -1), gates[layer], gate_bias))
            oldest.copy_(h)
            skips = skips + F.linear(u, skip, skip_bias)
            h = h + F.linear(u, residual, residual_bias)
        previous = inverse_transform(outputs(skips, rest[-2:], biases[-2:]), uniform[:, t])
        drawn.append(previous)
    time = uniform.shape[1]
    rolled = [queue.roll(-(time % dilation), 1) for queue, dilation in zip(queues, dilations, strict=True)]
    classes = torch.stack(drawn, 1) if drawn else previous.new_empty(len(previous), 0)
    return classes, WaveNetState(previous.clone(), torch.cat(rolled, 1))


def gated(z: Tensor) -> Tensor:
    """tanh of the first half of the channels times the sigmoid of the second."""
    a, b = z.chunk(2, -1)
    return torch.tanh(a) * torch.sigmoid(b)


def outputs(skips: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """From the summed skip connections to logits."""
    return F.linear(F.relu(F.linear(F.relu(skips), weights[0], biases[0])), weights[1], biases[1])


def inverse_transform(logits: Tensor, uniform: Tensor) -> Tensor:
    """The first class whose cumulative probability exceeds a uniform number in [0, 1)."""
    below = torch.softmax(logits.double(), -1).cumsum(-1) <= uniform.double()[:, None]
    return below.sum(-1).clamp(max=logits.shape[-1] - 1)
