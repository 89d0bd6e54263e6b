"""Univariate maps as values: what they are equal to, how operators and layers take them, what they refuse."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import flowkern as fk
from flowkern import _library
from flowkern.univariate import PLACEMENTS, SCALES, Affine, affine_map


def test_a_map_is_a_value() -> None:
    map, same, other = Affine("sigmoid", "gate", (1, 0.1)), Affine("sigmoid", "gate", [1.0, 0.1]), Affine("sigmoid", "gate")
    assert map == same
    assert hash(map) == hash(same)
    assert map != other
    assert len({map, same, other}) == 2
    assert copy.deepcopy(map) is map
    again = pickle.loads(pickle.dumps(map))
    assert again == map
    assert torch.equal(again.numbers, map.numbers)
    assert Affine(**map.config) == map
    with pytest.raises(AttributeError):
        map.scale = "exp"  # type: ignore[misc]


def test_the_numbers_of_a_map() -> None:
    """csrc/include/flowkern/univariate.h reads them in this order."""
    found = Affine("tanh", "shift_scale", (2.0, 0.5)).numbers.tolist()
    assert found == [0, 2, 6, 2, *[0] * 6, 2.0, 0.5, *[0] * 6]
    assert Affine("none").numbers.tolist()[:4] == [0, 1, 0, 1]


@pytest.mark.skipif(_library._C is None, reason="needs the extension")
def test_the_build_knows_the_family() -> None:
    assert Affine.kind in _library.MAPS


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_names_and_values_are_the_same_map(scale: str, placement: str) -> None:
    named, map = {"scale": scale, "placement": placement}, Affine(scale, placement)
    assert affine_map(scale, placement, None) == map
    layer = fk.nn.MaskedAutoregressive(3, (8,), map=map)
    x, given = torch.randn(5, 3), {k: v for k, v in layer.arguments().items() if k != "map"}
    for operator in (fk.ops.autoregressive, fk.ops.autoregressive_inverse):
        for one, other in zip(operator(x, **given, map=map), operator(x, **given, **named), strict=True):
            assert torch.equal(one, other)
    parts = [torch.randn(5, 2) for _ in map.names]
    for one, other in zip(
        fk.ops.coupling(x, *parts, transformed=slice(1, 3), map=map),
        fk.ops.coupling(x, *parts, transformed=slice(1, 3), **named),
        strict=True,
    ):
        assert torch.equal(one, other)


NO_MAP = "map: expected a flowkern.univariate.UnivariateMap, got "


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Affine("exponential"), ValueError, "scale: expected one of none, exp"),
        (lambda: Affine("exp", "anywhere"), ValueError, "placement: expected one of scale_shift"),
        (lambda: Affine("exp", constants=(1.0,)), ValueError, "constants: the scale map 'exp' takes 0, got 1"),
        (lambda: Affine("tanh", constants=3), ValueError, "constants: expected numbers, got 3"),
        (lambda: Affine("tanh", constants="1"), ValueError, "constants: expected numbers, got '1'"),
        (lambda: affine_map(["exp"], "gate", None), ValueError, "scale: expected one of"),
        (lambda: fk.nn.Coupling(4, "exp"), TypeError, NO_MAP + "str"),
        (
            lambda: fk.nn.MaskedAutoregressive(4, map="exp"),
            TypeError,
            NO_MAP + "str",
        ),
        (lambda: fk.flows.MAF(4, map=3), TypeError, NO_MAP + "int"),
        (lambda: apply("exp"), TypeError, NO_MAP + "str"),
        (lambda: apply(Affine("none")), ValueError, r"plan: Affine\(.*\) takes 1 parameters per feature, the plan has 2"),
        (lambda: couple("exp"), TypeError, NO_MAP + "str"),
        (lambda: couple(Affine("exp")), ValueError, r"raw: expected a tensor, since Affine\(.*\) takes shift, raw, got None"),
    ],
)
def test_what_is_refused(call: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()  # type: ignore[operator]


def apply(map: object) -> object:
    given = fk.nn.MaskedAutoregressive(3, (8,)).arguments()
    return fk.ops.autoregressive(torch.randn(5, 3), **{**given, "map": map})


def couple(map: object) -> object:
    return fk.ops.coupling(torch.randn(5, 3), torch.randn(5, 1), transformed=slice(1), map=map)
