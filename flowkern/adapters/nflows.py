"""nflows, and the copy of it that glasflow carries: (inputs, context) -> (outputs, logabsdet), data to noise."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flowkern import ops
from flowkern.adapters.library import Container, Layer, Library
from flowkern.adapters.network import (
    Linear,
    LinearThenNorm,
    Norm,
    NormThenLinear,
    PeerNetwork,
    UnsupportedError,
    activation_of,
    affine,
    by_class,
    differs,
    expect,
    parameter_of,
    spline,
)
from flowkern.adapters.nflows_couplings import (
    affine_couplings,
    are_rows,
    coupling_inverse,
    evaluate,
    expect_dropout,
    expect_stateless,
    served,
    spline_coupling,
)
from flowkern.adapters.reversible import ReversibleRun, recording, reversibly
from flowkern.adapters.run import Run, elementwise, joinable, permutation, touched
from flowkern.adapters.splines import ELEMENTWISE_SPLINE, outside
from flowkern.adapters.state import own, peer_class
from flowkern.univariate import RationalQuadratic, UnivariateMap


def read(root: str, layer: Any) -> PeerNetwork:
    """The affine transform: of a feature's parameters the raw scale comes first."""
    return _read(root, layer, layer.features, affine("softplus", "scale_shift", _epsilon(layer)), (1, 0))


def read_spline(root: str, layer: Any) -> PeerNetwork:
    """The rational-quadratic spline, with linear tails or in a box."""
    map = spline_of(layer)
    return _read(root, layer, layer.autoregressive_net.final_layer.out_features // map.count, map, None)


def spline_of(layer: Any) -> RationalQuadratic:
    """The spline of an autoregressive layer. Without tails the library refuses what is outside the box, see :func:`_serve`."""
    if layer.tails not in ("linear", None):
        raise UnsupportedError(f"its tails are {layer.tails!r}: with the identity outside they have no operator")
    width = getattr(layer.autoregressive_net, "hidden_features", 1)
    least = layer.min_bin_width, layer.min_bin_height, layer.min_derivative
    interval, tails = (
        ((0.0, 1.0), "unconstrained") if layer.tails is None else ((-layer.tail_bound, layer.tail_bound), "linear")
    )
    return spline(layer.num_bins, interval, "softplus", *least, 1.0, width**-0.5, tails=tails)


def _read(root: str, layer: Any, features: int, map: UnivariateMap, order: Sequence[int] | None) -> PeerNetwork:
    """MADE: initial layer, plus the activated context; residual blocks before which, or plain ones after which, it acts.

    Args:
        root: the module of the MADE, for this library or the copy of it.
    """
    made = expect(layer.autoregressive_net, root + "MADE", "network")
    network = PeerNetwork(features, context_width(made), map, parameter_order=order)
    residual = made.use_residual_blocks
    stream = network.add(linear(root, made.initial_layer), activated=not residual)
    if network.context:
        network.add_context(stream, made.context_layer, activation_of(made.activation)[0])
    for block in made.blocks:
        if residual:
            stream = add_residual_block(network, root, block, stream)
            if network.context:
                norm = block.batch_norm_layers[1] if block.use_batch_norm else None
                network.add_context(stream - 1, block.context_layer, norm=norm)
        else:
            expect_dropout(expect(block, root + "MaskedFeedforwardBlock", "block"))
            stream = network.add(linear(root, block.linear, before=block.batch_norm), activated=True)
    network.add(linear(root, made.final_layer))
    network.activation = activation_of(made.activation, *(block.activation for block in made.blocks))
    return network.finish(made)


def add_residual_block(network: PeerNetwork, root: str, block: Any, stream: int) -> int:
    """[norm] act linear [norm] act linear, added to the layer ``stream``; returns the index of the sum."""
    expect_dropout(expect(block, root + "MaskedResidualBlock", "block"))
    norms = list(block.batch_norm_layers) if block.use_batch_norm else [None, None]
    if norms[0] is None:
        network.activated[stream] = True
    else:
        network.add(Norm(norms[0]), activated=True)
    network.add(linear(root, block.linear_layers[0], after=norms[1]), activated=True)
    return network.add(linear(root, block.linear_layers[1]), residual=stream)


def linear(root: str, module: Any, before: Any = None, after: Any = None) -> Linear:
    """A masked linear map, with the batch normalisation next to it."""
    expect(module, root + "MaskedLinear", "linear map")
    if before is not None:
        return NormThenLinear(module, before)
    return Linear(module) if after is None else LinearThenNorm(module, after)


def context_width(made: Any) -> int:
    """Number of context features."""
    return made.context_layer.in_features if hasattr(made, "context_layer") else 0


def _epsilon(layer: Any) -> float:
    """scale = softplus(a) + eps; glasflow takes any function, which is probed."""
    function = getattr(layer, "scale_activation", None)
    if function is None:
        return layer._epsilon
    expect_stateless(function)
    probe = torch.linspace(-30, 30, 7, dtype=torch.float64, device="cpu")
    epsilon = (function(probe) - F.softplus(probe)).double()
    if not torch.allclose(epsilon, epsilon[0], rtol=0, atol=1e-12) or epsilon[0] < 0:
        raise UnsupportedError("its scale_activation is not softplus plus a constant")
    return float(epsilon[0])


def _serve(self: Any, inputs: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor] | None:
    if _in_a_box(self) and are_rows(inputs, context) and bool(outside(inputs).any()):
        return None
    return served(self, inputs, context, inverse)


def forward(self: Any, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """One pass."""
    return _serve(self, inputs, context, inverse=False) or own(self, "forward")(self, inputs, context)


def inverse(self: Any, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """One sweep."""
    return _serve(self, inputs, context, inverse=True) or own(self, "inverse")(self, inputs, context)


def _in_a_box(layer: Any) -> bool:
    return vars(layer).get("tails", "linear") is None


METHODS = {"forward": forward, "inverse": inverse}
PERMUTATION = "a permutation is one gather already; beside accelerated layers it is a part of their call"
SPLINE = "only rational-quadratic splines have an operator"
COUPLING = "only affine, additive and rational-quadratic couplings have an operator"
NORM = "one elementwise pass already; beside accelerated layers it may be a part of their call"

# -- flows ------------------------------------------------------------------------------------------------------------

_WAYS = ("forward", "inverse", "_cascade", "_permute", "_serve")
TRANSFORM = frozenset((*_WAYS, "forward_no_cache", "inverse_no_cache", "_create_lower_upper", "logabsdet"))
_NORMAL = frozenset(("log_prob", "_log_prob", "sample", "_sample", "sample_and_log_prob"))


def rows_joinable(inputs: Any, context: Any) -> bool:
    """Rows that the library itself would take as they are."""
    return joinable(inputs) and are_rows(inputs, context)


def _alone(context: Tensor | None) -> Callable[[Any, Tensor], tuple[Tensor, Tensor]]:
    """A layer by itself, as a composition calls it; ``part``: the layer and whether backwards."""

    def call(part: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        layer, back = part
        return layer.inverse(x, context) if back else layer(x, context)

    return call


def spread(run: Run | ReversibleRun, kind_of: Callable[[type], Any], layer: Any, back: bool) -> None:
    """Adds a layer to a way, or the layers of which it is made. A call of a module is one forwards.

    Args:
        kind_of: class -> one of the classes below, (layer, x, back) -> step, or ``None`` for what cannot join.
    """
    kind = kind_of(type(layer))
    if kind is None or touched(layer, TRANSFORM, hooks=not back) or _in_a_box(layer):
        run.add(None, (layer, back))
    elif kind is CompositeWay:
        inner = list(layer._modules["_transforms"]._modules.values())
        for part in reversed(inner) if back else inner:
            spread(run, kind_of, part, back)
    elif isinstance(kind, InverseWay):
        spread(run, kind_of, layer._modules[kind.inner], not back)
    elif isinstance(kind, TurnedWay):
        for name in kind.inner if back else reversed(kind.inner):
            spread(run, kind_of, layer._modules[name], not back)
    elif isinstance(kind, NetworkWay):
        run.network(layer, back != kind.turned, (layer, back))
    else:
        run.add(kind(layer, run.x, back), (layer, back))


def spread_out(kind_of: Callable[[type], Any], run: ReversibleRun, layer: Any, back: bool) -> None:
    """The same for layers that rebuild their inputs, each by itself: no layer is a step."""

    def kind(cls: type) -> Any:
        found = kind_of(cls)
        return found if found in (CompositeWay, NetworkWay) or isinstance(found, InverseWay) else None

    spread(run, kind, layer, back)


def permuted(layer: Any, x: Tensor, back: bool) -> ops.Step | None:
    return permutation(layer._buffers["_permutation"], back, x.shape[1]) if layer._dim == 1 else None


def _pointwise(layer: Any, x: Tensor, back: bool) -> ops.Step | None:
    return elementwise(x, back, layer._buffers["_shift"], layer._buffers["_scale"])


def _batch_norm(layer: Any, x: Tensor, back: bool) -> ops.Step | None:
    """With the statistics of evaluation mode."""
    if layer.training:
        return None
    scale = layer.weight * torch.rsqrt(layer.running_var + layer.eps)
    return elementwise(x, back, layer.bias - layer.running_mean * scale, scale)


def _act_norm(layer: Any, x: Tensor, back: bool) -> ops.Step | None:
    """Which takes its numbers from the first batch that it sees in train mode."""
    if layer.training and not back and not layer.initialized:
        return None
    return elementwise(x, back, layer.shift, layer.scale)


def lu_linear(layer: Any, x: Tensor, back: bool) -> ops.Step | None:
    """Unless the library would take its matrices from a cache, as in evaluation mode it may."""
    found = (parameter_of(layer, name) for name in ("lower_entries", "upper_entries", "unconstrained_upper_diag", "bias"))
    vectors = [v for v in found if v is not None and v.dtype is x.dtype and v.is_cpu]
    if len(vectors) < 4 or len(vectors[-1]) != x.shape[1] or (layer.using_cache and not layer.training):
        return None
    lower, upper, diagonal, bias = vectors
    return ops.LULinearStep(back, lower, upper, F.softplus(diagonal) + layer.eps, bias)


class CompositeWay:
    """Layers one after another."""


class InverseWay(NamedTuple):
    """A layer backwards, and which module that is."""

    inner: str


class TurnedWay(NamedTuple):
    """Layers one after another, each of which goes forwards where the whole goes backwards; the modules that they are."""

    inner: tuple[str, ...]


class NetworkWay(NamedTuple):
    """An accelerated layer; ``turned``: whether what it calls forward is the inverse of its network's."""

    turned: bool = False


_PARTS: dict[str, Any] = {
    "base.CompositeTransform": CompositeWay,
    "base.InverseTransform": InverseWay("_transform"),
    "permutations.Permutation": permuted,
    "standard.PointwiseAffineTransform": _pointwise,
    "lu.LULinear": lu_linear,
    "normalization.BatchNorm": _batch_norm,
    "normalization.ActNorm": _act_norm,
}


def kinds(table: Mapping[str, Any], others: Mapping[Any, NetworkWay] | None = None) -> Callable[[type], Any]:
    """What a layer of a class is on a way, for :func:`spread`; the table has it by class path.

    Args:
        others: accelerated layers by their method ``inverse``, besides those of this file.
    """
    accelerated = {inverse: NetworkWay(), coupling_inverse: NetworkWay(), **(others or {})}

    @by_class
    def kind_of(cls: type) -> Any:
        if getattr(cls, "inverse", None) in accelerated:
            return accelerated[cls.inverse]  # type: ignore[attr-defined]
        return next((kind for path, kind in table.items() if differs(peer_class(cls), path) is None), None)

    return kind_of


@functools.cache
def _kinds(root: str) -> Callable[[type], Any]:
    return kinds({f"{root}.transforms.{path}": kind for path, kind in _PARTS.items()})


def _composite(root: str, self: Any, inputs: Tensor, context: Tensor | None, back: bool) -> Any:
    if not rows_joinable(inputs, context):
        return own(self, "inverse" if back else "forward")(self, inputs, context)
    run = Run(inputs, context, _alone(context))
    inner, kind_of = list(self._modules["_transforms"]._modules.values()), _kinds(root)
    for part in reversed(inner) if back else inner:
        spread(run, kind_of, part, back)
    return run.end()


def _density(root: str, flow: Any, inputs: Tensor, context: Tensor | None, given: dict[str, Any]) -> Tensor:
    """log p(inputs | context); ``given``: what the flow hands to its base."""
    transform, base = flow._modules["_transform"], flow._modules["_distribution"]
    if not rows_joinable(inputs, context) or _rebuilds(root, transform):
        noise, logabsdet = transform(inputs, context=context)
        return base.log_prob(noise, **given) + logabsdet
    normal = "output" if _is_standard(root, base, inputs.shape[1:]) else None
    run = Run(inputs, context, _alone(context), normal)
    spread(run, _kinds(root), transform, False)
    noise, log_prob = run.end()
    return log_prob if normal is not None else base.log_prob(noise, **given) + log_prob


def _rebuilds(root: str, transform: Any) -> bool:
    """Whether its layers rebuild their inputs in this call."""
    while isinstance(kind := _kinds(root)(type(transform)), InverseWay):
        transform = transform._modules[kind.inner]
    return recording(transform) is not None


def _is_standard(root: str, base: Any, shape: torch.Size) -> bool:
    return _is_normal(root, type(base)) and _NORMAL.isdisjoint(vars(base)) and base._shape == shape


@by_class
def _is_normal(root: str, cls: type) -> bool:
    return differs(cls, root + ".distributions.normal.StandardNormal") is None


def _containers(root: str) -> dict[str, Container]:
    def composite_forward(self: Any, inputs: Tensor, context: Tensor | None = None) -> Any:
        return _composite(root, self, inputs, context, False)

    def composite_inverse(self: Any, inputs: Tensor, context: Tensor | None = None) -> Any:
        return _composite(root, self, inputs, context, True)

    def log_prob(self: Any, inputs: Tensor, context: Tensor | None) -> Tensor:
        embedded = self._modules["_embedding_net"](context)
        return _density(root, self, inputs, embedded, {"context": embedded})

    return {
        root + ".transforms.base.CompositeTransform": Container(
            reversibly(
                (),
                "_transforms",
                functools.partial(spread_out, _kinds(root)),
                {"forward": composite_forward, "inverse": composite_inverse},
            ),
            stacks=True,
        ),
        root + ".flows.base.Flow": Container({"_log_prob": log_prob}),
    }


def _glasflow_log_prob(self: Any, inputs: Tensor, conditional: Tensor | None = None) -> Tensor:
    return _density("glasflow.nflows", self, inputs, conditional, {})


_GLASFLOW = {"glasflow.flows.base.Flow": Container({"log_prob": _glasflow_log_prob})}


def _library(name: str, root: str, tested: tuple[str, str]) -> Library:
    transforms = root + ".transforms"
    autoregressive = transforms + ".autoregressive."
    return Library(
        name=name,
        tested=tested,
        layers={
            autoregressive + "MaskedAffineAutoregressiveTransform": Layer(
                functools.partial(read, transforms + ".made."), evaluate, METHODS
            ),
            autoregressive + "MaskedPiecewiseRationalQuadraticAutoregressiveTransform": Layer(
                functools.partial(read_spline, transforms + ".made."), evaluate, METHODS
            ),
            transforms + ".coupling.PiecewiseRationalQuadraticCouplingTransform": spline_coupling(root + ".nn.nets.resnet."),
            **{f"{transforms}.coupling.{name}": how for name, how in affine_couplings(root + ".nn.nets.resnet.").items()},
            transforms + ".nonlinearities.PiecewiseRationalQuadraticCDF": ELEMENTWISE_SPLINE,
        },
        left_alone={
            autoregressive + "AutoregressiveTransform": SPLINE,
            transforms + ".coupling.CouplingTransform": COUPLING,
            transforms + ".normalization.BatchNorm": NORM,
            transforms + ".normalization.ActNorm": NORM,
            transforms + ".permutations.Permutation": PERMUTATION,
            transforms + ".made.MADE": "a network without its transform",
        },
        containers=_containers(root) | (_GLASFLOW if name == "glasflow" else {}),
    )


NFLOWS = _library("nflows", "nflows", ("0.14", "0.15"))
GLASFLOW = _library("glasflow", "glasflow.nflows", ("0.4", "0.5"))
