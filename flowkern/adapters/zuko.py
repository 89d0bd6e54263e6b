"""zuko: lazy transforms, rebuilt at every call; data to noise is the direction of one pass."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions.utils import _standard_normal, _sum_rightmost

from flowkern import ops
from flowkern.adapters.calls import fast
from flowkern.adapters.coupling import Conditioner, CouplingNetwork, MaskedCoupling, MaskSplit, coupled
from flowkern.adapters.library import Container, Layer, Library
from flowkern.adapters.network import (
    Linear,
    PeerNetwork,
    UnsupportedError,
    activation_of,
    affine,
    by_class,
    class_path,
    differs,
    expect,
    refuse_tensors,
    spline,
)
from flowkern.adapters.reversible import ReversibleRun, Stack, recording
from flowkern.adapters.run import Run, elementwise, joinable, of_vectors, permutation, touched
from flowkern.adapters.state import own, peer_class
from flowkern.backends import exporting
from flowkern.univariate import Affine, UnivariateMap


def read(layer: Any) -> PeerNetwork:
    """hyper = masked linear maps and activations in a row, or residual blocks without an activation before them."""
    _transform_class(sys.modules["zuko.transforms"].AutoregressiveTransform)  # now: a compiler cannot trace that
    hyper = expect(layer.hyper, "zuko.nn.MaskedMLP", "network")
    map = _univariate(layer)
    features = hyper[-1].out_features // map.count
    context = hyper[0].in_features - features
    network = PeerNetwork(features, context, map)
    activations: list[nn.Module] = []
    for item in hyper:
        if differs(type(item), "zuko.nn.MaskedLinear") is None:
            network.add(Linear(item))
        elif differs(type(item), "zuko.nn.Residual") is None:
            stream, (first, activation, last) = len(network.linears) - 1, item
            network.add(Linear(expect(first, "zuko.nn.MaskedLinear", "residual layer")), activated=True)
            network.add(Linear(expect(last, "zuko.nn.MaskedLinear", "residual layer")), residual=stream)
            activations.append(activation)
        else:
            network.activated[-1] = True
            activations.append(item)
    network.context_columns = range(features, features + context)
    network.activation = activation_of(*activations)
    return network.finish(hyper)


def _univariate(layer: Any) -> UnivariateMap:
    """The univariate map: a softly clipped affine one, or a rational-quadratic spline."""
    made: Any = layer.univariate
    options: dict[str, Any] = {}
    if isinstance(made, functools.partial) and not made.args:
        made, options = made.func, made.keywords
    shapes = tuple(map(tuple, layer.shapes))
    if isinstance(made, type):
        if differs(made, "zuko.transforms.MonotonicAffineTransform") is None and shapes == ((), ()):
            return affine("soft_clipped_exp", "scale_shift", *_probed(layer, options, {"slope"}, _log_slope))
        if differs(made, "zuko.transforms.MonotonicRQSTransform") is None and shapes == _of_a_spline(shapes):
            bound, slope = _probed(layer, options, {"slope", "bound"}, _bound_and_slope)
            return spline(shapes[0][0], (-bound, bound), "soft_clipped_exp", slope)
    elif made is getattr(sys.modules.get("zuko.flows.spline"), "CircularRQSTransform", ()) and shapes == _of_a_spline(shapes):
        bound, slope = _probed(layer, options, {"slope"}, _bound_and_slope_after_a_shift)
        return spline(shapes[0][0], (-bound, bound), "soft_clipped_exp", slope, shifted=True)
    name = class_path(made) if isinstance(made, type) else repr(made)
    raise UnsupportedError(f"its univariate map {name} has no operator yet: other splines and monotonic networks will go here")


def _of_a_spline(shapes: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    """Those of a spline's widths, heights and derivatives, of as many bins."""
    bins = shapes[0][0] if shapes and shapes[0] else 0
    return (bins,), (bins,), (bins - 1,)


def _probed(
    layer: Any, options: dict[str, Any], known: set[str], probe: Callable[[Any], tuple[float, ...]]
) -> tuple[float, ...]:
    """The map's constants, found by what it does to large numbers: they changed between versions."""
    if options.keys() - known:
        raise UnsupportedError(f"its univariate map has other options than {', '.join(sorted(known))}")
    refuse_tensors("univariate map", options.values())
    return probe(layer)


def _log_slope(layer: Any) -> tuple[float]:
    """|log slope| of the softly clipped log-scale: the limit of a large raw scale."""
    return (abs(float(layer.univariate(_full(0.0), _full(1e30)).log_scale)),)


def _bound_and_slope(layer: Any) -> tuple[float, float]:
    """The least slope at a knot is the limit of a small raw derivative."""
    made = _steep_at_no_knot(layer)
    return float(made.horizontal[-1]), float(made.derivatives[1])


def _bound_and_slope_after_a_shift(layer: Any) -> tuple[float, float]:
    shift, made = _steep_at_no_knot(layer).transforms
    return float(shift.bound), float(made.derivatives[1])


def _steep_at_no_knot(layer: Any) -> Any:
    (bins,), _, (inner,) = layer.shapes
    return layer.univariate(_full(0.0, bins), _full(0.0, bins), _full(-1e30, inner))


def _full(value: float, *shape: int) -> Tensor:
    return torch.full(shape, value, dtype=torch.float64, device="cpu")


def evaluate(layer: Any, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """Data to noise."""
    return type(layer).forward(layer, context).call_and_ladj(x)


def forward(self: Any, c: Tensor | None = None) -> Any:
    """The transform for a context: zuko's class with faster methods."""
    transform = own(self, "forward")(self, c)
    return _transform_class(type(transform))(self, c, transform)


_classes: dict[type, Any] = {}


def _transform_class(base: Any) -> Any:
    if base not in _classes:
        _classes[base] = _make_transform_class(base)
    return _classes[base]


def _make_transform_class(base: Any) -> Any:
    """A subclass of zuko's AutoregressiveTransform, which exists once the user has imported zuko."""

    def __init__(self: Any, layer: Any, context: Tensor | None, transform: Any) -> None:  # noqa: N807
        base.__init__(self, transform.meta, transform.passes)
        self.layer, self.context = layer, context

    def call_and_ladj(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        return fast(self.layer, x, self.context, inverse=False) or base.call_and_ladj(self, x)

    def _call(self: Any, x: Tensor) -> Tensor:
        found = fast(self.layer, x, self.context, inverse=False)
        return base._call(self, x) if found is None else found[0]

    def _inverse(self: Any, y: Tensor) -> Tensor:
        found = fast(self.layer, y, self.context, inverse=True)
        return base._inverse(self, y) if found is None else found[0]

    def log_abs_det_jacobian(self: Any, x: Tensor, y: Tensor) -> Tensor:
        found = fast(self.layer, x, self.context, inverse=False)
        return base.log_abs_det_jacobian(self, x, y) if found is None else found[1]

    def __reduce__(self: Any) -> Any:  # noqa: N807
        return base, (self.meta, self.passes)

    methods = {f.__name__: f for f in (__init__, __reduce__, call_and_ladj, _call, _inverse, log_abs_det_jacobian)}
    return type(base.__name__, (base,), {"__module__": base.__module__, "__qualname__": base.__qualname__, **methods})


# -- couplings --------------------------------------------------------------------------------------------------------


def read_coupling(layer: Any) -> CouplingNetwork | MaskedCoupling:
    """True in the mask is what passes; the parameters of a transformed feature lie together."""
    _coupling_class(sys.modules["zuko.transforms"].CouplingTransform)
    map = _univariate(layer)
    split = MaskSplit(layer, ("mask",), lambda mask: (mask.nonzero().flatten(), (~mask).nonzero().flatten()))
    parts = CouplingNetwork(layer, split, map, ASKED) if isinstance(map, Affine) else None
    modules = list(layer.hyper)
    linears, between = modules[::2], modules[1::2]
    plain = differs(type(layer.hyper), "zuko.nn.MLP") is None and all(
        differs(type(m), "zuko.nn.Linear") is None for m in linears
    )
    try:
        if not plain or len(linears) != len(between) + 1 or any(m.weight.dim() > 2 for m in linears):
            raise UnsupportedError("it is not linear maps with one activation between each two")
        network = MaskedCoupling(split, map, linears[0].weight.shape[1] - len(split.passing), linears, parts=parts)
        network.activation = activation_of(*between)
        network.finish(layer.hyper)
    except UnsupportedError as error:
        if parts is None:
            raise UnsupportedError(f"its map is a spline, and its network has no operator: {error}") from None
        return parts
    return network


def _ask(hyper: Any, seen: Tensor, context: Tensor | None) -> Tensor:
    return hyper(seen if context is None else torch.cat(broadcast(seen, context), dim=-1))


def broadcast(x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Both with the same batch shape."""
    if x.shape[:-1] == c.shape[:-1]:
        return x, c
    batch = torch.broadcast_shapes(x.shape[:-1], c.shape[:-1])
    return x.expand(*batch, -1), c.expand(*batch, -1)


ASKED = Conditioner("hyper", _ask, lambda found: (found[..., 0::2], found[..., 1::2]))


def evaluate_coupling(layer: Any, x: Tensor, context: Tensor | None, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """Either direction."""
    transform = type(layer).forward(layer, context)
    return (transform.inv if inverse else transform).call_and_ladj(x)


def coupling_forward(self: Any, c: Tensor | None = None) -> Any:
    """The transform for a context: zuko's class with faster methods."""
    if torch.compiler.is_compiling() or exporting():
        return own(self, "forward")(self, c)
    return _coupling_class(sys.modules["zuko.transforms"].CouplingTransform)(self, c)


@functools.cache
def _coupling_class(base: Any) -> Any:
    """A subclass of zuko's CouplingTransform; the attributes of zuko's own are made when one is asked for."""

    def of(self: Any) -> Any:
        return own(self.layer, "forward")(self.layer, self.context)

    class CouplingTransform(base):
        def __init__(self, layer: Any, context: Tensor | None) -> None:
            torch.distributions.Transform.__init__(self)
            self.layer, self.context = layer, context

        def __getattr__(self, name: str) -> Any:
            if name not in ("meta", "idx_a", "idx_b"):
                raise AttributeError(name)
            self.__dict__.update(vars(of(self)))
            return vars(self)[name]

        def __reduce__(self) -> Any:
            return base, (self.meta, self.layer.mask)

        def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return coupled(self.layer, x, self.context, False) or of(self).call_and_ladj(x)

        def _call(self, x: Tensor) -> Tensor:
            found = coupled(self.layer, x, self.context, False)
            return of(self)._call(x) if found is None else found[0]

        def _inverse(self, y: Tensor) -> Tensor:
            found = coupled(self.layer, y, self.context, True)
            return of(self)._inverse(y) if found is None else found[0]

        def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
            found = coupled(self.layer, x, self.context, False)
            return of(self).log_abs_det_jacobian(x, y) if found is None else found[1]

    CouplingTransform.__module__, CouplingTransform.__qualname__ = base.__module__, base.__qualname__
    return CouplingTransform


# -- flows ------------------------------------------------------------------------------------------------------------

# A way through a flow: tuples (lazy module, whether backwards, kind) for what may join, transforms for the rest.
_METHODS = frozenset(("forward", "inv"))


_NETWORKS = ("zuko.flows.autoregressive.MaskedAutoregressiveTransform", "zuko.flows.coupling.GeneralCouplingTransform")


@by_class
def _kind(cls: type) -> str | None:
    """How objects of a class take part in a chain."""
    if class_path(peer_class(cls)) in _NETWORKS:
        return "network" if cls is not peer_class(cls) else None
    names = {"LazyComposedTransform": "composed", "LazyInverse": "inverse", "UnconditionalTransform": "constant"}
    found = names.get(peer_class(cls).__name__)
    return found if found is not None and differs(cls, "zuko.lazy." + peer_class(cls).__name__) is None else None


def _constant(module: Any) -> str | None:
    """What an UnconditionalTransform is, if it may join."""
    own = vars(module)  # before zuko 1.6 there is no f
    if own.get("f") is torch.distributions.AffineTransform:
        found, names = "affine", {"loc", "scale"}
    elif own.get("f") is sys.modules["zuko.transforms"].PermutationTransform:
        found, names = "permutation", {"order"}
    else:
        return None
    return found if set(own["_keys"]) <= names and own["_nargs"] + len(own["_keys"]) == len(names) else None


def _held(module: Any, name: str, place: int) -> Any:
    """A tensor that zuko's Partial holds under its keyword, or by its place."""
    key = name if name in vars(module)["_keys"] else f"_{place}"
    return module._parameters[key] if key in module._parameters else module._buffers.get(key)


def _spread(layer: Any, inverse: bool, way: list[Any]) -> bool:
    """Adds a lazy transform to a way, if all of it may join."""
    kind = _kind(type(layer))
    if kind is None or touched(layer, _METHODS):
        return False
    if kind == "composed":
        inner = list(layer._modules["transforms"]._modules.values())
        return all(_spread(part, inverse, way) for part in (reversed(inner) if inverse else inner))
    if kind == "inverse":
        return _spread(layer._modules["transform"], not inverse, way)
    if kind == "constant":
        kind = _constant(layer)
    way.append((layer, inverse, kind))
    return kind is not None


def _has_network(way: list[Any]) -> bool:
    return any(type(part) is tuple and part[2] == "network" for part in way)


def _transform_of(part: Any, c: Tensor | None) -> Any:
    if type(part) is not tuple:
        return part
    transform = part[0](c)
    return transform.inv if part[1] else transform


def _turned(way: list[Any]) -> list[Any]:
    return [(p[0], not p[1], p[2]) if type(p) is tuple else p.inv for p in reversed(way)]


def _through(x: Tensor, c: Tensor | None, way: list[Any], ends: Any = None, normal: str | None = None) -> tuple[Tensor, Tensor]:
    """``ends``: location and scale of the base, whose normal is added."""

    def alone(part: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        transform = _transform_of(part, c)
        y, ladj = transform.call_and_ladj(x)
        return y, _sum_rightmost(ladj, 1 - transform.domain.event_dim)

    run = Run(x, c, alone, normal)
    if normal == "input":
        run.add(ops.ElementwiseStep(False, *ends))
    for part in way:
        if type(part) is not tuple:
            run.add(None, part)
            continue
        layer, inverse, kind = part
        if kind == "network":
            run.network(layer, inverse, part)
        elif kind == "permutation":
            run.add(permutation(_held(layer, "order", 0), inverse, run.x.shape[-1]), part)
        else:
            run.add(elementwise(run.x, inverse, _held(layer, "loc", 0), _held(layer, "scale", 1)), part)
    if normal == "output":
        run.add(ops.ElementwiseStep(True, *ends))
    return run.end()


def _reversibly(x: Tensor, c: Tensor | None, way: list[Any], back: bool, stack: Stack) -> tuple[Tensor, Tensor]:
    """Through layers that rebuild their inputs; none of them is a made transform."""

    def call(part: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        transform = _transform_of(part, c)
        if not of_vectors(transform):
            raise _OtherEventsError
        y, ladj = transform.call_and_ladj(x)
        return y, _sum_rightmost(ladj, 1 - transform.domain.event_dim)

    if c is not None:
        x = x.expand(*torch.broadcast_shapes(x.shape[:-1], c.shape[:-1]), -1)
    run = ReversibleRun(stack, x, lambda _: [] if c is None else [c], call, back)
    for part in way:
        if part[2] == "network":
            run.network(part[0], part[1], part)
        else:
            run.add(None, part)
    return run.end()


def _rebuilds(lazy: Any) -> bool:
    """Whether the layers of a lazy transform rebuild their inputs in this call."""
    while _kind(type(lazy)) == "inverse":
        lazy = lazy._modules["transform"]
    return recording(lazy) is not None


class _OtherEventsError(Exception):
    """A transform is of events that are no vectors."""


def composed_forward(self: Any, c: Tensor | None = None) -> Any:
    """The transform for a context: zuko's class, which joins its layers."""
    if torch.compiler.is_compiling() or exporting() or not _is_context(c):
        return own(self, "forward")(self, c)
    way: list[Any] = []
    stack = recording(self)
    for layer in self._modules["transforms"]._modules.values():
        part: list[Any] = []
        if _spread(layer, False, part):
            way += part
        else:
            way.append(layer(c) if stack is None else (layer, False, None))
    simple = stack is not None or all(type(p) is tuple or of_vectors(p) for p in way)
    if not simple or (stack is None and not _has_network(way)):
        return sys.modules["zuko.transforms"].ComposedTransform(*(_transform_of(part, c) for part in way))
    return _joined_classes().transform(way, c, self)


def flow_forward(self: Any, c: Tensor | None = None) -> Any:
    """The distribution for a context: zuko's class. Its parts are made when they are asked for."""
    modules = self._modules
    way: list[Any] = []
    if torch.compiler.is_compiling() or exporting() or not _is_context(c):
        return own(self, "forward")(self, c)
    ends = _location_and_scale(modules["base"])
    if ends is None or not _spread(modules["transform"], False, way) or not _has_network(way):
        return own(self, "forward")(self, c)
    return _joined_classes().flow(self, way, c, ends)


def _is_context(c: Any) -> bool:
    return c is None or (isinstance(c, Tensor) and c.dim() > 0)


def _location_and_scale(base: Any) -> tuple[Tensor, Tensor] | None:
    """Of a diagonal normal of vectors."""
    held = vars(base)
    if not _is_base(type(base)) or held.get("f") is not sys.modules["zuko.distributions"].DiagNormal or touched(base, _METHODS):
        return None
    if held["_keys"] != ["loc", "scale"] and not (held["_nargs"] == 2 and not held["_keys"]):
        return None
    loc, scale = _held(base, "loc", 0), _held(base, "scale", 1)
    fits = isinstance(loc, Tensor) and isinstance(scale, Tensor) and scale.dtype is loc.dtype and scale.device == loc.device
    return (loc, scale) if fits and loc.dim() == 1 and scale.shape == loc.shape else None


@by_class
def _is_base(cls: type) -> bool:
    return differs(cls, "zuko.lazy.UnconditionalDistribution") is None


class _Joined(NamedTuple):
    transform: Any
    flow: Any


@functools.cache
def _joined_classes() -> _Joined:
    """Subclasses of zuko's, which exist once the user has imported zuko.

    An object of these knows its way; the attributes of zuko's own are made when one is asked for, since making a normal
    distribution and reading the constraints of transforms takes longer than a small flow.
    """
    composed: Any = sys.modules["zuko.transforms"].ComposedTransform
    flow: Any = sys.modules["zuko.distributions"].NormalizingFlow

    class ComposedTransform(composed):
        def __init__(self, way: list[Any], c: Tensor | None, lazy: Any = None, back: bool = False) -> None:
            self._way, self._context, self._cache_size, self._inv = way, c, 0, None
            self._lazy, self._back = lazy, back

        def __getattr__(self, name: str) -> Any:
            if name not in ("transforms", "domain_dim", "codomain_dim"):
                raise AttributeError(name)
            real = composed(*(_transform_of(part, self._context) for part in self._way))
            self.__dict__.update(vars(real))
            return vars(self)[name]

        def __reduce__(self) -> Any:
            return composed, tuple(self.transforms)

        @property
        def inv(self) -> Any:
            return type(self)(_turned(self._way), self._context, self._lazy, not self._back)

        def _served(self, x: Tensor, turned: bool = False) -> tuple[Tensor, Tensor] | None:
            """Either way, where zuko's own code need not do it."""
            way, stack = _turned(self._way) if turned else self._way, recording(self._lazy)
            tuples = all(type(part) is tuple for part in way)
            if stack is not None and tuples and isinstance(x, Tensor) and x.dim() > 0:
                with suppress(_OtherEventsError):
                    return _reversibly(x, self._context, way, turned is not self._back, stack)
            able = joinable(x) and not any(type(part) is tuple and part[2] is None for part in way)
            return _through(x, self._context, way) if able else None

        def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self._served(x) or super().call_and_ladj(x)

        def _call(self, x: Tensor) -> Tensor:
            found = self._served(x)
            return super()._call(x) if found is None else found[0]

        def _inverse(self, y: Tensor) -> Tensor:
            found = self._served(y, turned=True)
            return super()._inverse(y) if found is None else found[0]

    class NormalizingFlow(flow):
        def __init__(self, lazy: Any, way: list[Any], c: Tensor | None, ends: tuple[Tensor, Tensor]) -> None:
            self._lazy, self._way, self._context, self._ends = lazy, way, c, ends

        def __getattr__(self, name: str) -> Any:
            if name not in ("transform", "base", "reinterpreted", "_batch_shape", "_event_shape"):
                raise AttributeError(name)
            self.__dict__.update(vars(own(self._lazy, "forward")(self._lazy, self._context)))
            return vars(self)[name]

        def __reduce__(self) -> Any:
            return flow, (self.transform, self.base)

        def log_prob(self, x: Tensor) -> Tensor:
            fits = self._joins(x) and x.dtype is self._ends[0].dtype and x.shape[-1:] == self._ends[0].shape
            if not fits:
                return super().log_prob(x)
            return _through(x, self._context, self._way, self._ends, "output")[1]

        def _joins(self, x: Any) -> bool:
            """Whether all layers share a call on x, and none of them rebuilds its input."""
            return joinable(x) and not _rebuilds(self._lazy._modules["transform"])

        def rsample(self, shape: Any = ()) -> Tensor:
            return self._draw(shape)[0] if self._joins(self._ends[0]) else super().rsample(shape)

        def rsample_and_log_prob(self, shape: Any = ()) -> tuple[Tensor, Tensor]:
            return self._draw(shape) if self._joins(self._ends[0]) else super().rsample_and_log_prob(shape)

        def _draw(self, shape: Any) -> tuple[Tensor, Tensor]:
            loc, c = self._ends[0], self._context
            shape = (*shape, *(() if c is None else c.shape[:-1]), *loc.shape)
            noise = _standard_normal(shape, loc.dtype, loc.device)  # as torch's Normal draws it
            return _through(noise, c, _turned(self._way), self._ends, "input")

    for made, base in ((ComposedTransform, composed), (NormalizingFlow, flow)):
        made.__module__, made.__qualname__ = base.__module__, base.__qualname__
    return _Joined(ComposedTransform, NormalizingFlow)


ZUKO = Library(
    name="zuko",
    tested=("1.1.0", "1.7"),
    layers={
        "zuko.flows.autoregressive.MaskedAutoregressiveTransform": Layer(read, evaluate, {"forward": forward}),
        "zuko.flows.coupling.GeneralCouplingTransform": Layer(read_coupling, evaluate_coupling, {"forward": coupling_forward}),
    },
    left_alone={
        "zuko.flows.gaussianization.ElementWiseTransform": "it is elementwise: its inverse costs one pass already",
        "zuko.flows.neural.UNAF": "its conditionals are integrals of networks: no operator",
    },
    containers={
        "zuko.lazy.LazyComposedTransform": Container({"forward": composed_forward}, stacks=True),
        "zuko.lazy.Flow": Container({"forward": flow_forward}),
    },
)
