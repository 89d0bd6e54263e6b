"""Launch parameters: a documented heuristic keyed on the features and the dtype, never on the batch."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

INTERPRETED = triton.knobs.runtime.interpret
GPU = "hip" if torch.version.hip else "cuda"
_LONGEST_PART = 16384  # columns that one program walks over
MOST_PARTS = 65535  # programs on the second or third axis of a grid: CUDA's limit
_WARPS = 4
_ELEMENTS = 8  # of a block per thread: 16 to 32 bytes of each matrix


@dataclass(frozen=True)
class Rows:
    """How a matrix is divided among the programs of a kernel that works row by row."""

    grid: tuple[int, int]
    parts: int
    part: int
    block_r: int
    block_c: int
    acc: Any
    torch_acc: torch.dtype
    options: dict[str, int]


def rows(count: int, columns: int, dtype: torch.dtype, parameters: int = 2) -> Rows:
    """Blocks of eight elements per thread, as wide as a row up to 1,024 columns; rows beyond 16,384 columns are split.

    A row of more than 2^30 columns has longer parts, since their number has a limit.

    An element that brings many ``parameters`` along, all of which a thread holds, has a thread for itself.
    """
    double, columns = dtype == torch.float64, max(columns, 1)
    each = 1 if parameters > _ELEMENTS else _ELEMENTS // (2 if double else 1)
    elements = _WARPS * (32 if GPU == "cuda" else 64) * each
    block_c = min(triton.next_power_of_2(columns), elements)
    block_r = elements // block_c
    part = min(-(-columns // block_c) * block_c, max(_LONGEST_PART, -(-columns // (block_c * MOST_PARTS)) * block_c))
    parts = -(-columns // part)
    acc = (tl.float64, torch.float64) if double else (tl.float32, torch.float32)
    options = {"num_warps": _WARPS, **(registers(128) if double else {})}
    return Rows((-(-count // block_r), parts), parts, part, block_r, block_c, *acc, options)


def on(x: torch.Tensor) -> Any:
    """Makes the tensor's GPU the current one while a kernel is launched."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def registers(most: int) -> dict[str, int]:
    """Launch options that let a kernel have so many registers per thread.

    Without them ptxas may prefer a few spills to a lower occupancy; AMD's compiler has no such option.
    """
    return {"maxnreg": most} if GPU == "cuda" else {}


def resident_programs(device: torch.device) -> int:
    """Programs that run at a time when each keeps a scratch tile; the interpreter runs one after another."""
    if device.type != "cuda":
        return 2
    return 4 * torch.cuda.get_device_properties(device).multi_processor_count


def near(t: torch.Tensor) -> torch.Tensor:
    """The matrix, copied where a row spans 2^31 elements or more: the kernels count columns in 32 bits."""
    return t.contiguous() if t.stride(1) * t.shape[1] >= 2**31 else t
