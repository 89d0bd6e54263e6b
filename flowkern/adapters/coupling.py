"""Coupling layers of other libraries: the library's own conditioner, and one operator for all that comes after it.

The conditioner is called as the module that it is, so that its hooks, modes and random numbers mean what they mean in the
library. Split, map, merge and log-determinant are one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flowkern import ops
from flowkern._checks import autocasts
from flowkern._tensors import outside_modes, version
from flowkern.adapters.calls import serving
from flowkern.adapters.network import Network, UnsupportedError, error_of
from flowkern.univariate import UnivariateMap


@dataclass(frozen=True)
class Conditioner:
    """How a library asks the network of a coupling layer.

    Args:
        name: of the module on the layer.
        call: (module, what passes, context) -> its result.
        parameters: from its result, and the number of transformed features, to the parameters of the map in their order.
        dim: the dimension in which it expects features, or the channels of images.
    """

    name: str
    call: Callable[[Any, Tensor, Any], Tensor]
    parameters: Callable[[Tensor, int], Sequence[Tensor]]
    dim: int


class CouplingNetwork(Network):
    """What a coupling layer computes.

    Args:
        layer: the library's.
        names: of its buffers that say what is transformed: a checkpoint may bring others.
        split: from these to the features, or channels, that pass and those that are transformed, in their orders.
        map: the univariate map.
        conditioner: how its network is asked.
    """

    def __init__(
        self,
        layer: nn.Module,
        names: Sequence[str],
        split: Callable[..., tuple[Tensor, Tensor]],
        map: UnivariateMap,
        conditioner: Conditioner,
    ) -> None:
        self._buffers, self._modules = layer._buffers, layer._modules  # which live as long as the layer
        self._names, self._split, self.map, self.conditioner = tuple(names), split, map, conditioner
        self._read()

    def _read(self) -> None:
        found: list[Any] = [self._buffers.get(name) for name in self._names]
        if any(t is None or t.is_meta for t in found):
            raise UnsupportedError("what it transforms is no buffer with values")
        self._seen = [(t, version(t)) for t in found]
        with outside_modes():
            self.passing, self.order = (tuple(t.tolist()) for t in self._split(*found))
        self.features = len(self.passing) + len(self.order)
        if sorted((*self.passing, *self.order)) != list(range(self.features)) or not self.order:
            raise UnsupportedError("what it transforms and what passes are not all its features")
        self._tables: dict[tuple[int | None, torch.device], Tensor] = {}

    def _table(self, pixels: int | None, device: torch.device) -> Tensor:
        """The features that pass; or, for so many pixels a channel, the columns of the parameters of every feature."""
        key = pixels, device
        if key not in self._tables:
            with outside_modes():
                made = torch.tensor(self.passing, dtype=torch.int64, device="cpu")
                if pixels is not None:
                    column = torch.full((self.features, 1), -1, device="cpu")
                    column[list(self.order), 0] = torch.arange(len(self.order), device="cpu")
                    made = torch.where(column < 0, -1, column * pixels + torch.arange(pixels, device="cpu")).flatten()
                self._tables[key] = made.to(device)
        return self._tables[key]

    def same_as(self, other: CouplingNetwork) -> bool:
        """Whether map and split are the same."""
        return self.map == other.map and (self.order, self.passing) == (other.order, other.passing)

    def touched(self) -> bool:
        """Whether the buffers of the split were exchanged, or written to."""
        seen = zip(self._names, self._seen, strict=True)
        return any(self._buffers.get(name) is not t or version(t) != before for name, (t, before) in seen)

    def follow(self) -> bool:
        """A new split where they were changed."""
        if not self.touched():
            return False
        before = self.order, self.passing
        self._read()
        return before != (self.order, self.passing)

    def packed(self) -> None:
        """There is nothing to pack."""

    def serves(self, x: Any) -> bool:
        """Whether the operator takes this input."""
        dim = self.conditioner.dim
        return (
            isinstance(x, Tensor)
            and x.dtype in (torch.float32, torch.float64)
            and not x.is_meta
            and x.dim() > max(dim, -dim - 1)
            and x.shape[dim] == self.features
            and not autocasts(x)
        )

    def run(self, x: Tensor, context: Any, inverse: bool) -> tuple[Tensor, Tensor]:
        """The value and the log-determinant; both directions ask the conditioner once."""
        dim = self.conditioner.dim
        seen = x.index_select(dim, self._table(None, x.device))
        found = self.conditioner.call(self._modules[self.conditioner.name], seen, context)
        parameters = [p.to(x.dtype) for p in self.conditioner.parameters(found, len(self.order))]
        if dim == -1 or x.dim() == 2:
            z, log_det = self._mapped(x, parameters, 1, inverse)
            return z, log_det
        z, log_det = self._mapped(x.flatten(1), [p.flatten(1) for p in parameters], x.shape[2:].numel(), inverse)
        return z.reshape(x.shape), log_det

    def _mapped(self, x: Tensor, parameters: Sequence[Tensor], pixels: int, inverse: bool) -> tuple[Tensor, Tensor]:
        return ops.coupling(x, *parameters, transformed=self._table(pixels, x.device), map=self.map, inverse=inverse)

    def disagreement(self, evaluate: Callable[..., Any], noise: Callable[..., Tensor]) -> str | None:
        """Compares both directions on two rows, with noise in the place of what the conditioner gives."""
        x = noise(2, self.features)
        self._modules[self.conditioner.name] = _Given(noise(2, len(self.order) * self.map.count))
        for inverse in (False, True):
            expected = evaluate(x, inverse)
            for name, ours, theirs in zip(("value", "log-determinant"), self.run(x, None, inverse), expected, strict=True):
                error = error_of(ours, theirs)
                if not error < 1e-9:
                    way = " backwards" if inverse else ""
                    return f"its {name}{way} differs from the operator's by {error:.1e}: another version of the formula?"
        return None


class _Given(nn.Module):
    """A conditioner that gives the same whatever it is asked."""

    def __init__(self, result: Tensor) -> None:
        super().__init__()
        self.result = result

    def forward(self, *_: Any) -> Tensor:
        return self.result


def coupled(layer: Any, x: Any, context: Any, inverse: bool) -> tuple[Tensor, Tensor] | None:
    """(y, log_det) by the operator, or ``None`` where the library's own code must serve the call."""
    state = serving(layer, inverse)
    return state.network.run(x, context, inverse) if state is not None and state.network.serves(x) else None
