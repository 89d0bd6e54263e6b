"""Tensors that the arguments of a module determine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Constants:
    """A base, before :class:`torch.nn.Module`, of modules that hold such tensors as buffers and leave them out of their state.

    They are known, with their own dtypes, wherever the module goes, also where ``to_empty`` gives it memory without values.
    """

    def constant(self, name: str, value: Tensor) -> None:
        """Registers a buffer; ``value`` is on the CPU."""
        vars(self).setdefault("_constants", {})[name] = value
        self.register_buffer(name, value.to(torch.get_default_device()), persistent=False)  # type: ignore[attr-defined]

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)  # type: ignore[misc]
        for name, value in vars(self).get("_constants", {}).items():
            buffers: dict[str, Any] = self._buffers  # type: ignore[attr-defined]
            buffers[name] = value.to(buffers[name].device)
        return self
