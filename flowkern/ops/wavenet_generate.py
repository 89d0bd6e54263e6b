"""The sampling loop of a WaveNet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from flowkern import backends, reference
from flowkern._checks import HALF, check_device, check_float, check_like, check_shapes, check_tensor, one_of, whole_number
from flowkern.backends import kernels_for
from flowkern.ops._mixtures import check_log_scale_min
from flowkern.reference import WaveNetState

OUTPUTS = ("categorical", "logistics", "gaussians")  # in the order of the kernels' enumeration


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
        noise: random numbers (batch, time, numbers per sample) in float32 or float64; there may be no time.
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
    dilations = _checked_dilations(dilations)
    _check_sampler(output, levels, log_scale_min, bound)
    _check_kinds(noise, weights, biases, len(dilations))
    _check_network(noise, weights, biases, output)
    lengths = [(gate.shape[2] - 1) * dilation for gate, dilation in zip(weights[1:-2:3], dilations, strict=True)]
    _check_state(noise, state, weights[0], sum(lengths), output)
    _check_condition(noise, condition, condition_weights, weights[1:-2:3])
    kernels = kernels_for(noise, "wavenet_generate")
    if kernels.plain:
        arguments = noise, state, weights, biases, dilations, condition, condition_weights
        options: dict[str, Any] = {"levels": levels, "log_scale_min": log_scale_min, "bound": bound}
        return reference.wavenet_generate(*arguments, output=output, **options)
    sampler = OUTPUTS.index(output), levels or 0, log_scale_min, bound
    if kernels.on_cpu:
        samples, queues = torch.ops.flowkern.wavenet_generate(
            noise.contiguous(),
            state.previous.contiguous(),
            state.queues.contiguous(),
            [t.contiguous() for t in weights],
            [t.contiguous() for t in biases],
            dilations,
            None if condition is None else condition.transpose(1, 2).contiguous(),
            [t.contiguous() for t in condition_weights],
            *sampler,
        )
    else:
        network = list(weights), list(biases), dilations, condition, list(condition_weights)
        samples, queues = torch.ops.flowkern_cuda.wavenet_generate(noise, *state, *network, *sampler)
    previous = samples[:, -1] if samples.shape[1] else state.previous
    return samples, WaveNetState(previous.clone(), queues)


def _checked_dilations(dilations: Sequence[int]) -> list[int]:
    try:
        given = list(dilations)
    except TypeError:
        raise TypeError(f"dilations: expected a sequence of whole numbers such as (1, 2, 4), got {dilations!r}") from None
    if not given:
        raise ValueError("dilations: expected those of at least one layer, got none")
    return [whole_number("dilations", dilation, 1) for dilation in given]


def _check_sampler(output: str, levels: int | None, log_scale_min: float, bound: float) -> None:
    one_of("output", output, OUTPUTS)
    if levels is not None:
        whole_number("levels", levels, 2)
        if output != "logistics":
            raise ValueError(f"levels: expected None for {output}, got {levels}")
    check_log_scale_min(log_scale_min)
    if not isinstance(bound, float | int) or not bound > 0:
        raise ValueError(f"bound: expected a positive number, got {bound!r}")


def _check_kinds(noise: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], layers: int) -> None:
    """As many tensors as so many layers take, of the dtypes that go together."""
    check_float("noise", noise)
    if noise.dtype in HALF:
        raise TypeError(f"noise: expected dtype torch.float32 or torch.float64, got {noise.dtype}")
    for name, tensors in (("weights", weights), ("biases", biases)):
        if len(tensors) != 3 * layers + 3:
            raise ValueError(f"{name}: expected {3 * layers + 3} tensors for {layers} layers, got {len(tensors)}")
        for i, t in enumerate(tensors):
            check_tensor(f"{name}[{i}]", t)
    stored = weights[0].dtype
    if stored is not noise.dtype and (stored, noise.dtype) != (torch.bfloat16, torch.float32):
        allowed = "torch.float32 or torch.bfloat16" if noise.dtype is torch.float32 else noise.dtype
        raise TypeError(f"weights[0]: expected dtype {allowed}, since noise is {noise.dtype}, got {stored}")
    check_device("weights[0]", weights[0], noise, "noise")
    for i, w in enumerate(weights):
        check_like("weights", w, weights[0], "weights[0]", i)
    for i, b in enumerate(biases):
        check_like("biases", b, noise, "noise", i)


def _check_network(noise: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], output: str) -> None:
    """Widths are those of the first layer and of the last two weights."""
    gates = range(1, len(weights) - 2, 3)
    for i in (0, *gates, 3, len(weights) - 2, len(weights) - 1):
        dimensions = 3 if i in gates else 2
        if weights[i].dim() != dimensions or 0 in weights[i].shape:
            got = tuple(weights[i].shape)
            raise ValueError(f"weights[{i}]: expected {dimensions} dimensions, none of size 0, got {got}")
    residual, gate, skip = weights[0].shape[1], weights[1].shape[0] // 2, weights[3].shape[0]
    hidden, outputs = weights[-2].shape[0], weights[-1].shape[0]
    if output != "categorical" and outputs % 3:
        raise ValueError(f"weights[{len(weights) - 1}]: expected 3 outputs for each component, got {outputs}")
    numbers = 1 if output == "categorical" else outputs // 3 + 1
    if noise.dim() != 3 or noise.shape[2] != numbers:
        raise ValueError(f"noise: expected shape (batch, time, {numbers}) for {output}, got {tuple(noise.shape)}")
    layers = [((2 * gate, residual, weights[i].shape[2]), (residual, gate), (skip, gate)) for i in gates]
    embedding = (outputs if output == "categorical" else 1, residual)
    shapes: list[tuple[int, ...]] = [embedding, *chain(*layers), (hidden, skip), (outputs, hidden)]
    check_shapes("weights", weights, shapes)
    for i, b in enumerate(biases):
        width = shapes[i][0] if i else residual
        if b.shape != (width,) and not (i in gates and b.shape == (len(noise), width)):
            expected = f"({width},) or {(len(noise), width)}" if i in gates else f"({width},)"
            raise ValueError(f"biases[{i}]: expected shape {expected}, got {tuple(b.shape)}")


def _check_state(noise: Tensor, state: WaveNetState, embedding: Tensor, length: int, output: str) -> None:
    """A state of as many rows as there are sequences."""
    if not isinstance(state, WaveNetState):
        raise TypeError(f"state: expected a WaveNetState, got {type(state).__name__}")
    classes, residual = embedding.shape
    dtype = torch.int64 if output == "categorical" else noise.dtype
    check_tensor("state.previous", state.previous)
    check_device("state.previous", state.previous, noise, "noise")
    if state.previous.dtype is not dtype or state.previous.shape != noise.shape[:1]:
        got = f"{state.previous.dtype} of shape {tuple(state.previous.shape)}"
        raise ValueError(f"state.previous: expected {dtype} of shape ({len(noise)},), got {got}")
    check_tensor("state.queues", state.queues)
    check_like("state.queues", state.queues, noise, "noise")
    expected = (len(noise), length, residual)
    if state.queues.shape != expected:
        raise ValueError(f"state.queues: expected shape {expected}, got {tuple(state.queues.shape)}")
    # Values on a GPU are not looked at, which would wait for it.
    looks = output == "categorical" and backends.device_of(noise) == "cpu" and not torch.compiler.is_compiling()
    if looks and not ((state.previous >= 0) & (state.previous < classes)).all():
        raise ValueError(f"state.previous: expected classes from 0 to {classes - 1}, got {state.previous.tolist()}")


def _check_condition(
    noise: Tensor, condition: Tensor | None, condition_weights: Sequence[Tensor], gates: Sequence[Tensor]
) -> None:
    """As many times as are drawn, and a weight for each layer, or neither."""
    count = 0 if condition is None else len(gates)
    if len(condition_weights) != count:
        given = "without a condition" if condition is None else f"for {count} layers"
        raise ValueError(f"condition_weights: expected {count} tensors {given}, got {len(condition_weights)}")
    if condition is None:
        return
    check_tensor("condition", condition)
    check_like("condition", condition, noise, "noise")
    batch, time = noise.shape[:2]
    if condition.dim() != 3 or (condition.shape[0], condition.shape[2]) != (batch, time):
        raise ValueError(f"condition: expected shape ({batch}, channels, {time}), got {tuple(condition.shape)}")
    for i, w in enumerate(condition_weights):
        check_tensor(f"condition_weights[{i}]", w)
        check_like("condition_weights", w, gates[0], "weights[0]", i)
    check_shapes("condition_weights", condition_weights, [(len(g), condition.shape[1]) for g in gates])
