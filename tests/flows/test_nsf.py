"""Neural spline flows: a new one is the identity, both kinds invert, what they refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import flowkern as fk
from flowkern.univariate import PARAMETRIZATIONS, TAILS, RationalQuadratic


@pytest.mark.parametrize("coupling", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_a_new_flow_is_the_identity(coupling: bool, skip: bool) -> None:
    x = 3 * torch.randn(50, 4)
    for tails in TAILS:
        for kind in PARAMETRIZATIONS:
            map = RationalQuadratic(6, (-2, 3), tails, kind)
            flow = fk.flows.NSF(4, 3, (16,), coupling=coupling, skip=skip and not coupling, map=map)
            z, log_det = flow.transform(x)
            torch.testing.assert_close(z, x, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(log_det, torch.zeros(50), rtol=0, atol=1e-4)


@pytest.mark.parametrize("coupling", [False, True])
def test_there_and_back_with_a_context(coupling: bool) -> None:
    flow = fk.flows.NSF(5, 3, (16, 16), context=2, coupling=coupling, bins=4).double()
    for p in flow.parameters():
        p.data += 0.2 * torch.randn_like(p)
    x, context = 3 * torch.randn(40, 5).double(), torch.randn(40, 2).double()
    z, log_det = flow.transform(x, context)
    back, log_back = flow.transform.inverse(z, context)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(log_back, -log_det)
    with fk.backend("reference"):
        torch.testing.assert_close(flow.transform(x, context), (z, log_det))
    flow.log_prob(x, context).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in flow.parameters())


def on_circles(coupling: bool, features: int, circular: Any, circle: Any, context: int = 0) -> fk.flows.NSF:
    options = {"bins": 4, "coupling": coupling, "circular": circular, "circle": circle, "context": context}
    flow = fk.flows.NSF(features, 3, (16, 16), **options).double()
    for p in flow.parameters():
        p.data += 0.2 * torch.randn_like(p)
    return flow


@pytest.mark.parametrize("coupling", [False, True])
def test_a_density_around_a_circle_and_along_a_line(coupling: bool) -> None:
    """It is one around the circle times the line, and meets itself where the circle is cut, and between two turns of it."""
    flow = on_circles(coupling, 2, [1], (-90, 270))
    line, angles = torch.linspace(-9, 9, 600).double(), torch.linspace(-90, 270, 361)[:-1].double()
    x = torch.stack(torch.meshgrid(line, angles, indexing="ij"), -1)
    density = flow.log_prob(x).exp()
    torch.testing.assert_close(density.sum() * (18 / 599), torch.ones(()).double(), rtol=0, atol=2e-3)
    assert density.std(1).max() > 1e-4  # which the angle matters to
    ends = torch.tensor([[0.3, -90 + 1e-7], [0.3, 270 - 1e-7], [0.3, 270 + 1e-7], [0.3, 630 - 1e-7]]).double()
    torch.testing.assert_close(flow.log_prob(ends), flow.log_prob(ends[:1]).expand(4), rtol=0, atol=1e-6)
    torch.testing.assert_close(flow.log_prob(x[::9, ::7] - torch.tensor([0.0, 1080.0])), flow.log_prob(x[::9, ::7]))


@pytest.mark.parametrize("coupling", [False, True])
@pytest.mark.parametrize(("circular", "circle"), [((3, 0), ((0, 1), (-2, 4))), (True, (0, 2 * math.pi))])
def test_there_and_back_on_circles(coupling: bool, circular: Any, circle: Any) -> None:
    flow, context = on_circles(coupling, 4, circular, circle, 2), torch.randn(40, 2).double()
    x = flow.sample((), context)
    ends = torch.tensor(circle, dtype=torch.float64).expand(len(flow.circular), 2)
    angles = x[:, list(flow.circular)]
    assert flow.circular == ((0, 3) if circular is not True else (0, 1, 2, 3))
    assert ((angles >= ends[:, 0]) & (angles <= ends[:, 1])).all()
    turned = x.clone()
    turned[:, list(flow.circular)] += 2 * (ends[:, 1] - ends[:, 0])
    torch.testing.assert_close(flow.log_prob(turned, context), flow.log_prob(x, context), rtol=0, atol=1e-10)
    z, log_det = flow.transform(x, context)
    back, log_back = flow.transform.inverse(z, context)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(log_back, -log_det)
    loss = flow.log_prob(x, context).sum()
    parameters = list(flow.parameters())
    grads = torch.autograd.grad(loss, parameters)
    with fk.backend("reference"):
        expected = flow.log_prob(x, context).sum()
        torch.testing.assert_close(torch.autograd.grad(expected, parameters), grads, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(loss, expected)


def test_circular_features_keep_their_units() -> None:
    x = torch.cat([1e4 + 100 * torch.randn(200, 1), 360 * torch.rand(200, 1)], 1)
    flow = fk.flows.NSF(2, 2, (8,), circular=[1], circle=(0, 360))
    flow.fit(x, epochs=1, progress=False)
    assert flow.transform.transforms[0].std.tolist()[1] == 1
    samples = flow.sample((100,))
    assert (samples[:, 0] > 9e3).all()
    assert samples[:, 1].max() > 180
    assert ((samples[:, 1] >= 0) & (samples[:, 1] <= 360)).all()
    data = fk.data.Dataset("angles", *[fk.data.Rows(x)] * 3)
    assert fk.data.encoding(data, keep=flow.circular).std[1] == 1
    with pytest.raises(ValueError, match="temperature: the noise of circular features is uniform"):
        flow.sample((1,), temperature=0.5)


def test_couplings_take_turns() -> None:
    layers = fk.flows.NSF(4, 2, (8,), coupling=True).transform.transforms
    assert [layer.transformed.tolist() for layer in layers] == [[False, True, False, True], [True, False, True, False]]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"bins": 1}, ValueError, "bins: expected a whole number of at least 2, got 1"),
        ({"interval": (3, -3)}, ValueError, "interval: expected finite ends in order"),
        ({"interval": "15"}, ValueError, "interval: expected two numbers such as"),
        ({"coupling": True, "skip": True}, ValueError, "skip: coupling transforms have plain networks, got True"),
        ({"map": fk.univariate.Affine()}, TypeError, "map: expected a flowkern.univariate.RationalQuadratic, got Affine"),
        ({"transforms": 0}, ValueError, "transforms: expected a whole number of at least 1, got 0"),
        ({"circular": [4]}, ValueError, r"circular: expected True or distinct features from 0 to 3, got \[4\]"),
        ({"circular": [0], "circle": (1, 1)}, ValueError, "circle: expected the ends of an interval such as"),
        ({"circle": (0, 360)}, ValueError, r"circle: expected circular features, .* got \(0, 360\) and none of them"),
        ({"circular": True, "activation": "tanh"}, ValueError, "activation: masked networks of circular features have relu"),
        ({"circular": True, "tails": "unconstrained"}, ValueError, "map: circular features and others with linear tails"),
        ({"circular": True, "batch_norm": True}, ValueError, "batch_norm: it would change the units of circular features"),
        ({"circular": True, "skip": True}, ValueError, "circular: masked networks of circular features are plain"),
        ({"coupling": True, "transforms": 0}, ValueError, "transforms: expected a whole number of at least 1, got 0"),
    ],
)
def test_what_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fk.flows.NSF(4, **{"hidden": (8,), **options})
