"""The operators on rows: those of the Triton kernels, and the shapes of all for torch.compile."""

from __future__ import annotations

import torch
from torch import Tensor

from flowkern._library import BUILD_ERROR
from flowkern.bindings.namespaces import MAP, TRITON

_FEATURES = "Tensor? place, int begin, int step, int count"


@TRITON.define(f"coupling(Tensor x, Tensor[] parameters, {_FEATURES}, bool inverse, {MAP}) -> (Tensor, Tensor)")
def _coupling(x, parameters, place, begin, step, count, inverse, *map):  # type: ignore[no-untyped-def]
    from flowkern.kernels.coupling import coupling

    return coupling(x, parameters, place, (begin, step, count), inverse, map)


@TRITON.define(
    f"coupling_backward(Tensor g_z, Tensor g_log_det, Tensor x, Tensor[] parameters, {_FEATURES}, bool rebuild, "
    f"bool inverse, {MAP}) -> (Tensor, Tensor[])"
)
def _coupling_backward(g_z, g_log_det, x, parameters, place, begin, step, count, rebuild, inverse, *map):  # type: ignore[no-untyped-def]
    from flowkern.kernels.coupling import coupling_gradients

    return coupling_gradients(g_z, g_log_det, x, parameters, place, (begin, step, count), rebuild, inverse, map)


_SPLINE = f"Tensor x, Tensor[] parameters, bool inverse, {MAP}"


@TRITON.define(f"spline({_SPLINE}) -> (Tensor, Tensor)")
def _spline(x, parameters, inverse, *map):  # type: ignore[no-untyped-def]
    from flowkern.kernels.spline import spline

    return spline(x, parameters, inverse, map)


@TRITON.define(f"spline_backward(Tensor g_z, Tensor g_log_slope, {_SPLINE}) -> (Tensor, Tensor[])")
def _spline_backward(g_z, g_log_slope, x, parameters, inverse, *map):  # type: ignore[no-untyped-def]
    from flowkern.kernels.spline import spline_gradients

    return spline_gradients(g_z, g_log_slope, x, parameters, inverse, map)


@TRITON.define("log_det(Tensor log_scale) -> Tensor")
def _log_det(log_scale: Tensor) -> Tensor:
    from flowkern.kernels.log_det import log_det

    return log_det(log_scale)


@TRITON.define("normal_log_prob(Tensor z, Tensor log_det) -> Tensor")
def _normal_log_prob(z: Tensor, log_det: Tensor) -> Tensor:
    from flowkern.kernels.normal_log_prob import normal_log_prob

    return normal_log_prob(z, log_det)


def _coupling_like(x, parameters, *rest):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape), x.new_empty(x.shape[0])


def _gradients_like(g_z, g_log_det, x, parameters, place, begin, step, count, *rest):  # type: ignore[no-untyped-def]
    shape = x.shape[0], count if step else x.shape[1]
    return x.new_empty(x.shape), [x.new_empty(shape) for _ in parameters]


def _splines_like(x, *rest):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape), x.new_empty(x.shape)


def _spline_gradients_like(g_z, g_log_slope, x, parameters, *rest):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape), [t.new_empty(t.shape) for t in parameters]


def _row_sums_like(x: Tensor, *rest: Tensor) -> Tensor:
    return x.new_empty(x.shape[0])


_SHAPES = {
    "coupling": _coupling_like,
    "coupling_backward": _gradients_like,
    "spline": _splines_like,
    "spline_backward": _spline_gradients_like,
    "log_det": _row_sums_like,
    "normal_log_prob": _row_sums_like,
}
for _name, _like in _SHAPES.items():
    TRITON.fake(_name)(_like)
if BUILD_ERROR is None:
    for _name, _like in _SHAPES.items():
        torch.library.register_fake(f"flowkern::{_name}")(_like)
