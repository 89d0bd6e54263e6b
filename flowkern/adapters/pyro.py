"""Pyro: transforms from base to event (an IAF); the density of values not in the cache costs a pass per feature."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from flowkern.adapters.calls import checked, fast
from flowkern.adapters.library import Layer, Library
from flowkern.adapters.network import Linear, PeerNetwork, UnsupportedError, activation_of, affine, expect
from flowkern.adapters.nflows import COUPLING, NORM, PERMUTATION, SPLINE
from flowkern.adapters.state import attach, own, state_of

NETS = "pyro.nn.auto_reg_nn."
ASIDE = ("_call", "_inverse")  # attributes of a stable transform, which hold its _call_stable and _inverse_stable


def read(layer: Any) -> PeerNetwork:
    """layers[i] and one activation between them; the context's columns come first; parameters are (mean, log-scale)."""
    for name in ASIDE:
        found = vars(layer).get(name)
        if found is not None and getattr(found, "__func__", None) is not getattr(type(layer), name + "_stable"):
            raise UnsupportedError(f"its {name} was replaced")
    arn = layer.arn.func if isinstance(layer.arn, functools.partial) else layer.arn
    return _read(arn, layer.stable, layer.sigmoid_bias, layer.log_scale_min_clip, layer.log_scale_max_clip)


def read_conditional(layer: Any) -> PeerNetwork:
    """The same for the twin that makes a transform for each context."""
    default = {"stable": False, "sigmoid_bias": 2.0, "log_scale_min_clip": -5.0, "log_scale_max_clip": 3.0}
    return _read(layer.nn, **{**default, **layer.kwargs})


def _read(arn: Any, stable: bool, sigmoid_bias: float, log_scale_min_clip: float, log_scale_max_clip: float) -> PeerNetwork:
    name = "ConditionalAutoRegressiveNN" if getattr(arn, "context_dim", 0) else "AutoRegressiveNN"
    arn = expect(arn, NETS + name, "network")
    if list(arn.param_dims) != [1, 1]:
        raise UnsupportedError(f"its network has parameters of sizes {list(arn.param_dims)}, expected a mean and a log-scale")
    if stable:
        map = affine("sigmoid", "gate", sigmoid_bias, 0.0)
    else:
        map = affine("clamped_exp", "scale_shift", log_scale_min_clip, log_scale_max_clip)
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
    if context is not None and hasattr(layer, "condition"):
        layer = layer.condition(context)
    elif context is not None:
        layer.arn = functools.partial(layer.arn.func, context=context)
    y = layer(x)
    return y, layer.log_abs_det_jacobian(x, y)


def _serve(self: Any, value: Tensor, inverse: bool, name: str) -> Tensor:
    context = self.arn.keywords["context"] if isinstance(self.arn, functools.partial) else None
    if context is not None:
        context = context.expand(*value.shape[:-1], context.shape[-1])  # as the network does it
    found = fast(self, value, context, inverse)
    if found is None:
        return own(self, name + "_stable" if self.stable else name)(value)
    # log_abs_det_jacobian sums the cached log-scale over its last dimension.
    self._cached_log_scale = (-found[1] if inverse else found[1]).unsqueeze(-1)
    return found[0]


def _call(self: Any, x: Tensor) -> Tensor:
    """One pass."""
    return _serve(self, x, False, "_call")


def _inverse(self: Any, y: Tensor) -> Tensor:
    """One sweep."""
    return _serve(self, y, True, "_inverse")


def condition(self: Any, context: Tensor) -> Any:
    """The transform for a context, accelerated like this one."""
    transform, state = own(self, "condition")(context), state_of(self)
    if checked(self) and state is not None:
        attach(transform, AFFINE, None, state.network)
    return transform


AFFINE = Layer(
    read,
    evaluate,
    {"_call": _call, "_inverse": _inverse},
    set_aside=ASIDE,
    caches=("_inv", "_cached_x_y", "_cached_log_scale"),
)
CONDITIONAL = Layer(read_conditional, evaluate, {"condition": condition})
TRANSFORMS = "pyro.distributions.transforms."
PYRO = Library(
    name="pyro-ppl",
    tested=("1.8", "1.10"),
    layers={
        TRANSFORMS + "affine_autoregressive.AffineAutoregressive": AFFINE,
        TRANSFORMS + "affine_autoregressive.ConditionalAffineAutoregressive": CONDITIONAL,
    },
    left_alone={
        TRANSFORMS + "affine_coupling.AffineCoupling": COUPLING,
        TRANSFORMS + "affine_coupling.ConditionalAffineCoupling": COUPLING,
        TRANSFORMS + "spline_autoregressive.SplineAutoregressive": SPLINE,
        TRANSFORMS + "spline_autoregressive.ConditionalSplineAutoregressive": SPLINE,
        TRANSFORMS + "neural_autoregressive.NeuralAutoregressive": "it has no inverse",
        TRANSFORMS + "batchnorm.BatchNorm": NORM,
        TRANSFORMS + "permute.Permute": PERMUTATION,
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
