"""Finds the layers of a model that a library's file describes, and gives them accelerated methods, in place.

A layer keeps its object, parameters and buffers; only its class becomes a subclass whose methods call the operators.
Pickling and state dictionaries see the peer's class.
"""

from __future__ import annotations

import copy
import functools
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import _get_current_dispatch_mode

from flowkern import ops
from flowkern._opaque import constant_while_compiling
from flowkern.adapters.network import ChangedError, Network, UnsupportedError, class_path, differs
from flowkern.adapters.structure import Structure
from flowkern.plan import outside_modes

Model = TypeVar("Model")
STATE = "_flowkern"


@dataclass(frozen=True)
class Layer:
    """How the layers of one class are accelerated.

    Args:
        read: the network of a layer; raises :class:`UnsupportedError` with the reason why it is left alone.
        evaluate: (layer, x, context) -> (y, log_det) of the direction that costs the peer one pass, by the peer's own
            code; the self-check compares the operators with it.
        methods: what the accelerated class overrides; each calls :func:`fast` or :func:`own`.
        set_aside: instance attributes that would hide the methods.
        caches: instance attributes that calls write, and that do not change what the layer computes.
    """

    read: Callable[[Any], Network]
    evaluate: Callable[[Any, Tensor, Tensor | None], tuple[Tensor, Tensor]]
    methods: Mapping[str, Callable[..., Any]]
    set_aside: tuple[str, ...] = ()
    caches: tuple[str, ...] = ()


@dataclass(frozen=True)
class Library:
    """What flowkern knows of one library: the table in its file.

    Args:
        name: of the distribution, as pip knows it.
        tested: versions [first, last) whose formulas were compared.
        layers: class path -> how it is accelerated.
        left_alone: class path -> why nothing is done, for layers that a reader would expect to be accelerated.
        holders: class path -> attributes in which objects that are no modules keep models.
    """

    name: str
    tested: tuple[str, str]
    layers: Mapping[str, Layer] = field(default_factory=dict)
    left_alone: Mapping[str, str] = field(default_factory=dict)
    holders: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


_libraries: dict[str, Library] = {}


def register(library: Library) -> None:
    """Makes a library known to :func:`accelerate`; a later registration under the same name replaces the earlier one."""
    _libraries[library.name] = library


def libraries() -> list[Library]:
    """All that are registered."""
    return list(_libraries.values())


@dataclass(slots=True)  # without a __dict__, so that code which walks through all that a model holds does not enter it
class State:
    """What an accelerated layer carries, under :data:`STATE` in its dictionary."""

    layer: Layer
    owner: weakref.ref[Any]
    accelerated: type  # the class that the layer has now
    network: Network
    structure: Structure | None  # of the layer when its network was read; none where that is known to be no longer true
    aside: dict[str, Any]
    verdict: str | None  # None once the self-check passed; else why not, UNCHECKED before it
    standing: dict[bool, str | None] = field(default_factory=dict)  # obstacles by direction, while nothing changes
    harmless: frozenset[str] = frozenset()  # numbers on the layer that changed and that a check found to mean nothing
    suspects: frozenset[str] = frozenset()  # those that changed since the last check
    unread: str | None = None  # why the layer as it is now could not be read: the network is an earlier one's
    told: str | None = None  # the reason of the last warning


UNCHECKED = "unchecked"
HOOKS = frozenset(name for name in vars(nn.Module()) if name.endswith("_hooks"))


def state_of(layer: Any) -> State | None:
    """The state of an accelerated layer; none where it was restored meanwhile, or is a copy that no library's code made."""
    state = getattr(layer, "__dict__", {}).get(STATE)
    return state if state is not None and (torch.compiler.is_compiling() or state.owner() is layer) else None


# -- copies and pickles -----------------------------------------------------------------------------------------------

_pickled = threading.local()


def _parts(layer: Any, state: State | None) -> tuple[Any, Any, Any]:
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
        return _peer_copy(self, None, memo)
    _renewed(self, state)
    twin = _peer_copy(self, state, memo)
    with suppress(UnsupportedError):  # changed since it was accelerated: the copy is the peer's own
        attach(twin, state.layer, state.verdict)
    return twin


def _peer_copy(layer: Any, state: State | None, memo: dict[int, Any]) -> Any:
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


# -- classes ----------------------------------------------------------------------------------------------------------

_classes: dict[tuple[type, int], tuple[type, Layer]] = {}


def _accelerated_class(cls: type, layer: Layer) -> type:
    key = cls, id(layer)
    if key not in _classes:
        names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
        # No base but the peer's class: an object can change its class only to one of the same layout.
        common = {"_flowkern_peer": cls, "__reduce_ex__": _reduce_ex, "__copy__": _copy, "__deepcopy__": _deepcopy}
        common["__class__"] = property(_class, _set_class)
        # The layer is kept with the class, so that its id is not used again.
        _classes[key] = type(cls)(cls.__name__, (cls,), {**names, **common, **layer.methods}), layer
    return _classes[key][0]


def peer_class(cls: type) -> type:
    """The class that an accelerated class stands in for; any other class itself."""
    return getattr(cls, "_flowkern_peer", cls)


def own(layer: Any, name: str) -> Callable[..., Any]:
    """The method that the peer's class defines, bound to an accelerated layer, or to one that was restored meanwhile."""
    return getattr(peer_class(type(layer)), name).__get__(layer)


def is_accelerated(layer: Any) -> bool:
    """Whether a layer is accelerated; an object that its class made, or a copy of its dictionary, is not."""
    return hasattr(type(layer), "_flowkern_peer") and state_of(layer) is not None


def attach(layer: Any, how: Layer, verdict: str | None = UNCHECKED, network: Network | None = None) -> None:
    """Accelerates one layer, or raises :class:`UnsupportedError`.

    Other threads may use the layer meanwhile: at each step here either the peer's methods serve it or the new ones.
    """
    if is_accelerated(layer):
        _detach(layer)
    network = network or _read(layer, how)
    cls = type(layer)
    accelerated = _accelerated_class(peer_class(cls) if "_flowkern_peer" in vars(cls) else cls, how)
    aside = {name: layer.__dict__[name] for name in how.set_aside if name in layer.__dict__}
    state = State(how, weakref.ref(layer), accelerated, network, None, aside, verdict)
    layer.__dict__[STATE] = state
    layer.__class__ = accelerated
    for name in aside:
        del layer.__dict__[name]
    state.structure = _structure(layer, state)


def _structure(layer: Any, state: State) -> Structure:
    return Structure(layer, frozenset((STATE, *state.layer.set_aside, *state.layer.caches, *state.harmless)))


def _read(layer: Any, how: Layer) -> Network:
    """The network of a layer; whatever goes wrong is a reason to leave it alone."""
    methods = {k for base in peer_class(type(layer)).__mro__ if not base.__module__.startswith("torch.") for k in vars(base)}
    hidden = [k for k, v in vars(layer).copy().items() if callable(v) and k in methods and k not in how.set_aside]
    if hidden:
        raise UnsupportedError(f"its {', '.join(hidden)} was replaced")
    try:
        return how.read(layer)
    except UnsupportedError:
        raise
    except Exception as error:
        raise UnsupportedError(f"it is not built as expected: {type(error).__name__}: {error}") from error


def _detach(layer: Any) -> None:
    state: State = layer.__dict__[STATE]
    if type(layer) is not state.accelerated:
        name = type(layer).__qualname__
        raise RuntimeError(f"restore: the class of a {name} was changed after accelerate; change it back first")
    layer.__dict__.update(state.aside)
    layer.__class__ = peer_class(type(layer))
    del layer.__dict__[STATE]


# -- calls ------------------------------------------------------------------------------------------------------------


def arguments_for(layer: Any, x: Tensor, context: Tensor | None, inverse: bool) -> dict[str, Any] | None:
    """Keyword arguments of the operators for a call, or ``None`` where the peer's own code must serve it."""
    state = state_of(layer)
    if state is None or state.network.busy() is not None:
        return None
    if torch.compiler.is_compiling():
        if state.network.obstacle(inverse) is not None or not _checked_while_tracing(layer):
            return None
    elif not _ready(layer, state, inverse):
        return None
    if not state.network.fits(x, context):
        return None
    try:
        return state.network.arguments(context)
    except ChangedError:
        state.structure = None  # the layer is read again before its next call
        return None


def _ready(layer: Any, state: State, inverse: bool) -> bool:
    """Whether a layer, as it is now, is one that the operators serve."""
    if torch._C._are_functorch_transforms_active() and not _settled(layer, state):
        return False  # what is read and checked under a transform would be a part of it: that is put off
    if _renewed(layer, state) is not None:
        _tell(layer, state)
        return False
    return _obstacle(state, inverse) is None and _checked(layer, state)


def _settled(layer: Any, state: State) -> bool:
    """Whether there is nothing to read, to follow or to check before a call."""
    known = state.verdict != UNCHECKED and state.structure is not None and state.structure.same(layer)
    return known and (state.unread is not None or not state.network.touched())


def _obstacle(state: State, inverse: bool) -> str | None:
    """The same as the network's, which looks at every module, only where something changed since it last did."""
    if state.structure is None or state.structure.hooked():
        return state.network.obstacle(inverse)
    if inverse not in state.standing:
        state.standing[inverse] = state.network.obstacle(inverse)
    return state.standing[inverse]


def _renewed(layer: Any, state: State, thorough: bool = False) -> str | None:
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
            network = _read(layer, state.layer)
            if network.map == state.network.map and network.plan is state.network.plan:
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


def _tell(layer: Any, state: State) -> None:
    """Warns once that a layer is left alone."""
    if state.told != state.verdict:
        state.told = state.verdict
        name = type(layer).__qualname__
        warnings.warn(f"flowkern leaves a {name} as it was: {state.verdict}", RuntimeWarning, stacklevel=4)


def fast(layer: Any, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor] | None:
    """(y, log_det) by the operators, or ``None`` where the peer's own code must serve the call.

    Args:
        inverse: the direction that costs the peer a pass per feature.
    """
    arguments = arguments_for(layer, x, context, inverse)
    if arguments is None:
        return None
    return (ops.autoregressive_inverse if inverse else ops.autoregressive)(x, **arguments)


def checked(layer: Any) -> bool:
    """Whether the operators agree with the peer's code; found out at the first use."""
    state = state_of(layer)
    return state is not None and _renewed(layer, state) is None and _checked(layer, state)


def _checked(layer: Any, state: State) -> bool:
    """The same, of a layer that was read. Under a mode that traces, the check may not be possible: it is put off then."""
    if state.verdict == UNCHECKED:
        traced = _get_current_dispatch_mode() is not None
        try:
            reason = _self_check(layer, state)
        except Exception as error:
            if traced:
                return False
            reason = f"the self-check failed: {type(error).__name__}: {error}"
        state.verdict = reason
        if reason is not None:
            _tell(layer, state)
        elif state.suspects:  # the check passed with another number: later ones need none
            state.harmless, state.suspects = state.harmless | state.suspects, frozenset()
            state.structure = _structure(layer, state)
    return state.verdict is None


@constant_while_compiling
def _checked_while_tracing(layer: Any) -> bool:
    return checked(layer)


# -- the self-check ---------------------------------------------------------------------------------------------------


def _self_check(layer: Any, state: State) -> str | None:
    """Compares the operators with the peer's code on two rows in float64; returns what differs.

    The copy has random weights: those of the model may be zero, which would hide a difference, or not finite. Nothing here
    draws from the global generator, from which other threads may draw at the same time.
    """
    with (
        outside_modes(),
        torch.autocast("cpu", enabled=False),
        torch._C.DisableTorchFunction(),  # modes of the caller: a default device, what a user intercepts
    ):
        generator = torch.Generator("cpu").manual_seed(0)

        def noise(*shape: int) -> Tensor:  # uniform in [-1, 1); quicker to draw than a normal, which is half of the time
            return torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu").double() * 2 - 1

        twin = _random_twin(layer, state, noise)
        network = state.layer.read(twin)
        x, context = noise(2, network.features), noise(2, network.context) if network.context else None
        expected = state.layer.evaluate(twin, x, context)
        arguments = network.arguments(context)
        for name, ours, theirs in zip(("value", "log-determinant"), ops.autoregressive(x, **arguments), expected, strict=True):
            error = _error(ours, theirs)
            if not error < 1e-9:
                return f"its {name} differs from the operator's by {error:.1e}: another version of the formula?"
        back, _ = ops.autoregressive_inverse(expected[0], **arguments)
        error = _error(state.layer.evaluate(twin, back, context)[0], expected[0])
        return None if error < 1e-6 else f"the round trip through its own code is off by {error:.1e}"


def _random_twin(layer: Any, state: State, noise: Callable[..., Tensor]) -> Any:
    """A copy as the peer's own object, in float64 and evaluation mode, with random parameters."""

    def parameter(*shape: int) -> nn.Parameter:
        return nn.Parameter(noise(*shape) * (2 / max(shape[-1], 1)) ** 0.5 if len(shape) > 1 else noise(*shape))

    memo: dict[int, Any] = {}
    modules = [*layer.modules(), *state.network.modules]
    for p in (p for m in modules for p in m._parameters.values() if p is not None):
        memo[id(p)] = parameter(*p.shape)
    attributes = [vars(m).copy() for m in modules]  # which other threads may write to
    for t in (t for a in attributes for t in _tensors(a)):
        memo.setdefault(id(t), t.detach().to("cpu", torch.float64 if t.is_floating_point() else t.dtype, copy=True))
    # Nothing here calls hooks, and theirs and FSDP's states hold what cannot be copied, such as process groups.
    for name, value in ((k, v) for a in attributes for k, v in a.items()):
        if name in HOOKS or name.startswith("__composable_api_state"):
            memo[id(value)] = OrderedDict()
    for m in modules:
        if parametrize.is_parametrized(m):
            memo[id(m)] = _without_parametrizations(m, memo, parameter)
    return _peer_copy(layer, state, memo).eval()


def _without_parametrizations(module: nn.Module, memo: dict[int, Any], parameter: Callable[..., nn.Parameter]) -> nn.Module:
    """A copy of a module with ordinary parameters in the place of parametrized ones.

    These are the user's code, and need not be compared. It may draw random numbers, and inside of parametrize.cached() its
    results are shared with the original.
    """
    twin: Any = object.__new__(parametrize.type_before_parametrizations(module))
    state = {**vars(module), "_modules": {k: v for k, v in module._modules.items() if k != "parametrizations"}}
    twin.__dict__.update(copy.deepcopy(state, memo))
    sizes = [getattr(module, k) for k in ("out_features", "in_features", "num_features") if hasattr(module, k)]
    for name in module.parametrizations:  # type: ignore[union-attr]
        twin.register_parameter(name, parameter(*sizes) if name == "weight" else parameter(sizes[0]))
    return twin


def _tensors(value: Any) -> Iterator[Tensor]:
    """Buffers, and tensors in attributes, such as caches and sampled weights: those with a graph cannot be copied."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, functools.partial):
        yield from _tensors(value.keywords)
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _error(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    return float((ours - theirs).abs().max() / (1 + theirs.abs().max()))


# -- walking a model --------------------------------------------------------------------------------------------------


@dataclass
class Found:
    """A module (or other object) met on the way: its place, itself, and what is done with it."""

    name: str
    layer: Any
    how: Layer | None
    reason: str | None


def _known(cls: type) -> tuple[Library, str] | None:
    """The library and the class path under which it knows a class or one of its bases."""
    for base in cls.__mro__:
        path = class_path(base)
        for library in _libraries.values():
            if path in library.layers or path in library.left_alone:
                return library, path
    return None


def _walk(obj: Any, name: str = "", seen: set[int] | None = None) -> Iterator[Found]:
    seen = set() if seen is None else seen
    if id(obj) in seen:
        return
    seen.add(id(obj))
    known = None if is_accelerated(obj) else _known(type(obj))
    if is_accelerated(obj):
        yield Found(name, obj, obj.__dict__[STATE].layer, None)
    elif known is not None:
        library, path = known
        how = library.layers.get(path)
        reason = library.left_alone.get(path) if how is None else differs(type(obj), path)
        yield Found(name, obj, how if reason is None else None, reason)
        if how is None or reason is not None:
            yield from _inside(obj, name, seen)
    else:
        children = list(_inside(obj, name, seen))
        if isinstance(obj, nn.Module) and not children and next(obj.children(), None) is None:
            yield Found(name, obj, None, f"no flow layer that flowkern knows ({type(obj).__module__})")
        yield from children


def _inside(obj: Any, name: str, seen: set[int]) -> Iterator[Found]:
    for key, child in _children(obj):
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
        for library in _libraries.values():
            for attribute in library.holders.get(path, ()):
                child = getattr(obj, attribute, None)
                if child is not None:
                    yield attribute, child


# -- what people call -------------------------------------------------------------------------------------------------


def accelerate(model: Model) -> Model:
    """Makes the autoregressive layers of an existing model fast, in place.

    The layers keep their parameters, buffers, state-dict keys, hooks, return types and use of random numbers; they
    still are instances of their classes, and pickle as the library's own objects. Each is checked once, at first use,
    against the library's own code; a layer that differs is left as it was, with a warning.

    Args:
        model: a module, a distribution, a posterior of sbi, or a list or dictionary of such.

    Returns:
        The same object. Calling it twice does nothing more.

    Example:
        >>> import flowkern as fk, zuko
        >>> model = fk.accelerate(zuko.flows.MAF(5, transforms=2, hidden_features=[16]))
        >>> model().sample((3,)).shape
        torch.Size([3, 5])
        >>> print(fk.explain(model))
        transform.transforms.0  MaskedAutoregressiveTransform  accelerated
        transform.transforms.1  MaskedAutoregressiveTransform  accelerated
        base                    UnconditionalDistribution      left alone: no flow layer that flowkern knows (zuko.lazy)
    """
    rows, done = list(_walk(model)), 0
    for library in {id(known[0]): known[0] for row in rows if (known := _known(type(row.layer)))}.values():
        _check_version(library)
    for row in rows:
        if is_accelerated(row.layer):
            done += 1
        elif row.how is not None:
            try:
                attach(row.layer, row.how)
                done += 1
            except UnsupportedError:
                pass  # explain reads it again and says why
    if not done:
        warnings.warn(f"flowkern found nothing to accelerate. What it saw:\n{explain(model)}", RuntimeWarning, stacklevel=2)
    return model


def restore(model: Model) -> Model:
    """Undoes :func:`accelerate`; on a model that is not accelerated it does nothing.

    Args:
        model: what was accelerated.

    Returns:
        The same object.
    """
    for row in _walk(model):
        if is_accelerated(row.layer):
            _detach(row.layer)
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

    Args:
        model: accelerated or not.
    """
    return Explanation(tuple((row.name or "(model)", type(row.layer).__qualname__, _status(row)) for row in _walk(model)))


def _status(row: Found) -> str:
    if not is_accelerated(row.layer):
        reason = row.reason
        if row.how is not None:
            try:
                _read(row.layer, row.how)
                return "can be accelerated"
            except UnsupportedError as error:
                reason = str(error)
        return f"left alone: {reason}"
    state: State = row.layer.__dict__[STATE]
    reason = _renewed(row.layer, state, thorough=True)
    if reason is not None:
        return f"left alone: {reason}"
    now = state.network.busy() or state.network.obstacle(inverse=False)
    if now is not None:
        return f"accelerated, but its own code runs now: {now}"
    return "accelerated" if state.verdict is None else "accelerated, to be checked at the first call"


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
