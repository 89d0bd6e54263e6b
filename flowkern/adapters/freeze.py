"""Accelerated layers inside of flowkern.frozen: packed once, for as long as nothing that was packed changes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from flowkern import ops
from flowkern.adapters.network import PeerNetwork

Seen = tuple[str, dict[str, Any], str, Tensor, int]


class Frozen:
    """The packed weights of a network, and what they were made from.

    Args:
        name: of the layer in its model, for the warning that something has changed.
    """

    def __init__(self, layer: nn.Module, network: PeerNetwork, arguments: dict[str, Any], name: str) -> None:
        self._network, self._plan = network, network.plan
        with torch.no_grad():
            self._packed = ops.pack(network.plan, arguments["weights"], arguments["biases"])
        names = {module: path for path, module in layer.named_modules(prefix=name)}
        self._seen = [seen for m in network.modules for seen in _tensors(m, names.get(m, f"{name}: {type(m).__name__}"))]

    def packed(self, network: PeerNetwork) -> Tensor | None:
        """What was packed, if it is still true; else warns."""
        if network is not self._network or network.plan is not self._plan:
            self._warn("the structure or a mask of a layer")
            return None
        for name, owner, key, tensor, version in self._seen:
            if owner.get(key) is not tensor or tensor._version != version:
                self._warn(name)
                return None
        return self._packed

    @staticmethod
    def _warn(what: str) -> None:
        warnings.warn(
            f"flowkern.frozen: {what} has changed inside the block; its network packs its weights on every call",
            RuntimeWarning,
            stacklevel=3,
        )


def _tensors(module: nn.Module, name: str) -> Iterator[Seen]:
    """Parameters, and buffers such as running statistics; inference tensors count no changes."""
    for owner in (module._parameters, module._buffers):
        for key, tensor in owner.items():
            if tensor is not None and not tensor.is_inference():
                yield f"{name}.{key}", owner, key, tensor, tensor._version
