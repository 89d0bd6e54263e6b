"""A layer of a WaveNet and its gradients, by the products of _convolutions.py.

Forward are two kinds of launches: the gates u = tanh(a) sigmoid(b), whose products never reach memory, then the residual and
the skip, which read u. The backward pass keeps nothing of the forward one: a program computes a, b and the cotangent of u
for its tile, and writes u and the cotangents of a and b. What follows are products: those of the data are these kernels',
those of the weights matrix products over time in torch's own precision.
"""

import torch
import triton
import triton.language as tl

from flowkern.kernels import _launch
from flowkern.kernels._convolutions import Launches, multiply, of_taps, over_time, place, taps_of
from flowkern.kernels._layers import dot
from flowkern.kernels._math import sigmoid, tanh


@triton.jit
def multiply_halves(
    a, s, weight, half, w_row, w_column, r, rows, x, columns, t, times, taps, shift, step,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """As ``multiply``, with the weights of two halves of a gate, ``half`` apart, each to its own sum."""
    for tap in range(taps):
        for first in range(0, columns, BLOCK_C):
            v, c, given = taps_of(x, columns, times, first, t, tap, shift, step, BLOCK_C)
            at, there = weight + r[:, None] * w_row + c[None, :] * w_column + tap, (r < rows)[:, None] & given[None, :]
            a = dot(tl.load(at, there, 0), v, a, PRECISION, UPCAST)
            s = dot(tl.load(at + half, there, 0), v, s, PRECISION, UPCAST)
    return a, s


@triton.jit
def gates(
    x, weight, bias, condition, condition_weight, row, r, t, residual, gate, channels, times, bias_row, taps, dilation,
    ACC: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """What tanh and the sigmoid are applied to, for units r and times t of a row of the batch."""
    shift = (1 - taps) * dilation
    own, given = x + row * residual * times, condition + row * channels * times
    biases = bias + row * bias_row + r
    a = tl.load(biases, r < gate, 0).to(ACC)[:, None] + tl.zeros([BLOCK_R, BLOCK_T], ACC)
    s = tl.load(biases + gate, r < gate, 0).to(ACC)[:, None] + tl.zeros([BLOCK_R, BLOCK_T], ACC)
    a, s = multiply_halves(a, s, weight, gate * residual * taps, residual * taps, taps, r, gate, own, residual, t, times, taps,
                           shift, dilation, PRECISION, UPCAST, BLOCK_C)  # fmt: skip
    a, s = multiply_halves(a, s, condition_weight, gate * channels, channels, 1, r, gate, given, channels, t, times, 1, 0, 0,
                           PRECISION, UPCAST, BLOCK_C)  # fmt: skip
    return tanh(a), sigmoid(s)


@triton.jit
def wavenet_gates(
    x, weight, bias, condition, condition_weight, u, residual, gate, channels, times, bias_row, taps, dilation,
    ACC: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """u [batch, gate, time]."""
    t, row = place(times, BLOCK_T)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    a, s = gates(x, weight, bias, condition, condition_weight, row, r, t, residual, gate, channels, times, bias_row, taps,
                 dilation, ACC, PRECISION, UPCAST, BLOCK_R, BLOCK_T, BLOCK_C)  # fmt: skip
    at = (row * gate + r[:, None]) * times + t[None, :]
    tl.store(u + at, a * s, (r < gate)[:, None] & (t < times)[None, :])


@triton.jit
def wavenet_gates_backward(
    x, weight, bias, condition, condition_weight, g_y, residual_weight, g_skips, skip_weight, u, g_z,
    residual, gate, skip, channels, times, bias_row, taps, dilation,
    ACC: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """u, and the cotangents g_z [batch, 2 gate, time] of what tanh and the sigmoid are applied to."""
    t, row = place(times, BLOCK_T)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    g = tl.zeros([BLOCK_R, BLOCK_T], ACC)
    g = multiply(g, residual_weight, 1, gate, r, gate, g_y + row * residual * times, residual, t, times, 1, 0, 0,
                 PRECISION, UPCAST, BLOCK_C)  # fmt: skip
    g = multiply(g, skip_weight, 1, gate, r, gate, g_skips + row * skip * times, skip, t, times, 1, 0, 0,
                 PRECISION, UPCAST, BLOCK_C)  # fmt: skip
    a, s = gates(x, weight, bias, condition, condition_weight, row, r, t, residual, gate, channels, times, bias_row, taps,
                 dilation, ACC, PRECISION, UPCAST, BLOCK_R, BLOCK_T, BLOCK_C)  # fmt: skip
    inside = (r < gate)[:, None] & (t < times)[None, :]
    tl.store(u + (row * gate + r[:, None]) * times + t[None, :], a * s, inside)
    tl.store(g_z + (row * 2 * gate + r[:, None]) * times + t[None, :], g * s * (1 - a * a), inside)
    tl.store(g_z + ((row * 2 + 1) * gate + r[:, None]) * times + t[None, :], g * a * s * (1 - s), inside)


# -- the host ---------------------------------------------------------------------------------------------------------


def _registers(x, precision):
    """Of the gates: ptxas would spill a few for one more program on a multiprocessor, but for plain multiply-adds."""
    if x.dtype != torch.float32:
        return _launch.registers(168)
    return _launch.registers(224) if precision == "tf32" else {}


def _gate_arguments(x, gate_weight, gate_bias, condition, condition_weight, dilation):
    channels = 0 if condition is None else condition.shape[1]
    return {
        "x": x, "weight": gate_weight, "bias": gate_bias, "condition": x if condition is None else condition,
        "condition_weight": x if condition is None else condition_weight, "residual": x.shape[1],
        "gate": gate_weight.shape[0] // 2, "channels": channels, "times": x.shape[2],
        "bias_row": gate_weight.shape[0] if gate_bias.dim() > 1 else 0, "taps": gate_weight.shape[2], "dilation": dilation,
    }  # fmt: skip


def wavenet_layer(
    x, skips, gate_weight, gate_bias, residual_weight, residual_bias, skip_weight, skip_bias, condition, condition_weight,
    dilation, precision,
):  # fmt: skip
    """What the next layer reads and the sum of the skips; all tensors contiguous, sequences [batch, channels, time]."""
    launches, gate = Launches(x, precision), gate_weight.shape[0] // 2
    u = torch.empty(x.shape[0], gate, x.shape[2], dtype=x.dtype, device=x.device)
    with _launch.on(x):
        if x.numel():
            wavenet_gates[launches.grid(gate)](
                u=u, **_gate_arguments(x, gate_weight, gate_bias, condition, condition_weight, dilation),
                **launches.options, **_registers(x, precision),
            )  # fmt: skip
        y = launches.products(u, residual_weight, bias=residual_bias, base=x)
        return y, launches.products(u, skip_weight, bias=skip_bias, base=skips)


def wavenet_layer_gradients(
    g_y, g_skips, x, gate_weight, gate_bias, residual_weight, skip_weight, condition, condition_weight, dilation, precision,
    of_parameters, of_x, of_condition,
):  # fmt: skip
    """Of the parameters in the order of the forward pass, of x and of the condition, as far as they are asked for."""
    launches, gate, skip = Launches(x, precision), gate_weight.shape[0] // 2, skip_weight.shape[0]
    u = torch.empty(x.shape[0], gate, x.shape[2], dtype=x.dtype, device=x.device)
    g_z = torch.empty(x.shape[0], 2 * gate, x.shape[2], dtype=x.dtype, device=x.device)
    if x.numel():
        with _launch.on(x):
            wavenet_gates_backward[launches.grid(gate)](
                g_y=g_y, residual_weight=residual_weight, g_skips=g_skips, skip_weight=skip_weight, u=u, g_z=g_z, skip=skip,
                **_gate_arguments(x, gate_weight, gate_bias, condition, condition_weight, dilation), **launches.options,
                **_registers(x, precision),
            )  # fmt: skip
    found = []
    if of_parameters:
        of_rows = gate_bias.dim() > 1
        found = [
            of_taps(g_z, x, gate_weight.shape[2], dilation),
            g_z.sum(2) if of_rows else g_z.sum((0, 2)),
            over_time(g_y, u),
            g_y.sum((0, 2)),
        ]
        found += [over_time(g_skips, u), g_skips.sum((0, 2))]
        found += [] if condition is None else [over_time(g_z, condition)]
    with _launch.on(x):
        found += [launches.products(g_z, gate_weight, True, dilation, base=g_y)] if of_x else []
        found += [launches.products(g_z, condition_weight, True)] if of_condition else []
    return found
