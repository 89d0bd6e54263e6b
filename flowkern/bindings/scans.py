"""LSTMs that run over images: the shapes of the CPU operators."""

from __future__ import annotations

import torch
from torch import Tensor

from flowkern._library import BUILD_ERROR


def _states_like(x: Tensor, weight: Tensor, *options: bool) -> tuple[Tensor, list[Tensor]]:
    *_, keep = options
    states = (*x.shape[:-1], weight.shape[1])
    return x.new_empty(states), [x.new_empty(states), x.new_empty(x.shape)] if keep else []


def _gradients_like(g_h, h, cells, gates, weight, *options):  # type: ignore[no-untyped-def]
    *_, of_weight = options
    return [gates.new_empty(gates.shape), *([weight.new_empty(weight.shape)] if of_weight else [])]


if BUILD_ERROR is None:
    for _name in ("row_lstm", "diagonal_lstm"):
        torch.library.register_fake(f"flowkern::{_name}")(_states_like)
        torch.library.register_fake(f"flowkern::{_name}_backward")(_gradients_like)
