"""Finds the layers of a model that a library's file describes, and gives them accelerated methods, in place.

A layer keeps its object, parameters and buffers; only its class becomes a subclass whose methods call the operators.
Pickling and state dictionaries see the peer's class.
"""

from __future__ import annotations

import copy
import copyreg
import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from flowkern import ops
from flowkern.adapters.network import Network, UnsupportedError, class_path, differs

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
    """

    read: Callable[[Any], Network]
    evaluate: Callable[[Any, Tensor, Tensor | None], tuple[Tensor, Tensor]]
    methods: Mapping[str, Callable[..., Any]]
    set_aside: tuple[str, ...] = ()


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


@dataclass
class State:
    """What an accelerated layer carries."""

    layer: Layer
    network: Network
    aside: dict[str, Any]
    verdict: str | None  # None once the self-check passed; else why not, UNCHECKED before it
    accelerated: type  # the class that the layer has now


UNCHECKED = "unchecked"


def _parts(layer: Any) -> tuple[Any, Any, Any]:
    """What the peer's own object would give to pickle: how it is made, its arguments, its state. The layer stays as it is."""
    state: State = layer.__dict__[STATE]
    peer: Any = object.__new__(peer_class(type(layer)))
    peer.__dict__.update({k: v for k, v in layer.__dict__.items() if k != STATE}, **state.aside)
    function, arguments, values, *_ = peer.__reduce_ex__(2)
    return function, arguments, values


def _reduce_ex(self: Any, protocol: Any) -> Any:
    """Pickles as the peer's own object."""
    function, arguments, values = _parts(self)
    if function.__name__ == "__newobj__":  # pickle wants the object's present class there; the older form names any
        function, arguments = copyreg._reconstructor, (*arguments, object, None)  # type: ignore[attr-defined]
    return function, arguments, values


def _deepcopy(self: Any, memo: dict[int, Any]) -> Any:
    """A copy is accelerated too, over its own parameters."""
    state: State = self.__dict__[STATE]
    twin = _peer_copy(self, memo)
    with suppress(UnsupportedError):  # changed since it was accelerated: the copy is the peer's own
        attach(twin, state.layer, state.verdict)
    return twin


def _peer_copy(layer: Any, memo: dict[int, Any]) -> Any:
    """A deep copy as the peer's own object."""
    function, arguments, values = _parts(layer)
    twin = memo[id(layer)] = function(*arguments)
    values = copy.deepcopy(values, memo)
    if hasattr(twin, "__setstate__"):
        twin.__setstate__(values)
    else:
        twin.__dict__.update(values)
    return twin


def _setattr(self: Any, name: str, value: Any) -> None:
    """What is assigned to a layer may change what it computes: it is read and checked anew before the next call."""
    state: State = self.__dict__[STATE]
    accelerated: Any = state.accelerated
    super(accelerated, self).__setattr__(name, value)
    if name not in ("training", "_inv") and not name.startswith("_cached"):
        state.network.stale = True


_classes: dict[tuple[type, int], tuple[type, Layer]] = {}


def _accelerated_class(cls: type, layer: Layer) -> type:
    key = cls, id(layer)
    if key not in _classes:
        names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
        # No base but the peer's class: an object can change its class only to one of the same layout.
        common = {"_flowkern_peer": cls, "__reduce_ex__": _reduce_ex, "__deepcopy__": _deepcopy, "__setattr__": _setattr}
        # The layer is kept with the class, so that its id is not used again.
        _classes[key] = type(cls)(cls.__name__, (cls,), {**names, **common, **layer.methods}), layer
    return _classes[key][0]


def peer_class(cls: type) -> type:
    """The class that an accelerated class stands in for."""
    return cls._flowkern_peer  # type: ignore[attr-defined]


def own(layer: Any, name: str) -> Callable[..., Any]:
    """The peer's own method of an accelerated layer, bound."""
    state: State = layer.__dict__[STATE]
    accelerated: Any = state.accelerated
    return state.aside[name] if name in state.aside else getattr(super(accelerated, layer), name)


def is_accelerated(layer: Any) -> bool:
    """Whether a layer is accelerated."""
    return hasattr(type(layer), "_flowkern_peer")


def attach(layer: Any, how: Layer, verdict: str | None = UNCHECKED, network: Network | None = None) -> None:
    """Accelerates one layer, or raises :class:`UnsupportedError`."""
    if is_accelerated(layer):
        _detach(layer)
    network = network or _read(layer, how)
    accelerated = _accelerated_class(type(layer), how)
    aside = {name: layer.__dict__.pop(name) for name in how.set_aside if name in layer.__dict__}
    layer.__class__ = accelerated
    layer.__dict__[STATE] = State(how, network, aside, verdict, accelerated)


def _read(layer: Any, how: Layer) -> Network:
    """The network of a layer; whatever goes wrong is a reason to leave it alone."""
    cls = peer_class(type(layer)) if is_accelerated(layer) else type(layer)
    methods = {k for base in cls.__mro__ if not base.__module__.startswith("torch.") for k in vars(base)}
    hidden = [k for k, v in vars(layer).items() if callable(v) and k in methods and k not in how.set_aside]
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
    layer.__class__ = peer_class(type(layer))
    layer.__dict__.update(layer.__dict__.pop(STATE).aside)


# -- calls ------------------------------------------------------------------------------------------------------------


def arguments_for(layer: Any, x: Tensor, context: Tensor | None, inverse: bool) -> dict[str, Any] | None:
    """Keyword arguments of the operators for a call, or ``None`` where the peer's own code must serve it."""
    state: State = layer.__dict__[STATE]
    if not state.network.fits(x, context):
        return None
    if state.network.obstacle(inverse) is not None:
        return None
    if not (_checked_while_tracing(layer) if torch.compiler.is_compiling() else checked(layer)):
        return None
    return state.network.arguments(context)


def _renew(layer: Any, state: State) -> None:
    """Reads a layer again, if something that it was read from is no longer there, and follows its masks."""
    try:
        if state.network.outdated():
            state.network, state.verdict = _read(layer, state.layer), UNCHECKED
        else:
            state.network.follow()
    except UnsupportedError as error:
        _leave(layer, state, str(error))


def _leave(layer: Any, state: State, reason: str) -> None:
    if state.verdict != reason:
        state.verdict = reason
        name = type(layer).__qualname__
        warnings.warn(f"flowkern leaves a {name} as it was: {reason}", RuntimeWarning, stacklevel=3)


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
    state: State = layer.__dict__[STATE]
    _renew(layer, state)
    if state.verdict == UNCHECKED:
        try:
            reason = _self_check(layer, state)
        except Exception as error:
            reason = f"the self-check failed: {type(error).__name__}: {error}"
        if reason is None:
            state.verdict = None
        else:
            _leave(layer, state, reason)
    return state.verdict is None


def _checked_while_tracing(layer: Any) -> bool:
    return checked(layer)


# torch.compile calls it instead of tracing it. torch.compiler.assume_constant_result says the same, but imports the
# whole of the compiler.
_checked_while_tracing._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _self_check(layer: Any, state: State) -> str | None:
    """Compares the operators with the peer's code on two rows in float64; returns what differs.

    The copy has random weights: those of the model may be zero, which would hide a difference, or not finite.
    """
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
        torch.random.fork_rng(devices=[]),
        # Peers create tensors on the default device. Setting one slows every call, so only where it is another.
        nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu"),
    ):
        generator = torch.Generator("cpu").manual_seed(0)

        def noise(*shape: int) -> Tensor:  # uniform in [-1, 1); quicker to draw than a normal, which is half of the time
            return torch.rand(*shape, generator=generator, dtype=torch.float32, device="cpu").double() * 2 - 1

        memo: dict[int, Any] = {}
        modules = [*layer.modules(), *state.network.modules]
        for p in (p for m in modules for p in m._parameters.values() if p is not None):
            memo[id(p)] = nn.Parameter(noise(*p.shape) * (2 / max(p.shape[-1], 1)) ** 0.5 if p.dim() > 1 else noise(*p.shape))
        for t in (t for m in modules for t in (*m._buffers.values(), *_results(m)) if t is not None):
            memo.setdefault(id(t), t.detach().to("cpu", torch.float64 if t.is_floating_point() else t.dtype, copy=True))
        twin = _peer_copy(layer, memo).eval()
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


def _results(module: nn.Module) -> Iterator[Tensor]:
    """Tensors in plain attributes, such as caches and sampled weights: those with a graph cannot be copied."""
    for value in vars(module).values():
        if isinstance(value, functools.partial):
            value = tuple(value.keywords.values())
        yield from (t for t in (value if isinstance(value, tuple) else (value,)) if isinstance(t, Tensor))


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
    if state.verdict not in (None, UNCHECKED):
        return f"left alone: {state.verdict}"
    now = state.network.obstacle(inverse=False)
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
