"""What a reader may have read of a layer besides its tensors, in a form that is quick to compare at every call."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable
from itertools import chain
from operator import itemgetter
from typing import Any

from torch import Tensor, nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# Modes, hooks and replaced forwards decide about single calls; parameters and buffers are read at every call.
_INTERNAL = frozenset(vars(nn.Module())) - {"_modules"} | {"forward"}


class Structure:
    """The classes, children and attributes of a layer and of every module inside it, parametrizations excepted.

    Containers in attributes (dictionaries, lists, tuples, partial functions) are looked into. Not seen are the insides of
    other objects, the variables that a function closes over, and methods that were replaced in a class.

    Args:
        layer: the module. It is not kept: what belongs to the layer would keep it alive.
        ignored: attributes of the layer that calls write and that say nothing.
    """

    def __init__(self, layer: nn.Module, ignored: Collection[str]) -> None:
        self._modules: list[nn.Module] = []  # those inside the layer
        self._views: list[Iterable[Any]] = []  # live: what they give changes with the modules
        self._hooks: list[dict[int, Any]] = []
        self._own = itemgetter(*(name for name in tuple(vars(layer)) if name not in ignored))
        self._facts: list[tuple[int, Any, Any]] = []  # where, under which name, what
        self._visited = {id(layer)}
        self._attributes(layer, ignored)
        self._now = self._values(layer)

    def same(self, layer: nn.Module) -> bool:
        """Whether nothing at all changed. It takes microseconds: most values are the same objects, which costs no call."""
        try:
            return self._values(layer) == self._now
        except Exception:  # tensors and arrays have no single truth value
            return False

    def hooked(self) -> bool:
        """Whether there are hooks on modules inside the layer."""
        return any(self._hooks)

    def changed(self, before: Structure) -> list[tuple[int, Any]]:
        """Where, and under which names, there is something else than before; modes, hooks and tensors are nothing here."""
        now, then = ({(where, name): value for where, name, value in s._facts} for s in (self, before))
        return [k for k in now.keys() | then.keys() if k not in now or k not in then or not _equal(now[k], then[k])]

    def _values(self, layer: nn.Module) -> list[Any]:
        own = vars(layer)
        return [len(own), *self._own(own), *chain.from_iterable(self._views), *map(type, self._modules)]

    def _module(self, module: nn.Module) -> None:
        if id(module) not in self._visited:
            self._visited.add(id(module))
            self._modules.append(module)
            self._views.append(vars(module).values())
            self._hooks += [vars(module)[name] for name in _HOOKS]
            self._facts.append((id(module), type, type(module)))
            self._attributes(module, ())

    def _attributes(self, module: nn.Module, ignored: Collection[str]) -> None:
        self._facts += [(id(module), name, p is None) for name, p in module._parameters.items()]
        for name, value in vars(module).copy().items():  # to which other threads may write
            if name not in _INTERNAL and name not in ignored:
                self._fact(id(module), name, value)

    def _fact(self, where: int, name: Any, value: Any) -> None:
        if isinstance(value, nn.Module):
            self._facts.append((where, name, value))
            if name != "parametrizations":  # whose values are asked for at every call, and may keep counts
                self._module(value)
        elif isinstance(value, dict):
            self._container(value, (value, value.values()), value.items())
        elif isinstance(value, list):
            self._container(value, (value,), enumerate(value))
        elif isinstance(value, tuple):
            for i, item in enumerate(value):
                self._fact(where, (name, i), item)
        elif isinstance(value, functools.partial):
            for i, item in enumerate((value.func, value.args, value.keywords)):
                self._fact(where, (name, i), item)
        elif not isinstance(value, Tensor):
            self._facts.append((where, name, value))

    def _container(self, container: Any, views: Iterable[Iterable[Any]], items: Iterable[tuple[Any, Any]]) -> None:
        if id(container) not in self._visited:
            self._visited.add(id(container))
            self._views += views
            for name, value in items:
                self._fact(id(container), name, value)


def _equal(a: Any, b: Any) -> bool:
    try:
        return a is b or bool(a == b)
    except Exception:
        return False
