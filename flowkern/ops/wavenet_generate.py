"""The sampling loop of a WaveNet."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from flowkern import reference
from flowkern._checks import HALF, check_device, check_float, check_like, check_shapes, check_tensor, whole_number
from flowkern.backends import kernels_for
from flowkern.reference import WaveNetState


@torch.no_grad()
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
    r"""Draws samples one after another from a WaveNet, each given all before it, in one call.

    From the sample x before: h = E_x + b_e, for a number x E + b_e; for each layer of dilation d (a, b) = sum over the taps j
    of V_j h^(j) + b_v + V_c c, where h^(j) is what the layer read (k - 1 - j) d times before, the present included, and c the
    condition; u = tanh(a) sigmoid(b); s = s + W_s u + b_s; h = h + W_r u + b_r. The parameters of the next sample are
    W_2 relu(W_1 relu(s) + b_1) + b_2. What they mean, and what the numbers of ``noise`` for each sample are:

    ============= ================================== ==============================================================
    output        parameters                         noise, and the sample
    ============= ================================== ==============================================================
    categorical   logits of the classes              a number in [0, 1): the first class whose cumulative
                                                     probability exceeds it
    logistics     logits, means and log-scales of    as many in (0, 1) as components, and one more: what
                  the components                     :func:`flowkern.ops.logistic_mixture_sample` makes of them
    gaussians     logits, means and log-deviations   as many in (0, 1) as components, which choose in the same way,
                  of the components                  and a standard-normal number: mean + deviation times it
    ============= ================================== ==============================================================

    Calls of any lengths, each continuing from the state of the one before, give the same samples as one call. The
    weights are packed once per call, about a millisecond per million. A temperature is a factor of the last weights.

    Args:
        noise: random numbers (batch, time, numbers per sample); there may be no time.
        state: where to begin; at the beginning of all, the class of silence, or 0.0, and zeros.
        weights: the embedding E (classes, residual), of numbers (1, residual); of each layer V (2 gate, residual, k), whose
            last tap is that of the present, W_r (residual, gate) and W_s (skip, gate); W_1 (hidden, skip) and W_2 (outputs,
            hidden). They may be bfloat16 where all else is float32: they are widened as they are read.
        biases: b_e; of each layer b_v (2 gate,), or one for each row (batch, 2 gate), b_r and b_s; b_1 and b_2.
        dilations: of each layer.
        condition: c (batch, channels, time), or ``None``.
        condition_weights: V_c (2 gate, channels) of each layer, where there is a condition; of the dtype of the weights.
        output: ``"categorical"``, ``"logistics"`` or ``"gaussians"``.
        levels: of logistics, the number of values from -1 to 1, to the nearest of which samples are rounded; ``None`` for none.
        log_scale_min: log-scales and log-deviations below it count as this.
        bound: samples that are numbers are clamped to [-bound, bound].

    Returns:
        The samples (batch, time), classes (int64) or numbers, and the state after them. Nothing given is changed, and nothing
        records a gradient.

    Raises:
        TypeError, ValueError: for arguments that do not fit each other.

    Example:
        >>> import torch
        >>> dilations, (classes, residual, gate, skip) = (1, 2, 4), (16, 4, 5, 6)
        >>> layer = (2 * gate, residual, 2), (residual, gate), (skip, gate)
        >>> weights = [torch.randn(s) for s in ((classes, residual), *3 * layer, (7, skip), (classes, 7))]
        >>> biases = [torch.zeros(residual), *(torch.zeros(len(w)) for w in weights[1:])]
        >>> state = WaveNetState(torch.tensor([8]), torch.zeros(1, sum(dilations), residual))
        >>> drawn, state = wavenet_generate(torch.rand(1, 100, 1), state, weights, biases, dilations)
        >>> more, state = wavenet_generate(torch.rand(1, 50, 1), state, weights, biases, dilations)
        >>> drawn.shape, more.shape
        (torch.Size([1, 100]), torch.Size([1, 50]))

    References:
        WaveNet: A Generative Model for Raw Audio (van den Oord et al., 2016), section 2; Fast Wavenet Generation
        Algorithm (Le Paine et al., 2016).
    """
    dilations = [whole_number("dilations", dilation, 1) for dilation in dilations]
    check_float("noise", noise)
    taps = {w.shape[-1] for w in weights[1:-2:3]}
    older = output == "categorical" and condition is None and taps == {2} and weights[0].dtype == noise.dtype
    kernels = kernels_for(noise, "wavenet_generate")
    if kernels.namespace == "flowkern_cuda" and noise.dtype not in HALF:
        network = list(weights), list(biases), dilations, condition, list(condition_weights)
        draw = torch.ops.flowkern_cuda.wavenet_generate
        samples, queues = draw(noise, *state, *network, output, levels, log_scale_min, bound)
        previous = samples[:, -1] if samples.shape[1] else state.previous
        return samples, WaveNetState(previous.clone(), queues)
    if kernels.plain or noise.dtype in HALF or not older or any(b.dim() > 1 for b in biases):
        return reference.wavenet_generate(
            noise,
            state,
            weights,
            biases,
            dilations,
            condition,
            condition_weights,
            output=output,
            levels=levels,
            log_scale_min=log_scale_min,
            bound=bound,
        )
    uniform, biases, weights = noise[..., 0], biases[1:], [weights[0] + biases[0], *weights[1:]]
    _check_network(uniform, weights, biases, len(dilations))
    _check_state(uniform, state, weights[0].shape[1], sum(dilations))
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
