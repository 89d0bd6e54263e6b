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
from torch.nn.utils import parametrize

from flowkern import ops
from flowkern._checks import autocasts
from flowkern._tensors import outside_modes, version
from flowkern.adapters.calls import by_operators, serving
from flowkern.adapters.network import (
    Linear,
    Network,
    PeerNetwork,
    Reading,
    UnsupportedError,
    activation_of,
    error_of,
    steps_disagree,
    stored,
)
from flowkern.nn.coupling_step import worthwhile
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


class Split:
    """Which features a coupling layer lets pass and which it transforms, each in the order of its conditioner."""

    def __init__(self, passing: Sequence[int], order: Sequence[int]) -> None:
        self.passing, self.order = tuple(passing), tuple(order)

    @property
    def features(self) -> int:
        """Of the layer."""
        return len(self.passing) + len(self.order)

    def same_as(self, other: Split) -> bool:
        """Whether it is the same."""
        return (self.passing, self.order) == (other.passing, other.order)

    def touched(self) -> bool:
        """Whether it may be another now."""
        return False

    def follow(self) -> bool:
        """Looks again, and says whether it is another now."""
        return False


class MaskSplit(Split):
    """A split that buffers say: a checkpoint may bring another.

    Args:
        layer: the library's.
        names: of the buffers.
        split: from these buffers to the features that pass and those that are transformed.
    """

    def __init__(self, layer: nn.Module, names: Sequence[str], split: Callable[..., tuple[Tensor, Tensor]]) -> None:
        self._buffers, self._names, self._split = layer._buffers, names, split  # the buffers live as long as the layer
        super().__init__(*self._read())

    def _read(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        masks = self._now()
        if any(mask is None or mask.is_meta for mask in masks):
            raise UnsupportedError("what it transforms is no buffer with values")
        self._seen = [(mask, version(mask)) for mask in masks]
        with outside_modes():
            passing, order = self._split(*masks)
            return tuple(passing.tolist()), tuple(order.tolist())

    def _now(self) -> list[Any]:
        return [self._buffers.get(name) for name in self._names]

    def touched(self) -> bool:
        """Whether a buffer was exchanged, or written to."""
        return any(
            now is not mask or version(mask) != before for now, (mask, before) in zip(self._now(), self._seen, strict=True)
        )

    def follow(self) -> bool:
        """A new split where one was changed."""
        if not self.touched():
            return False
        before = self.passing, self.order
        try:
            self.passing, self.order = self._read()
        except UnsupportedError:
            self.passing = self.order = ()  # so that the next mask is another, also if it is the one before
            raise
        return before != (self.passing, self.order)


class CouplingNetwork(Network):
    """What a coupling layer of vectors computes after its conditioner.

    Args:
        layer: the library's.
        split: what passes.
        map: the univariate map.
        conditioner: how its network is asked.
    """

    def __init__(self, layer: nn.Module, split: Split, map: UnivariateMap, conditioner: Conditioner) -> None:
        self._modules = layer._modules  # which live as long as the layer
        self.split, self.map, self.conditioner = split, map, conditioner
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def _tables_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The features that pass, and the column of every feature's parameters."""
        if device not in self._tables:
            with outside_modes():
                column = torch.full((self.split.features,), -1, device="cpu")
                column[list(self.split.order)] = torch.arange(len(self.split.order), device="cpu")
                passing = torch.tensor(self.split.passing, dtype=torch.int64, device="cpu")
                self._tables[device] = passing.to(device), column.to(device)
        return self._tables[device]

    def same_as(self, other: CouplingNetwork) -> bool:
        """Whether map and split are the same."""
        return type(other) is type(self) and self.map == other.map and self.split.same_as(other.split)

    def touched(self) -> bool:
        """Whether the split may be another."""
        return self.split.touched()

    def follow(self) -> bool:
        """A new split where it is."""
        changed = self.split.follow()
        if changed:
            self._tables = {}
        return changed

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
            and x.shape[-1] == self.split.features
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
        x = noise(2, self.split.features)
        self._modules[self.conditioner.name] = _Given(noise(2, len(self.split.order) * self.map.count))
        for inverse in (False, True):
            expected = evaluate(x, None, inverse)
            for name, ours, theirs in zip(("value", "log-determinant"), self.run(x, None, inverse), expected, strict=True):
                error = error_of(ours, theirs)
                if not error < 1e-9:
                    way = " backwards" if inverse else ""
                    return f"its {name}{way} differs from the operator's by {error:.1e}: another version of the formula?"
        return None


class _Of(Linear):
    """A linear map of the conditioner of a coupling.

    Args:
        layer: the coupling.
        first, last: whether it is the first, the last, or both.
    """

    def __init__(self, module: nn.Module, layer: MaskedCoupling, first: bool, last: bool) -> None:
        super().__init__(module)
        self.layer, self.first, self.last = layer, first, last

    def mask(self) -> Tensor:
        """All is read but what is transformed, and all that the conditioner gives is a parameter."""
        rows, columns = (torch.ones(n, dtype=torch.bool, device="cpu") for n in self.shape)
        if self.first and self.layer.wide:
            columns[list(self.layer.split.order)] = False
        if self.last:
            rows = torch.zeros(self.layer.outputs, dtype=torch.bool, device="cpu")
            rows[self.layer.gives()] = True
        return rows[:, None] & columns

    @property
    def shape(self) -> tuple[int, int]:
        """Of the module's weight."""
        weight = stored(self.module, "weight")
        assert weight is not None  # of a linear map
        rows, columns = weight.shape
        return rows, columns

    def masks(self) -> list[Tensor | None]:
        return []

    def tensors(self, read: Reading) -> tuple[Tensor, Tensor | None]:
        weight, bias = super().tensors(read)
        return self.layer.parameters_of(weight, bias) if self.last else (weight, bias)


_COMPILED = "it is being compiled, as the library's own code"


class MaskedCoupling(PeerNetwork):
    """A coupling layer of vectors: one call for conditioner and map, and for neighbours.

    Args:
        split: what passes.
        map: the univariate map.
        context: number of context features.
        linears: the conditioner's linear maps, an activation between each two; of another conditioner none, and :meth:`part`
            is called for each.
        layout, parameter_order: of the conditioner's outputs, as of those of :class:`PeerNetwork`.
        context_first: whether the conditioner reads the context before what passes.
        given: which parameters of the map the conditioner gives; the others are zero.
        factors: by which these are multiplied.
        wide: whether the conditioner reads and gives all features, those that are masked for nothing.
        parts: the same layer as conditioner and operator, which serve few rows of a large network.
    """

    def __init__(
        self,
        split: Split,
        map: UnivariateMap,
        context: int,
        linears: Sequence[nn.Module] = (),
        *,
        layout: str = "feature_major",
        parameter_order: Sequence[int] | None = None,
        context_first: bool = False,
        given: Sequence[int] | None = None,
        factors: Sequence[float] | None = None,
        wide: bool = False,
        parts: CouplingNetwork | None = None,
    ) -> None:
        super().__init__(split.features, context, map, layout=layout, parameter_order=parameter_order)
        self.split, self.parts, self.wide, self.factors = split, parts, wide, factors
        self.given = range(map.count) if given is None else given
        self.context_columns = range(self._read)[:context] if context_first else range(self._read - context, self._read)
        self._tables: dict[tuple[str, Any], Tensor] = {}
        self.weights: list[int] = []
        for i, module in enumerate(linears):
            last = i + 1 == len(linears)
            self.part(module, activated=not last, last=last)

    def part(self, module: nn.Module, *, activated: bool = False, residual: int | None = None, last: bool = False) -> int:
        """The next linear map of the conditioner; returns its index."""
        linear = _Of(module, self, not self.linears, last)
        rows, columns = linear.shape
        if linear.first:
            self._expect("inputs", columns, self._read)
        if last:
            self._expect("outputs", rows, (self.features if self.wide else len(self.split.order)) * len(self.given))
        self.weights.append(rows * columns)
        return self.add(linear, activated=activated, residual=residual)

    @staticmethod
    def _expect(what: str, found: int, expected: int) -> None:
        if found != expected:
            raise UnsupportedError(f"its network has {found} {what}, expected {expected}")

    @property
    def _read(self) -> int:
        """Columns of the first weight."""
        return self.context + (self.features if self.wide else len(self.split.passing))

    def structure(self) -> dict[str, Any]:
        """Its network reads the context alone, to which belongs what passes."""
        own, passing = list(self.context_columns), list(self.split.passing)
        if not self.wide:
            passing = [i for i in range(self._read) if i not in own]
        return {
            "context": self.context + len(passing),
            "context_columns": (*own, *passing),
            "conditioner_context": self.context,
            "features": None if self.wide else len(self.split.order),
        }

    @property
    def outputs(self) -> int:
        """Parameters of all features that are transformed."""
        return len(self.split.order) * self.map.count

    def gives(self) -> list[int]:
        """Where among these the conditioner's are, in its order."""
        size, count = len(self.split.order), self.map.count
        if self.layout == "feature_major":
            return [d * count + i for d in range(size) for i in self.given]
        return [i * size + d for i in self.given for d in range(size)]

    def parameters_of(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The last weight and bias, of all parameters, from the conditioner's."""
        if self.factors is not None:
            factor = self._table("factors", weight, self._factors, weight.dtype)
            weight, bias = weight * factor[:, None], None if bias is None else bias * factor
        if self.wide:
            rows = self._table("rows", weight, lambda: [i * self.features + d for i in self._each() for d in self.split.order])
            weight, bias = weight.index_select(0, rows), None if bias is None else bias.index_select(0, rows)
        if len(weight) < self.outputs:
            rows = self._table("gives", weight, self.gives)
            weight = weight.new_zeros(self.outputs, weight.shape[1]).index_copy(0, rows, weight)
            bias = None if bias is None else bias.new_zeros(self.outputs).index_copy(0, rows, bias)
        return weight, bias

    def _each(self) -> range:
        return range(len(self.given))

    def _factors(self) -> list[float]:
        order, size = list(self.parameter_order or self._each()), len(self.split.order)
        values = [(self.factors or ())[order.index(i)] for i in self._each()]  # in the order of the outputs
        return values * size if self.layout == "feature_major" else [v for v in values for _ in range(size)]

    def _table(self, name: str, like: Tensor, make: Callable[[], list[Any]], dtype: torch.dtype = torch.int64) -> Tensor:
        key = name, (like.device, dtype)
        if key not in self._tables:
            with outside_modes():
                self._tables[key] = torch.tensor(make(), dtype=dtype, device="cpu").to(like.device)
        return self._tables[key]

    def step(self, inverse: bool, arguments: dict[str, Any]) -> ops.Step:
        """A coupling."""
        return ops.CouplingStep(inverse, arguments, self.split.passing, self.split.order)

    def busy(self) -> str | None:
        """The same; a compiler joins what the library's code is made of."""
        return _COMPILED if torch.compiler.is_compiling() else super().busy()

    def touched(self) -> bool:
        """Whether the split may be another."""
        return self.split.touched()

    def follow(self) -> bool:
        """A new plan where it is."""
        if not (self.split.follow() if self.parts is None else self.parts.follow()):
            return False
        self._tables = {}
        self._plan()
        return True

    def fits(self, x: Any, context: Any) -> bool:
        """The same, for as many rows as make it worth the packing."""
        return super().fits(x, context) and self._worthwhile(x)

    def fits_like(self, x: Tensor, width: int) -> bool:
        """The same."""
        return super().fits_like(x, width) and self._worthwhile(x)

    def _worthwhile(self, x: Tensor) -> bool:
        return x.is_cpu and worthwhile(x, self.weights)

    def serves(self, x: Any) -> bool:
        """Whether conditioner and operator take this input."""
        return self.parts is not None and self.parts.serves(x)

    def run(self, x: Tensor, context: Any, inverse: bool) -> tuple[Tensor, Tensor]:
        """By the conditioner and the operator."""
        assert self.parts is not None  # serves says so
        return self.parts.run(x, context, inverse)

    def disagreement(self, evaluate: Callable[..., Any], noise: Callable[..., Tensor]) -> str | None:
        """Of either way."""
        found = super().disagreement(evaluate, noise)
        return found if found is not None or self.parts is None else self.parts.disagreement(evaluate, noise)


class CouplingSteps(Network):
    """A layer that is several networks one after another, of the same features and context.

    Args:
        networks: in the order of the direction that is forward.
    """

    def __init__(self, networks: Sequence[PeerNetwork]) -> None:
        self.networks = networks
        self.features, self.context = networks[0].features, networks[0].context
        self.modules = [m for network in networks for m in network.modules]

    @property
    def plan(self) -> tuple[Any, ...]:
        """Of all."""
        return tuple(network.plan for network in self.networks)

    def same_as(self, other: Any) -> bool:
        """Whether all are the same."""
        return (
            type(other) is type(self)
            and len(other.networks) == len(self.networks)
            and all(a.same_as(b) for a, b in zip(self.networks, other.networks, strict=True))
        )

    def busy(self) -> str | None:
        """Of any."""
        return next((reason for network in self.networks if (reason := network.busy()) is not None), None)

    def touched(self) -> bool:
        """Whether one is."""
        return any(network.touched() for network in self.networks)

    def follow(self) -> bool:
        """Of all."""
        changed = [network.follow() for network in self.networks]  # all of them look
        return any(changed)

    def mode(self, module: nn.Module, inverse: bool) -> str | None:
        """The same for all."""
        return self.networks[0].mode(module, inverse)

    def fits(self, x: Any, context: Any) -> bool:
        """Whether all take it."""
        first, *others = self.networks
        return first.fits(x, context) and all(n.fits_like(x, self.context) for n in others)

    def fits_like(self, x: Tensor, width: int) -> bool:
        """The same beside other networks."""
        return all(n.fits_like(x, width) for n in self.networks)

    def steps(self, inverse: bool, packed: Sequence[Tensor] | None = None) -> list[ops.Step]:
        """All in turn."""
        given = [None] * len(self.networks) if packed is None else packed
        pairs = list(zip(self.networks, given, strict=True))
        return [step for network, own in (reversed(pairs) if inverse else pairs) for step in network.steps(inverse, own)]

    def packed(self) -> list[Tensor] | None:
        """Of each."""
        found = [network.packed() for network in self.networks]
        return None if any(p is None for p in found) else found  # type: ignore[return-value]

    def disagreement(self, evaluate: Callable[..., Any], noise: Callable[..., Tensor]) -> str | None:
        """Compares on two rows."""
        return steps_disagree(self, evaluate, noise(2, self.features), noise(2, self.context) if self.context else None)


def linear_maps(modules: Any) -> tuple[list[nn.Module], tuple[str, float | None]]:
    """The linear maps of a Sequential, and the activation between each two; dropout before a linear map is not counted."""
    if type(modules) is not nn.Sequential:
        raise UnsupportedError(
            f"its network is a {type(modules).__qualname__}: only linear maps and activations have an operator"
        )
    parts = [m for m in modules if type(m) is not nn.Dropout]
    linears, between = parts[::2], parts[1::2]
    plain = all(parametrize.type_before_parametrizations(m) is nn.Linear for m in linears)
    if not plain or len(linears) != len(between) + 1:
        raise UnsupportedError("its network is not linear maps with one activation between each two")
    return linears, activation_of(*between)


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
