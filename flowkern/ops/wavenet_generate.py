"""The sampling loop of a WaveNet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowkern import reference
from flowkern._checks import HALF, check_device, check_float, check_like, check_shapes, check_tensor, whole_number
from flowkern.backends import kernels_for
from flowkern.reference import WaveNetState


@torch.no_grad()
def wavenet_generate(
    uniform: Tensor, state: WaveNetState, weights: Sequence[Tensor], biases: Sequence[Tensor], dilations: Sequence[int]
) -> tuple[Tensor, WaveNetState]:
    r"""Draws classes one after another from a WaveNet, each given all before it, in one call.

    From the class c before: h = E_c; for each layer of dilation d (a, b) = V_0 h' + V_1 h + b_v, where h' is what the layer
    read d times before; u = tanh(a) sigmoid(b); s = s + W_s u + b_s; h = h + W_r u + b_r. The next class is the first
    whose cumulative probability under softmax(W_2 relu(W_1 relu(s) + b_1) + b_2) exceeds the uniform number.

    Calls of any lengths, each continuing from the state of the one before, give the same classes as one call. The
    weights are packed once per call, about a millisecond per million. A temperature is a factor of the last weights.

    Args:
        uniform: numbers in [0, 1) (batch, time), one for each class; there may be no time.
        state: where to begin; at the beginning of all, the class of silence and zeros.
        weights: the embedding E (classes, residual); of each layer V (2 gate, residual, 2), whose last taps are those of the
            present, W_r (residual, gate) and W_s (skip, gate); W_1 (hidden, skip) and W_2 (classes, hidden).
        biases: of each layer b_v, b_r and b_s; b_1 and b_2.
        dilations: of each layer.

    Returns:
        The classes (batch, time), and the state after them. Nothing given is changed, and nothing records a gradient.

    Raises:
        TypeError, ValueError: for arguments that do not fit each other.

    Example:
        >>> import torch
        >>> dilations, (classes, residual, gate, skip) = (1, 2, 4), (16, 4, 5, 6)
        >>> layer = (2 * gate, residual, 2), (residual, gate), (skip, gate)
        >>> weights = [torch.randn(s) for s in ((classes, residual), *3 * layer, (7, skip), (classes, 7))]
        >>> biases = [torch.zeros(len(w)) for w in weights[1:]]
        >>> state = WaveNetState(torch.tensor([8]), torch.zeros(1, sum(dilations), residual))
        >>> drawn, state = wavenet_generate(torch.rand(1, 100), state, weights, biases, dilations)
        >>> more, state = wavenet_generate(torch.rand(1, 50), state, weights, biases, dilations)
        >>> drawn.shape, more.shape
        (torch.Size([1, 100]), torch.Size([1, 50]))

    References:
        WaveNet: A Generative Model for Raw Audio (van den Oord et al., 2016), section 2; Fast Wavenet Generation
        Algorithm (Le Paine et al., 2016).
    """
    dilations = [whole_number("dilations", dilation, 1) for dilation in dilations]
    check_float("uniform", uniform)
    _check_network(uniform, weights, biases, len(dilations))
    _check_state(uniform, state, weights[0].shape[1], sum(dilations))
    kernels = kernels_for(uniform, "wavenet_generate")
    if kernels.plain or uniform.dtype in HALF:
        return reference.wavenet_generate(uniform, state, weights, biases, dilations)
    if not torch.compiler.is_compiling() and not ((state.previous >= 0) & (state.previous < len(weights[0]))).all():
        raise ValueError(f"state.previous: expected classes from 0 to {len(weights[0]) - 1}, got {state.previous.tolist()}")
    tensors = [t.contiguous() for t in (uniform, state.previous, state.queues)]
    packed = [t.contiguous() for t in weights], [t.contiguous() for t in biases]
    classes, queues = torch.ops.flowkern.wavenet_generate(*tensors, *packed, dilations)
    previous = classes[:, -1] if classes.shape[1] else state.previous
    return classes, WaveNetState(previous.clone(), queues)


def _check_network(uniform: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], layers: int) -> None:
    """Weights and biases of so many layers, whose widths are those of the first and of the last."""
    if layers == 0:
        raise ValueError("dilations: expected those of at least one layer, got none")
    for name, tensors, count in (("weights", weights, 3 * layers + 3), ("biases", biases, 3 * layers + 2)):
        if len(tensors) != count:
            raise ValueError(f"{name}: expected {count} tensors for {layers} layers, got {len(tensors)}")
        for i, t in enumerate(tensors):
            check_tensor(f"{name}[{i}]", t)
            check_like(name, t, uniform, "uniform", i)
    for i, dimensions in ((0, 2), (1, 3), (3, 2), (-2, 2)):
        if weights[i].dim() != dimensions or 0 in weights[i].shape:
            index = i % len(weights)
            raise ValueError(
                f"weights[{index}]: expected {dimensions} dimensions, none of size 0, got {tuple(weights[i].shape)}"
            )
    classes, residual = weights[0].shape
    gate, skip, hidden = weights[1].shape[0] // 2, weights[3].shape[0], weights[-2].shape[0]
    layer = [(2 * gate, residual, 2), (residual, gate), (skip, gate)]
    shapes: list[tuple[int, ...]] = [(classes, residual), *layers * layer, (hidden, skip), (classes, hidden)]
    check_shapes("weights", weights, shapes)
    check_shapes("biases", biases, [shape[:1] for shape in shapes[1:]])


def _check_state(uniform: Tensor, state: WaveNetState, residual: int, length: int) -> None:
    """A state of as many rows as there are sequences."""
    if not isinstance(state, WaveNetState):
        raise TypeError(f"state: expected a WaveNetState, got {type(state).__name__}")
    if uniform.dim() != 2:
        raise ValueError(f"uniform: expected shape (batch, time), got {tuple(uniform.shape)}")
    check_tensor("state.previous", state.previous)
    check_device("state.previous", state.previous, uniform, "uniform")
    if state.previous.dtype is not torch.int64 or state.previous.shape != uniform.shape[:1]:
        got = f"{state.previous.dtype} of shape {tuple(state.previous.shape)}"
        raise ValueError(f"state.previous: expected torch.int64 of shape ({len(uniform)},), got {got}")
    check_tensor("state.queues", state.queues)
    check_like("state.queues", state.queues, uniform, "uniform")
    if state.queues.shape != (len(uniform), length, residual):
        expected = (len(uniform), length, residual)
        raise ValueError(f"state.queues: expected shape {expected}, got {tuple(state.queues.shape)}")
