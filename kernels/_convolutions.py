"""What convolutions of sequences [batch, channels, time] share.

That is products over channels, with times as columns and taps as shifted loads, which become matrix instructions, and the
gradients of their weights.
"""

import torch
import triton
import triton.language as tl

from flowkern.kernels import _launch
from flowkern.kernels._layers import dot


@triton.jit
def taps_of(x, columns, times, first, t, tap, shift, step, BLOCK_C: tl.constexpr):
    """What a tap reads of some channels of a row x [columns, times], the channels, and which of them there are."""
    c, at = first + tl.arange(0, BLOCK_C), t + shift + tap * step
    heard = (at >= 0) & (at < times)
    return (
        tl.load(x + c.to(tl.int64)[:, None] * times + at[None, :], (c < columns)[:, None] & heard[None, :], 0),
        c,
        c < columns,
    )


@triton.jit
def multiply(
    acc, weight, w_row, w_column, r, rows, x, columns, t, times, taps, shift, step,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """acc [r, t] + the sum over taps j of weight[r, :, j] x[:, t + shift + j step]; x [columns, times] is one row's."""
    for tap in range(taps):
        for first in range(0, columns, BLOCK_C):
            v, c, given = taps_of(x, columns, times, first, t, tap, shift, step, BLOCK_C)
            w = tl.load(weight + r[:, None] * w_row + c[None, :] * w_column + tap, (r < rows)[:, None] & given[None, :], 0)
            acc = dot(w, v, acc, PRECISION, UPCAST)
    return acc


@triton.jit
def place(times, BLOCK_T: tl.constexpr):
    """The times of a program, and its row. They share an axis of the grid, since the other two end at 65,535."""
    blocks = tl.cdiv(times, BLOCK_T)
    return tl.program_id(0) % blocks * BLOCK_T + tl.arange(0, BLOCK_T), (tl.program_id(0) // blocks).to(tl.int64)


@triton.jit
def channel_products(
    x, weight, w_group, w_row, w_column, bias, base, out, rows, columns, times, groups, taps, shift, step,
    BIAS: tl.constexpr, BASE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out [batch, groups, rows, time] = base + bias + products with x [batch, groups, columns, time], see ``multiply``."""
    t, b = place(times, BLOCK_T)
    r, group = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R), b % groups
    at, inside = (b * rows + r[:, None]) * times + t[None, :], (r < rows)[:, None] & (t < times)[None, :]
    acc = tl.zeros([BLOCK_R, BLOCK_T], ACC)
    if BIAS:
        acc += tl.load(bias + group * rows + r, r < rows, 0).to(ACC)[:, None]
    acc = multiply(acc, weight + group * w_group, w_row, w_column, r, rows, x + b * columns * times, columns, t, times, taps,
                   shift, step, PRECISION, UPCAST, BLOCK_C)  # fmt: skip
    if BASE:
        acc += tl.load(base + at, inside, 0).to(ACC)
    tl.store(out + at, acc, inside)


# -- the host ---------------------------------------------------------------------------------------------------------


class Launches:
    """What all launches of a call share: blocks and numbers."""

    def __init__(self, x, precision):
        double, low = x.dtype == torch.float64, x.element_size() == 2
        plain = x.dtype == torch.float32 and precision == "ieee"  # no matrix instructions, which need fewer registers
        self.batch, self.times = x.shape[0], x.shape[2]
        self.block_t = 16 if double else 32 if plain else 64
        upcast = _launch.INTERPRETED and x.dtype == torch.bfloat16
        self.options = {
            "ACC": tl.float64 if double else tl.float32, "PRECISION": precision, "UPCAST": upcast, "BLOCK_R": 32,
            "BLOCK_T": self.block_t, "BLOCK_C": 32 if low else 16, "num_warps": 8 if double else 4,
        }  # fmt: skip

    def grid(self, rows, groups=1):
        return triton.cdiv(self.times, self.block_t) * self.batch * groups, triton.cdiv(rows, self.options["BLOCK_R"])

    def products(self, x, weight, transposed=False, dilation=1, groups=1, bias=None, base=None):
        """``weight`` [groups rows, columns] or [groups rows, columns, taps] applied to x [batch, groups columns, time].

        Transposed, it maps rows to columns, from later times to earlier ones.
        """
        taps = weight.shape[2] if weight.dim() == 3 else 1
        rows, columns = weight.shape[0] // groups, weight.shape[1]
        w_group, w_row, w_column = rows * weight.stride(0), *weight.stride()[:2]
        if transposed:
            rows, columns, w_row, w_column = columns, rows, w_column, w_row
        sign = -1 if transposed else 1
        out = torch.empty(self.batch, groups * rows, self.times, dtype=x.dtype, device=x.device)
        if not out.numel():
            return out
        channel_products[self.grid(rows, groups)](
            x=x, weight=weight, w_group=w_group, w_row=w_row, w_column=w_column, bias=x if bias is None else bias,
            base=x if base is None else base, out=out, rows=rows, columns=columns, times=self.times, groups=groups, taps=taps,
            shift=sign * (1 - taps) * dilation, step=sign * dilation, BIAS=bias is not None, BASE=base is not None,
            **self.options,
        )  # fmt: skip
        return out


def of_taps(g, x, taps, dilation, groups=1):
    """The gradient [groups rows, columns, taps] of a convolution's weight, from its cotangent g and what it read."""
    return torch.stack([over_time(g, x, tap * dilation, groups) for tap in reversed(range(taps))], 2)


def over_time(g, x, lag=0, groups=1):
    """The sum over the batch and time of g_t x_(t - lag)^T, for each group of channels one below the other."""
    length = max(g.shape[2] - lag, 0)
    g, x = g[..., g.shape[2] - length :], x[..., :length]
    if groups == 1:
        return torch.bmm(g, x.transpose(1, 2)).sum(0)
    g, x = (t.unflatten(1, (groups, t.shape[1] // groups)) for t in (g, x))
    return torch.matmul(g, x.transpose(2, 3)).sum(0).flatten(0, 1)
