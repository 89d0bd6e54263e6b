"""Monotonic splines with parameters of their own for every element."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowkern import reference
from flowkern._checks import HALF, check_float, check_like
from flowkern.backends import Kernels, kernels_for
from flowkern.ops._derivatives import plain_backward, wants_plain
from flowkern.ops._rows import as_rows, namespace, numbers_of
from flowkern.univariate import RationalLinear, RationalQuadratic

Spline = RationalQuadratic | RationalLinear


def spline(
    x: Tensor,
    widths: Tensor,
    heights: Tensor,
    derivatives: Tensor,
    lambdas: Tensor | None = None,
    *,
    map: Spline,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""z = f(x; parameters) of every element and log|dz/dx|.

    Args:
        x: input (...).
        widths, heights: raw sizes of the bins (..., bins).
        derivatives: raw derivatives at the knots (..., n); the map's tails say how many.
        lambdas: of a rational-linear spline, raw numbers that say where its bins are divided (..., bins).
        map: the spline: its bins, interval, tails and parametrization, see :mod:`flowkern.univariate.rational_quadratic` and
            :mod:`flowkern.univariate.rational_linear`.
        inverse: evaluate the inverse and its log-derivative.

    Returns:
        z and log_slope with the broadcast shape of x. Where x is not finite, log_slope is not.

    Raises:
        TypeError, ValueError: for arguments that do not fit each other.

    Example:
        >>> import torch
        >>> from flowkern.univariate import RationalQuadratic
        >>> map = RationalQuadratic(8, (-3, 3))
        >>> x, widths, heights = torch.randn(5), torch.randn(5, 8), torch.randn(5, 8)
        >>> z, log_slope = spline(x, widths, heights, torch.randn(5, 7), map=map)
        >>> z.shape, log_slope.shape
        (torch.Size([5]), torch.Size([5]))

    References:
        Neural Spline Flows (Durkan et al., 2019), section 3.1; circular ones: Normalizing Flows on Tori and Spheres (Rezende et
        al., 2020), section 2.2; rational-linear ones: Invertible Generative Modeling using Linear Rational Splines (Dolatabadi
        et al., 2020).
    """
    if not isinstance(map, (RationalQuadratic, RationalLinear)):
        raise TypeError(f"map: expected a flowkern.univariate.RationalQuadratic or RationalLinear, got {type(map).__name__}")
    check_float("x", x)
    given = {"widths": (widths, map.bins), "heights": (heights, map.bins), "derivatives": (derivatives, map.derivatives)}
    if (lambdas is not None) != isinstance(map, RationalLinear):
        got = "none" if lambdas is None else "some"
        raise ValueError(f"lambdas: expected those of a RationalLinear and none else, got {got} for a {type(map).__name__}")
    if lambdas is not None:
        given["lambdas"] = lambdas, map.bins
    for name, (t, count) in given.items():
        check_float(name, t)
        check_like(name, t, x)
        if t.dim() == 0 or t.shape[-1] != count:
            raise ValueError(f"{name}: expected shape (..., {count}) for {map.bins} bins, got {tuple(t.shape)}")
    parameters = [t for t, _ in given.values()]
    batch = _batch(x, parameters)
    kernels = kernels_for(x, "spline")
    if kernels.plain:
        return reference.spline(x, *parameters, **map.spline_options, inverse=inverse)
    dtype, call = x.dtype, Call(kernels, map, inverse)
    exact = torch.float32 if kernels.on_cpu and dtype in HALF else dtype
    elements = x.to(exact).expand(batch).reshape(-1)
    rows = [as_rows(kernels, t, torch.Size((*batch, count))) for t, count in given.values()]
    if torch.is_grad_enabled() and any(t.requires_grad for t in (elements, *rows)):
        z, log_slope = SplineFunction.apply(call, elements, *rows)
    else:
        z, log_slope = call(elements, *rows)
    return z.reshape(batch).to(dtype), log_slope.reshape(batch).to(dtype)


def _batch(x: Tensor, parameters: Sequence[Tensor]) -> torch.Size:
    """The common shape of the elements."""
    if not torch.compiler.is_compiling() and all(t.shape[:-1] == x.shape for t in parameters):
        return x.shape
    try:
        return torch.broadcast_shapes(x.shape, *(t.shape[:-1] for t in parameters))
    except RuntimeError:
        got = ", ".join(str(tuple(t.shape)) for t in parameters)
        raise ValueError(
            f"widths, heights, derivatives: shapes {got} less their last dimension do not broadcast with x {tuple(x.shape)}"
        ) from None


class Call(NamedTuple):
    """What is constant about a call, and its kernels on a vector of elements and a matrix of each kind of parameter."""

    kernels: Kernels
    map: Spline
    inverse: bool

    def __call__(self, x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        return namespace(self.kernels).spline(x, parameters, self.inverse, *numbers_of(self.kernels, self.map))

    def gradients(self, grads: tuple[Tensor, ...], x: Tensor, parameters: list[Tensor]) -> tuple[Tensor, ...]:
        """Cotangents of all inputs."""
        numbers = numbers_of(self.kernels, self.map)
        g_x, g_parameters = namespace(self.kernels).spline_backward(*grads, x, parameters, self.inverse, *numbers)
        return g_x, *g_parameters


class SplineFunction(torch.autograd.Function):
    """Forward and backward kernels; second derivatives through the oracle."""

    @staticmethod
    def forward(ctx: Any, call: Call, x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        z, log_slope = call(x, *parameters)
        ctx.call = call
        ctx.save_for_backward(x, *parameters)
        return z, log_slope

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        call, (x, *parameters) = ctx.call, ctx.saved_tensors
        if wants_plain():
            oracle = partial(reference.spline, **call.map.spline_options, inverse=call.inverse)
            return None, *plain_backward(oracle, (x, *parameters), ctx.needs_input_grad[1:], grads)
        return None, *call.gradients(grads, x, parameters)
