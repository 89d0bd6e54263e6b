"""The bytes that autograd keeps for a backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Kept:
    """The bytes that autograd keeps inside, without those of a model's own tensors."""

    def __init__(self, model: nn.Module) -> None:
        own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
        self.found: dict[int, int] = {}

        def keep(t: Tensor) -> Tensor:
            storage = t.untyped_storage()
            if storage.data_ptr() not in own:
                self.found[storage.data_ptr()] = storage.nbytes()
            return t

        self.hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t)

    def of(self, call: Any) -> int:
        with self.hooks:
            result = call()
        assert result is not None
        return sum(self.found.values())
