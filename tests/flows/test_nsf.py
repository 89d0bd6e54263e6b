"""Neural spline flows: a new one is the identity, both kinds invert, what they refuse."""

from __future__ import annotations

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


def test_couplings_take_turns() -> None:
    layers = fk.flows.NSF(4, 2, (8,), coupling=True).transform.transforms
    assert [layer.transformed.tolist() for layer in layers] == [[False, True, False, True], [True, False, True, False]]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"bins": 1}, ValueError, "bins: expected a whole number of at least 2, got 1"),
        ({"interval": (3, -3)}, ValueError, "interval: expected finite ends in order"),
        ({"coupling": True, "skip": True}, ValueError, "skip: coupling transforms have plain networks, got True"),
        ({"map": fk.univariate.Affine()}, TypeError, "map: expected a flowkern.univariate.RationalQuadratic, got Affine"),
        ({"transforms": 0}, ValueError, "transforms: expected a whole number of at least 1, got 0"),
        ({"coupling": True, "transforms": 0}, ValueError, "transforms: expected a whole number of at least 1, got 0"),
    ],
)
def test_what_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fk.flows.NSF(4, **{"hidden": (8,), **options})
