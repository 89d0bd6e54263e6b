"""An invertible matrix times the channels of every pixel, its inverse, and the gradients of both.

Products are torch's, so cuBLAS's, which read x once and write z once as any kernel here would: one product of a batch that
shares its matrix. Of the inverse torch has triangular systems only, one after another, each of which copies what it solves
and the matrix for every image; here one launch solves both, with one read and one write.
"""

import math

import torch
import triton
import triton.language as tl

from flowkern.kernels import _launch
from flowkern.kernels._layers import dot

_BLOCK = 16  # rows of a system that are solved one after another; all rows before them are a product
_PIXELS = 64


@triton.jit
def row_of(table, r, channels, PERMUTED: tl.constexpr):
    """The channel that a row of the systems is."""
    return tl.load(table + r, r < channels, 0) if PERMUTED else r.to(tl.int64)


@triton.jit
def substitute(
    z, pixels, table, matrix, m_row, m_column, diagonal, channels, inside,
    PERMUTED: tl.constexpr, UNIT: tl.constexpr, DOWN: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Solves a triangular system in place, DOWN from the first row or up from the last; ``z`` points to the tile's pixels."""
    e, blocks = tl.arange(0, BLOCK), tl.cdiv(channels, BLOCK)
    for step in range(blocks):
        tl.debug_barrier()  # the rows before were written by other threads of this program
        first = (step if DOWN else blocks - 1 - step) * BLOCK
        r = first + e
        at, there = z[None, :] + row_of(table, r, channels, PERMUTED)[:, None] * pixels, (r < channels)[:, None] & inside
        acc = tl.load(at, there, 0).to(ACC)
        for before in range(step):
            j = (before if DOWN else blocks - 1 - before) * BLOCK + e
            w = tl.load(
                matrix + r[:, None] * m_row + j[None, :] * m_column, (r < channels)[:, None] & (j < channels)[None, :], 0
            )
            found = z[None, :] + row_of(table, j, channels, PERMUTED)[:, None] * pixels
            y = tl.load(found, (j < channels)[:, None] & inside, 0)
            acc = dot(-w, y, acc, "ieee", False)
        rows = tl.minimum(channels - first, BLOCK)
        for n in range(rows):
            i = n if DOWN else rows - 1 - n
            y = tl.sum(tl.where(e[:, None] == i, acc, 0), 0)
            if not UNIT:
                y /= tl.load(diagonal + first + i)
            after = (r < channels) & ((e > i) if DOWN else (e < i))
            w = tl.load(matrix + r * m_row + (first + i) * m_column, after, 0).to(ACC)
            acc = tl.where(e[:, None] == i, y[None, :], acc - w[:, None] * y[None, :])
        tl.store(at, acc, there)


@triton.jit
def triangular_solve(
    x, z, lower, upper, diagonal, table, count, channels, pixels, x_image, x_channel, x_pixel,
    TRANSPOSED: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """z [image, channel, pixel] = (L U)^-1 of the rows of x that a table says, TRANSPOSED those rows of (L U)^-T x."""
    q = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    image, pixel, inside = q // pixels, q % pixels, (q < count)[None, :]
    given, to = x + image * x_image + pixel * x_pixel, z + image * channels * pixels + pixel
    for first in range(0, channels, BLOCK):
        r = first + tl.arange(0, BLOCK)
        there, row = (r < channels)[:, None] & inside, row_of(table, r, channels, True)
        origin, target = r.to(tl.int64) if TRANSPOSED else row, row if TRANSPOSED else r.to(tl.int64)
        tl.store(to[None, :] + target[:, None] * pixels, tl.load(given[None, :] + origin[:, None] * x_channel, there, 0), there)
    if TRANSPOSED:
        substitute(to, pixels, table, upper, 1, channels, diagonal, channels, inside, True, False, True, ACC, BLOCK)
        substitute(to, pixels, table, lower, 1, channels, diagonal, channels, inside, True, True, False, ACC, BLOCK)
    else:
        substitute(to, pixels, table, lower, channels, 1, diagonal, channels, inside, False, True, True, ACC, BLOCK)
        substitute(to, pixels, table, upper, channels, 1, diagonal, channels, inside, False, False, False, ACC, BLOCK)


# -- the host ---------------------------------------------------------------------------------------------------------


def invertible_conv1x1(x, lower, upper, log_scale, order, sign, inverse):
    """z and log_det of images x (images, channels, pixels) of any strides.

    W is (L U)[order], the diagonal of U being sign exp(log_scale), or its own, whose log-determinant is the caller's; or it
    is ``lower`` itself.
    """
    log_det = _finite(x)
    if upper is None:
        return _times(lower, x), log_det
    upper, diagonal = _triangle(upper, log_scale, sign)
    if log_scale is not None:
        log_det += (-x.shape[2] if inverse else x.shape[2]) * log_scale.sum()
    z = _solve(x, lower, upper, diagonal, order.argsort(), False) if inverse else _times(_product(lower, upper)[order], x)
    return z, log_det


def invertible_conv1x1_gradients(g_z, g_log_det, x, lower, upper, log_scale, order, sign, inverse):
    """Cotangents of x, of ``lower`` (or of W), ``upper`` and log_scale, the last two of no size where they were not given.

    In place of x the inverse takes its result.
    """
    if upper is None:
        return _times(lower.T, g_z), _products(g_z, x), x.new_empty(0), x.new_empty(0)
    upper, diagonal = _triangle(upper, log_scale, sign)
    back = order.argsort()
    if inverse:
        g_x = _solve(g_z, lower, upper, diagonal, back, True)
        g = -_products(g_x, x)
    else:
        g_x, g = _times(_product(lower, upper)[order].T, g_z), _products(g_z, x)
    if log_scale is None:
        return g_x, g, x.new_empty(0), x.new_empty(0)
    g, strict = g[back], lower.tril(-1)
    g_upper = torch.addmm(g, strict.T, g)
    of_log_det = (-x.shape[2] if inverse else x.shape[2]) * g_log_det.sum()
    return g_x, (g @ upper.T).tril(-1), g_upper.triu(1), g_upper.diagonal() * diagonal + of_log_det


def _finite(x):
    """Zero for each image, NaN for one that is not finite."""
    if not x.numel():
        return x.new_zeros(len(x))
    largest = torch.linalg.vector_norm(x, math.inf, (1, 2))
    return largest - largest


def _triangle(upper, log_scale, sign):
    """U with its diagonal, and the latter."""
    diagonal = upper.diagonal().contiguous() if log_scale is None else sign * log_scale.exp()
    return upper.triu(1).diagonal_scatter(diagonal), diagonal


def _product(lower, upper):
    """L U of a unit lower triangle."""
    return torch.addmm(upper, lower.tril(-1), upper)


def _times(matrix, x):
    """The product with each image, none of which is copied."""
    if x.shape[2] == 1:
        return (x.squeeze(2) @ matrix.T).unsqueeze(2)
    return torch.bmm(matrix.expand(len(x), -1, -1), x)


def _products(g, x):
    """The sum over images and pixels of g x^T."""
    if x.shape[2] < x.shape[1]:  # the product of an image would be larger than the image
        g, x = (t.transpose(0, 1).reshape(t.shape[1], -1) for t in (g, x))
        return g @ x.T
    return torch.bmm(g, x.transpose(1, 2)).sum(0)


def _solve(x, lower, upper, diagonal, table, transposed):
    """W^-1 x, or W^-T x; the table says which channel of W x a row of L U is."""
    z, (images, channels, pixels) = torch.empty(x.shape, dtype=x.dtype, device=x.device), x.shape
    if x.numel():
        with _launch.on(x):
            triangular_solve[(triton.cdiv(images * pixels, _PIXELS),)](
                x=x, z=z, lower=lower, upper=upper, diagonal=diagonal, table=table, count=images * pixels, channels=channels,
                pixels=pixels, x_image=x.stride(0), x_channel=x.stride(1), x_pixel=x.stride(2), TRANSPOSED=transposed,
                ACC=tl.float64 if x.dtype == torch.float64 else tl.float32, BLOCK=_BLOCK, BLOCK_P=_PIXELS, num_warps=4,
            )  # fmt: skip
    return z
