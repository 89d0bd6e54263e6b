"""Oracle of ``row_lstm`` (PixelRNN, van den Oord et al., 2016, section 3.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def row_lstm(x: Tensor, weight: Tensor) -> Tensor:
    """h (..., height, width, hidden) of x (..., height, width, 4 hidden), as `flowkern.ops.row_lstm` defines it."""
    width, (_, hidden, taps) = x.shape[-2], weight.shape
    h = c = x.new_zeros(*x.shape[:-3], width, hidden)
    rows = []
    for z in x.unbind(-3):
        above = F.pad(h, (0, 0, taps // 2, taps // 2))
        z = z + sum(above[..., j : j + width, :] @ weight[..., j].t() for j in range(taps))
        h, c = lstm_cell(z, c)
        rows.append(h)
    return torch.stack(rows, -3)


def lstm_cell(z: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """State and cell after the gates o, f, i, g of the last dimension, before their activations."""
    o, f, i, g = z.chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c
