"""accelerate, explain, restore: finds the layers of a model that a library's file describes."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any, TypeVar

from torch import nn

from flowkern._checks import one_of
from flowkern.adapters.library import Container, Layer, Library, container_of, libraries, library_of
from flowkern.adapters.network import UnsupportedError, class_path, differs
from flowkern.adapters.reversible import Stack
from flowkern.adapters.state import (
    STATE,
    Held,
    State,
    attach,
    detach,
    hold,
    is_accelerated,
    is_container,
    peer_class,
    read_network,
    renewed,
)
from flowkern.nn.reversible import MEMORY, Memory

Model = TypeVar("Model")


@dataclass
class Found:
    """A module (or other object) met on the way: its place, itself, and what is done with it."""

    name: str
    layer: Any
    how: Layer | None
    reason: str | None
    container: Container | None = None  # of layers, which have rows of their own


def _walk(obj: Any, name: str = "", seen: set[int] | None = None) -> Iterator[Found]:
    seen = set() if seen is None else seen
    if id(obj) in seen:
        return
    seen.add(id(obj))
    known = None if is_accelerated(obj) else library_of(type(obj))
    container = container_of(peer_class(type(obj))) if known is None else None
    if container is not None:
        yield Found(name, obj, None, None, container)
    if is_accelerated(obj) and not is_container(obj):
        how = obj.__dict__[STATE].layer
        yield Found(name, obj, how, None)
        yield from _inside(obj, name, seen, how.inner)
    elif known is not None:
        library, path = known
        how = library.layers.get(path)
        reason = library.left_alone.get(path) if how is None else differs(type(obj), path)
        yield Found(name, obj, how if reason is None else None, reason)
        yield from _inside(obj, name, seen, None if how is None or reason is not None else how.inner)
    else:
        children = list(_inside(obj, name, seen))
        if isinstance(obj, nn.Module) and not children and next(obj.children(), None) is None:
            yield Found(name, obj, None, f"no flow layer that flowkern knows ({type(obj).__module__})")
        yield from children


def _inside(obj: Any, name: str, seen: set[int], only: Collection[str] | None = None) -> Iterator[Found]:
    for key, child in _children(obj):
        if only is None or key in only:
            yield from _walk(child, f"{name}.{key}" if name else str(key), seen)


def _children(obj: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(obj, nn.Module):
        yield from obj.named_children()
    elif isinstance(obj, (list, tuple)):
        yield from enumerate(obj)
        return
    elif isinstance(obj, dict):
        yield from obj.items()
        return
    for base in type(obj).__mro__:
        path = class_path(base)
        for library in libraries():
            for attribute in library.holders.get(path, ()):
                child = getattr(obj, attribute, None)
                if child is not None:
                    yield attribute, child


# -- what people call -------------------------------------------------------------------------------------------------


def accelerate(model: Model, memory: Memory = "full") -> Model:
    """Makes the autoregressive layers of an existing model fast, in place.

    The layers keep their parameters, buffers, state-dict keys, hooks, return types and use of random numbers; they
    still are instances of their classes, and pickle as the library's own objects. Each is checked once, at first use,
    against the library's own code; a layer that differs is left as it was, with a warning.

    Args:
        model: a module, a distribution, a posterior of sbi, or a list or dictionary of such.
        memory: ``"full"`` keeps what the backward pass needs. With ``"reversible"`` every layer in a container of layers,
            accelerated or not, rebuilds its input from its output in the backward pass and runs again, so that a stack of
            any depth takes the memory of one layer. Hooks inside of it see each run, as with
            :func:`torch.utils.checkpoint.checkpoint`; there are no second derivatives. A layer whose inverse is not exact
            enough, or that has none, keeps its input: a warning and :func:`explain` say which.

    Returns:
        The same object. Calling it twice does nothing more; the last ``memory`` counts.

    Raises:
        ValueError: for another ``memory``.

    Example:
        >>> import flowkern as fk, torch, zuko
        >>> model = fk.accelerate(zuko.flows.MAF(5, transforms=2, hidden_features=[16]))
        >>> model().sample((3,)).shape
        torch.Size([3, 5])
        >>> print(fk.explain(model))
        transform.transforms.0  MaskedAutoregressiveTransform  accelerated
        transform.transforms.1  MaskedAutoregressiveTransform  accelerated
        base                    UnconditionalDistribution      left alone: no flow layer that flowkern knows (zuko.lazy)
        >>> model = fk.accelerate(model, memory="reversible")
        >>> model().log_prob(torch.randn(3, 5)).sum().backward()
        >>> fk.explain(model).rows[0]
        ('transform', 'LazyComposedTransform', 'reversible, 2 of 2 layers')
    """
    one_of("memory", memory, MEMORY)
    rows, containers, done = list(_walk(model)), [], 0
    for library in {id(known[0]): known[0] for row in rows if (known := library_of(type(row.layer)))}.values():
        _check_version(library)
    for row in rows:
        if row.container is not None:
            containers.append(row)
        elif is_accelerated(row.layer):
            done += 1
        elif row.how is not None:
            try:
                attach(row.layer, row.how)
                done += 1
            except UnsupportedError:
                pass  # explain reads it again and says why
    for row in containers:
        if row.container is not None:
            done += _hold(row.layer, row.container, memory == "reversible")
    if not done:
        warnings.warn(f"flowkern found nothing to accelerate. What it saw:\n{explain(model)}", RuntimeWarning, stacklevel=2)
    return model


def _hold(container: Any, how: Container, rebuilds: bool) -> bool:
    """Accelerates a container if it is of use, else restores it; whether its layers will rebuild their inputs."""
    rebuilds = rebuilds and how.stacks
    joins = how.joins and any(is_accelerated(inner.layer) and not is_container(inner.layer) for inner in _walk(container))
    if not rebuilds and not joins:
        if is_accelerated(container):
            detach(container)
        return False
    if not is_accelerated(container):
        hold(container, how)
    held: Held = container.__dict__[STATE]
    if rebuilds is not (held.stack is not None):
        held.stack = Stack() if rebuilds else None
    return rebuilds


def restore(model: Model) -> Model:
    """Undoes :func:`accelerate`; on a model that is not accelerated it does nothing.

    Args:
        model: what was accelerated.

    Returns:
        The same object.
    """
    for row in _walk(model):
        if is_accelerated(row.layer):
            detach(row.layer)
    return model


@dataclass(frozen=True)
class Explanation:
    """One line per layer: place, class, and whether it is accelerated or why not. ``str`` gives it as a table."""

    rows: tuple[tuple[str, str, str], ...]

    def __str__(self) -> str:
        widths = [max((len(row[i]) for row in self.rows), default=0) for i in range(2)]
        return "\n".join(f"{name:{widths[0]}}  {cls:{widths[1]}}  {status}" for name, cls, status in self.rows)


def explain(model: Any) -> Explanation:
    """What :func:`accelerate` did, or would do, with each layer of a model, and why.

    A container whose layers rebuild their inputs has a line of its own, which names the layers that do not.

    Args:
        model: accelerated or not.
    """
    lines = ((row, status) for row in _walk(model) for status in _statuses(row))
    return Explanation(tuple((row.name or "(model)", type(row.layer).__qualname__, status) for row, status in lines))


def _statuses(row: Found) -> list[str]:
    if row.container is None:
        return [_status(row)]
    stack = row.layer.__dict__[STATE].stack if is_accelerated(row.layer) else None
    return [] if stack is None else stack.status()


def _status(row: Found) -> str:
    if not is_accelerated(row.layer):
        reason = row.reason
        if row.how is not None:
            try:
                read_network(row.layer, row.how)
                return "can be accelerated"
            except UnsupportedError as error:
                reason = str(error)
        return f"left alone: {reason}"
    state: State = row.layer.__dict__[STATE]
    reason = renewed(row.layer, state, thorough=True)
    if reason is not None:
        return f"left alone: {reason}"
    now = state.network.busy() or state.network.obstacle(inverse=False)
    if now is not None:
        return f"accelerated, but its own code runs now: {now}"
    where = "accelerated" if state.layer.methods else "accelerated in the call of its sequence"
    return where if state.verdict is None else f"{where}, to be checked at the first call"


def _check_version(library: Library) -> None:
    try:
        version = metadata.version(library.name)
    except metadata.PackageNotFoundError:
        return  # a copy without metadata; the self-check decides
    first, last = library.tested
    if not _numbers(first) <= _numbers(version) < _numbers(last) and library.name not in _warned:
        _warned.add(library.name)
        warnings.warn(
            f"flowkern was compared with {library.name} {first} to below {last}, this is {version}; "
            "each layer is checked at its first use",
            RuntimeWarning,
            stacklevel=3,
        )


_warned: set[str] = set()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".")[:3] if part.isdigit())
