"""What an accelerated layer is: its class, what it carries, what its copies and pickles are, and following its changes.

A layer keeps its object, parameters and buffers; only its class becomes a subclass whose methods call the operators.
Pickling and state dictionaries see the peer's class.
"""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from flowkern.adapters.freeze import Frozen
from flowkern.adapters.library import Container, Layer
from flowkern.adapters.network import ChangedError, Network, UnsupportedError, weight_norm_of
from flowkern.adapters.structure import Structure

STATE = "_flowkern"


@dataclass(slots=True)  # without a __dict__, so that code which walks through all that a model holds does not enter it
class State:
    """What an accelerated layer carries, under :data:`STATE` in its dictionary."""

    layer: Layer
    owner: weakref.ref[Any]
    accelerated: type  # the class that the layer has now
    network: Any  # a Network; its library's file knows of which class
    structure: Structure | None  # of the layer when its network was read; none where that is known to be no longer true
    aside: dict[str, Any]
    verdict: str | None  # None once the self-check passed; else why not, UNCHECKED before it
    standing: dict[bool, str | None] = field(default_factory=dict)  # obstacles by direction, while nothing changes
    harmless: frozenset[str] = frozenset()  # numbers on the layer that changed and that a check found to mean nothing
    suspects: frozenset[str] = frozenset()  # those that changed since the last check
    unread: str | None = None  # why the layer as it is now could not be read: the network is an earlier one's
    told: str | None = None  # the reason of the last warning
    frozen: Frozen | None = None  # inside of flowkern.frozen


UNCHECKED = "unchecked"


@dataclass(slots=True)
class Held:
    """What an accelerated container of layers carries, under :data:`STATE` in its dictionary."""

    layer: Container
    owner: weakref.ref[Any]
    accelerated: type
    aside: dict[str, Any] = field(default_factory=dict)  # as of a layer
    cached: Any = None  # what its library's file keeps from one call to the next
    stack: Any = None  # with memory="reversible" what flowkern.adapters.reversible keeps


def state_of(layer: Any) -> Any:
    """The state of an accelerated object; none where it was restored meanwhile, or is a copy that no library's code made."""
    state = getattr(layer, "__dict__", {}).get(STATE)
    return state if state is not None and (torch.compiler.is_compiling() or state.owner() is layer) else None


# -- copies and pickles -----------------------------------------------------------------------------------------------

_pickled = threading.local()


def _parts(layer: Any, state: State | Held | None) -> tuple[Any, Any, Any]:
    """What the peer's own object would give to pickle: how it is made, its arguments, its state. The layer stays as it is."""
    peer: Any = object.__new__(peer_class(type(layer)))
    aside = {} if state is None else state.aside
    peer.__dict__.update(layer.__dict__, **aside)  # in one step: other threads may write to it
    peer.__dict__.pop(STATE, None)
    function, arguments, values, *_ = peer.__reduce_ex__(2)
    return function, arguments, values


def _reduce_ex(self: Any, protocol: Any) -> Any:
    """Pickles as the peer's own object."""
    if protocol >= 2:  # an older one does not ask for the class
        _pickled.layer = weakref.ref(self)
    return _parts(self, state_of(self))


def _copy(self: Any) -> Any:
    """A shallow copy is the peer's own object."""
    function, arguments, values = _parts(self, state_of(self))
    return _with_values(function(*arguments), values)


def _class(self: Any) -> type:
    """The object's class; pickle, which asks for it right after :func:`_reduce_ex`, is told the peer's."""
    pickled, _pickled.layer = getattr(_pickled, "layer", None), None
    return peer_class(type(self)) if pickled is not None and pickled() is self else type(self)


def _set_class(self: Any, cls: type) -> None:
    object.__dict__["__class__"].__set__(self, cls)


def _deepcopy(self: Any, memo: dict[int, Any]) -> Any:
    """A copy is accelerated too, over its own parameters."""
    state = state_of(self)
    if state is None:
        return peer_copy(self, None, memo)
    if isinstance(state, Held):
        twin = peer_copy(self, state, memo)
        hold(twin, state.layer, None if state.stack is None else type(state.stack)())
        return twin
    renewed(self, state)
    memo.update(_normed_weights(self))
    twin = peer_copy(self, state, memo)
    with suppress(UnsupportedError):  # changed since it was accelerated: the copy is the peer's own
        attach(twin, state.layer, state.verdict)
    return twin


def _normed_weights(layer: Any) -> dict[int, Tensor]:
    """Copies of what torch.nn.utils.weight_norm computed: it has a graph and cannot be copied; each call makes it anew."""
    modules = layer.modules() if isinstance(layer, nn.Module) else ()
    found: list[Any] = [m.weight for m in modules if weight_norm_of(m) is not None]
    return {id(weight): weight.detach().clone() for weight in found}


def peer_copy(layer: Any, state: State | Held | None, memo: dict[int, Any]) -> Any:
    """A deep copy as the peer's own object."""
    function, arguments, values = _parts(layer, state)
    twin = memo[id(layer)] = function(*arguments)
    return _with_values(twin, copy.deepcopy(values, memo))


def _with_values(twin: Any, values: Any) -> Any:
    if hasattr(twin, "__setstate__"):
        twin.__setstate__(values)
    else:
        twin.__dict__.update(values)
    return twin


# -- flowkern.frozen --------------------------------------------------------------------------------------------------


def _freeze(self: Any, name: str) -> None:
    """Packs the weights of a layer once."""
    state = state_of(self)
    if isinstance(state, State) and renewed(self, state) is None:
        with suppress(ChangedError):
            with torch.no_grad():
                packed = state.network.packed()
            if packed is not None:
                state.frozen = Frozen(self, state.network, packed, name)


def _thaw(self: Any) -> None:
    """Packs them on every call again."""
    state = state_of(self)
    if isinstance(state, State):
        state.frozen = None


# -- classes ----------------------------------------------------------------------------------------------------------

_classes: dict[tuple[type, int], tuple[type, Layer | Container]] = {}


def _accelerated_class(cls: type, layer: Layer | Container) -> type:
    key = cls, id(layer)
    if key not in _classes:
        names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
        # No base but the peer's class: an object can change its class only to one of the same layout.
        common: dict[str, Any] = {
            "_flowkern_peer": cls,
            "__reduce_ex__": _reduce_ex,
            "__copy__": _copy,
            "__deepcopy__": _deepcopy,
        }
        common |= {"__class__": property(_class, _set_class), "_flowkern_freeze": _freeze, "_flowkern_thaw": _thaw}
        # The layer is kept with the class, so that its id is not used again.
        _classes[key] = type(cls)(cls.__name__, (cls,), {**names, **common, **layer.methods}), layer
    return _classes[key][0]


def peer_class(cls: type) -> type:
    """The class that an accelerated class stands in for; any other class itself."""
    return getattr(cls, "_flowkern_peer", cls)


def own(layer: Any, name: str) -> Callable[..., Any]:
    """The method that the peer's class defines, of an accelerated layer, or of one that was restored meanwhile.

    It takes the layer as its first argument: torch.compile, where it calls a bound method by itself, takes the attribute of
    that name, which is the accelerated class's.
    """
    method: Callable[..., Any] = getattr(peer_class(type(layer)), name)
    return method


def is_accelerated(layer: Any) -> bool:
    """Whether a layer is accelerated; an object that its class made, or a copy of its dictionary, is not."""
    return hasattr(type(layer), "_flowkern_peer") and state_of(layer) is not None


def attach(layer: Any, how: Layer, verdict: str | None = UNCHECKED, network: Network | None = None) -> None:
    """Accelerates one layer, or raises :class:`UnsupportedError`.

    Other threads may use the layer meanwhile: at each step here either the peer's methods serve it or the new ones.
    """
    if is_accelerated(layer):
        detach(layer)
    network = network or read_network(layer, how)
    cls = type(layer)
    accelerated = _accelerated_class(peer_class(cls) if "_flowkern_peer" in vars(cls) else cls, how)
    aside = {name: layer.__dict__[name] for name in how.set_aside if name in layer.__dict__}
    state = State(how, weakref.ref(layer), accelerated, network, None, aside, verdict)
    layer.__dict__[STATE] = state
    layer.__class__ = accelerated
    for name in aside:
        del layer.__dict__[name]
    state.structure = _structure(layer, state)


def hold(container: Any, how: Container, stack: Any = None) -> None:
    """Accelerates one container; ``stack``: with which its layers rebuild their inputs."""
    cls = type(container)
    accelerated = _accelerated_class(peer_class(cls) if "_flowkern_peer" in vars(cls) else cls, how)
    container.__dict__[STATE] = Held(how, weakref.ref(container), accelerated, stack=stack)
    container.__class__ = accelerated


def is_container(obj: Any) -> bool:
    """Whether an object is an accelerated container of layers."""
    return is_accelerated(obj) and isinstance(obj.__dict__[STATE], Held)


def _structure(layer: Any, state: State) -> Structure:
    return Structure(layer, frozenset((STATE, *state.layer.set_aside, *state.layer.caches, *state.harmless)))


def read_network(layer: Any, how: Layer) -> Network:
    """The network of a layer; whatever goes wrong is a reason to leave it alone."""
    hidden = [name for name in replaced_methods(layer) if name not in how.set_aside]
    if hidden:
        raise UnsupportedError(f"its {', '.join(hidden)} was replaced")
    try:
        return how.read(layer)
    except UnsupportedError:
        raise
    except Exception as error:
        raise UnsupportedError(f"it is not built as expected: {type(error).__name__}: {error}") from error


def replaced_methods(module: Any) -> list[str]:
    """The methods of a library's class that attributes of an object hide."""
    methods = {k for base in peer_class(type(module)).__mro__ if not base.__module__.startswith("torch.") for k in vars(base)}
    return [k for k, v in vars(module).copy().items() if callable(v) and k in methods]


def detach(layer: Any) -> None:
    state: State | Held = layer.__dict__[STATE]
    if type(layer) is not state.accelerated:
        name = type(layer).__qualname__
        raise RuntimeError(f"restore: the class of a {name} was changed after accelerate; change it back first")
    layer.__dict__.update(state.aside)
    layer.__class__ = peer_class(type(layer))
    del layer.__dict__[STATE]


# -- changes ----------------------------------------------------------------------------------------------------------


def renewed(layer: Any, state: State, thorough: bool = False) -> str | None:
    """Reads a layer again if something changed that its reader may have read, and follows its masks.

    Returns why it must be left alone, if that is known by now. A thorough look also sees what a call would meet later on.
    """
    if thorough or state.structure is None or not state.structure.same(layer):
        _look_again(layer, state)
    if state.unread is not None:
        return state.unread
    try:
        if state.network.follow() and state.verdict is not None:
            state.verdict = UNCHECKED
    except UnsupportedError as error:
        state.verdict = str(error)
    return None if state.verdict == UNCHECKED else state.verdict


def _look_again(layer: Any, state: State) -> None:
    """What changed in a layer: a mode or a hook, which the next call looks at, or something that its reader read."""
    now, before = _structure(layer, state), state.structure
    changed = None if before is None else now.changed(before)
    if changed is None or changed:
        try:
            network = read_network(layer, state.layer)
            if network.same_as(state.network):
                state.suspects |= _numbers_on(layer, changed or [])
            state.verdict = UNCHECKED
            state.network, state.unread = network, None  # last: other threads may be at work with the layer
        except UnsupportedError as error:
            state.verdict = state.unread = str(error)
    state.structure, state.standing = now, {}


def _numbers_on(layer: Any, changed: list[tuple[int, Any]]) -> frozenset[str]:
    """The attributes of a layer that changed, if no more than numbers on the layer did: counters, say."""
    numbers = [name for where, name in changed if where == id(layer) and isinstance(vars(layer).get(name), (int, float))]
    return frozenset(numbers) if len(numbers) == len(changed) else frozenset()


def spare_suspects(layer: Any, state: State) -> None:
    """After a check that passed with other numbers on a layer than the one before: no later ones need a check."""
    if state.suspects:
        state.harmless, state.suspects = state.harmless | state.suspects, frozenset()
        state.structure = _structure(layer, state)
