"""Pyro: transforms from base to event (an IAF); the density of values not in the cache costs a pass per feature."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions.utils import _sum_rightmost

from flowkern import ops
from flowkern.adapters.calls import checked, fast, serving, steps_in_chain
from flowkern.adapters.coupling import MaskedCoupling, Split
from flowkern.adapters.library import Container, Layer, Library, container_of
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
    linear_spline,
    spline,
)
from flowkern.adapters.nflows import NORM, PERMUTATION
from flowkern.adapters.reversible import ReversibleRun, Stack, recording
from flowkern.adapters.run import elementwise, joinable, of_vectors, permutation
from flowkern.adapters.splines import Splines
from flowkern.adapters.state import attach, hold, is_accelerated, own, peer_class, state_of
from flowkern.univariate import RationalLinear, RationalQuadratic, UnivariateMap

NETS = "pyro.nn.auto_reg_nn."
DENSE = "pyro.nn.dense_nn."
TRANSFORMS = "pyro.distributions.transforms."
ASIDE = ("_call", "_inverse")  # attributes of a stable transform, which hold its _call_stable and _inverse_stable


def read(layer: Any) -> PeerNetwork:
    """layers[i] and one activation between them; the context's columns come first; parameters are (mean, log-scale)."""
    for name in ASIDE:
        found = vars(layer).get(name)
        if found is not None and getattr(found, "__func__", None) is not getattr(type(layer), name + "_stable"):
            raise UnsupportedError(f"its {name} was replaced")
    clips = layer.log_scale_min_clip, layer.log_scale_max_clip
    return _read(_network(layer.arn), [1, 1], _affine(layer.stable, layer.sigmoid_bias, *clips))


def _network(arn: Any) -> Any:
    """The network of a layer with its context, or without one."""
    return arn.func if isinstance(arn, functools.partial) else arn


def _asked(layer: Any) -> Any:
    """What a layer calls: its network, or with a context a partial function of it."""
    return layer.nn if "split_dim" in vars(layer) else layer.arn


def _context(layer: Any) -> Any:
    asked = _asked(layer)
    return asked.keywords["context"] if isinstance(asked, functools.partial) else None


def _given(layer: Any, context: Tensor | None) -> Any:
    """A layer for a context: a conditional one makes it, one that was made for a context takes another."""
    if context is None:
        return layer
    if hasattr(layer, "condition"):
        return layer.condition(context)
    asked = functools.partial(_asked(layer).func, context=context)
    setattr(layer, "nn" if "split_dim" in vars(layer) else "arn", asked)
    if "spline" in layer._modules:
        layer.spline.nn = asked
    return layer


def read_conditional(layer: Any) -> PeerNetwork:
    """The same for the twin that makes a transform for each context."""
    default = {"stable": False, "sigmoid_bias": 2.0, "log_scale_min_clip": -5.0, "log_scale_max_clip": 3.0}
    return _read(layer.nn, [1, 1], _affine(**{**default, **layer.kwargs}))


def _affine(stable: bool, sigmoid_bias: float, log_scale_min_clip: float, log_scale_max_clip: float) -> UnivariateMap:
    if stable:
        return affine("sigmoid", "gate", sigmoid_bias, 0.0)
    return affine("clamped_exp", "scale_shift", log_scale_min_clip, log_scale_max_clip)


def read_spline(layer: Any) -> PeerNetwork:
    """Rational-linear splines, the library's default, or rational-quadratic ones."""
    if _network(layer.spline.nn) is not _network(layer.arn):
        raise UnsupportedError("the network of its spline was replaced")
    return _read_spline(_network(layer.arn), layer.spline.count_bins, layer.spline.bound, layer.spline.order)


def read_conditional_spline(layer: Any) -> PeerNetwork:
    """The same for the twin that makes a transform for each context."""
    return _read_spline(layer.nn, **{"count_bins": 8, "bound": 3.0, "order": "linear", **layer.kwargs})


def _read_spline(arn: Any, count_bins: int, bound: float, order: str) -> PeerNetwork:
    map = _spline(count_bins, bound, order)
    sizes = [count_bins, count_bins, count_bins - 1, count_bins]
    return _read(arn, sizes if order == "linear" else sizes[:3], map)


def _spline(count_bins: int, bound: float, order: str) -> RationalLinear | RationalQuadratic:
    interval, least = (-bound, bound), (1e-3, 1e-3, 1e-3)
    if order == "linear":
        return linear_spline(count_bins, interval, *least, 1 - 1e-3, 0.025)
    if order == "quadratic":
        return spline(count_bins, interval, "softplus", *least, 1 - 1e-3, 1.0)
    raise UnsupportedError(f"its splines are of the order {order!r}: expected linear or quadratic ones")


def _read(arn: Any, sizes: list[int], map: UnivariateMap) -> PeerNetwork:
    """``sizes``: of the groups of parameters that the network gives."""
    name = "ConditionalAutoRegressiveNN" if getattr(arn, "context_dim", 0) else "AutoRegressiveNN"
    arn = expect(arn, NETS + name, "network")
    if list(arn.param_dims) != sizes:
        raise UnsupportedError(f"its network has parameters of sizes {list(arn.param_dims)}, expected {sizes}")
    network = PeerNetwork(arn.input_dim, arn.context_dim, map, layout="parameter_major")
    network.context_columns = range(arn.context_dim)
    for module in arn.layers:
        network.add(Linear(expect(module, NETS + "MaskedLinear", "linear map")), activated=True)
    if arn.skip_layer is not None:
        network.skip(Linear(arn.skip_layer))
    network.activation = activation_of(arn.f)
    return network.finish(arn)


def evaluate(layer: Any, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """Base to event."""
    layer = _given(layer, context)
    y = layer(x)
    return y, layer.log_abs_det_jacobian(x, y)


def _served(self: Any, value: Tensor, inverse: bool) -> tuple[Tensor, Tensor] | None:
    context = _context(self)
    if context is not None:
        context = context.expand(*value.shape[:-1], context.shape[-1])  # as the network does it
    return fast(self, value, context, inverse)


def _serve(self: Any, value: Tensor, inverse: bool, name: str) -> Tensor:
    found = _served(self, value, inverse)
    if found is None:
        return own(self, name + "_stable" if getattr(self, "stable", False) else name)(self, value)
    # log_abs_det_jacobian sums what is cached over its last dimension.
    cache = "_cache_log_detJ" if "spline" in self._modules else "_cached_log_scale"
    setattr(self, cache, (-found[1] if inverse else found[1]).unsqueeze(-1))
    return found[0]


def _call(self: Any, x: Tensor) -> Tensor:
    """One pass."""
    return _serve(self, x, False, "_call")


def _inverse(self: Any, y: Tensor) -> Tensor:
    """One sweep."""
    return _serve(self, y, True, "_inverse")


def read_coupling(layer: Any) -> PeerNetwork:
    """layers[i] and one activation between them; the context's columns come first; parameters are (means, log-scales)."""
    clips = layer.log_scale_min_clip, layer.log_scale_max_clip
    return _read_coupling(_network(layer.nn), layer.split_dim, layer.dim, *clips)


def read_conditional_coupling(layer: Any) -> PeerNetwork:
    """The same for the twin that makes a transform for each context."""
    default = {"dim": -1, "log_scale_min_clip": -5.0, "log_scale_max_clip": 3.0}
    return _read_coupling(layer.nn, layer.split_dim, **{**default, **layer.kwargs})


def _read_coupling(net: Any, split_dim: int, dim: int, log_scale_min_clip: float, log_scale_max_clip: float) -> PeerNetwork:
    """From event to base, as training takes it."""
    if dim != -1:
        raise UnsupportedError(f"it splits along dimension {dim}: only vectors have an operator")
    net = expect(net, DENSE + ("ConditionalDenseNN" if getattr(net, "context_dim", 0) else "DenseNN"), "network")
    sizes = list(net.param_dims)
    if len(sizes) != 2 or sizes[0] != sizes[1]:
        raise UnsupportedError(f"its network has parameters of sizes {sizes}, expected two of one size")
    split = Split(range(split_dim), range(split_dim, split_dim + sizes[0]))
    map = affine("clamped_exp", "standardize", log_scale_min_clip, log_scale_max_clip)
    linears = [expect(m, "torch.nn.modules.linear.Linear", "linear map") for m in net.layers]
    network = MaskedCoupling(split, map, net.context_dim, linears, layout="parameter_major", context_first=True)
    network.activation = activation_of(net.f)
    return network.finish(net)


def evaluate_coupling(layer: Any, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """Event to base."""
    layer = _given(layer, context)
    x = layer.inv(y)
    return x, -layer.log_abs_det_jacobian(x, y)


def _coupling_call(self: Any, x: Tensor) -> Tensor:
    """Base to event."""
    return _serve_coupling(self, x, True, "_call")


def _coupling_inverse(self: Any, y: Tensor) -> Tensor:
    """Event to base."""
    return _serve_coupling(self, y, False, "_inverse")


def _serve_coupling(self: Any, value: Tensor, inverse: bool, name: str) -> Tensor:
    found = _served(self, value, inverse)
    if found is None:
        theirs: Tensor = own(self, name)(self, value)
        return theirs
    self._cached_log_scale = (found[1] if inverse else -found[1]).unsqueeze(-1)
    return found[0]


def read_elementwise_spline(layer: Any) -> Splines:
    """Splines whose parameters the layer holds; it has its method that gives them as an attribute too."""
    if getattr(vars(layer).get("_params", layer._params), "__func__", None) is not type(layer)._params:
        raise UnsupportedError("its _params was replaced")
    return Splines(_spline(layer.count_bins, layer.bound, layer.order), None, False, [layer.input_dim])


def _held_parameters(spline: Any) -> list[Tensor]:
    names = ("widths", "heights", "derivatives", "lambdas")[: 4 if spline.order == "linear" else 3]
    return [getattr(spline, "unnormalized_" + name) for name in names]


def _spline_op(self: Any, x: Tensor, inverse: bool = False, **options: Any) -> tuple[Tensor, Tensor]:
    """The splines of all features and their log-derivatives."""
    state = None if options else serving(self, inverse)
    if state is not None:
        raw = _held_parameters(self)
        if state.network.take(self, x, raw) and x.shape[-1:] == state.network.shape:
            found: tuple[Tensor, Tensor] = state.network(self, x, raw, inverse)
            return found
    theirs: tuple[Tensor, Tensor] = own(self, "spline_op")(self, x, inverse=inverse, **options)
    return theirs


def _compare_elementwise(layer: Any, network: Splines, u: Tensor, noise: Callable[..., Tensor], inverse: bool) -> Any:
    return network(layer, u, _held_parameters(layer), inverse), layer.spline_op(u, inverse=inverse)


def read_spline_coupling(layer: Any) -> Splines:
    """Splines of both parts, after the layer's own network; of the passing part with parameters that the layer holds."""
    parts = layer.lower_spline, layer.upper_spline
    if len({(part.count_bins, part.bound, part.order) for part in parts}) > 1:
        raise UnsupportedError("the splines of its two parts differ")
    return Splines(_spline(parts[0].count_bins, parts[0].bound, parts[0].order), None, False, [sum(p.input_dim for p in parts)])


def _spline_coupling(layer: Any, network: Splines, value: Tensor, inverse: bool) -> tuple[Tensor, Tensor] | None:
    """The values and log-derivatives of the features, in the order in which the library has the latter."""
    lower, upper, split = layer.lower_spline, layer.upper_spline, layer.split_dim
    first, second = value[..., :split], value[..., split:]
    held = _held_parameters(lower)
    if value.shape[-1:] != network.shape or not network.take(layer, first, held):
        return None
    moved, log_lower = (first, None) if layer.identity else network(layer, first, held, inverse)
    given = upper.nn(moved if inverse else first)
    if given[0].shape[-1] == upper.input_dim:  # as an AutoRegressiveNN has them
        raw = [t.transpose(-1, -2) for t in given]
    else:
        raw = [t.unflatten(-1, (upper.input_dim, -1)) for t in given]
    z, log_upper = network(layer, second, raw, inverse)
    log_slope = log_upper if log_lower is None else torch.cat([log_upper, log_lower], -1)
    return torch.cat([moved, z], -1), log_slope


def _serve_spline_coupling(self: Any, value: Tensor, inverse: bool, name: str) -> Tensor:
    state = serving(self, inverse)
    found = None if state is None else _spline_coupling(self, state.network, value, inverse)
    if found is None:
        theirs: Tensor = own(self, name)(self, value)
        return theirs
    self._cache_log_detJ = -found[1] if inverse else found[1]
    return found[0]


def _spline_coupling_call(self: Any, x: Tensor) -> Tensor:
    """Base to event."""
    return _serve_spline_coupling(self, x, False, "_call")


def _spline_coupling_inverse(self: Any, y: Tensor) -> Tensor:
    """Event to base."""
    return _serve_spline_coupling(self, y, True, "_inverse")


def _compare_spline_coupling(layer: Any, network: Splines, u: Tensor, noise: Callable[..., Tensor], inverse: bool) -> Any:
    ours = _spline_coupling(layer, network, u, inverse)
    theirs = (layer._inverse if inverse else layer._call)(u)
    return ours, (theirs, -layer._cache_log_detJ if inverse else layer._cache_log_detJ)


def condition(self: Any, context: Tensor) -> Any:
    """The transform for a context, accelerated like this one."""
    transform, state = own(self, "condition")(self, context), state_of(self)
    if torch.compiler.is_compiling():
        return transform  # nothing is read, checked or made anew while a graph is made
    if checked(self) and state is not None:
        plain = next(plain for conditional, plain in _PLAIN if conditional is state.layer)
        attach(transform, plain, None, state.network)
    return transform


AFFINE = Layer(
    read,
    evaluate,
    {"_call": _call, "_inverse": _inverse},
    set_aside=ASIDE,
    caches=("_inv", "_cached_x_y", "_cached_log_scale"),
)
CONDITIONAL = Layer(read_conditional, evaluate, {"condition": condition})
SPLINES = Layer(
    read_spline,
    evaluate,
    {"_call": _call, "_inverse": _inverse},
    caches=("_inv", "_cached_x_y", "_cache_log_detJ"),
)
CONDITIONAL_SPLINES = Layer(read_conditional_spline, evaluate, {"condition": condition})
COUPLING = Layer(
    read_coupling,
    evaluate_coupling,
    {"_call": _coupling_call, "_inverse": _coupling_inverse},
    caches=("_inv", "_cached_x_y", "_cached_log_scale"),
)
ELEMENTWISE_SPLINE = Layer(
    read_elementwise_spline,
    _compare_elementwise,
    {"spline_op": _spline_op},
    set_aside=("_params",),
    caches=("_inv", "_cached_x_y", "_cache_log_detJ"),
)
SPLINE_COUPLING = Layer(
    read_spline_coupling,
    _compare_spline_coupling,
    {"_call": _spline_coupling_call, "_inverse": _spline_coupling_inverse},
    caches=("_inv", "_cached_x_y", "_cache_log_detJ"),
)
CONDITIONAL_COUPLING = Layer(read_conditional_coupling, evaluate_coupling, {"condition": condition})
_PLAIN = (CONDITIONAL, AFFINE), (CONDITIONAL_SPLINES, SPLINES), (CONDITIONAL_COUPLING, COUPLING)  # what it makes for a context

# -- distributions ----------------------------------------------------------------------------------------------------

# Transforms from base to event, each with its cache. Of a distribution all join, or none: what is between two of them is
# for the caches of its neighbours.


class _Joint(NamedTuple):
    """What the caches of transforms would hold after a call of all of them: log_prob of the same value is not computed again.

    Every transform that has a cache holds ``mark`` in it, which is no tensor. Where one holds something else by now, it was
    used by itself or cleared, and this holds no longer.
    """

    mark: float
    caches: list[dict[str, Any]]
    value: Tensor
    log_prob: Callable[[], Tensor]

    def of(self, value: Tensor) -> bool:
        return self.value is value and all(own["_cached_x_y"][0] is self.mark for own in self.caches)


def _spread(transform: Any, back: bool, way: list[tuple[Any, str, bool]]) -> bool:
    """Adds a transform to a way, as (transform, kind, whether backwards); returns whether all of it may join."""
    kind = _kind(type(transform))
    if kind == "inverse":
        return _spread(transform._inv, not back, way)
    if kind == "composed":
        return _spread_all(reversed(transform.parts) if back else transform.parts, back, way)
    way.append((transform, kind or "", back))
    return kind is not None and _METHODS.isdisjoint(vars(transform))


def _spread_all(transforms: Iterable[Any], back: bool, way: list[tuple[Any, str, bool]]) -> bool:
    """Adds all of them, also after one that may not join."""
    joins = [_spread(transform, back, way) for transform in transforms]
    return all(joins)


_METHODS = frozenset(("__call__", "_call", "_inverse", "_inv_call", "log_abs_det_jacobian"))
_KINDS = {
    "torch.distributions.transforms._InverseTransform": "inverse",
    "torch.distributions.transforms.ComposeTransform": "composed",
    "torch.distributions.transforms.AffineTransform": "affine",
    TRANSFORMS + "permute.Permute": "permutation",
    TRANSFORMS + "batchnorm.BatchNorm": "norm",
}


_NETWORKS = {"network": False, "coupling": True}  # whether forward is from event to base


@by_class
def _kind(cls: type) -> str | None:
    if getattr(cls, "_call", None) is _call:
        return "network"  # it is accelerated
    if getattr(cls, "_call", None) is _coupling_call:
        return "coupling"  # likewise
    if class_path(cls) == "pyro.distributions.torch_transform.ComposeTransformModule":
        return "composed"
    if cls is torch.distributions.transforms._InverseTransform:
        return "inverse"  # zuko gives it another name
    return next((kind for path, kind in _KINDS.items() if differs(cls, path) is None), None)


def _steps(transform: Any, kind: str, back: bool, x: Tensor, context: Tensor | None) -> list[ops.Step] | None:
    if kind in _NETWORKS:
        return steps_in_chain(transform, x, context, back != _NETWORKS[kind], False)
    step = _step(transform, kind, back, x)
    return None if step is None else [step]


def _step(transform: Any, kind: str, back: bool, x: Tensor) -> ops.Step | None:
    features = x.shape[-1]
    if kind == "permutation":
        return permutation(transform.permutation, back, features) if transform.dim == -1 else None
    if kind == "affine":
        found = [x.new_tensor(t) if isinstance(t, (int, float)) else t for t in (transform.loc, transform.scale)]
        return elementwise(x, back, *found) if transform.event_dim < 2 else None
    if transform.training:
        return None
    scale = torch.sqrt(transform.moving_variance + transform.epsilon) / transform.constrained_gamma
    return elementwise(x, back, transform.moving_mean - transform.beta * scale, scale)


def _context_of(way: list[tuple[Any, str, bool]], x: Tensor) -> Any:
    """The one context of all networks, expanded as each does it; False where they have several."""
    found = [_context(t) for t, kind, _ in way if kind in _NETWORKS]
    if not found or any(c is not found[0] for c in found):
        return False
    return found[0] if found[0] is None else found[0].expand(*x.shape[:-1], found[0].shape[-1])


def _way_of(distribution: Any, x: Any) -> list[tuple[Any, str, bool]] | None:
    """All transforms of a distribution of vectors, from the base on, if they may join or rebuild their inputs."""
    rebuilds = recording(distribution) is not None and isinstance(x, Tensor) and x.dim() > 0
    if state_of(distribution) is None or not (rebuilds or joinable(x)) or len(distribution._event_shape) != 1:
        return None
    way: list[tuple[Any, str, bool]] = []
    join = _spread_all(distribution.transforms, False, way)
    return way if join or (rebuilds and way and all(of_vectors(transform) for transform, *_ in way)) else None


def _reversibly(way: list[tuple[Any, str, bool]], x: Tensor, stack: Stack, back: bool) -> tuple[Tensor, Tensor]:
    """All transforms in turn, each of which rebuilds its input. Their caches hold nothing afterwards."""

    def module_of(part: Any) -> Any:
        return _network(_asked(part[0])) if part[2] in _NETWORKS else part[0]  # not what was made for one context

    def given(part: Any) -> list[Tensor]:
        transform, _, kind = part
        if kind in _NETWORKS:
            asked = _asked(transform)
            held = asked.keywords if isinstance(asked, functools.partial) else {}
        else:
            held = {} if isinstance(transform, torch.nn.Module) else vars(transform)
        return [t for t in held.values() if isinstance(t, Tensor)]

    run = ReversibleRun(stack, x, given, _call_alone, back, module_of)
    for transform, kind, turned in way:
        part = transform, turned, kind
        if kind in _NETWORKS:
            run.network(transform, turned != _NETWORKS[kind], part)
        else:
            run.add(None, part)
    return run.end()


def _call_alone(part: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """A transform by the library's code; part: (transform, whether backwards, kind)."""
    transform, back, _ = part
    y = transform._inv_call(x) if back else transform(x)
    log_det = _sum_rightmost(transform.log_abs_det_jacobian(*((y, x) if back else (x, y))), 1 - transform.domain.event_dim)
    held = vars(transform)
    held.update({k: None for k in held if k.startswith("_cache") and k != "_cache_size"})
    if "_cached_x_y" in held:
        held["_cached_x_y"] = None, None
    return y, -log_det if back else log_det


def _chain(
    way: list[tuple[Any, str, bool]], x: Tensor, ends: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor] | None:
    """All transforms in one call; with ``ends``, the location and scale of the base, the log-density in place of log_det."""
    context = _context_of(way, x)
    if context is False:
        return None
    steps: list[ops.Step] = []
    for transform, kind, back in way:
        found = _steps(transform, kind, back, x, context)
        if found is None:
            return None
        steps += found
    if ends is None:
        return ops.autoregressive_chain(x, steps, context)
    return ops.autoregressive_chain(x, [*steps, ops.ElementwiseStep(True, *ends)], context, "output")


def _remember(distribution: Any, way: list[tuple[Any, str, bool]], value: Tensor, log_prob: Callable[[], Tensor]) -> None:
    mark = float("nan")  # another object every time
    caches = [own for own in (vars(transform) for transform, _, _ in way) if "_cached_x_y" in own]
    for own_ in caches:
        own_["_cached_x_y"] = mark, mark
    state_of(distribution).cached = _Joint(mark, caches, value, log_prob)


def _ends(base: Any, x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Location and scale of a base that is a diagonal normal without a batch."""
    if _independent(type(base)) and base.reinterpreted_batch_ndims == 1 and _normal(type(base.base_dist)):
        loc, scale = base.base_dist.loc, base.base_dist.scale
        if loc.shape == scale.shape == x.shape[-1:] and loc.dtype is scale.dtype is x.dtype and loc.is_cpu and scale.is_cpu:
            return loc, scale
    return None


@by_class
def _independent(cls: type) -> bool:
    return differs(cls, "torch.distributions.independent.Independent") is None


@by_class
def _normal(cls: type) -> bool:
    return differs(cls, "torch.distributions.normal.Normal") is None


def log_prob(self: Any, value: Tensor) -> Tensor:
    """By one call backwards, unless the value was the last one that was drawn or scored, or is in a transform's cache."""
    way = _way_of(self, value)
    if way is None or _is_cached(way, value):
        return own(self, "log_prob")(self, value)
    if self._validate_args:
        self._validate_sample(value)
    known: _Joint | None = state_of(self).cached
    if known is not None and known.of(value):
        return known.log_prob()
    back = [(transform, kind, not back) for transform, kind, back in reversed(way)]
    base, stack = self.base_dist, recording(self)
    ends = _ends(base, value) if stack is None else None
    found = _chain(back, value, ends) if stack is None else _reversibly(back, value, stack, True)
    if found is None:
        return own(self, "log_prob")(self, value)
    x, total = found
    if ends is None:
        total = total + _base_log_prob(base, x)
    else:
        if base.base_dist._validate_args:
            base.base_dist._validate_sample(x)
    _remember(self, way, value, lambda: total)
    return total


def _base_log_prob(base: Any, x: Tensor) -> Tensor:
    return _sum_rightmost(base.log_prob(x), 1 - len(base.event_shape))


def _is_cached(way: list[tuple[Any, str, bool]], value: Tensor) -> bool:
    """Whether the last transform remembers the value by itself."""
    transform, _, back = way[-1]
    return vars(transform).get("_cached_x_y", (None, None))[0 if back else 1] is value


def rsample(self: Any, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
    """By one call forwards."""
    return _drawn(self, self.base_dist.rsample(sample_shape))


def sample(self: Any, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
    """By one call forwards."""
    with torch.no_grad():
        return _drawn(self, self.base_dist.sample(sample_shape))


def _drawn(self: Any, x: Tensor) -> Tensor:
    way = _way_of(self, x)
    stack, found = recording(self), None
    if way is not None:
        found = _chain(way, x) if stack is None else _reversibly(way, x, stack, False)
    if way is None or found is None:
        for transform in self.transforms:  # as the library does it
            x = transform(x)
        return x
    y, log_det = found
    base = self.base_dist
    _remember(self, way, y, lambda: _base_log_prob(base, x) - log_det)
    return y


def expand(self: Any, batch_shape: Any, _instance: Any = None) -> Any:
    """The expanded distribution, accelerated like this one."""
    return _held(self, own(self, "expand")(self, batch_shape, _instance))


def condition_all(self: Any, context: Tensor) -> Any:
    """The distribution for a context, accelerated like this one."""
    return _held(self, own(self, "condition")(self, context))


def _held(maker: Any, distribution: Any) -> Any:
    if torch.compiler.is_compiling():
        return distribution
    if not is_accelerated(distribution) and container_of(peer_class(type(distribution))) is DISTRIBUTION:
        held = state_of(maker)
        hold(distribution, DISTRIBUTION, None if held is None else held.stack)
    return distribution


DISTRIBUTION = Container({"log_prob": log_prob, "rsample": rsample, "sample": sample, "expand": expand}, stacks=True)
PYRO = Library(
    name="pyro-ppl",
    tested=("1.8", "1.10"),
    layers={
        TRANSFORMS + "affine_autoregressive.AffineAutoregressive": AFFINE,
        TRANSFORMS + "affine_autoregressive.ConditionalAffineAutoregressive": CONDITIONAL,
        TRANSFORMS + "affine_coupling.AffineCoupling": COUPLING,
        TRANSFORMS + "affine_coupling.ConditionalAffineCoupling": CONDITIONAL_COUPLING,
        TRANSFORMS + "spline_autoregressive.SplineAutoregressive": SPLINES,
        TRANSFORMS + "spline.Spline": ELEMENTWISE_SPLINE,
        TRANSFORMS + "spline_coupling.SplineCoupling": SPLINE_COUPLING,
        TRANSFORMS + "spline_autoregressive.ConditionalSplineAutoregressive": CONDITIONAL_SPLINES,
    },
    left_alone={
        TRANSFORMS + "neural_autoregressive.NeuralAutoregressive": "it has no inverse",
        TRANSFORMS + "batchnorm.BatchNorm": NORM,
        TRANSFORMS + "permute.Permute": PERMUTATION,
    },
    containers={
        "torch.distributions.transformed_distribution.TransformedDistribution": DISTRIBUTION,
        "pyro.distributions.conditional.ConditionalTransformedDistribution": Container(
            {"condition": condition_all}, stacks=True
        ),
    },
    holders={
        "torch.distributions.transformed_distribution.TransformedDistribution": ("base_dist", "transforms"),
        "torch.distributions.independent.Independent": ("base_dist",),
        "pyro.distributions.conditional.ConditionalTransformedDistribution": ("base_dist", "transforms"),
        "torch.distributions.transforms.ComposeTransform": ("parts",),
        "torch.distributions.transforms._InverseTransform": ("_inv",),
        "pyro.distributions.conditional.ConditionalComposeTransformModule": ("transforms",),
        "pyro.distributions.conditional.ConstantConditionalTransform": ("transform",),
        "pyro.distributions.conditional.ConstantConditionalDistribution": ("base_dist",),
    },
)
