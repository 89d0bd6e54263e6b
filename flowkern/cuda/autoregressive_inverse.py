"""The inverse's sweep and its gradient on a GPU: tensors, and the gradients of weights as matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowkern.cuda.launch import MapWords, accumulated, on_device, programs_of, sweep
from flowkern.plan import AutoregressivePlan
from flowkern.reference.masked_mlp import activate


def autoregressive_inverse(
    z: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    addends: Sequence[Tensor],
    plan: AutoregressivePlan,
    precision: str,
    map: MapWords,
    keep: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """x, log_det, and what the gradient needs: pre-activations and parameters, unit by unit."""
    dtype, number, batch = z.dtype, accumulated(weights[0].dtype), z.shape[0]
    z = z.to(number)
    x, log_det = z.new_empty(z.shape), z.new_empty(batch)
    saved = z.new_empty(plan.saved_rows, batch) if keep else z.new_empty(0)
    if batch:
        tensors = {"input": z, "output": x, "log_det": log_det, **({"saved": saved} if keep else {})}
        strides = {"input_row": z.stride(0), "input_column": z.stride(1)}
        sweep(
            "autoregressive_inverse", programs_of(plan, False, weights[0].dtype), weights, [b.to(number) for b in biases],
            addends, precision, map, batch, tensors, strides,
        )  # fmt: skip
    return x.to(dtype), log_det.to(dtype), [saved] if keep else []


def autoregressive_inverse_gradients(
    g_x: Tensor,
    g_log_det: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    addends: Sequence[Tensor],
    state: Sequence[Tensor],
    plan: AutoregressivePlan,
    precision: str,
    map: MapWords,
    parameters: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Cotangents of z, of all weights and of all biases as vectors (of no size unless ``parameters``), of the addends."""
    dtype, number, batch = x.dtype, accumulated(weights[0].dtype), x.shape[0]
    g_x, g_log_det, x, (saved,) = g_x.to(number), g_log_det.to(number), x.to(number), state
    g_z, deltas = x.new_empty(x.shape), torch.empty_like(saved)
    if batch:
        tensors = {"input": g_x, "g_log_det": g_log_det, "x": x, "output": g_z, "saved": saved, "deltas": deltas}
        names = ("input_row", "input_column", "g_log_det_row", "x_row", "x_column")
        strides = dict(zip(names, (*g_x.stride(), *g_log_det.stride(), *x.stride()), strict=True))
        sweep(
            "autoregressive_inverse_backward", programs_of(plan, True, weights[0].dtype), weights, [], addends, precision,
            map, batch, tensors, strides,
        )  # fmt: skip
    rows = _rows(plan, x.device)
    g_addends = [_scatter(a, rows.orders[layer], deltas[part]) for a, layer, part in zip(addends, *_terms(plan), strict=True)]
    like = [weights[0].new_empty(0), (biases or weights)[0].new_empty(0)]
    g_weights, g_biases = _parameter_gradients(plan, rows, x, saved, deltas, weights, biases) if parameters else like
    return g_z.to(dtype), g_weights, g_biases, g_addends


@dataclass(frozen=True)
class _Rows:
    """On a device: original places of features and of every layer's units, and the masks of sorted units."""

    features: Tensor
    orders: list[Tensor]
    masks: list[Tensor]


def _rows(plan: AutoregressivePlan, device: torch.device) -> _Rows:
    def make() -> _Rows:
        orders = [*plan.unit_orders, plan.output_order]
        masks = [
            m[orders[_target(plan, i)]][:, plan.feature_order if s < 0 else orders[s]].to(device)
            for i, (m, s) in enumerate(zip(plan.masks, _sources(plan), strict=True))
        ]
        return _Rows(plan.feature_order.to(device), [o.to(device) for o in orders], masks)

    return plan.at_first_call(("rows", device), device, make)


def prepare(plan: AutoregressivePlan, weight: Tensor) -> None:
    """Brings tables to a device while a call is traced: the compiled one may run in a CUDA graph, which reuses memory."""
    if weight.device.type == "meta":
        return
    for reverse in (False, True):
        for program in programs_of(plan, reverse, weight.dtype):
            if program is not None:
                on_device(program, weight.device)
    _rows(plan, weight.device)


def _target(plan: AutoregressivePlan, linear: int) -> int:
    return min(linear, len(plan.units))


def _sources(plan: AutoregressivePlan) -> list[int]:
    """The layer that each linear map reads; -1 for the features."""
    return [*range(-1, len(plan.units)), *([-1] if plan.skip else [])]


def _terms(plan: AutoregressivePlan) -> tuple[list[int], list[slice]]:
    """For each addend and gate its layer, and the rows that hold its cotangents."""
    starts, depth = plan.saved_starts, len(plan.units)
    at = [*plan.addends, *(depth + 1 + i for i in range(len(plan.gates)))]
    return [*plan.addends, *plan.gates], [slice(starts[i], starts[i + 1]) for i in at]


def _scatter(like: Tensor, order: Tensor, rows: Tensor) -> Tensor:
    """[batch, units] from [units in sorted order, batch]; zero for units that reach no output."""
    out = torch.zeros(like.shape, dtype=rows.dtype, device=like.device)
    out[:, order] = rows.t()
    return out.to(like.dtype)


def _parameter_gradients(
    plan: AutoregressivePlan,
    rows: _Rows,
    x: Tensor,
    saved: Tensor,
    deltas: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """Products over the batch of what each layer received and read, back in the original order."""
    starts, low = plan.saved_starts, weights[0].dtype
    g_weights = [torch.zeros(w.shape, dtype=low, device=x.device) for w in weights]
    for i, (g, source) in enumerate(zip(g_weights, _sources(plan), strict=True)):
        target = _target(plan, i)
        if source < 0:
            read, columns = x.t()[rows.features], rows.features
        else:
            read, columns = saved[starts[source] : starts[source + 1]], rows.orders[source]
            read = activate(plan.activation, read, plan.constant) if plan.activated[source] else read
        product = deltas[starts[target] : starts[target + 1]].to(low) @ read.to(low).t()
        g[rows.orders[target][:, None], columns] = torch.where(rows.masks[i], product, 0)
    g_biases = []
    for i, has in enumerate(plan.biases):
        if has:
            g = torch.zeros(plan.masks[i].shape[0], dtype=deltas.dtype, device=x.device)
            g[rows.orders[i]] = deltas[starts[i] : starts[i + 1]].sum(1)
            g_biases.append(g)
    flat_biases = torch.cat(g_biases) if g_biases else deltas.new_empty(0)
    return torch.cat([g.flatten() for g in g_weights]), flat_biases.to((biases or weights)[0].dtype)
