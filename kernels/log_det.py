"""Row reductions: the sum of log-scales, and the standard-normal log-density. Fixed order, no atomics."""

import torch
import triton
import triton.language as tl

from flowkern.kernels import _launch


@triton.jit
def row_sum(
    x, log_det, out, rows, columns, x_row, x_column, log_det_row,
    NORMAL: tl.constexpr, ACC: tl.constexpr, PART: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sums of x, or of -x^2 / 2 plus a constant and ``log_det`` for the normal density, over one part of each row."""
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    first = tl.program_id(1).to(tl.int64) * PART
    total = tl.zeros([BLOCK_R, BLOCK_C], ACC)
    for c0 in range(0, PART, BLOCK_C):
        c = first + c0 + tl.arange(0, BLOCK_C)
        inside = (r < rows)[:, None] & (c < columns)[None, :]
        v = tl.load(x + r[:, None] * x_row + c[None, :] * x_column, inside, 0).to(ACC)
        total += -0.5 * v * v if NORMAL else v
    found = tl.sum(total, 1)
    if NORMAL:
        added = (r < rows) & (r * 0 + tl.program_id(1) == 0)  # once per row
        constant = (tl.zeros([BLOCK_R], ACC) + columns) * -0.9189385332046727  # log(2 pi) / 2
        found += tl.where(added, constant, 0) + tl.load(log_det + r * log_det_row, added, 0).to(ACC)
    tl.store(out + r * tl.num_programs(1) + tl.program_id(1), found, r < rows)


def log_det(log_scale):
    """Sum of each row of a matrix."""
    return reduce_rows(log_scale, None)


def reduce_rows(x, log_det):
    """Row sums of a matrix; with ``log_det`` (rows,), the standard-normal log-density plus it."""
    rows, columns = x.shape
    config = _launch.rows(rows, columns, x.dtype)
    out = torch.empty(rows, config.parts, dtype=x.dtype if config.parts == 1 else config.torch_acc, device=x.device)
    normal = log_det is not None
    if rows:
        with _launch.on(x):
            row_sum[config.grid](
                x=x, log_det=log_det if normal else x, out=out, rows=rows, columns=columns, x_row=x.stride(0),
                x_column=x.stride(1), log_det_row=log_det.stride(0) if normal else 0, NORMAL=normal, ACC=config.acc,
                PART=config.part, BLOCK_R=config.block_r, BLOCK_C=config.block_c, **config.options,
            )  # fmt: skip
    return reduce_rows(out, None).to(x.dtype) if config.parts > 1 else out.view(rows)
