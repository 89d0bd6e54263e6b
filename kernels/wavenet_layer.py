"""A layer of a WaveNet and its gradients: products over channels, with times as columns and taps as shifted loads.

Forward are two kinds of launches: the gates u = tanh(a) sigmoid(b), whose products never reach memory, then the residual and
the skip, which read u. The backward pass keeps nothing of the forward one: a program computes a, b and the cotangent of u
for its tile, and writes u and the cotangents of a and b. What follows are products: those of the data are these kernels',
those of the weights matrix products over time in torch's own precision.
"""

import torch
import triton
import triton.language as tl

from flowkern.kernels import _launch
from flowkern.kernels._layers import dot
from flowkern.kernels._math import sigmoid, tanh


@triton.jit
def multiply(
    acc, weight, w_row, w_column, r, rows, x, columns, t, times, taps, shift, step,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """acc [r, t] + the sum over taps j of weight[r, :, j] x[:, t + shift + j step]; x [columns, times] is one row's."""
    for tap in range(taps):
        at = t + shift + tap * step
        heard = (at >= 0) & (at < times)
        for first in range(0, columns, BLOCK_C):
            c = first + tl.arange(0, BLOCK_C)
            given = c < columns
            w = tl.load(weight + r[:, None] * w_row + c[None, :] * w_column + tap, (r < rows)[:, None] & given[None, :], 0)
            v = tl.load(x + c.to(tl.int64)[:, None] * times + at[None, :], given[:, None] & heard[None, :], 0)
            acc = dot(w, v, acc, PRECISION, UPCAST)
    return acc


@triton.jit
def gates(
    x, weight, bias, condition, condition_weight, b, r, t, residual, gate, channels, times, bias_row, taps, dilation,
    ACC: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """What tanh and the sigmoid are applied to, for units r and times t of a row of the batch."""
    row, shift = b.to(tl.int64), (1 - taps) * dilation
    own, given = x + row * residual * times, condition + row * channels * times
    biases = bias + row * bias_row + r
    a = tl.load(biases, r < gate, 0).to(ACC)[:, None] + tl.zeros([BLOCK_R, BLOCK_T], ACC)
    s = tl.load(biases + gate, r < gate, 0).to(ACC)[:, None] + tl.zeros([BLOCK_R, BLOCK_T], ACC)
    second, second_condition = weight + gate * residual * taps, condition_weight + gate * channels
    a = multiply(a, weight, residual * taps, taps, r, gate, own, residual, t, times, taps, shift, dilation,
                 PRECISION, UPCAST, BLOCK_C)  # fmt: skip
    s = multiply(s, second, residual * taps, taps, r, gate, own, residual, t, times, taps, shift, dilation,
                 PRECISION, UPCAST, BLOCK_C)  # fmt: skip
    a = multiply(a, condition_weight, channels, 1, r, gate, given, channels, t, times, 1, 0, 0, PRECISION, UPCAST, BLOCK_C)
    s = multiply(s, second_condition, channels, 1, r, gate, given, channels, t, times, 1, 0, 0, PRECISION, UPCAST, BLOCK_C)
    return tanh(a), sigmoid(s)


@triton.jit
def wavenet_gates(
    x, weight, bias, condition, condition_weight, u, residual, gate, channels, times, bias_row, taps, dilation,
    ACC: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """u [batch, gate, time]."""
    t, b = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T), tl.program_id(2)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    a, s = gates(x, weight, bias, condition, condition_weight, b, r, t, residual, gate, channels, times, bias_row, taps,
                 dilation, ACC, PRECISION, UPCAST, BLOCK_R, BLOCK_T, BLOCK_C)  # fmt: skip
    at = (b.to(tl.int64) * gate + r[:, None]) * times + t[None, :]
    tl.store(u + at, a * s, (r < gate)[:, None] & (t < times)[None, :])


@triton.jit
def wavenet_gates_backward(
    x, weight, bias, condition, condition_weight, g_y, residual_weight, g_skips, skip_weight, u, g_z,
    residual, gate, skip, channels, times, bias_row, taps, dilation,
    ACC: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """u, and the cotangents g_z [batch, 2 gate, time] of what tanh and the sigmoid are applied to."""
    t, b = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T), tl.program_id(2)
    r, row = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R), b.to(tl.int64)
    g = tl.zeros([BLOCK_R, BLOCK_T], ACC)
    g = multiply(g, residual_weight, 1, gate, r, gate, g_y + row * residual * times, residual, t, times, 1, 0, 0,
                 PRECISION, UPCAST, BLOCK_C)  # fmt: skip
    g = multiply(g, skip_weight, 1, gate, r, gate, g_skips + row * skip * times, skip, t, times, 1, 0, 0,
                 PRECISION, UPCAST, BLOCK_C)  # fmt: skip
    a, s = gates(x, weight, bias, condition, condition_weight, b, r, t, residual, gate, channels, times, bias_row, taps,
                 dilation, ACC, PRECISION, UPCAST, BLOCK_R, BLOCK_T, BLOCK_C)  # fmt: skip
    inside = (r < gate)[:, None] & (t < times)[None, :]
    tl.store(u + (row * gate + r[:, None]) * times + t[None, :], a * s, inside)
    tl.store(g_z + (row * 2 * gate + r[:, None]) * times + t[None, :], g * s * (1 - a * a), inside)
    tl.store(g_z + ((row * 2 + 1) * gate + r[:, None]) * times + t[None, :], g * a * s * (1 - s), inside)


@triton.jit
def channel_products(
    x, weight, w_row, w_column, bias, base, out, rows, columns, times, taps, shift, step,
    BIAS: tl.constexpr, BASE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out [batch, rows, time] = base + bias + products with x [batch, columns, time], see ``multiply``."""
    t, b = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T), tl.program_id(2).to(tl.int64)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    at, inside = (b * rows + r[:, None]) * times + t[None, :], (r < rows)[:, None] & (t < times)[None, :]
    acc = tl.zeros([BLOCK_R, BLOCK_T], ACC)
    if BIAS:
        acc += tl.load(bias + r, r < rows, 0).to(ACC)[:, None]
    acc = multiply(acc, weight, w_row, w_column, r, rows, x + b * columns * times, columns, t, times, taps, shift, step,
                   PRECISION, UPCAST, BLOCK_C)  # fmt: skip
    if BASE:
        acc += tl.load(base + at, inside, 0).to(ACC)
    tl.store(out + at, acc, inside)


# -- the host ---------------------------------------------------------------------------------------------------------


class _Launches:
    """What all launches of a call share: blocks and numbers."""

    def __init__(self, x, precision):
        double = x.dtype == torch.float64
        self.batch, self.times = x.shape[0], x.shape[2]
        self.block_t = 16 if double else 64
        low = _launch.INTERPRETED and x.dtype == torch.bfloat16
        self.options = {
            "ACC": tl.float64 if double else tl.float32, "PRECISION": precision, "UPCAST": low, "BLOCK_T": self.block_t,
            "BLOCK_C": 32 if x.element_size() == 2 else 16, "num_warps": 8 if double else 4,
        }  # fmt: skip
        # With tf32 ptxas would spill a few registers for a third program on a multiprocessor.
        tf32 = precision == "tf32" and x.dtype == torch.float32
        self.of_gates = {**self.options, **(_launch.registers(224) if tf32 else {})}

    def grid(self, rows, block):
        return triton.cdiv(self.times, self.block_t), triton.cdiv(rows, block), self.batch

    def products(self, x, weight, transposed=False, dilation=1, bias=None, base=None):
        """``weight`` [rows, columns] or [rows, columns, taps] applied to x; transposed, from later times to earlier ones."""
        taps = weight.shape[2] if weight.dim() == 3 else 1
        rows, columns = (weight.shape[1], weight.shape[0]) if transposed else weight.shape[:2]
        w_row, w_column = (weight.stride(1), weight.stride(0)) if transposed else weight.stride()[:2]
        sign = -1 if transposed else 1
        out = torch.empty(self.batch, rows, self.times, dtype=x.dtype, device=x.device)
        if not out.numel():
            return out
        channel_products[self.grid(rows, 32)](
            x=x, weight=weight, w_row=w_row, w_column=w_column, bias=x if bias is None else bias,
            base=x if base is None else base, out=out, rows=rows, columns=columns, times=self.times, taps=taps,
            shift=sign * (1 - taps) * dilation, step=sign * dilation, BIAS=bias is not None, BASE=base is not None, BLOCK_R=32,
            **self.options,
        )  # fmt: skip
        return out


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
    launches, gate = _Launches(x, precision), gate_weight.shape[0] // 2
    u = torch.empty(x.shape[0], gate, x.shape[2], dtype=x.dtype, device=x.device)
    with _launch.on(x):
        if x.numel():
            wavenet_gates[launches.grid(gate, 32)](
                u=u, BLOCK_R=32, **_gate_arguments(x, gate_weight, gate_bias, condition, condition_weight, dilation),
                **launches.of_gates,
            )  # fmt: skip
        y = launches.products(u, residual_weight, bias=residual_bias, base=x)
        return y, launches.products(u, skip_weight, bias=skip_bias, base=skips)


def wavenet_layer_gradients(
    g_y, g_skips, x, gate_weight, gate_bias, residual_weight, skip_weight, condition, condition_weight, dilation, precision,
    of_parameters, of_x, of_condition,
):  # fmt: skip
    """Of the parameters in the order of the forward pass, of x and of the condition, as far as they are asked for."""
    launches, gate, skip = _Launches(x, precision), gate_weight.shape[0] // 2, skip_weight.shape[0]
    u = torch.empty(x.shape[0], gate, x.shape[2], dtype=x.dtype, device=x.device)
    g_z = torch.empty(x.shape[0], 2 * gate, x.shape[2], dtype=x.dtype, device=x.device)
    if x.numel():
        with _launch.on(x):
            wavenet_gates_backward[launches.grid(gate, 32)](
                g_y=g_y, residual_weight=residual_weight, g_skips=g_skips, skip_weight=skip_weight, u=u, g_z=g_z, skip=skip,
                BLOCK_R=32, **_gate_arguments(x, gate_weight, gate_bias, condition, condition_weight, dilation),
                **launches.of_gates,
            )  # fmt: skip
    found = []
    if of_parameters:
        of_rows = gate_bias.dim() > 1
        taps = [_over_time(g_z, x, tap * dilation) for tap in reversed(range(gate_weight.shape[2]))]
        found = [torch.stack(taps, 2), g_z.sum(2) if of_rows else g_z.sum((0, 2)), _over_time(g_y, u), g_y.sum((0, 2))]
        found += [_over_time(g_skips, u), g_skips.sum((0, 2))]
        found += [] if condition is None else [_over_time(g_z, condition)]
    with _launch.on(x):
        found += [launches.products(g_z, gate_weight, True, dilation, base=g_y)] if of_x else []
        found += [launches.products(g_z, condition_weight, True)] if of_condition else []
    return found


def _over_time(g, x, lag=0):
    """The sum over the batch and time of g_t x_(t - lag)^T."""
    length = max(g.shape[2] - lag, 0)
    return torch.bmm(g[..., g.shape[2] - length :], x[..., :length].transpose(1, 2)).sum(0)
