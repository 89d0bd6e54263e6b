"""What the kernels on mixtures of logistics share: a program takes a block of elements with all of their components."""

import torch
import triton
import triton.language as tl

from flowkern.kernels import _launch

_WARPS = 4
_NUMBERS = 4  # of each tensor per thread: some twenty are alive at a time


@triton.jit
def elements_of(count, columns, components, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr):
    """A block of elements: their numbers, rows and columns, which are there, and which of their components are."""
    e = tl.program_id(0).to(tl.int64) * BLOCK_E + tl.arange(0, BLOCK_E)
    k = tl.arange(0, BLOCK_K)
    inside = e < count
    return e, e // columns, e % columns, k, inside, inside[:, None] & (k < components)[None, :]


@triton.jit
def load_components(t, at, r, c, k, inside, ACC: tl.constexpr):
    """A block of a tensor of components, zero outside; ``at`` holds its strides."""
    return tl.load(t + r[:, None] * at[0] + c[:, None] * at[1] + k[None, :] * at[2], inside, 0).to(ACC)


def launch(first, logits, means, log_scales, log_scale_min):
    """Grid and arguments that the kernels on a tensor (rows, columns, ...) and its mixtures have in common.

    The strides of a tensor are a tuple; indices of elements have 64 bits.
    """
    rows, columns, components = logits.shape
    double = first.dtype == torch.float64
    block_k = triton.next_power_of_2(components)
    lanes = _WARPS * (32 if _launch.GPU == "cuda" else 64)
    block_e = max(lanes * _NUMBERS // (2 if double else 1) // block_k, 1)
    arguments = {
        "logits": logits, "means": means, "log_scales": log_scales, "count": rows * columns, "columns": columns,
        "components": components, "logits_at": logits.stride(), "means_at": means.stride(),
        "log_scales_at": log_scales.stride(), "LEAST": log_scale_min, "ACC": tl.float64 if double else tl.float32,
        "BLOCK_E": block_e, "BLOCK_K": block_k, "num_warps": _WARPS,
    }  # fmt: skip
    return (triton.cdiv(rows * columns, block_e),), arguments
