"""Splines of both families: the libraries' own, knots and bounds, collapsed bins, round trips, derivatives."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from accuracy import LONG_DOUBLES, Pool, device_of
from torch import Tensor

import flowkern as fk
from flowkern.univariate import PARAMETRIZATIONS, TAILS, RationalLinear, RationalQuadratic

BACKENDS = pytest.mark.parametrize("backend", ["native", "reference"])
Map = RationalQuadratic | RationalLinear
Parts = tuple[Tensor, ...]


def drawn(map: Map, count: int, dtype: torch.dtype = torch.float64, spread: float = 1.5, seed: int = 0) -> Parts:
    """Raw widths, heights and derivatives of so many elements, and where there are divisions those."""
    generator = torch.Generator().manual_seed(seed)
    sizes = Counter(name.split()[0] for name in map.names).values()
    return tuple((spread * torch.randn(count, n, generator=generator, dtype=torch.float64)).to(dtype) for n in sizes)


def points(map: Map, count: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    """Numbers in the interval and beyond, a quarter of its length to either side."""
    lower, upper = map.interval
    part = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (lower + (upper - lower) * (1.5 * part - 0.25)).to(dtype)


def apply(map: Map, x: Tensor, parts: Parts, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """The map of every element, and its own log-slope: the coupling of rows of one feature."""
    parameters = torch.cat(parts, -1).unsqueeze(-2).unbind(-1)
    z, log_slope = fk.ops.coupling(x.unsqueeze(-1), *parameters, transformed=slice(None), map=map, inverse=inverse)
    return z.squeeze(-1), log_slope


# -- the libraries' own

NFLOWS = pytest.importorskip("nflows.transforms.splines.rational_quadratic")
SOFTPLUS: dict[str, Any] = {"parametrization": "softplus"}


def of_nflows(x: Tensor, parts: Parts, inverse: bool) -> tuple[Tensor, Tensor]:
    return NFLOWS.unconstrained_rational_quadratic_spline(x, *parts, inverse=inverse, tail_bound=3.0)


def of_nflows_in_a_box(x: Tensor, parts: Parts, inverse: bool) -> tuple[Tensor, Tensor]:
    return NFLOWS.rational_quadratic_spline(x, *parts, inverse=inverse)


def of_an_nflows_coupling(x: Tensor, parts: Parts, inverse: bool) -> tuple[Tensor, Tensor]:
    widths, heights, derivatives = parts
    return of_nflows(x, (widths / 64**0.5, heights / 64**0.5, derivatives), inverse)


def of_glasflow(x: Tensor, parts: Parts, inverse: bool) -> tuple[Tensor, Tensor]:
    splines = pytest.importorskip("glasflow.nflows.transforms.splines.rational_quadratic")
    return splines.unconstrained_rational_quadratic_spline(x, *parts, inverse=inverse, tail_bound=3.0)


def of_normflows(x: Tensor, parts: Parts, inverse: bool) -> tuple[Tensor, Tensor]:
    splines = pytest.importorskip("normflows.utils.splines")
    return splines.unconstrained_rational_quadratic_spline(x, *parts, inverse=inverse, tail_bound=3.0)


def of_circular_normflows(x: Tensor, parts: Parts, inverse: bool) -> tuple[Tensor, Tensor]:
    splines = pytest.importorskip("normflows.utils.splines")
    return splines.unconstrained_rational_quadratic_spline(x, *parts, inverse=inverse, tails="circular", tail_bound=3.0)


def of_zuko(x: Tensor, parts: Parts, inverse: bool) -> tuple[Tensor, Tensor]:
    return by_zuko(pytest.importorskip("zuko.transforms").MonotonicRQSTransform(*parts), x, inverse)


def of_circular_zuko(x: Tensor, parts: Parts, inverse: bool) -> tuple[Tensor, Tensor]:
    return by_zuko(pytest.importorskip("zuko.flows.spline").CircularRQSTransform(*parts), x, inverse)


def by_zuko(transform: Any, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    if not inverse:
        return transform.call_and_ladj(x)
    u = transform.inv(x)
    return u, -transform.call_and_ladj(u)[1]


def of_pyro(x: Tensor, parts: Parts, inverse: bool) -> tuple[Tensor, Tensor]:
    splines = pytest.importorskip("pyro.distributions.transforms.spline")
    widths, heights, derivatives, *lambdas = parts
    given = widths.softmax(-1), heights.softmax(-1), torch.nn.functional.softplus(derivatives), *(t.sigmoid() for t in lambdas)
    return splines._monotonic_rational_spline(x, *given, inverse=inverse, bound=3.0)


LIBRARIES: dict[str, tuple[Callable[..., tuple[Tensor, Tensor]], dict[str, Any]]] = {
    "nflows": (of_nflows, {"interval": (-3, 3), **SOFTPLUS}),
    "nflows, a box": (of_nflows_in_a_box, {"interval": (0, 1), "tails": "unconstrained", **SOFTPLUS}),
    "nflows, a coupling": (
        of_an_nflows_coupling,
        {"interval": (-3, 3), **SOFTPLUS, "settings": (1e-3, 1e-3, 1e-3, 1, 64**-0.5)},
    ),
    "glasflow": (of_glasflow, {"interval": (-3, 3), **SOFTPLUS}),
    "normflows": (of_normflows, {"interval": (-3, 3), **SOFTPLUS}),
    "normflows, circular": (of_circular_normflows, {"interval": (-3, 3), "tails": "circular", **SOFTPLUS}),
    "zuko": (of_zuko, {}),
    "zuko, circular": (of_circular_zuko, {"interval": (-math.pi, math.pi), "shifted": True}),
    "Pyro, quadratic": (of_pyro, {"interval": (-3, 3), **SOFTPLUS, "settings": (1e-3, 1e-3, 1e-3, 0.999, 1)}),
    "Pyro": (of_pyro, {"family": RationalLinear, "interval": (-3, 3), "settings": (1e-3, 1e-3, 1e-3, 0.999, 0.025)}),
}


@BACKENDS
@pytest.mark.parametrize("bins", [2, 8, 50])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("library", LIBRARIES)
def test_it_is_the_librarys_own(library: str, inverse: bool, bins: int, backend: str) -> None:
    function, options = LIBRARIES[library]
    family = options.get("family", RationalQuadratic)
    map = family(bins, **{name: value for name, value in options.items() if name != "family"})
    x, parts = points(map, 3000), drawn(map, 3000)
    lower, upper = map.interval
    if "box" in library or "circular" in library:  # they refuse what is outside, or leave it alone
        x = x[(x > lower) & (x < upper)]
        parts = tuple(t[: len(x)] for t in parts)  # type: ignore[assignment]
    expected = function(x, parts, inverse)
    with fk.backend(backend):
        found = apply(map, x, parts, inverse)
    far = torch.ones_like(x, dtype=torch.bool)
    if "Pyro" in library:  # takes a number up to 1e-6 above a knot to the bin below
        far = ((expected[0] - found[0]).abs() > 1e-12) | ((expected[1] - found[1]).abs() > 1e-9)
        assert far.float().mean() < 1e-3
        far = ~far
    torch.testing.assert_close(found[0][far], expected[0][far], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[1][far], expected[1][far], rtol=1e-8, atol=1e-8)


# -- knots, bounds, tails


def every_map(bins: int, interval: tuple[float, float] = (-2.0, 3.0)) -> list[Map]:
    quadratic = [RationalQuadratic(bins, interval, tails, kind) for tails in TAILS for kind in PARAMETRIZATIONS]
    return [*quadratic, RationalLinear(bins, interval)]


def named(map: Map) -> str:
    return f"{map.family} {map.tails} {map.parametrization}"


@BACKENDS
@pytest.mark.parametrize("bins", [2, 7, 128])
def test_equal_bins_hit_their_knots(bins: int, backend: str) -> None:
    """Knot k of bins of equal size is at k / K of the interval, in either direction, with the derivative that was given."""
    for map in every_map(bins, (0.0, float(bins))):
        derivatives = torch.randn(map.derivatives, dtype=torch.float64)
        widths, heights, _, *divisions = drawn(map, bins)
        parts = torch.zeros_like(widths), torch.zeros_like(heights), derivatives.expand(bins, -1), *divisions
        knots = torch.arange(bins).double()
        raw = {"linear": torch.cat([derivatives.new_zeros(1), derivatives])}.get(map.tails, derivatives)[:bins]
        if map.parametrization == "softplus":
            expected = (1e-3 + torch.nn.functional.softplus(raw)).log()
        else:
            expected = raw / (1 + (raw / math.log(1e-3)).abs())
        if map.tails == "linear":
            expected[0] = 0
        for inverse in (False, True):
            with fk.backend(backend):
                z, log_slope = apply(map, knots, parts, inverse)
            torch.testing.assert_close(z, knots, rtol=1e-13, atol=1e-13)
            torch.testing.assert_close(log_slope, -expected if inverse else expected, rtol=1e-10, atol=1e-10)


@BACKENDS
@pytest.mark.parametrize("inverse", [False, True])
def test_at_and_beyond_the_bounds(inverse: bool, backend: str, dtype: torch.dtype) -> None:
    lower, upper = -2.0, 3.0
    step = 1e-5
    x = torch.tensor([lower, upper, lower - step, upper + step, -1e6, 1e6, lower + step, upper - step], dtype=dtype)
    for map in every_map(8):
        parts = tuple(t.expand(len(x), -1) for t in drawn(map, 1, dtype))
        with fk.backend(backend):
            z, log_slope = apply(map, x, parts, inverse)
        if map.tails == "linear":
            assert torch.equal(z[:6], x[:6])
            assert (log_slope[:6] == 0).all()
        torch.testing.assert_close(z[:2], x[:2], rtol=1e-6, atol=1e-6)
        # Continuous, with a continuous slope.
        torch.testing.assert_close(z[6:], x[:2], rtol=0, atol=2e-3)
        torch.testing.assert_close(log_slope[6:], log_slope[:2], rtol=0, atol=0.1)
        torch.testing.assert_close(log_slope[2:4], log_slope[:2], rtol=0, atol=0.1)
        if map.tails == "unconstrained":
            torch.testing.assert_close(log_slope[4:6], log_slope[:2], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(z[4:6], x[:2] + (x[4:6] - x[:2]) * log_slope[:2].exp(), rtol=1e-5, atol=0)


@BACKENDS
@pytest.mark.parametrize("inverse", [False, True])
def test_circular_splines_repeat(inverse: bool, backend: str) -> None:
    map = RationalQuadratic(5, (-1.0, 2.0), "circular")
    x, parts = points(map, 200), drawn(map, 200)
    with fk.backend(backend):
        z, log_slope = apply(map, x, parts, inverse)
        for turns in (-7, 1, 40):
            again, same = apply(map, x + 3 * turns, parts, inverse)
            torch.testing.assert_close(again, z + 3 * turns)
            torch.testing.assert_close(same, log_slope, rtol=1e-7, atol=1e-7)


# -- numbers


@BACKENDS
@pytest.mark.parametrize("bins", [2, 8, 128])
def test_there_and_back(bins: int, backend: str) -> None:
    for map in every_map(bins):
        x, parts = points(map, 20_000), drawn(map, 20_000, spread=3.0)
        with fk.backend(backend):
            z, log_slope = apply(map, x, parts)
            back, log_back = apply(map, z, parts, inverse=True)
        # What rounding changes in z counts in x by the inverse of the slope.
        error = (back - x).abs() / (1 + torch.exp(-log_slope))
        assert error.max() < 1e-13, error.max()
        torch.testing.assert_close(log_back, -log_slope, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("least", [1e-3, 1e-6])
def test_ten_million_there_and_back(least: float) -> None:
    """In float32, with float64 for the judge: z is rounded once, and the way back is the inverse of that number."""
    map, eps = RationalQuadratic(8, (-3, 3), **SOFTPLUS, settings=(least, least, 1e-3, 1, 1)), torch.finfo(torch.float32).eps
    worst = {"forward": 0.0, "back": 0.0}
    for seed in range(10):
        parts, x = drawn(map, 1_000_000, torch.float32, 2.0, seed), points(map, 1_000_000, torch.float32, seed + 100)
        wide: Parts = tuple(t.double() for t in parts)  # type: ignore[assignment]
        z, log_slope = fk.ops.spline(x, *parts, map=map)
        exact, _ = fk.ops.spline(x.double(), *wide, map=map)
        back, back_slope = fk.ops.spline(z, *parts, map=map, inverse=True)
        exact_back, _ = fk.ops.spline(z.double(), *wide, map=map, inverse=True)
        worst["forward"] = max(worst["forward"], float((z - exact).abs().max()))
        off = (back - exact_back).abs() / (1 + back_slope.double().exp())
        worst["back"] = max(worst["back"], float(off.max()))
        assert all(torch.isfinite(t).all() for t in (z, log_slope, back, back_slope))
    # A unit in the last place of the numbers from 2 to 4, which are the largest, is two eps.
    assert worst["forward"] <= 2 * eps, worst
    assert worst["back"] <= eps, worst


@BACKENDS
@pytest.mark.parametrize("inverse", [False, True])
def test_extreme_parameters_give_finite_numbers_and_gradients(inverse: bool, backend: str, dtype: torch.dtype) -> None:
    """Hugely unequal bins, bins without a width that a float32 can tell from zero, the slopes that go with them."""
    for bins in (2, 8, 128):
        least = (1e-12, 1e-12, 1e-12, 1.0, 1.0)
        maps = [RationalQuadratic(bins, (-2, 3), tails, "softplus", least) for tails in TAILS]
        for map in [*every_map(bins), *maps, RationalLinear(bins, (-2, 3), (*least[:4], 1e-3))]:
            for spread in (0.0, 1e-6, 30.0, 1e4):
                parts = tuple(t.requires_grad_() for t in drawn(map, 400, dtype, spread))
                x = points(map, 400, dtype).requires_grad_()
                with fk.backend(backend):
                    z, log_slope = apply(map, x, parts, inverse)  # type: ignore[arg-type]
                    grads = torch.autograd.grad((z + log_slope).sum(), [x, *parts])
                assert torch.isfinite(z).all()
                assert torch.isfinite(log_slope).all()
                for g in grads:
                    assert not g.isnan().any()
                lower, upper = map.interval
                if map.tails == "linear":
                    outside = (x < lower) | (x >= upper)
                    assert outside.any()
                    assert (grads[0][outside] == 1).all()
                    assert all((g[outside] == 0).all() for g in grads[1:])


@BACKENDS
def test_gradients_at_knots_and_bounds_are_finite(backend: str, dtype: torch.dtype) -> None:
    """The reproductions of flowjax#239 and bayesflow#721: NaN from the branch that is not taken, or from a knot."""
    for map in every_map(4, (-2.0, 2.0)):
        x = torch.tensor([-1e8, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 1e8], dtype=dtype)
        for inverse in (False, True):
            leaf = x.clone().requires_grad_()
            parts = tuple(torch.zeros_like(t, requires_grad=True) for t in drawn(map, len(x), dtype))
            with fk.backend(backend):
                z, log_slope = apply(map, leaf, parts, inverse)  # type: ignore[arg-type]
                first = torch.autograd.grad((z + log_slope).sum(), [leaf, *parts], create_graph=True)
                total = sum(g.square().sum() for g in first)
                second = torch.autograd.grad(total, [leaf, *parts], allow_unused=True, materialize_grads=True)  # type: ignore[arg-type]
            assert all(torch.isfinite(g).all() for g in (z, log_slope))
            assert all(not g.isnan().any() for g in (*first, *second))


@BACKENDS
def test_the_discriminant_is_never_negative(backend: str) -> None:
    """nflows#87: an assertion while sampling, for heights and derivatives that differ by orders of magnitude."""
    map = RationalQuadratic(6, (-1, 1), **SOFTPLUS, settings=(1e-3, 1e-3, 1e-6, 1, 1))
    for seed in range(5):
        parts = drawn(map, 20_000, torch.float32, 12.0, seed)
        with fk.backend(backend):
            u, log_slope = apply(map, points(map, 20_000, torch.float32), parts, inverse=True)
        assert torch.isfinite(u).all()
        assert torch.isfinite(log_slope).all()


@BACKENDS
@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(low: torch.dtype, backend: str) -> None:
    for inverse, map in product((False, True), (RationalQuadratic(8, (-4, 4), **SOFTPLUS), RationalLinear(8, (-4, 4)))):
        x, parts = points(map, 500).to(low), tuple(t.to(low) for t in drawn(map, 500))
        with fk.backend(backend):
            z, log_slope = apply(map, x, parts, inverse)  # type: ignore[arg-type]
        assert z.dtype == log_slope.dtype == low
        exact = map.oracle(x.double(), *torch.cat([t.double() for t in parts], -1).unbind(-1), inverse=inverse)
        eps = torch.finfo(low).eps
        torch.testing.assert_close(z.double(), exact[0], rtol=eps, atol=1e-4)
        torch.testing.assert_close(log_slope.double(), exact[1], rtol=eps, atol=1e-3)


@pytest.mark.parametrize("autocast", [torch.float16, torch.bfloat16])
def test_under_autocast(autocast: torch.dtype) -> None:
    """glasflow#65, normflows#52: splines that break under automatic mixed precision."""
    map = RationalQuadratic(8)
    for layer in (fk.nn.MaskedAutoregressive(4, (16,), map=map), fk.nn.Coupling(4, map, (16,))):
        x = 8 * torch.randn(20, 4)
        with torch.autocast("cpu", autocast):
            z, log_det = layer(x)
            (z.sum() + log_det.sum()).backward()
        expected = layer(x)
        assert z.dtype == log_det.dtype == torch.float32
        torch.testing.assert_close(z, expected[0], rtol=0.05, atol=0.2)
        assert all(torch.isfinite(p.grad).all() for p in layer.parameters() if p.grad is not None)


@pytest.mark.parametrize("map", every_map(3), ids=named)
@pytest.mark.parametrize("inverse", [False, True])
def test_first_and_second_derivatives(map: Map, inverse: bool) -> None:
    x, parts = points(map, 12).requires_grad_(), tuple(t.requires_grad_() for t in drawn(map, 12))
    call = lambda x, *parts: apply(map, x, parts, inverse)  # noqa: E731
    assert torch.autograd.gradcheck(call, (x, *parts))
    assert torch.autograd.gradgradcheck(call, (x, *parts))


def with_longer_digits(map: Map, inverse: bool, x: Any, widths: Any, heights: Any, derivatives: Any, *divisions: Any) -> Any:
    """z and log_slope by the formulas of the paper, in NumPy's complex numbers of 64 bits of mantissa.

    Complex, so that the imaginary part of a result is its derivative by the input that has a small imaginary part.
    """
    lower, upper = (np.longdouble(end) for end in map.interval)
    length, soft = upper - lower, map.parametrization == "soft_clipped_exp"
    least_width, least_height, least_derivative, end, last = (0, 0, 0, 1, 1) if soft else map.settings
    gain = 1 if divisions else last
    slope = np.longdouble(-math.log(map.settings[0]))

    def clipped(a: Any, factor: int) -> Any:
        return a / (1 + factor * np.where(a.real < 0, -a, a) / slope)

    def edges(raw: Any, least: float) -> Any:
        a = clipped(raw, 2) if soft else gain * raw
        parts = np.exp(a - a.real.max(1, keepdims=True))
        sizes = length * (np.longdouble(least) + (1 - map.bins * np.longdouble(least)) * parts / parts.sum(1, keepdims=True))
        return np.concatenate([np.full((len(raw), 1), lower), lower + sizes.cumsum(1)], 1)

    if soft:
        d = np.exp(clipped(derivatives, 1))
    else:
        d = np.longdouble(least_derivative) + np.where(derivatives.real > 0, derivatives, 0)
        d = d + np.log(1 + np.exp(np.where(derivatives.real > 0, -derivatives, derivatives)))
    given = np.full((len(x), 1), np.longdouble(end))
    d = {"linear": [given, d, given], "circular": [d, d[:, :1]], "unconstrained": [d]}[map.tails]
    d = np.concatenate(d, 1)
    across, up = edges(widths, least_width), edges(heights, least_height)
    turns = np.floor((x.real - lower) / length) * length if map.tails == "circular" else 0 * x.real
    u = x - turns
    k = ((up if inverse else across)[:, 1:-1].real <= u.real[:, None]).sum(1)[:, None]
    x0, x1, y0, y1, d0, d1 = (
        np.take_along_axis(t, k + i, 1)[:, 0] for t, i in ((across, 0), (across, 1), (up, 0), (up, 1), (d, 0), (d, 1))
    )
    w, h = x1 - x0, y1 - y0
    s, theta = h / w, (u - x0) / w
    if divisions:
        raw = np.take_along_axis(divisions[0], k, 1)[:, 0]
        z, log_slope = in_halves(last + (1 - 2 * np.longdouble(last)) / (1 + np.exp(-raw)), inverse, u, x0, y0, w, h, d0, d1)
        inside = (u.real >= lower) & (u.real < upper)
        return np.where(inside, z, u), np.where(inside, (-1 if inverse else 1) * log_slope, 0)
    if inverse:
        t = (u - y0) / h
        q = d0 * (1 - t) - d1 * t
        theta = 2 * s * t / (2 * s * t + q + np.sqrt(q * q + 4 * s * s * t * (1 - t)))
    product = theta * (1 - theta)
    bottom = s + (d0 + d1 - 2 * s) * product
    z = x0 + w * theta if inverse else y0 + h * (s * theta**2 + d0 * product) / bottom
    log_slope = np.log(s * s * (d1 * theta**2 + 2 * s * product + d0 * (1 - theta) ** 2) / bottom**2)
    sign = -1 if inverse else 1
    if map.tails == "circular":
        return z + turns, sign * log_slope
    inside = (u.real >= lower) & (u.real < upper)
    beside, at = np.where(u.real < lower, d[:, 0], d[:, -1]), np.where(u.real < lower, lower, upper)
    if map.tails == "linear":
        return np.where(inside, z, u), np.where(inside, sign * log_slope, 0)
    return np.where(inside, z, at + (u - at) * beside**sign), np.where(inside, log_slope, np.log(beside)) * sign


def in_halves(divide: Any, inverse: bool, u: Any, x0: Any, y0: Any, w: Any, h: Any, d0: Any, d1: Any) -> Any:
    """The rational-linear piece by the weights and points of the paper, the first weight being one."""
    wb = np.sqrt(d0 / d1)
    wc = (divide * d0 + (1 - divide) * wb * d1) * w / h
    part = divide * wb / (1 - divide + divide * wb)  # of the height, where the halves meet
    t = (u - y0) / h
    theta = (u - x0) / w
    second = t.real > part.real if inverse else theta.real > divide.real
    if inverse:
        first_half = divide * t / (t + wc * (part - t))
        second_half = 1 - (1 - divide) * wb * (1 - t) / (wb * (1 - t) + wc * (t - part))
        theta = np.where(second, second_half, first_half)
    first, last = divide - theta + wc * theta, wc * (1 - theta) + wb * (theta - divide)
    above = np.where(second, 1 - wc * (1 - part) * (1 - theta) / last, wc * part * theta / first)
    slope = np.where(second, wb * wc * (1 - divide) * (1 - part) / last**2, wc * divide * part / first**2)
    return (x0 + w * theta if inverse else y0 + h * above), np.log(slope * h / w)


WEIGHTS = 0.7, -1.3  # of the two results in a sum


def with_longer_derivatives(map: Map, inverse: bool, inputs: Parts) -> list[Any]:
    """z, log_slope, and the derivatives of their weighted sum by every input, by complex steps."""
    numbers = [t.numpy().astype(np.clongdouble) for t in inputs]
    exact, step = list(with_longer_digits(map, inverse, *numbers)), np.longdouble(1e-40)
    for i, given in enumerate(numbers):
        gradient = np.zeros(given.shape, np.longdouble)
        for column in np.ndindex(given.shape[1:]):
            moved = [t.copy() for t in numbers]
            moved[i][(slice(None), *column)] += 1j * step
            found = with_longer_digits(map, inverse, *moved)
            gradient[(slice(None), *column)] = sum(w * t.imag for w, t in zip(WEIGHTS, found, strict=True)) / step
        exact.append(gradient)
    return exact


def with_derivatives(backend: str, call: Callable[..., tuple[Tensor, Tensor]], inputs: Parts) -> list[Tensor]:
    """The same by a backend."""
    leaves = [t.to(device_of(backend), copy=True).requires_grad_() for t in inputs]
    with fk.backend(backend):
        outputs = call(leaves[0], tuple(leaves[1:]))
    grads = torch.autograd.grad(sum((w * t).sum() for w, t in zip(WEIGHTS, outputs, strict=True)), leaves)  # type: ignore[arg-type]
    return [t.detach().cpu() for t in (*outputs, *grads)]


@LONG_DOUBLES
@pytest.mark.parametrize("map", every_map(6), ids=named)
@pytest.mark.parametrize("inverse", [False, True])
def test_float64_is_as_exact_as_its_oracle(map: Map, inverse: bool) -> None:
    """The rule of accuracy where float64 is not exact enough to be the judge: values, and derivatives by complex steps."""
    # So many, since the largest error of the few worst conditioned elements is what is compared.
    inputs = points(map, 5000), *drawn(map, 5000, spread=1.0)
    exact = with_longer_derivatives(map, inverse, inputs)
    kernels, oracles = (
        with_derivatives(b, lambda x, parts: apply(map, x, parts, inverse), inputs) for b in ("native", "reference")
    )
    names = "z", "log_slope", "x", "widths", "heights", "derivatives", "lambdas"
    for name, kernel, oracle, judge in zip(names[: len(exact)], kernels, oracles, exact, strict=True):
        pool = Pool()
        pool.add_long(kernel, oracle, judge.real)
        pool.check(name, torch.float64, oracles=torch.float64)


@LONG_DOUBLES
@pytest.mark.gpu
@pytest.mark.parametrize("rows", [False, True], ids=["elements", "rows"])
@pytest.mark.parametrize("map", [RationalQuadratic(4, **SOFTPLUS), RationalLinear(4)], ids=named)
def test_a_steep_inverse_in_triton(map: Map, rows: bool) -> None:
    """A narrow and tall bin: a difference of two large numbers would cost the widths' gradient three digits."""
    pytest.importorskip("triton")
    inputs = points(map, 12), *drawn(map, 12, spread=1.0)
    for part, more in zip(inputs[1:4], (-9, 3, 5000), strict=True):
        part[:, 1 if more < 5000 else slice(None)] += more

    def call(x: Tensor, parts: Parts) -> tuple[Tensor, Tensor]:
        return apply(map, x, parts, inverse=True) if rows else fk.ops.spline(x, *parts, map=map, inverse=True)

    found = with_derivatives("triton", call, inputs)
    for kernel, judge in zip(found, with_longer_derivatives(map, True, inputs), strict=True):
        assert abs(kernel.numpy() - judge.real).max() < 1e-14 * abs(judge.real).max()


# -- the value


def test_a_value_and_its_config() -> None:
    map = RationalQuadratic(6, [-3, 3], "circular", "softplus")
    assert map == RationalQuadratic(**map.config)
    assert map.settings == (1e-3, 1e-3, 1e-3, 1.0, 1.0)
    assert [RationalQuadratic(6, tails=tails).count for tails in TAILS] == [17, 18, 19]
    assert map.names[5:7] == ("width 5", "height 0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bins": 1}, "bins: expected a whole number of at least 2, got 1"),
        ({"bins": 129}, "bins: expected at most 128, got 129"),
        ({"interval": (1, 1)}, r"interval: expected finite ends in order, got \(1.0, 1.0\)"),
        ({"interval": 3}, r"interval: expected two numbers such as \(-5, 5\), got 3"),
        ({"interval": (0, math.inf)}, "interval: expected finite ends"),
        ({"shifted": True, "tails": "circular"}, "shifted: expected linear tails of an interval about zero, got circular ones"),
        ({"shifted": True, "interval": (0, 1)}, "shifted: expected linear tails of an interval about zero, got linear ones"),
        ({"tails": "flat"}, "tails: expected one of linear, circular, unconstrained, got 'flat'"),
        ({"parametrization": "exp"}, "parametrization: expected one of soft_clipped_exp, softplus, got 'exp'"),
        ({"settings": (1e-3, 1)}, "settings: the parametrization 'soft_clipped_exp' takes 1, got 2"),
        ({"settings": "ab"}, "settings: expected numbers, got 'ab'"),
        ({"settings": (1.5,)}, "settings: expected a slope between 0 and 1, got 1.5"),
        ({**SOFTPLUS, "settings": (0.2, 1e-3, 1e-3, 1, 1)}, "settings: expected a least width and height above 0 that 8 bins"),
        ({**SOFTPLUS, "settings": (1e-3, 1e-3, 0, 1, 1)}, "settings: expected a least width .* got"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RationalQuadratic(**options)


def test_a_rational_linear_value_and_its_config() -> None:
    map = RationalLinear(6, [-3, 3])
    assert map == RationalLinear(**map.config)
    assert map.count == 23
    assert map.names[16:18] == ("derivative 4", "lambda 0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bins": 129}, "bins: expected at most 128, got 129"),
        ({"interval": (1, 1)}, r"interval: expected finite ends in order, got \(1.0, 1.0\)"),
        ({"settings": (1e-3, 1)}, "settings: a rational-linear spline takes 5, got 2"),
        ({"settings": (0.2, 1e-3, 1e-3, 1, 0.1)}, "settings: expected a least width and height above 0 that 8 bins"),
        ({"settings": (1e-3, 1e-3, 1e-3, 1, 0.5)}, "settings: expected a least part of a bin between 0 and 0.5, got 0.5"),
    ],
)
def test_what_a_rational_linear_spline_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RationalLinear(**options)
