"""Circular features, such as angles: both ends of their interval are one point, in the networks and in the splines."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowkern._checks import interval as checked_interval
from flowkern._checks import number, numbers, whole_number
from flowkern.config import configured
from flowkern.nn.constants import Constants
from flowkern.nn.log_det import batch_log_det
from flowkern.nn.made import MADE
from flowkern.nn.transform import Unconditional
from flowkern.plan import AutoregressivePlan, Conditioner
from flowkern.univariate import RationalQuadratic, UnivariateMap

VERTICES = 16  # of the polygon that a masked network sees in place of a circle


def circular_features(circular: bool | Sequence[int], features: int, name: str = "circular") -> tuple[int, ...]:
    """The circular ones of some features, in order: all for ``True``, else those of the numbers."""
    if isinstance(circular, bool):
        return tuple(range(features)) if circular else ()
    found = numbers(name, circular, "cpu")
    if found.numel() == 0:
        return ()
    chosen = sorted(found.flatten().tolist())
    whole = found.dim() == 1 and not found.is_floating_point() and found.dtype is not torch.bool
    if not whole or chosen[0] < 0 or chosen[-1] >= features or len(set(chosen)) < len(chosen):
        raise ValueError(f"{name}: expected True or distinct features from 0 to {features - 1}, got {found.tolist()}")
    return tuple(chosen)


def circular_map(map: UnivariateMap) -> RationalQuadratic:
    """The map whose parameters :class:`Tie` gives, for circular features and others with the tails of ``map``."""
    if not isinstance(map, RationalQuadratic) or map.tails != "linear" or map.shifted:
        raise ValueError(f"map: circular features and others with linear tails need a RationalQuadratic of these, got {map}")
    return RationalQuadratic(map.bins, map.interval, "unconstrained", map.parametrization, map.settings)


class Wrap(Constants, Unconditional):
    r"""Angles as numbers of an interval: :math:`z = l + L\,\mathrm{frac}((x - a) / P + t)` for circular features.

    The circle [a, a + P) becomes the interval [l, l + L), and angles whole turns apart are the same. Other features pass as
    they are.

    Args:
        features: number of features.
        circular: which are circular: ``True`` for all, or their numbers.
        circle: the interval (a, a + P) of their angles, or one for each of them.
        interval: that of z.
        turn: the part t of a turn that is added: what is at the ends of one layer's interval is in the middle of another's.

    Raises:
        ValueError: for features that are none, or an interval that is none.

    Example:
        >>> import torch
        >>> wrap = Wrap(2, [0], circle=(0, 360), interval=(-1, 1))
        >>> wrap(torch.tensor([[90.0, 7.0], [450.0, 7.0]]))[0]
        tensor([[-0.5000,  7.0000],
                [-0.5000,  7.0000]])

    References:
        Normalizing Flows on Tori and Spheres (Rezende et al., 2020), section 2.2.
    """

    chosen: Tensor
    start: Tensor
    period: Tensor

    @configured
    def __init__(
        self,
        features: int,
        circular: bool | Sequence[int] = True,
        circle: Sequence[float] | Sequence[Sequence[float]] = (-math.pi, math.pi),
        interval: Sequence[float] = (-1.0, 1.0),
        turn: float = 0.0,
    ) -> None:
        super().__init__()
        self.features = whole_number("features", features, 1)
        self.circular = places = list(circular_features(circular, features))
        ends = numbers("circle", circle, "cpu", torch.float64)
        if ends.shape not in ((2,), (len(places), 2)) or not ((ends[..., 1] > ends[..., 0]) & ends.isfinite().all(-1)).all():
            raise ValueError(
                f"circle: expected the ends of an interval such as (0, 360), or those of {len(places)}, got {ends.tolist()}"
            )
        self.lower, upper = checked_interval("interval", interval)
        self.length, self.turn = upper - self.lower, number("turn", turn)
        ends = ends.expand(len(places), 2)
        chosen = torch.zeros(features, dtype=torch.bool, device="cpu")
        start, period = chosen.double(), 1 - chosen.double()
        chosen[places], start[places], period[places] = True, ends[:, 0], ends[:, 1] - ends[:, 0]
        self.log_det = float((math.log(self.length) - period[places].log()).sum())
        for name, t in {"chosen": chosen, "start": start, "period": period}.items():
            self.constant(name, t)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("x", x, self.chosen)
        turns = (x - self.start.to(x)) / self.period.to(x) + self.turn
        z = torch.where(self.chosen, self.lower + self.length * _fraction(turns), x)
        return z, batch_log_det(x.new_full((), self.log_det), x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("z", z, self.chosen)
        turns = (z - self.lower) / self.length - self.turn
        x = torch.where(self.chosen, self.start.to(z) + self.period.to(z) * _fraction(turns), z)
        return x, batch_log_det(z.new_full((), -self.log_det), z)

    def extra_repr(self) -> str:
        return f"{self.features}, circular={self.circular}, turn={self.turn}"


def _fraction(turns: Tensor) -> Tensor:
    return turns - turns.floor().detach()


class Tie(Constants, nn.Module):
    """The last layer of a network that gives the parameters of :func:`circular_map`: both ends of a spline are tied.

    Those of a circular feature have one derivative, its first; those of the others the derivative one, so that what
    is outside of the interval passes as it is.

    Args:
        map: the map.
        circular: for each feature whether it is circular.
        parameter_major: whether the layer gives all that are parameter 0 first, not the parameters of a feature together.
    """

    rows: Tensor
    free: Tensor
    given: Tensor

    def __init__(self, map: RationalQuadratic, circular: Sequence[bool], parameter_major: bool = False) -> None:
        super().__init__()
        first, last = 2 * map.bins, map.count - 1
        features = torch.tensor(circular, device="cpu")
        rows = torch.arange(len(features) * map.count, device="cpu").view(len(features), map.count)
        rows[:, last] = rows[:, first]
        free = torch.ones_like(rows, dtype=torch.bool)
        free[:, [first, last]] = features[:, None]
        if parameter_major:  # row p F + f in the place of f P + p
            rows = rows % map.count * len(features) + rows // map.count
            rows, free = rows.t(), free.t()
        given = (~free).double() * map.identity[-1]
        for name, t in {"rows": rows, "free": free, "given": given}.items():
            self.constant(name, t.flatten())

    def forward(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias as they are used."""
        free = self.free.to(weight)
        return weight[self.rows] * free[:, None], bias[self.rows] * free + self.given.to(bias)


class PeriodicMADE(Constants, MADE):
    r"""A masked network that sees each circular feature as a point of a polygon, and gives the parameters of a tied spline.

    The corners of the polygon are on the circle; its start is the origin. A first layer of fixed weights, rectified numbers
    u = max(x - knot, 0), and the sum of these with the slope that changes at a knot make a function of x that
    is linear between the corners and the same at both ends of the interval. So it is layers of the network that all kernels
    know, in either direction. Features that are not circular pass as max(x, 0) - max(-x, 0).

    Args:
        features, hidden, context, activation, order, degrees, generator: see :class:`MADE`; the activation is ``"relu"``.
        map: that of :func:`circular_map`, whose interval is the circle.
        circular: numbers of the circular features.
    """

    sources: Tensor
    signs: Tensor
    knots: Tensor
    columns: Tensor
    factors: Tensor

    def __init__(
        self,
        features: int,
        map: RationalQuadratic,
        hidden: Sequence[int],
        context: int,
        activation: str,
        order: str | Sequence[int] | Tensor,
        degrees: str,
        generator: torch.Generator | None,
        circular: tuple[int, ...],
    ) -> None:
        if activation != "relu":
            raise ValueError(f"activation: masked networks of circular features have relu, got {activation!r}")
        self.circular = circular  # before the plan is made
        super().__init__(features, map.count, hidden, context, activation, order, degrees, generator=generator)
        self.tie = Tie(map, [d in circular for d in range(features)])
        units = [unit for d in range(features) for unit in self._units(d, map.interval)]
        sources, signs, knots, first, second, cosines, sines = zip(*units, strict=True)
        tables = {"sources": sources, "columns": first + second, "signs": signs, "knots": knots, "factors": cosines + sines}
        for name, values in tables.items():
            dtype = torch.int64 if name in ("sources", "columns") else torch.float64
            self.constant(name, torch.tensor(values, dtype=dtype, device="cpu"))

    def _columns(self) -> int:
        return self.features + len(self.circular)

    def _units(self, feature: int, interval: tuple[float, float]) -> list[tuple[int, float, float, int, int, float, float]]:
        """Of the first layer: feature, sign, knot; the columns of the next one that they are part of, and the factors."""
        if feature not in self.circular:
            return [(feature, sign, 0.0, feature, feature, sign, 0.0) for sign in (1.0, -1.0)]
        lower, step = interval[0], (interval[1] - interval[0]) / VERTICES
        second = self.features + self.circular.index(feature)
        corners = [(math.cos(2 * math.pi * k / VERTICES), math.sin(2 * math.pi * k / VERTICES)) for k in range(VERTICES + 1)]
        slopes = [((b[0] - a[0]) / step, (b[1] - a[1]) / step) for a, b in itertools.pairwise(corners)]
        changes = zip(slopes, [(0.0, 0.0), *slopes], strict=False)
        return [
            (feature, 1.0, lower + k * step, feature, second, now[0] - before[0], now[1] - before[1])
            for k, (now, before) in enumerate(changes)
        ]

    def _of_masks(self, masks: list[Tensor]) -> AutoregressivePlan:
        sources = [d for d in range(self.features) for _ in range(VERTICES if d in self.circular else 2)]
        reads = torch.tensor(sources, device="cpu")[:, None] == torch.arange(self.features, device="cpu")
        return AutoregressivePlan(
            [reads, masks[0][:, sources], *masks[1:]],
            parameters=self.outputs,
            activation=self.activation,
            context=self.context,
            conditioners=[Conditioner(1)] if self.context else (),
            biases=[True] * (len(masks) + 1) + [False] * bool(self.context),
        )

    def _parameter_lists(self) -> tuple[list[Tensor], list[Tensor]]:
        weights, biases = super()._parameter_lists()
        weights[-1], biases[-1] = self.tie(weights[-1], biases[-1])
        own, given = weights[0].split((self._columns(), self.context), 1)
        signs, knots, factors = (t.to(own) for t in (self.signs, self.knots, self.factors))
        reads = own.new_zeros(len(signs), self.features).scatter_(1, self.sources[:, None], signs[:, None])
        first, second = (own[:, self.columns] * factors).chunk(2, 1)
        weights = [reads, first + second, *weights[1:], *([given] if self.context else [])]
        return weights, [-knots, *biases]


class PeriodicMLP(Constants, nn.Sequential):
    """Linear layers with an activation between each two, which see circular features by cosine and sine, for a coupling.

    Args:
        layers: the first reads a sine for each circular feature after all else.
        circular: the places of the circular ones among the features that it sees.
        map, transformed: that of :func:`circular_map`, and whether each transformed feature is circular.
    """

    seen: Tensor

    def __init__(
        self, layers: Iterable[nn.Module], circular: Sequence[int], map: RationalQuadratic, transformed: Sequence[bool]
    ) -> None:
        super().__init__(*layers)
        self.add_module("tie", Tie(map, transformed, parameter_major=True))
        self.lower, self.length = map.interval[0], map.interval[1] - map.interval[0]
        self.constant("seen", torch.tensor(circular, dtype=torch.int64, device="cpu"))

    def forward(self, x: Tensor) -> Tensor:
        angles = (x.index_select(-1, self.seen) - self.lower) * (2 * math.pi / self.length)
        x = torch.cat([x.index_copy(-1, self.seen, angles.cos()), angles.sin()], -1)
        *layers, last, tie = self
        for layer in layers:
            x = layer(x)
        return F.linear(x, *tie(last.weight, last.bias))
