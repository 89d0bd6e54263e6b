"""Accelerated layers inside of flowkern.frozen: packed once, for as long as nothing that was packed changes."""

from __future__ import annotations

from typing import Any

from torch import nn

from flowkern.adapters.network import Network
from flowkern.ops.pack import PackedFrom, warn_of_change


class Frozen:
    """The packed weights of a network, and what they were made from: buffers, such as running statistics, included.

    Args:
        packed: what the network packed.
        name: of the layer in its model, for the warning that something has changed.
    """

    def __init__(self, layer: nn.Module, network: Network, packed: Any, name: str) -> None:
        self._network, self._plan, self._packed = network, network.plan, packed
        names = {module: path for path, module in layer.named_modules(prefix=name)}
        self._made_from = PackedFrom(
            (names.get(m, f"{name}: {type(m).__name__}"), tensors)
            for m in network.modules
            for tensors in (m._parameters, m._buffers)
        )

    def packed(self, network: Network) -> Any:
        """What was packed, if it is still true; else warns."""
        if network is not self._network or network.plan != self._plan:
            warn_of_change("the structure or a mask of a layer")
            return None
        return None if self._made_from.changed() else self._packed
