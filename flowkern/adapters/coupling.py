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
from flowkern.adapters.calls import by_operators, serving
from flowkern.adapters.network import Linear, Network, PeerNetwork, Reading, UnsupportedError, error_of, stored
from flowkern.nn.coupling_step import FEW_ROWS, FEW_WEIGHTS
from flowkern.univariate import UnivariateMap


@dataclass(frozen=True)
class Conditioner:
    """How a library asks the network of a coupling layer.

    Args:
        name: of the module on the layer.
        call: (module, what passes, context) -> its result.
        parameters: from its result to the parameters of the map in their order.
    """

    name: str
    call: Callable[[Any, Tensor, Any], Tensor]
    parameters: Callable[[Tensor], Sequence[Tensor]]


class CouplingNetwork(Network):
    """What a coupling layer of vectors computes.

    Args:
        layer: the library's.
        mask: the name of its buffer that says what is transformed: a checkpoint may bring another.
        split: from this buffer to the features that pass and those that are transformed, in their orders.
        map: the univariate map.
        conditioner: how its network is asked.
    """

    def __init__(
        self,
        layer: nn.Module,
        mask: str,
        split: Callable[[Tensor], tuple[Tensor, Tensor]],
        map: UnivariateMap,
        conditioner: Conditioner,
    ) -> None:
        self._buffers, self._modules = layer._buffers, layer._modules  # which live as long as the layer
        self._mask, self._split, self.map, self.conditioner = mask, split, map, conditioner
        self._read()

    def _read(self) -> None:
        mask = self._buffers.get(self._mask)
        if mask is None or mask.is_meta:
            raise UnsupportedError("what it transforms is no buffer with values")
        self._seen = mask, version(mask)
        with outside_modes():
            self.passing, self.order = (tuple(t.tolist()) for t in self._split(mask))
        self.features = len(self.passing) + len(self.order)
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def _tables_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The features that pass, and the column of every feature's parameters."""
        if device not in self._tables:
            with outside_modes():
                column = torch.full((self.features,), -1, device="cpu")
                column[list(self.order)] = torch.arange(len(self.order), device="cpu")
                passing = torch.tensor(self.passing, dtype=torch.int64, device="cpu")
                self._tables[device] = passing.to(device), column.to(device)
        return self._tables[device]

    def same_as(self, other: CouplingNetwork) -> bool:
        """Whether map and split are the same."""
        return (
            type(other) is type(self) and self.map == other.map and (self.order, self.passing) == (other.order, other.passing)
        )

    def touched(self) -> bool:
        """Whether the buffer of the split was exchanged, or written to."""
        mask, before = self._seen
        return self._buffers.get(self._mask) is not mask or version(mask) != before

    def follow(self) -> bool:
        """A new split where it was changed."""
        if not self.touched():
            return False
        before = self.order, self.passing
        self._read()
        return before != (self.order, self.passing)

    def packed(self) -> None:
        """There is nothing to pack."""

    def fits(self, x: Any, context: Any) -> bool:
        """Its conditioner is the library's: no operator takes the whole layer."""
        return False

    def fits_like(self, x: Tensor, width: int) -> bool:
        """The same beside other networks."""
        return False

    def serves(self, x: Any) -> bool:
        """Whether the operator takes this input from the conditioner."""
        return (
            isinstance(x, Tensor)
            and x.dtype in (torch.float32, torch.float64)
            and not x.is_meta
            and x.dim() > 0
            and x.shape[-1] == self.features
            and not autocasts(x)
        )

    def run(self, x: Tensor, context: Any, inverse: bool) -> tuple[Tensor, Tensor]:
        """The value and the log-determinant; both directions ask the conditioner once."""
        passing, transformed = self._tables_on(x.device)
        asked = self._modules[self.conditioner.name], x.index_select(-1, passing), context
        parameters = [p.to(x.dtype) for p in self.conditioner.parameters(self.conditioner.call(*asked))]
        return ops.coupling(x, *parameters, transformed=transformed, map=self.map, inverse=inverse)

    def disagreement(self, evaluate: Callable[..., Any], noise: Callable[..., Tensor]) -> str | None:
        """Compares both directions on two rows, with noise in the place of what the conditioner gives."""
        x = noise(2, self.features)
        self._modules[self.conditioner.name] = _Given(noise(2, len(self.order) * self.map.count))
        for inverse in (False, True):
            expected = evaluate(x, None, inverse)
            for name, ours, theirs in zip(("value", "log-determinant"), self.run(x, None, inverse), expected, strict=True):
                error = error_of(ours, theirs)
                if not error < 1e-9:
                    way = " backwards" if inverse else ""
                    return f"its {name}{way} differs from the operator's by {error:.1e}: another version of the formula?"
        return None


class _Of(Linear):
    """A linear map of the conditioner as one of the whole layer.

    Args:
        split: the layer.
        first, last: whether it is the first, the last, or both.
    """

    def __init__(self, module: nn.Module, split: MaskedCoupling, first: bool, last: bool) -> None:
        super().__init__(module)
        self.split, self.first, self.last = split, first, last

    def mask(self) -> Tensor:
        """What passes, and the context, is read; parameters of what is transformed are given."""
        weight: Any = stored(self.module, "weight")
        rows, columns = (torch.ones(n, dtype=torch.bool, device="cpu") for n in weight.shape)
        if self.first:
            columns = self._wide(columns, self.split.columns("cpu"), self.split.width)
        if self.last:
            rows = self._wide(rows, self.split.rows("cpu"), self.split.outputs)
        return rows[:, None] & columns

    def masks(self) -> list[Tensor | None]:
        return []

    def tensors(self, read: Reading) -> tuple[Tensor, Tensor | None]:
        weight, bias = super().tensors(read)
        if self.first:
            columns = self.split.columns(weight.device)
            weight = weight.new_zeros(len(weight), self.split.width).index_copy(1, columns, weight)
        if self.last:
            rows = self.split.rows(weight.device)
            weight = weight.new_zeros(self.split.outputs, weight.shape[1]).index_copy(0, rows, weight)
            bias = None if bias is None else self._wide(bias, rows, self.split.outputs)
        return weight, bias

    @staticmethod
    def _wide(t: Tensor, places: Tensor, size: int) -> Tensor:
        return t.new_zeros(size).index_copy(0, places, t)


class MaskedCoupling(PeerNetwork):
    """A coupling layer of vectors as a masked network of two levels: one call for conditioner and map, and for neighbours.

    Its map is the identity where the parameters are zero. What passes comes first in the input of the conditioner, then the
    context; the parameters of a feature lie together.

    Args:
        parts: the same layer as conditioner and operator, which serve few rows of a large network.
        context: number of context features.
        linears: the conditioner's linear maps, an activation between each two.
    """

    def __init__(self, parts: CouplingNetwork, context: int, linears: Sequence[nn.Module]) -> None:
        super().__init__(parts.features, context, parts.map)
        self.parts = parts
        self._places: dict[tuple[str, torch.device], Tensor] = {}
        self.width, self.outputs = self.features + context, self.features * self.map.count
        self.context_columns = range(self.features, self.width)
        for i, module in enumerate(linears):
            first, last = i == 0, i + 1 == len(linears)
            self.add(_Of(module, self, first, last), activated=not last)
        self.weights = sum(linear.mask().numel() for linear in self.linears)

    def columns(self, device: Any) -> Tensor:
        """The columns of the first map."""
        return self._placed("columns", [*self.parts.passing, *self.context_columns], device)

    def rows(self, device: Any) -> Tensor:
        """The rows of the last map."""
        count = self.map.count
        return self._placed("rows", [d * count + i for d in self.parts.order for i in range(count)], device)

    def _placed(self, name: str, places: list[int], device: Any) -> Tensor:
        key = name, torch.device(device)
        if key not in self._places:
            with outside_modes():
                self._places[key] = torch.tensor(places, device="cpu").to(device)
        return self._places[key]

    def touched(self) -> bool:
        """Whether the split may be another."""
        return self.parts.touched()

    def follow(self) -> bool:
        """A new plan where it is."""
        if not self.parts.follow():
            return False
        self._places = {}
        self._plan()
        return True

    def fits(self, x: Any, context: Any) -> bool:
        """The same, for as many rows as make it worth the packing."""
        return super().fits(x, context) and self._worthwhile(x)

    def fits_like(self, x: Tensor, width: int) -> bool:
        """The same."""
        return super().fits_like(x, width) and self._worthwhile(x)

    def _worthwhile(self, x: Tensor) -> bool:
        return x.is_cpu and (x.shape[:-1].numel() >= FEW_ROWS or self.weights <= FEW_WEIGHTS)

    def serves(self, x: Any) -> bool:
        """Whether conditioner and operator take this input."""
        return self.parts.serves(x)

    def run(self, x: Tensor, context: Any, inverse: bool) -> tuple[Tensor, Tensor]:
        """By the conditioner and the operator."""
        return self.parts.run(x, context, inverse)

    def disagreement(self, evaluate: Callable[..., Any], noise: Callable[..., Tensor]) -> str | None:
        """Of either way."""
        return super().disagreement(evaluate, noise) or self.parts.disagreement(evaluate, noise)


class _Given(nn.Module):
    """A conditioner that gives the same whatever it is asked."""

    def __init__(self, result: Tensor) -> None:
        super().__init__()
        self.result = result

    def forward(self, *_: Any) -> Tensor:
        return self.result


def coupled(layer: Any, x: Any, context: Any, inverse: bool) -> tuple[Tensor, Tensor] | None:
    """(y, log_det) by the operators, or ``None`` where the library's own code must serve the call."""
    state = serving(layer, inverse)
    if state is None:
        return None
    found = by_operators(state, x, context, inverse)
    if found is not None:
        return found
    return state.network.run(x, context, inverse) if state.network.serves(x) else None
