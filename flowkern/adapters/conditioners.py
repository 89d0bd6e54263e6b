"""Conditioners of a library's couplings, which run once where a layer goes back to its input and forth again.

A coupling's network sees the same in both directions. On the way back it runs, with a graph, and the call after it takes
what it gave. Which modules are such is found out by a trial of the layer both ways.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from flowkern.nn.reversible import relative_error

_patching = threading.RLock()


@contextmanager
def forwards(given: Mapping[nn.Module, Any]) -> Iterator[None]:
    """Calls of modules by others than their own forwards, in this thread."""
    if not given:
        yield
        return
    thread = threading.get_ident()

    def standing_in(own: Any, other: Any) -> Any:
        return lambda *args, **named: (other if threading.get_ident() == thread else own)(*args, **named)

    with _patching:
        before = {module: vars(module).get("forward") for module in given}
        for module, other in given.items():
            vars(module)["forward"] = standing_in(module.forward, other)
        try:
            yield
        finally:
            for module, own_forward in before.items():
                if own_forward is None:
                    del vars(module)["forward"]
                else:
                    vars(module)["forward"] = own_forward


class ManyCallsError(Exception):
    """A module is called more often than it should."""


class Log:
    """What modules were called with, and what they gave, in the order of their first calls."""

    def __init__(self) -> None:
        self.calls: dict[nn.Module, list[tuple[Any, Any]]] = {}
        self.most: dict[nn.Module, int] = {}

    def over(self, modules: Iterable[nn.Module]) -> dict[nn.Module, Any]:
        """Forwards that write down what they are called with, of modules with parameters."""
        able = [m for m in modules if not isinstance(m, torch.jit.ScriptModule) and next(m.parameters(), None) is not None]
        return {m: self._noting(m, m.forward) for m in able}

    def _noting(self, module: nn.Module, forward: Any) -> Any:
        def call(*args: Any, **named: Any) -> Any:
            calls = self.calls.setdefault(module, [])
            result = forward(*args, **named)
            calls.append((args[0] if args else None, result))
            if len(calls) > self.most.get(module, len(calls)):
                raise ManyCallsError
            return result

        return call


def conditioners_of(there: Log, back: Log) -> list[nn.Module]:
    """The outermost modules that were called once in each direction, with the same first argument.

    It may not depend on what another of them gave, which would be differentiated twice.
    """
    found: list[nn.Module] = []
    inside: set[nn.Module] = set()
    results: set[Any] = set()
    for module, calls in there.calls.items():
        others = back.calls.get(module, [])
        if module in inside or len(calls) != 1 or len(others) != 1:
            continue
        (seen, result), (again, _) = calls[0], others[0]
        if _same(seen, again) and isinstance(result, Tensor) and results.isdisjoint(graph_of([seen], [])):
            found.append(module)
            inside.update(module.modules())
            results.add(result.grad_fn)
    return found


def _same(a: Any, b: Any) -> bool:
    if not (isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and a.is_floating_point()):
        return False
    return bool(relative_error(b.detach(), a.detach()) <= torch.finfo(a.dtype).eps ** (2 / 3))


class Once:
    """The forward of a conditioner that is called twice, and runs in the first call.

    Args:
        net: the module.
        wanted: what gradients are asked of: the layer's input and parameters.
    """

    def __init__(self, net: nn.Module, wanted: Sequence[Tensor]) -> None:
        self.run, self.wanted, self.calls = net.forward, wanted, 0
        self.result: Tensor | None = None
        self.seen: Tensor | None = None  # what it sees in the call, as a function of the layer's input

    def __call__(self, seen: Tensor, *args: Any, **named: Any) -> Tensor:
        self.calls += 1
        if self.calls == 1:
            with torch.enable_grad():
                self.result = self.run(_Entry.apply(self, seen.detach(), *self.wanted), *args, **named)
            return self.result.detach().clone()  # which a layer may write to
        if self.calls > 2:
            return self.run(seen, *args, **named)
        result, self.result, self.seen = self.result, None, seen
        assert result is not None
        return result


class _Entry(torch.autograd.Function):
    """What a conditioner sees, whose gradient goes where that will have come from in the call."""

    @staticmethod
    def forward(ctx: Any, once: Once, seen: Tensor, *wanted: Tensor) -> Tensor:
        ctx.once = once
        return seen.view_as(seen)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        once: Once = ctx.once
        grads: Sequence[Tensor | None] = [None] * len(once.wanted)
        if once.seen is not None and once.seen.requires_grad:
            grads = torch.autograd.grad(once.seen, once.wanted, grad, retain_graph=True, allow_unused=True)
        return None, None, *grads


def graph_of(results: Iterable[Tensor], known: Iterable[Tensor]) -> set[Any]:
    """The nodes of the graph of these, as far as where others come from."""
    ends = {None, *(t.grad_fn for t in known)}
    found: set[Any] = set()
    nodes = {t.grad_fn for t in results} - ends
    while nodes:
        node: Any = nodes.pop()
        found.add(node)
        nodes |= {behind for behind, _ in node.next_functions} - ends - found
    return found
