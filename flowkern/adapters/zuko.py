"""zuko: lazy transforms, rebuilt at every call; data to noise is the direction of one pass."""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch
from torch import Tensor, nn

from flowkern.adapters.calls import fast
from flowkern.adapters.library import Layer, Library
from flowkern.adapters.network import (
    Linear,
    PeerNetwork,
    UnsupportedError,
    activation_of,
    affine,
    class_path,
    differs,
    expect,
    refuse_tensors,
)
from flowkern.adapters.nflows import COUPLING
from flowkern.adapters.state import own


def read(layer: Any) -> PeerNetwork:
    """hyper = masked linear maps and activations in a row, or residual blocks without an activation before them."""
    _transform_class(sys.modules["zuko.transforms"].AutoregressiveTransform)  # now: a compiler cannot trace that
    hyper = expect(layer.hyper, "zuko.nn.MaskedMLP", "network")
    features = hyper[-1].out_features // 2
    context = hyper[0].in_features - features
    network = PeerNetwork(features, context, affine("soft_clipped_exp", "scale_shift", _log_slope(layer)))
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


def _log_slope(layer: Any) -> float:
    """|log slope| of the softly clipped log-scale: the limit of a large raw scale; it changed between versions."""
    univariate: Any = layer.univariate
    options: dict[str, Any] = {}
    if isinstance(univariate, functools.partial) and not univariate.args:
        univariate, options = univariate.func, univariate.keywords
    known = isinstance(univariate, type) and differs(univariate, "zuko.transforms.MonotonicAffineTransform") is None
    if not known or set(options) - {"slope"} or tuple(map(tuple, layer.shapes)) != ((), ()):
        name = class_path(univariate) if isinstance(univariate, type) else repr(univariate)
        raise UnsupportedError(f"its univariate map {name} has no operator yet: splines and monotonic networks will go here")
    refuse_tensors("univariate map", options.values())
    zero, large = torch.zeros((), dtype=torch.float64, device="cpu"), torch.full((), 1e30, dtype=torch.float64, device="cpu")
    return abs(float(layer.univariate(zero, large).log_scale))


def evaluate(layer: Any, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """Data to noise."""
    return type(layer).forward(layer, context).call_and_ladj(x)


def forward(self: Any, c: Tensor | None = None) -> Any:
    """The transform for a context: zuko's class with faster methods."""
    transform = own(self, "forward")(c)
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


ZUKO = Library(
    name="zuko",
    tested=("1.1.0", "1.7"),
    layers={
        "zuko.flows.autoregressive.MaskedAutoregressiveTransform": Layer(read, evaluate, {"forward": forward}),
    },
    left_alone={
        "zuko.flows.coupling.GeneralCouplingTransform": COUPLING,
        "zuko.flows.gaussianization.ElementWiseTransform": "it is elementwise: its inverse costs one pass already",
        "zuko.flows.neural.UNAF": "its conditionals are integrals of networks: no operator",
    },
)
