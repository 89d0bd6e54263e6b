"""accelerate(memory="reversible"): the layers of other libraries' containers in the machinery of flowkern.nn.reversible.

A container's own method runs with one object in the place of its list of layers. That object takes the whole list as one
stack, in which each layer rebuilds its input on the way back. Layers are called as the library calls them, once more on
the way back, and once backwards.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add, itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from flowkern import ops
from flowkern.adapters.calls import steps_in_chain
from flowkern.adapters.conditioners import Log, ManyCallsError, Once, conditioners_of, forwards, graph_of
from flowkern.adapters.run import joinable
from flowkern.adapters.state import Held, own, state_of
from flowkern.nn import reversible
from flowkern.nn.transform import Unconditional
from flowkern.ops._rebuilt import rebuilt

Call = Callable[[Any, Any], Any]  # (part, x) -> (y, log_det), of a part (layer, whether backwards, ...)


class PeerLayer(Unconditional):
    """A library's layer, one way or the other, as one of a reversible stack.

    Args:
        module: which has the parameters, and is known again in the next pass.
        part: (layer, whether backwards, ...).
        call: (part, x) -> (y, log_det), by the library's own code.
        given: what the call reads besides x and the parameters: contexts.
        network: of an accelerated layer with a network: whether its call is the inverse of the operators.
    """

    def __init__(self, module: Any, part: Any, call: Call, given: Sequence[Tensor], network: bool | None = None) -> None:
        super().__init__()
        self.module = module
        self.part, self.call, self.given, self.network = part, call, given, network
        self.conditioners: Sequence[nn.Module] = ()  # which see the same on the way back: known after a trial

    def _get_name(self) -> str:
        return type(self.part[0]).__name__

    def parameters(self, recurse: bool = True) -> Any:
        """Those of the layer, and what it is given: all that gradients go to."""
        yield from super().parameters(recurse)
        yield from self.given

    @property
    def retains_graph(self) -> bool:  # type: ignore[override]
        """For what a conditioner sees."""
        return bool(self.conditioners)

    def forward(self, x: Any, context: Tensor | None = None) -> tuple[Any, Any]:
        return self._called(self.part, x)

    __call__ = forward  # hooks on all modules do not see this one

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        layer, back, *rest = self.part
        x, log_det = self._called((layer, not back, *rest), z.contiguous())
        return x.contiguous(), log_det  # a layer may take views

    def _called(self, part: Any, x: Any) -> tuple[Any, Any]:
        y, log_det = self.call(part, x)
        if isinstance(y, Tensor) and isinstance(x, Tensor):
            if not isinstance(log_det, Tensor):
                log_det = x.new_full(x.shape[:1], log_det or 0.0)
            elif log_det.dim() == 0 and x.dim() > 1:
                log_det = log_det.expand(len(x))
        return y, log_det

    def rebuild(self, output: Tensor, context: Tensor | None, inverse: bool, memo: Any = None) -> tuple[Tensor, Tensor, Tensor]:
        if self.network is not None and joinable(output):
            seen = self.given[0] if self.given else None
            match steps_in_chain(self.part[0], output, seen, self.network, False):
                case [(ops.NetworkStep() | ops.CouplingStep()) as step] if (found := rebuilt(step, output, seen)) is not None:
                    return found
        try:
            if self.conditioners:
                return self._rebuild_with_conditioners(output.contiguous())
            return super().rebuild(output, context, inverse)
        except Exception as error:
            raise NotImplementedError(f"memory='reversible': a {self._get_name()} cannot go back: {error}") from error

    def _rebuild_with_conditioners(self, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same, each conditioner running once: what it gave on the way back serves the call."""
        x = torch.empty_like(output).requires_grad_()  # known when the conditioners have run
        wanted = [x, *(t for t in self.parameters() if t.requires_grad)]
        with forwards({net: Once(net, wanted) for net in self.conditioners}):
            with torch.no_grad(), torch.random.fork_rng([output.device] if output.is_cuda else []):
                x.copy_(self.inverse(output)[0])
            return x, *self(x)

    def trial(self, x: Any) -> Trial:
        """What the layer gives for x, and whether it can rebuild that; leaves no trace."""
        circumstances = reversible.Circumstances(self, x if isinstance(x, Tensor) else x[0])
        with circumstances.again(), torch.enable_grad():
            if not isinstance(x, Tensor):
                return Trial(_detached(self(x)[0]), alone="it is given several tensors")
            leaf = x.detach().requires_grad_(x.is_floating_point())
            seen = leaf.clone()
            modules = list(self.module.modules())[1:] if isinstance(self.module, nn.Module) and self.network is None else []
            there, back = Log(), Log()
            with forwards(there.over(modules)), torch.random.fork_rng([x.device] if x.is_cuda else []):
                y, log_det = self(seen)
            if not isinstance(y, Tensor):
                return Trial(_detached(y), alone="it gives several tensors")
            if seen._version:
                return Trial(y.detach(), alone="it writes into its input")
            if _strangers((y, log_det), [leaf, *self.parameters()]):
                return Trial(y.detach(), alone="it reads tensors that are not its parameters")
            back.most = {net: len(calls) + 1 for net, calls in there.calls.items()}
            with torch.no_grad(), forwards(back.over(modules)):
                try:
                    again, _ = self.inverse(y.detach())
                except ManyCallsError:
                    return Trial(y.detach(), kept="its inverse takes more passes")
                except Exception:  # its round trip will say so
                    return Trial(y.detach())
            same = again.shape == y.shape and again.dtype is y.dtype
            return Trial(y.detach(), conditioners=conditioners_of(there, back) if same else ())


@dataclass
class Trial:
    """What was found about a layer.

    Args:
        result: what it gave, without a graph.
        alone: why it must keep all that autograd keeps, if it must.
        kept: why it had better keep its input.
        conditioners: modules inside it that need to run only once for its input and for its result.
    """

    result: Any
    alone: str | None = None
    kept: str | None = None
    conditioners: Sequence[nn.Module] = ()


def _detached(found: Any) -> Any:
    return found.detach() if isinstance(found, Tensor) else [t.detach() for t in found]


def _strangers(results: Iterable[Tensor], known: Sequence[Tensor]) -> bool:
    """Whether gradients of these go to others than these."""
    leaves = set(map(id, known))
    return any(id(getattr(node, "variable", known[0])) not in leaves for node in graph_of(results, known))


@dataclass
class _Guard(reversible.Guard):
    """The guard of a library's layers, which knows their names and says why a layer keeps its input."""

    names: Sequence[str] = ()
    reasons: dict[int, str] = field(default_factory=dict)  # of layers that keep their input
    alone: dict[int, str] = field(default_factory=dict)  # of those that keep all that autograd keeps
    conditioners: dict[int, Sequence[nn.Module]] = field(default_factory=dict)
    forwards: Sequence[Any] = ()  # that replace those of modules, and may read anything

    def keep(self, layer: int, error: float, what: str = "its round trip") -> None:
        self.reasons[layer] = reversible.reason(error, what)
        super().keep(layer, error, what)

    def take(self, layer: int, trial: Trial) -> None:
        """What the trial of a layer has shown."""
        self.conditioners[layer] = trial.conditioners
        if trial.alone is not None:
            self.alone[layer] = trial.alone
        if trial.kept is not None:
            self.kept.add(layer)
            self.reasons[layer] = trial.kept

    def name(self, layer: int) -> str:
        return f"layer {layer} ({self.names[layer]})"


MOST_GUARDS = 16  # so many circumstances of a stack are remembered


class Stack:
    """What a container knows of its layers from one pass to the next: a guard for each direction and set of modes."""

    def __init__(self) -> None:
        self._modules: list[Any] = []
        self._guards: dict[Any, _Guard] = {}
        self._inner: dict[Any, Stack] = {}

    def at(self, key: Any) -> Stack:
        """That of one list of layers, where a container has several."""
        return self._inner.setdefault(key, Stack())

    def run(self, layers: Sequence[PeerLayer], x: Any, back: bool) -> tuple[Any, Any]:
        """The layers in the order in which they are given, that of the container or, with ``back``, the opposite one."""
        places = range(len(layers))[:: -1 if back else 1]
        modules = [layer.module for layer in (layers[::-1] if back else layers)]
        if len(modules) != len(self._modules) or any(a is not b for a, b in zip(modules, self._modules, strict=True)):
            self._modules, self._guards = modules, {}
        replaced = _replaced_forwards(modules)
        key = back, tuple(getattr(module, "training", None) for module in modules), _first(layers, x), *map(id, replaced)
        guard = self._guards.get(key)
        if _exchanged(modules) or (guard is None and isinstance(x, Tensor) and x.numel() == 0):  # which would show nothing
            guard = _Guard(alone=dict.fromkeys(places, ""))
        if guard is None:
            if len(self._guards) == MOST_GUARDS:
                self._guards = {}
            guard = _Guard(names=[type(module).__name__ for module in modules], forwards=replaced)
            seen = x
            for place, layer in zip(places, layers, strict=True):
                trial = layer.trial(seen)
                seen = trial.result
                guard.take(place, trial)
            self._guards[key] = guard
        for place, layer in zip(places, layers, strict=True):
            layer.conditioners = guard.conditioners.get(place, ())
        guard.settle()
        totals = []
        pairs = list(zip(places, layers, strict=True))
        for alone, group in itertools.groupby(pairs, lambda pair: pair[0] in guard.alone):
            if alone:
                for _, layer in group:
                    x, log_det = layer(x)
                    totals.append(log_det)
            else:
                x, log_det = reversible.run(guard, list(group), x, None, False)
                totals.append(log_det)
        if guard.measures and isinstance(x, Tensor):
            guard.measures = not bool(x.isfinite().all())
        return x, reduce(add, totals)

    def status(self) -> list[str]:
        """What :func:`flowkern.explain` says of it; one text for every list of layers."""
        inner = [text for stack in self._inner.values() for text in stack.status()]
        if not self._modules:
            return inner or ["reversible"]
        notes: dict[int, str] = {}
        for guard in self._guards.values():
            notes |= {i: f"{guard.name(i)} keeps its input: {why}" for i, why in guard.reasons.items()}
            notes |= {i: f"{guard.name(i)} keeps its activations: {why}" for i, why in guard.alone.items()}
        count = len(self._modules)
        return [*inner, "; ".join([f"reversible, {count - len(notes)} of {count} layers", *(notes[i] for i in sorted(notes))])]


def _replaced_forwards(modules: Iterable[Any]) -> list[Any]:
    inner = (m for module in modules if isinstance(module, nn.Module) for m in module.modules())
    return [vars(m)["forward"] for m in inner if "forward" in vars(m)]


def _exchanged(modules: Iterable[Any]) -> bool:
    """Whether other tensors are in the places of parameters, which are back before the gradient is asked for."""
    found = (p for module in modules if isinstance(module, nn.Module) for p in module.parameters())
    return not all(isinstance(p, nn.Parameter) for p in found)


def _first(layers: Sequence[PeerLayer], x: Any) -> int:
    """The first layer with a gradient, which keeps its input whatever it is."""
    if isinstance(x, Tensor) and x.requires_grad:
        return 0
    return next((i for i, layer in enumerate(layers) if any(p.requires_grad for p in layer.parameters())), len(layers))


def recording(container: Any) -> Stack | None:
    """The stack of a container whose layers are to rebuild their inputs in this call."""
    held = state_of(container) if reversible.records() else None
    return held.stack if isinstance(held, Held) else None


class ReversibleRun:
    """One way through layers of a container, with the methods of :class:`flowkern.adapters.run.Run`.

    Args:
        stack: of the container.
        x: where it begins.
        given: to a part, the tensors that its call reads besides x.
        call: (part, x) -> (y, log_det), by the library's own code.
        back: whether the layers come in the order opposite to that of the container.
        module_of: the module of a part, where that is not its layer.
    """

    def __init__(
        self,
        stack: Stack,
        x: Any,
        given: Callable[[Any], Sequence[Tensor]],
        call: Call,
        back: bool,
        module_of: Callable[[Any], Any] = itemgetter(0),
    ) -> None:
        self.x, self._stack, self._given, self._call, self._back = x, stack, given, call, back
        self._module_of = module_of
        self._layers: list[PeerLayer] = []

    def network(self, layer: Any, inverse: bool, part: Any) -> None:
        """An accelerated layer."""
        self._layers.append(PeerLayer(self._module_of(part), part, self._call, self._given(part), inverse))

    def add(self, step: Any, part: Any) -> None:
        """Any other."""
        self._layers.append(PeerLayer(self._module_of(part), part, self._call, self._given(part)))

    def end(self) -> tuple[Any, Any]:
        """The result, and the log-determinant."""
        return self._stack.run(self._layers, self.x, self._back)


# -- containers that loop over a list ---------------------------------------------------------------------------------

Spread = Callable[[ReversibleRun, Any, bool], None]  # adds a layer, or the layers of which it is made


class _Joined:
    """A list of layers as one layer, which the container's own loop calls: ``layer(x, ...)`` or ``layer.inverse(x, ...)``."""

    def __init__(self, stack: Stack, layers: Sequence[Any], spread: Spread) -> None:
        self.stack, self.layers, self.spread = stack, layers, spread

    def __call__(self, x: Any, *context: Any, **named: Any) -> tuple[Any, Any]:
        return self._run(False, x, *context, **named)

    def inverse(self, x: Any, *context: Any, **named: Any) -> tuple[Any, Any]:
        return self._run(True, x, *context, **named)

    def _run(self, back: bool, x: Any, *context: Any, **named: Any) -> tuple[Any, Any]:
        tensors = [t for t in (*context, *named.values()) if isinstance(t, Tensor)]

        def call(part: Any, x: Any) -> Any:
            layer, back = part
            return (layer.inverse if back else layer)(x, *context, **named)

        run = ReversibleRun(self.stack, x, lambda _: tensors, call, back)
        for layer in reversed(self.layers) if back else self.layers:
            self.spread(run, layer, back)
        return run.end()


class View:
    """A container for its own methods, with other lists of layers."""

    def __init__(self, container: Any, **lists: Any) -> None:
        self.__dict__.update(lists, _container=container)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)


def reversibly(
    names: Iterable[str], attribute: str, spread: Spread, joined: Mapping[str, Callable[..., Any]] | None = None
) -> dict[str, Callable[..., Any]]:
    """Methods of a container that loops over its attribute, a list of layers or a list of such lists.

    Args:
        names: of the methods.
        attribute: the list.
        spread: (run, layer, back): adds a layer of the list to a run.
        joined: what the methods are where layers are not to rebuild their inputs; by default the library's own.
    """

    def made(name: str) -> Callable[..., Any]:
        otherwise = (joined or {}).get(name)

        def method(self: Any, *args: Any, **named: Any) -> Any:
            stack = recording(self)
            layers = getattr(self, attribute)
            if stack is None or len(layers) == 0:
                return (otherwise or own(self, name))(self, *args, **named)
            lists: list[Any]
            if isinstance(layers[0], nn.ModuleList):
                lists = [[_Joined(stack.at(i), list(each), spread)] if len(each) else [] for i, each in enumerate(layers)]
            else:
                lists = [_Joined(stack, list(layers), spread)]
            return own(self, name)(View(self, **{attribute: lists}), *args, **named)

        return functools.wraps(otherwise)(method) if otherwise is not None else method

    return {name: made(name) for name in {**dict.fromkeys(names), **(joined or {})}}
