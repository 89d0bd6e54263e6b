"""Oracle of ``autoregressive_chain``, and of those of its steps that are no operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from flowkern.reference.normal_log_prob import normal_log_prob

Transform = Callable[[Tensor], tuple[Tensor, Tensor]]  # a step, as a function of its input alone


def permutation(x: Tensor, order: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(v, log_det) with v_i = x_order[i]."""
    return x[..., list(order)], x.new_zeros(())


def elementwise(x: Tensor, shift: Tensor, scale: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """(v, log_det) with v = x scale + shift, or its inverse (x - shift) / scale."""
    log_det = scale.abs().log().sum()
    return ((x - shift) / scale, -log_det) if inverse else (x * scale + shift, log_det)


def lu_linear(
    x: Tensor, lower: Tensor, upper: Tensor, diagonal: Tensor, bias: Tensor, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """(v, log_det) with v = L U x + bias, or its inverse; entries of L below its diagonal of ones, and of U above its own."""
    n = x.shape[-1]
    below = tuple(torch.tril_indices(n, n, -1, device=x.device))
    above = tuple(torch.triu_indices(n, n, 1, device=x.device))
    matrix_l = torch.eye(n, dtype=x.dtype, device=x.device).index_put(below, lower)
    matrix_u = torch.diag(diagonal).index_put(above, upper)
    log_det = diagonal.abs().log().sum()
    if not inverse:
        return F.linear(F.linear(x, matrix_u), matrix_l, bias), log_det
    matrix_l, matrix_u, y = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (matrix_l, matrix_u, x - bias))
    y = torch.linalg.solve_triangular(matrix_l, y.unsqueeze(-1), upper=False, unitriangular=True)  # not of half precision
    return torch.linalg.solve_triangular(matrix_u, y, upper=True).squeeze(-1).to(x.dtype), -log_det


def autoregressive_chain(x: Tensor, steps: Sequence[Transform], normal: str | None = None) -> tuple[Tensor, Tensor]:
    """The output of the last step, and log_det or the log-density, as `flowkern.ops.autoregressive_chain` defines them.

    Steps are `permutation`, `elementwise` and transforms, with all but x given.
    """
    value, log_det = x, x.new_zeros(x.shape[:-1])
    for step in steps:
        value, term = step(value)
        log_det = log_det + term
    if normal is None:
        return value, log_det
    return value, normal_log_prob(x, -log_det) if normal == "input" else normal_log_prob(value, log_det)
