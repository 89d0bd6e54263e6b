"""Log-determinants that show what is not finite in their row."""

from __future__ import annotations

from torch import Tensor


def show_context(log_det: Tensor, context: Tensor | None) -> Tensor:
    """The log-determinant, not finite where the context is not: an infinite one may vanish in the network."""
    return log_det if context is None else log_det + (context - context).detach().sum(-1)


def batch_log_det(value: Tensor, x: Tensor, event_dims: int = 1) -> Tensor:
    """A log-determinant that does not depend on the row, for every row of x; not finite where the row is not."""
    return value + (x - x).detach().sum(tuple(range(-event_dims, 0)))
