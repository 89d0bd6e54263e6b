"""The tables of the libraries' files: which classes are accelerated and how, which are left alone and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flowkern.adapters.network import Network, class_path, differs


@dataclass(frozen=True)
class Layer:
    """How the layers of one class are accelerated.

    Args:
        read: the network of a layer; raises :class:`UnsupportedError` with the reason why it is left alone.
        evaluate: of a flow (layer, x, context) -> (y, log_det) of the direction that costs the peer one pass, by the peer's
            own code; the self-check compares the operators with it, see :meth:`Network.disagreement`.
        methods: what the accelerated class overrides; each calls :func:`fast` or :func:`own`.
        set_aside: instance attributes that would hide the methods.
        caches: instance attributes that calls write, and that do not change what the layer computes.
        inner: attributes that hold modules which the peer's own code still calls, and which are accelerated by themselves.
        constants: parameters of the layer that are no weights, such as a matrix that permutes: the self-check keeps them.
    """

    read: Callable[[Any], Network]
    evaluate: Callable[..., Any]
    methods: Mapping[str, Callable[..., Any]]
    set_aside: tuple[str, ...] = ()
    caches: tuple[str, ...] = ()
    inner: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()


@dataclass(frozen=True)
class Container:
    """How a model that holds layers runs neighbours among them as one call of the operators, or without activations.

    Args:
        methods: what the accelerated class overrides; each uses :class:`flowkern.adapters.run.Run` or :func:`own`.
        joins: whether it joins its layers; one that does not is of use with ``memory="reversible"`` alone.
        stacks: whether its layers can rebuild their inputs, see :mod:`flowkern.adapters.reversible`.
    """

    methods: Mapping[str, Callable[..., Any]]
    set_aside: tuple[str, ...] = ()
    joins: bool = True
    stacks: bool = False


@dataclass(frozen=True)
class Library:
    """What flowkern knows of one library: the table in its file.

    Args:
        name: of the distribution, as pip knows it.
        tested: versions [first, last) whose formulas were compared.
        layers: class path -> how it is accelerated.
        left_alone: class path -> why nothing is done, for layers that a reader would expect to be accelerated.
        containers: class path -> how neighbouring layers in it become one call.
        holders: class path -> attributes in which objects that are no modules keep models.
    """

    name: str
    tested: tuple[str, str]
    layers: Mapping[str, Layer] = field(default_factory=dict)
    left_alone: Mapping[str, str] = field(default_factory=dict)
    containers: Mapping[str, Container] = field(default_factory=dict)
    holders: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


_libraries: dict[str, Library] = {}


def register(library: Library) -> None:
    """Makes a library known to :func:`accelerate`; a later registration under the same name replaces the earlier one."""
    _libraries[library.name] = library


def libraries() -> list[Library]:
    """All that are registered."""
    return list(_libraries.values())


def library_of(cls: type) -> tuple[Library, str] | None:
    """The library and the class path under which it knows a class or one of its bases."""
    for base in cls.__mro__:
        path = class_path(base)
        for library in _libraries.values():
            if path in library.layers or path in library.left_alone:
                return library, path
    return None


def container_of(cls: type) -> Container | None:
    """How a library's table says that objects of a class, which overrides nothing of the one in the table, are joined."""
    for base in cls.__mro__:
        path = class_path(base)
        for library in _libraries.values():
            if path in library.containers:
                return library.containers[path] if differs(cls, path) is None else None
    return None
