"""Oracle of ``diagonal_lstm`` (PixelRNN, van den Oord et al., 2016, section 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from flowkern.reference.row_lstm import lstm_cell


def diagonal_lstm(x: Tensor, weight: Tensor, *, mirrored: bool = False) -> Tensor:
    """h (..., height, width, hidden) of x (..., height, width, 4 hidden), as `flowkern.ops.diagonal_lstm` defines it."""
    if mirrored:
        return diagonal_lstm(x.flip(-2), weight).flip(-2)
    from_above, from_left = weight.unbind(-1)
    h = c = x.new_zeros(*x.shape[:-3], x.shape[-3], weight.shape[1])
    columns = []
    for z in skew(x).unbind(-2):
        above = F.pad(h, (0, 0, 1, 0))[..., :-1, :]
        h, c = lstm_cell(z + above @ from_above.t() + h @ from_left.t(), c)
        columns.append(h)
    return unskew(torch.stack(columns, -2))


def skew(x: Tensor) -> Tensor:
    """Row r of x (..., height, width, channels) moved right by r: (..., height, height + width - 1, channels)."""
    height, width = x.shape[-3:-1]
    rows = F.pad(x, (0, 0, 0, height)).flatten(-3, -2)
    return rows[..., : height * (height + width - 1), :].unflatten(-2, (height, height + width - 1))


def unskew(x: Tensor) -> Tensor:
    """The inverse of :func:`skew`."""
    height, width = x.shape[-3], x.shape[-2] - x.shape[-3] + 1
    rows = F.pad(x.flatten(-3, -2), (0, 0, 0, height))
    return rows.unflatten(-2, (height, height + width))[..., :width, :]
