"""Splines that a library evaluates with parameters that it already has; its elementwise layers, whose parameters these are.

The library's own code runs, its networks, masks and hooks included; only the splines are the operator's. What is here serves
nflows, the copy of it that glasflow carries, and normflows, which are alike, and Pyro.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flowkern import ops
from flowkern._checks import FLOATS, autocasts
from flowkern.adapters.calls import serving
from flowkern.adapters.library import Layer
from flowkern.adapters.network import Network, UnsupportedError, error_of, spline
from flowkern.adapters.state import own
from flowkern.univariate import RationalLinear, RationalQuadratic

Pair = tuple[Tensor, Tensor]


class Splines(Network):
    """The splines of a layer.

    Args:
        map: of an element; of features whose tails differ one with all derivatives, which :meth:`__call__` ties together.
        tails: those of each feature where they differ, or ``None``.
        scaled: whether the interval is given by a buffer, ``tail_bound`` of the layer; the map has (-1, 1) then.
        shape: of an element of a batch, for the self-check.
    """

    def __init__(
        self, map: RationalQuadratic | RationalLinear, tails: Sequence[str] | None, scaled: bool, shape: Sequence[int]
    ) -> None:
        self.map, self.tails, self.scaled, self.shape = map, tails, scaled, tuple(shape)

    def same_as(self, other: Splines) -> bool:
        """Whether all but the tensors is the same."""
        return vars(self) == vars(other)

    def packed(self) -> None:
        """Nothing: the weights are the library's."""

    def __call__(self, layer: Any, x: Tensor, raw: Sequence[Tensor], inverse: bool) -> Pair:
        """Values and log-derivatives of x."""
        u = self.scaled_down(layer, x)
        widths, heights, derivatives, *lambdas = (t.to(u.dtype) for t in raw)  # under autocast networks give less
        if self.tails is not None:
            derivatives = self._tied(derivatives)
        z, log_slope = ops.spline(u, widths, heights, derivatives, *lambdas, map=self.map, inverse=inverse)
        z = self.unscaled(layer, z)
        if self.map.tails != "circular":
            return z, log_slope
        inside = ~outside(u, self.map.interval)  # where normflows has the identity
        return torch.where(inside, z, x), torch.where(inside, log_slope, 0)

    def parts(self, raw: Tensor) -> Sequence[Tensor]:
        """Raw widths, heights and derivatives, of numbers of which there are as many as the map has."""
        bins = self.map.bins
        return raw.split((bins, bins, raw.shape[-1] - 2 * bins), -1)  # whose cotangents are joined by one copy

    def unscaled(self, layer: Any, u: Tensor) -> Tensor:
        """What becomes u in the map's interval."""
        return u * layer.tail_bound if self.scaled else u

    def scaled_down(self, layer: Any, x: Tensor) -> Tensor:
        """The other way."""
        return x / layer.tail_bound if self.scaled else x

    def _tied(self, derivatives: Tensor) -> Tensor:
        """One at both ends where tails are linear; the first one also at the other end where they are circular."""
        linear = torch.tensor([[tail == "linear"] for tail in self.tails or ()], device=derivatives.device)
        first = torch.where(linear, math.log(math.expm1(1 - self.map.settings[2])), derivatives[..., :1])
        return torch.cat([first, derivatives[..., 1:-1], first], -1)

    def fits(self, x: Any, context: Any) -> bool:
        """The parameters are the library's code's, or the layer's: no operator takes the whole layer."""
        return False

    def fits_like(self, x: Tensor, width: int) -> bool:
        """The same beside other networks."""
        return False

    def take(self, layer: Any, x: Tensor, raw: Sequence[Tensor]) -> bool:
        """Whether the operator takes a call; those that it does not are for the library to judge, such as a number outside."""
        given = [x, *raw]
        if not all(isinstance(t, Tensor) and t.dtype in FLOATS and t.device == x.device and not t.is_meta for t in given):
            return False
        if not autocasts(x) and any(t.dtype is not x.dtype for t in raw):  # of which the library gives the wider one
            return False
        lambdas = (self.map.bins,) * isinstance(self.map, RationalLinear)
        if tuple(t.shape[-1] for t in raw) != (self.map.bins, self.map.bins, self.map.derivatives, *lambdas):
            return False
        return self.map.tails != "unconstrained" or not bool(outside(self.scaled_down(layer, x), self.map.interval).any())

    def disagreement(self, evaluate: Callable[..., tuple[Pair, Pair]], noise: Callable[..., Tensor]) -> str | None:
        """Compares both directions on three rows. ``evaluate``: (network, u, noise, inverse) -> ours and theirs."""
        lower, upper = self.map.interval
        reach = 0.5 if self.map.tails == "unconstrained" else 0.7
        u = (lower + upper) / 2 + (upper - lower) * reach * noise(3, *self.shape)
        for inverse in (False, True):
            ours, theirs = evaluate(self, u, noise, inverse)
            for name, a, b in zip(("value", "log-determinant"), ours, theirs, strict=True):
                error = error_of(a, b)
                if not error < 1e-9:
                    way = " of the inverse" if inverse else ""
                    return f"its {name}{way} differs from the operator's by {error:.1e}: another version of the formula?"
        return None


def outside(x: Tensor, interval: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """Which numbers are not in an interval, by default the box of a spline without tails, for which nflows has an error."""
    return (x < interval[0]) | (x > interval[1])


def read_splines(layer: Any, bins: int, gain: float, shape: Sequence[int]) -> Splines:
    tails, scaled = layer.tails, isinstance(layer.tail_bound, Tensor)
    mixed = list(tails) if isinstance(tails, (list, tuple)) else None
    if any(tail not in ("linear", "circular") for tail in (mixed or [tails or "linear"])):
        raise UnsupportedError(f"its tails are {tails!r}: they have no operator")
    if mixed is not None and len(shape) > 1:
        raise UnsupportedError("its tails differ, of images")
    bound = 1.0 if scaled else layer.tail_bound
    least = layer.min_bin_width, layer.min_bin_height, layer.min_derivative
    whole = tails is None or mixed is not None
    interval = (0.0, 1.0) if tails is None else (-bound, bound)
    map = spline(bins, interval, "softplus", *least, 1.0, gain, tails="unconstrained" if whole else tails)
    return Splines(map, mixed, scaled and tails is not None, shape)


# -- elementwise layers -------------------------------------------------------------------------------------------------


def read_elementwise(layer: Any) -> Splines:
    """A layer that holds the parameters of its splines."""
    *shape, bins = layer.unnormalized_widths.shape
    return read_splines(layer, bins, 1.0, shape)


def held(layer: Any) -> list[Tensor]:
    """Raw widths, heights and derivatives."""
    return [layer.unnormalized_widths, layer.unnormalized_heights, layer.unnormalized_derivatives]


def elementwise_spline(self: Any, inputs: Tensor, inverse: bool = False) -> Pair:
    """The splines of all features, and the sum of their log-derivatives."""
    state = serving(self, inverse)
    if state is not None:
        raw = held(self)
        if state.network.take(self, inputs, raw) and inputs.shape[1:] == state.network.shape:
            return _summed(state.network(self, inputs, raw, inverse))
    theirs: Pair = own(self, "_spline")(self, inputs, inverse)
    return theirs


def _summed(found: Pair) -> Pair:
    return found[0], found[1].flatten(1).sum(1)


def _compare_elementwise(layer: Any, network: Splines, u: Tensor, noise: Callable[..., Tensor], inverse: bool) -> Any:
    x = network.unscaled(layer, u)
    return _summed(network(layer, x, held(layer), inverse)), type(layer)._spline(layer, x, inverse)


ELEMENTWISE_SPLINE = Layer(read_elementwise, _compare_elementwise, {"_spline": elementwise_spline})
