"""A layer of a WaveNet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowkern import reference
from flowkern._checks import HALF, check_float, check_like, whole_number
from flowkern.backends import Kernels, kernels_for
from flowkern.ops._convolutions import lowers
from flowkern.ops._derivatives import plain_backward, wants_plain
from flowkern.ops._rows import namespace


def wavenet_layer(
    x: Tensor,
    skips: Tensor | None,
    gate_weight: Tensor,
    gate_bias: Tensor,
    residual_weight: Tensor,
    residual_bias: Tensor,
    skip_weight: Tensor,
    skip_bias: Tensor,
    condition: Tensor | None = None,
    condition_weight: Tensor | None = None,
    *,
    dilation: int = 1,
) -> tuple[Tensor, Tensor]:
    r"""(a, b) = V * x + b_v + V_c c with a causal convolution V, u = tanh(a) sigmoid(b); x + W_r u + b_r, s + W_s u + b_s.

    For gradients it keeps x and the condition; the backward pass computes the gate again, a sixth of a step's products.

    Args:
        x: what the layer reads (..., residual, time), at least one time.
        skips: s (..., skip, time), the sum of what the layers before gave; ``None`` for the first.
        gate_weight: V (2 gate, residual, k), the last tap being that of the present.
        gate_bias: b_v (2 gate,), or one for each row (..., 2 gate), which is how a global condition comes in.
        residual_weight, residual_bias: W_r (residual, gate), b_r (residual,).
        skip_weight, skip_bias: W_s (skip, gate), b_s (skip,).
        condition: local condition c (..., channels, time), or ``None``.
        condition_weight: V_c (2 gate, channels), where there is a condition.
        dilation: distance in time between taps.

    Returns:
        What the next layer reads (..., residual, time), and the sum with this layer's skip (..., skip, time).

    Raises:
        TypeError, ValueError: for arguments that do not fit each other.

    Example:
        >>> import torch
        >>> residual, gate, skip = 4, 5, 6
        >>> weights = [torch.randn(s) for s in ((2 * gate, residual, 2), (residual, gate), (skip, gate))]
        >>> arguments = [t for w in weights for t in (w, torch.zeros(len(w)))]
        >>> x, skips = wavenet_layer(torch.randn(2, residual, 30), None, *arguments, dilation=8)
        >>> x.shape, skips.shape
        (torch.Size([2, 4, 30]), torch.Size([2, 6, 30]))

    References:
        WaveNet: A Generative Model for Raw Audio (van den Oord et al., 2016), sections 2.3 to 2.5.
    """
    given = Layer(
        *(x, skips, gate_weight, gate_bias, residual_weight, residual_bias, skip_weight, skip_bias, condition, condition_weight)
    )
    _check_tensors(given)
    if lowers(x, gate_weight):
        # Autocast's rounding of the weights, as in masked networks; the products take them in the dtype that they had.
        low, dtype = torch.get_autocast_dtype(x.device.type), gate_weight.dtype
        rounded = given.over(_WEIGHTS, lambda t: t.to(low)).over((*_SEQUENCES, *_WEIGHTS), lambda t: t.to(dtype))
        with torch.autocast(x.device.type, enabled=False):
            return wavenet_layer(*rounded, dilation=dilation)
    _check(given, dilation)
    kernels = kernels_for(x, "wavenet_layer")
    if kernels.plain:
        return reference.wavenet_layer(*given, dilation=dilation)
    dtype, batch = x.dtype, x.shape[:-2]
    given = given.with_one_batch()
    if kernels.on_cpu:
        given = given.over(Layer._fields, lambda t: t.float() if t.dtype in HALF else t)
    needed = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)
    outputs = (WaveNetLayerFunction.apply if needed else _run)(kernels, dilation, *given)
    y, sums = (t.to(dtype).reshape(*batch, *t.shape[1:]) for t in outputs)
    return y, sums


class Layer(NamedTuple):
    """The tensors of a call."""

    x: Tensor
    skips: Tensor | None
    gate_weight: Tensor
    gate_bias: Tensor
    residual_weight: Tensor
    residual_bias: Tensor
    skip_weight: Tensor
    skip_bias: Tensor
    condition: Tensor | None
    condition_weight: Tensor | None

    def over(self, names: Sequence[str], change: Callable[[Tensor], Tensor]) -> Layer:
        """With those of some names that are there changed."""
        return self._replace(**{name: change(t) for name in names if (t := getattr(self, name)) is not None})

    def with_one_batch(self) -> Layer:
        """With one dimension for the batch."""
        rows = self.x.shape[:-2].numel()
        of_rows = ("gate_bias",) if self.gate_bias.dim() > 1 else ()
        flat = self.over(_SEQUENCES, lambda t: t.reshape(rows, *t.shape[-2:]))
        return flat.over(of_rows, lambda t: t.reshape(rows, t.shape[-1]))


_SEQUENCES = "x", "skips", "condition"
_WEIGHTS = "gate_weight", "residual_weight", "skip_weight", "condition_weight"
_OPTIONAL = "skips", "condition", "condition_weight"


def _check_tensors(given: Layer) -> None:
    for name, t in given._asdict().items():
        if t is not None or name not in _OPTIONAL:
            check_float(name, t)
    if (given.condition is None) != (given.condition_weight is None):
        missing, there = ("condition", "condition_weight") if given.condition is None else ("condition_weight", "condition")
        raise ValueError(f"{missing}: expected a tensor, since there is {there}, got None")


def _check(given: Layer, dilation: int) -> None:
    """Shapes, from x and the weights of the gate and the skips; dtypes and devices."""
    for name, t in given._asdict().items():
        if t is not None:
            check_like(name, t, given.x)
    whole_number("dilation", dilation, 1)
    x, gate_weight, skip_weight = given.x, given.gate_weight, given.skip_weight
    if gate_weight.dim() != 3 or 0 in gate_weight.shape or gate_weight.shape[0] % 2:
        raise ValueError(
            "gate_weight: expected shape (2 gate, residual, kernel size), none of them 0 and the first even, "
            f"got {tuple(gate_weight.shape)}"
        )
    gate, residual = gate_weight.shape[0] // 2, gate_weight.shape[1]
    if x.dim() < 2 or x.shape[-2] != residual or x.shape[-1] == 0:
        raise ValueError(
            f"x: expected shape (..., {residual}, time) of at least one time like gate_weight, got {tuple(x.shape)}"
        )
    if skip_weight.dim() != 2 or skip_weight.shape[0] == 0 or skip_weight.shape[1] != gate:
        raise ValueError(f"skip_weight: expected shape (skip, {gate}) of at least one skip, got {tuple(skip_weight.shape)}")
    batch, time, skip = x.shape[:-2], x.shape[-1], skip_weight.shape[0]
    expected = {
        "skips": [(*batch, skip, time)],
        "gate_bias": [(2 * gate,), (*batch, 2 * gate)],
        "residual_weight": [(residual, gate)],
        "residual_bias": [(residual,)],
        "skip_bias": [(skip,)],
    }
    if given.condition is not None:
        channels = given.condition.shape[-2] if given.condition.dim() > 1 else 0
        if channels == 0:
            raise ValueError(f"condition: expected shape (..., channels, time), got {tuple(given.condition.shape)}")
        expected |= {"condition": [(*batch, channels, time)], "condition_weight": [(2 * gate, channels)]}
    for name, shapes in expected.items():
        t = getattr(given, name)
        if t is not None and t.shape not in shapes:
            raise ValueError(f"{name}: expected shape {' or '.join(map(str, shapes))}, got {tuple(t.shape)}")


def _run(kernels: Kernels, dilation: int, *given: Tensor | None) -> tuple[Tensor, Tensor]:
    contiguous = (t if t is None else t.contiguous() for t in given)
    return namespace(kernels).wavenet_layer(*contiguous, *_constants(kernels, dilation))


def _constants(kernels: Kernels, dilation: int) -> tuple[Any, ...]:
    """What the kernels take besides tensors."""
    return (dilation,) if kernels.on_cpu else (dilation, kernels.precision)


class WaveNetLayerFunction(torch.autograd.Function):
    """Forward and backward kernels; second derivatives through the oracle."""

    @staticmethod
    def forward(ctx: Any, kernels: Kernels, dilation: int, *given: Tensor | None) -> tuple[Tensor, Tensor]:
        ctx.kernels, ctx.dilation = kernels, dilation
        ctx.save_for_backward(*Layer(*given)._replace(skips=None))  # type: ignore[arg-type]  # no gradient asks for the skips
        return _run(kernels, dilation, *given)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        given = Layer(*ctx.saved_tensors)
        needs = dict(zip(Layer._fields, ctx.needs_input_grad[2:], strict=True))
        found: dict[str, Tensor | None] = {"skips": grads[1]}
        if wants_plain():
            oracle = partial(reference.wavenet_layer, dilation=ctx.dilation)
            wanted = [need and name != "skips" for name, need in needs.items()]
            found = dict(zip(needs, plain_backward(oracle, given, wanted, grads), strict=True)) | found
        else:
            parameters = [name for name in (*Layer._fields[2:8], "condition_weight") if getattr(given, name) is not None]
            of = any(needs[name] for name in parameters), needs["x"], needs["condition"]
            inputs = given.x, *given[2:5], given.skip_weight, *given[8:]
            tensors = (t if t is None else t.contiguous() for t in (*grads, *inputs))
            gradients = namespace(ctx.kernels).wavenet_layer_backward(*tensors, *_constants(ctx.kernels, ctx.dilation), *of)
            names = [*parameters * of[0], *["x"] * of[1], *["condition"] * of[2]]
            found |= dict(zip(names, gradients, strict=True))
        return None, None, *(found.get(name) if need else None for name, need in needs.items())
