"""Activation normalisation of images [image, channel, pixel]: one read and one write each way.

A program works on tiles of some images, channels and pixels, so that a channel's numbers are loaded once a tile, whatever
the sizes and strides. Forward it takes a part of the tiles of its images; where an image has several parts, a second,
deterministic reduction adds what they say of its log-determinant. Backward it stays at its channels and pixels, goes through
images and sums over them in the same pass; a second launch adds the sums of all programs. Nothing is atomic.
"""

import torch
import triton
import triton.language as tl

from flowkern.kernels import _launch
from flowkern.kernels.log_det import log_det

_TILES = 16  # that one program walks over
_PROGRAMS = 4096  # whose sums are added; with more images each walks over more of them
_SUMS = 512  # that are added at a time


@triton.jit
def place(tile, pixels, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """The channels and the pixels of a tile."""
    across = tl.cdiv(pixels, BLOCK_P)
    c, p = tile // across * BLOCK_C + tl.arange(0, BLOCK_C), tile % across * BLOCK_P + tl.arange(0, BLOCK_P)
    return c.to(tl.int64), p.to(tl.int64)


@triton.jit
def at(i, c, p, image, channel, pixel):
    """Where the numbers of a tile are, by strides."""
    return i[:, None, None] * image + c[None, :, None] * channel + p[None, None, :] * pixel


@triton.jit
def numbers_of(bias, log_scale, c, channels, INVERSE: tl.constexpr, ACC: tl.constexpr):
    """Of some channels the bias, the logarithm of the scale in this direction and the scale."""
    b, a = tl.load(bias + c, c < channels, 0).to(ACC), tl.load(log_scale + c, c < channels, 0).to(ACC)
    a = -a if INVERSE else a
    return b, a, tl.exp(a)


@triton.jit
def actnorm_forward(
    x, bias, log_scale, z, log_det, images, channels, pixels, x_image, x_channel, x_pixel, part,
    INVERSE: tl.constexpr, ACC: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * BLOCK_I + tl.arange(0, BLOCK_I)
    first, tiles = tl.program_id(1) * part, tl.cdiv(channels, BLOCK_C) * tl.cdiv(pixels, BLOCK_P)
    finite, of_a_pixel = tl.zeros([BLOCK_I, BLOCK_C, BLOCK_P], ACC), tl.zeros([BLOCK_C], ACC)
    for tile in range(first, tl.minimum(first + part, tiles)):
        c, p = place(tile, pixels, BLOCK_C, BLOCK_P)
        inside = (i < images)[:, None, None] & (c < channels)[None, :, None] & (p < pixels)[None, None, :]
        b, a, s = numbers_of(bias, log_scale, c, channels, INVERSE, ACC)
        u = tl.load(x + at(i, c, p, x_image, x_channel, x_pixel), inside, 0).to(ACC)
        v = u * s[None, :, None] - b[None, :, None] if INVERSE else (u + b[None, :, None]) * s[None, :, None]
        tl.store(z + at(i, c, p, channels * pixels, pixels, 1), v, inside)
        finite += u - u
        of_a_pixel += tl.where(tile % tl.cdiv(pixels, BLOCK_P) == 0, a, 0)  # each channel once
    found = tl.sum(of_a_pixel) * pixels + tl.sum(tl.sum(finite, 2), 1)
    tl.store(log_det + i * tl.num_programs(1) + tl.program_id(1), found, i < images)


@triton.jit
def add(total, lost, v):
    """A compensated sum: `lost` is by how much its rounding has made it too large."""
    v -= lost
    found = total + v
    return found, (found - total) - v


@triton.jit
def actnorm_backward(
    g_z, g_log_det, x, bias, log_scale, g_x, sums, of_log_det, images, channels, pixels,
    g_image, g_channel, g_pixel, g_log_det_image, x_image, x_channel, x_pixel, part,
    INVERSE: tl.constexpr, ACC: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Beside g_x the sums of g_z and of g_z (x + bias), for the inverse g_z x: [program of a channel][2][channel]."""
    tile, split = tl.program_id(0), tl.program_id(1).to(tl.int64)
    c, p = place(tile, pixels, BLOCK_C, BLOCK_P)
    b, _, s = numbers_of(bias, log_scale, c, channels, INVERSE, ACC)
    within = (c < channels)[None, :, None] & (p < pixels)[None, None, :]
    nothing, no_image = tl.zeros([BLOCK_I, BLOCK_C, BLOCK_P], ACC), tl.zeros([BLOCK_I], ACC)
    total, lost, product, product_lost, of_images, of_images_lost = nothing, nothing, nothing, nothing, no_image, no_image
    for first in range(split * part, tl.minimum(split * part + part, images), BLOCK_I):
        i = first + tl.arange(0, BLOCK_I).to(tl.int64)
        inside = (i < images)[:, None, None] & within
        g = tl.load(g_z + at(i, c, p, g_image, g_channel, g_pixel), inside, 0).to(ACC)
        u = tl.load(x + at(i, c, p, x_image, x_channel, x_pixel), inside, 0).to(ACC)
        tl.store(g_x + at(i, c, p, channels * pixels, pixels, 1), g * s[None, :, None], inside)
        total, lost = add(total, lost, g)
        product, product_lost = add(product, product_lost, g * u if INVERSE else g * (u + b[None, :, None]))
        gl = tl.load(g_log_det + i * g_log_det_image, i < images, 0).to(ACC)
        of_images, of_images_lost = add(of_images, of_images_lost, gl)
    to = sums + (split * tl.cdiv(pixels, BLOCK_P) + tile % tl.cdiv(pixels, BLOCK_P)) * 2 * channels + c
    tl.store(to, tl.sum(tl.sum(total, 2), 0) - tl.sum(tl.sum(lost, 2), 0), c < channels)
    tl.store(to + channels, tl.sum(tl.sum(product, 2), 0) - tl.sum(tl.sum(product_lost, 2), 0), c < channels)
    if tile == 0:
        tl.store(of_log_det + split, tl.sum(of_images) - tl.sum(of_images_lost))


@triton.jit
def actnorm_sums(
    sums, of_log_det, log_scale, g_bias, g_log_scale, programs, splits, channels, pixels,
    INVERSE: tl.constexpr, ACC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The gradients of some channels' numbers from the sums of all programs."""
    c, n = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_N).to(tl.int64)
    total, product = tl.zeros([BLOCK_N, BLOCK_C], tl.float64), tl.zeros([BLOCK_N, BLOCK_C], tl.float64)
    for first in range(0, programs, BLOCK_N):
        found = sums + (first + n)[:, None] * 2 * channels + c[None, :]
        inside = (first + n < programs)[:, None] & (c < channels)[None, :]
        total += tl.load(found, inside, 0).to(tl.float64)
        product += tl.load(found + channels, inside, 0).to(tl.float64)
    of_images = tl.zeros([BLOCK_N], tl.float64)
    for first in range(0, splits, BLOCK_N):
        of_images += tl.load(of_log_det + first + n, first + n < splits, 0).to(tl.float64)
    s = tl.exp(tl.load(log_scale + c, c < channels, 0).to(ACC)).to(tl.float64)
    of_bias = -tl.sum(total, 0) if INVERSE else tl.sum(total, 0) * s
    of_scale = tl.sum(product, 0) / s if INVERSE else tl.sum(product, 0) * s
    of_scale += tl.sum(of_images) * pixels
    tl.store(g_bias + c, of_bias.to(ACC), c < channels)
    tl.store(g_log_scale + c, (-of_scale if INVERSE else of_scale).to(ACC), c < channels)


# -- the host ---------------------------------------------------------------------------------------------------------


class _Tile:
    """Tiles of images of one shape: as wide as the pixels, then as the channels, up to a program's block."""

    def __init__(self, x):
        _, channels, pixels = x.shape
        config = _launch.rows(1, pixels, x.dtype)
        block_c = min(triton.next_power_of_2(channels), config.block_r)
        self.block_i, self.across = config.block_r // block_c, triton.cdiv(pixels, config.block_c)
        self.count = triton.cdiv(channels, block_c) * self.across
        self.acc, self.torch_acc = config.acc, config.torch_acc
        self.options = {
            "ACC": config.acc, "BLOCK_I": self.block_i, "BLOCK_C": block_c, "BLOCK_P": config.block_c, **config.options
        }  # fmt: skip


def actnorm(x, bias, log_scale, inverse):
    """z and log_det of images x (images, channels, pixels) of any strides; bias and log_scale (channels,) are contiguous."""
    images, channels, pixels = x.shape
    z, tile = torch.empty(x.shape, dtype=x.dtype, device=x.device), _Tile(x)
    part = max(_TILES, triton.cdiv(tile.count, _launch.MOST_PARTS))
    parts = max(triton.cdiv(tile.count, part), 1)
    partial = torch.empty(images, parts, dtype=x.dtype if parts == 1 else tile.torch_acc, device=x.device)
    if x.numel():
        with _launch.on(x):
            actnorm_forward[(triton.cdiv(images, tile.block_i), parts)](
                x=x, bias=bias, log_scale=log_scale, z=z, log_det=partial, images=images, channels=channels, pixels=pixels,
                x_image=x.stride(0), x_channel=x.stride(1), x_pixel=x.stride(2), part=part, INVERSE=inverse, **tile.options,
            )  # fmt: skip
    else:
        partial.zero_()
    return z, log_det(partial).to(x.dtype) if parts > 1 else partial.view(images)


def actnorm_gradients(g_z, g_log_det, x, bias, log_scale, inverse):
    """Cotangents of x, contiguous, of the bias and of log_scale."""
    images, channels, pixels = x.shape
    g_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not x.numel():
        return g_x, torch.zeros_like(bias), torch.zeros_like(log_scale)
    g_bias, g_log_scale, tile = torch.empty_like(bias), torch.empty_like(log_scale), _Tile(x)
    most = max(_PROGRAMS // tile.count, 1)
    part = max(_TILES, triton.cdiv(images, most * tile.block_i)) * tile.block_i
    splits = triton.cdiv(images, part)
    sums = torch.empty(splits * tile.across, 2, channels, dtype=tile.torch_acc, device=x.device)
    of_log_det = torch.empty(splits, dtype=tile.torch_acc, device=x.device)
    shape = {"channels": channels, "pixels": pixels, "INVERSE": inverse}
    block_c = min(triton.next_power_of_2(channels), 16)
    with _launch.on(x):
        actnorm_backward[(tile.count, splits)](
            g_z=g_z, g_log_det=g_log_det, x=x, bias=bias, log_scale=log_scale, g_x=g_x, sums=sums, of_log_det=of_log_det,
            images=images, g_image=g_z.stride(0), g_channel=g_z.stride(1), g_pixel=g_z.stride(2),
            g_log_det_image=g_log_det.stride(0), x_image=x.stride(0), x_channel=x.stride(1), x_pixel=x.stride(2), part=part,
            **shape, **tile.options,
        )  # fmt: skip
        actnorm_sums[(triton.cdiv(channels, block_c),)](
            sums=sums, of_log_det=of_log_det, log_scale=log_scale, g_bias=g_bias, g_log_scale=g_log_scale,
            programs=splits * tile.across, splits=splits, ACC=tile.acc, BLOCK_N=_SUMS // block_c, BLOCK_C=block_c, **shape,
        )  # fmt: skip
    return g_x, g_bias, g_log_scale
