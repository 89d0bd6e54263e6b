"""Errors name the argument, what was expected and what came."""

from __future__ import annotations

import inspect
import math
import re
from typing import Any

import numpy as np
import pytest
import torch

import flowkern as fk
from flowkern import nn as fnn
from flowkern.univariate import RationalQuadratic

X = torch.randn(5, 4)
NETWORKS = pytest.mark.parametrize("kind", [fnn.MADE, fnn.MaskedAutoregressive, fnn.InverseAutoregressive])


def layers() -> dict[str, Any]:
    return {
        "masked": fnn.MaskedAutoregressive(4, hidden=(8,)),
        "inverse": fnn.InverseAutoregressive(4, hidden=(8,)),
        "coupling": fnn.AffineCoupling(4, hidden=(8,)),
        "compose": fnn.Compose([fnn.MaskedAutoregressive(4, hidden=(8,)), fnn.Reverse(4)]),
        "reverse": fnn.Reverse(4),
        "standardize": fnn.Standardize(torch.zeros(4), torch.ones(4)),
        "batch norm": fnn.BatchNorm(4).eval(),
    }


@pytest.mark.parametrize("name", layers())
def test_inputs_of_both_directions(name: str) -> None:
    layer = layers()[name]
    for function, argument in ((layer, "x"), (layer.inverse, "z")):
        for value, kind in ((X.numpy(), "ndarray"), (X.tolist(), "list"), (None, "NoneType")):
            with pytest.raises(TypeError, match=f"^{argument}: expected a torch.Tensor, got {kind}$"):
                function(value)
        with pytest.raises(TypeError, match=f"^{argument}: expected a floating-point tensor, got dtype torch.int64$"):
            function(X.long())
        with pytest.raises(ValueError, match=rf"^{argument}: expected shape \(\.\.\., 4\), got \(5, 3\)$"):
            function(X[:, :3])
        with pytest.raises(ValueError, match=f"^{argument}: expected device cpu like .*, got meta$"):
            function(X.to("meta"))


def test_inputs_of_networks() -> None:
    network = fnn.MADE(4, 2, (8,), context=2)
    context = torch.randn(5, 2)
    for call, error, message in (
        (lambda: network([0.0], context), TypeError, "x: expected a torch.Tensor, got list"),
        (
            lambda: network(X.double(), context),
            TypeError,
            "x: expected dtype torch.float32 like the weights, got torch.float64",
        ),
        (
            lambda: network(X, context[:3]),
            ValueError,
            "context: expected batch shapes that broadcast with (5,), got shapes (3, 2)",
        ),
        (lambda: network(X, context, mask=1), ValueError, "mask: expected a whole number below 1, got 1"),
        (lambda: network(X, context, mask="first"), ValueError, "mask: expected a whole number below 1, got 'first'"),
        (lambda: fnn.MaskedLinear(torch.ones(2, 4))(X.tolist()), TypeError, "input: expected a torch.Tensor, got list"),
        (lambda: fnn.MaskedLinear(torch.ones(2, 3))(X), ValueError, "input: expected shape (..., 3), got (5, 4)"),
    ):
        with pytest.raises(error, match=f"^{re.escape(message)}$"):
            call()


@NETWORKS
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"features": 3.0}, ValueError, "features: expected a whole number of at least 1, got 3.0"),
        ({"features": True}, ValueError, "features: expected a whole number of at least 1, got True"),
        ({"hidden": 8}, TypeError, "hidden: expected a sequence of widths such as (64, 64), got 8"),
        ({"hidden": None}, TypeError, "hidden: expected a sequence of widths such as (64, 64), got None"),
        ({"hidden": (8.0,)}, ValueError, "hidden: expected positive widths, got (8.0,)"),
        ({"order": [0, 1]}, ValueError, "order: expected a permutation of 0 to 3, got [0, 1]"),
        ({"order": [0.5, 1, 2, 3]}, ValueError, "order: expected a permutation of 0 to 3, got [0.5, 1.0, 2.0, 3.0]"),
        ({"order": None}, TypeError, "order: expected a tensor or a list of numbers, got None"),
    ],
)
def test_networks(kind: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        kind(**{"features": 4, "hidden": (8,), **options})


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fnn.AffineCoupling(4, hidden=8), TypeError, "hidden: expected a sequence of widths such as (64, 64), got 8"),
        (lambda: fnn.AffineCoupling(4.0), ValueError, "features: expected a whole number of at least 2, got 4.0"),
        (lambda: fnn.AffineCoupling(4, network=abs), TypeError, "network: expected a torch.nn.Module, got builtin_function"),
        (lambda: fnn.AffineCoupling(4)(X.double()), TypeError, "x: expected dtype torch.float32 like the weights, got torch"),
        (lambda: fnn.BatchNorm(2.5), ValueError, "features: expected a whole number of at least 1, got 2.5"),
        (lambda: fnn.BatchNorm(2, eps=-1), ValueError, "eps: expected a number of at least 0, got -1"),
        (lambda: fnn.BatchNorm(2, eps=math.inf), ValueError, "eps: expected a number of at least 0, got inf"),
        (lambda: fnn.IsotropicGaussian("1"), ValueError, "std: expected a number above 0, got '1'"),
        (lambda: fnn.MaskedConv2d(1, 1, 3), ValueError, "kernel: expected rows and columns such as (3, 3), got 3"),
        (lambda: fnn.MaskedConv2d(1, 1, (3,)), ValueError, "kernel: expected rows and columns such as (3, 3), got (3,)"),
        (lambda: fnn.ZeroConv2d(0, 1), ValueError, "inputs: expected a whole number of at least 1, got 0"),
        (lambda: fnn.WeightNormConv2d(1, 1, 0), ValueError, "size: expected a whole number of at least 1, got 0"),
        (lambda: fnn.Wrap(2, interval=1), ValueError, "interval: expected two numbers such as (-5, 5), got 1"),
        (lambda: fnn.Wrap(2, interval=(1, 1)), ValueError, "interval: expected finite ends in order, got (1.0, 1.0)"),
        (lambda: fnn.Wrap(2, turn=math.nan), ValueError, "turn: expected a number, got nan"),
        (lambda: fnn.BatchNorm(2, momentum=True), ValueError, "momentum: expected a number between 0 and 1, or None, got True"),
        (lambda: fnn.BatchNorm((True,)), TypeError, "features: expected a tuple of sizes such as (3,), got (True,)"),
        (lambda: fnn.BatchNorm(2, momentum=2), ValueError, "momentum: expected a number between 0 and 1, or None, got 2"),
        (
            lambda: fnn.BatchNorm(4).set_statistics(X[:0]),
            ValueError,
            "x: expected shape (n, 4) with at least one row, got (0, 4)",
        ),
        (lambda: fnn.Reverse(0), ValueError, "features: expected a whole number of at least 1, got 0"),
        (lambda: fnn.Permutation([]), ValueError, "order: expected a permutation of 0 to n - 1, got []"),
        (lambda: fnn.Permutation([0.5, 1]), ValueError, "order: expected a permutation of 0 to n - 1, got [0.5, 1.0]"),
        (lambda: fnn.Permutation(None), TypeError, "order: expected a tensor or a list of numbers, got None"),
        (lambda: fnn.MaskedLinear("ab"), TypeError, "mask: expected a tensor or a list of numbers, got 'ab'"),
        (lambda: fnn.Standardize(None, None), TypeError, "mean: expected a tensor or a list of numbers, got None"),
        (
            lambda: fnn.Standardize(torch.zeros(2), torch.ones(2).double()),
            TypeError,
            "std: expected dtype torch.float32 like mean, got torch.float64",
        ),
        (lambda: fnn.Standardize([0.0, np.nan], [1.0, 1.0]), ValueError, "mean: expected finite numbers, got [0.0, nan]"),
        (
            lambda: fnn.Standardize.fit(torch.tensor([[1.0, 2.0, 3.0], [1.5, 2.0, 3.0]])),
            ValueError,
            "std: expected positive deviations; a constant feature has no density; got 0.0 for feature 1 and 1 more",
        ),
        (
            lambda: fnn.Standardize.fit(X[:1]),
            ValueError,
            "x: expected shape (n, *event shape) with at least two rows, got (1, 4)",
        ),
    ],
)
def test_other_layers(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        make()


def flags() -> list[tuple[Any, str]]:
    """All constructors' arguments that are true or false."""
    classes = [getattr(room, name) for room in (fnn, fk.flows, fk.models) for name in room.__all__]
    modules = [kind for kind in classes if inspect.isclass(kind) and issubclass(kind, torch.nn.Module)]
    taken = ((kind, p) for kind in modules for p in inspect.signature(kind.__init__).parameters.values())
    return [(kind, p.name) for kind, p in taken if p.annotation == "bool"]


@pytest.mark.parametrize(("kind", "name"), flags())
@pytest.mark.parametrize("value", ["no", 1, None])
def test_what_is_neither_true_nor_false(kind: Any, name: str, value: Any) -> None:
    needed: dict[str, Any] = {"features": 4, "hidden": (8,), "map": RationalQuadratic()}
    own = {fnn.MaskedLinear: {"mask": torch.ones(2, 3)}, fk.models.PixelCNN: {"hidden": 8}}.get(kind, {})
    taken = inspect.signature(kind.__init__).parameters
    with pytest.raises(ValueError, match=f"^{name}: expected True or False, got {re.escape(repr(value))}$"):
        kind(**{key: given for key, given in needed.items() if key in taken} | own | {name: value})


def test_flags_of_numpy() -> None:
    layer = fnn.InverseAutoregressive(4, (8,), gated=np.True_, residual=np.bool_(False))  # type: ignore[arg-type]
    assert layer.config["gated"] is True
    assert (layer.map.scale, layer.network.residual) == ("sigmoid", False)  # type: ignore[attr-defined]


def test_arrays_and_lists_where_numbers_are_expected() -> None:
    data = np.random.default_rng(0).normal(3, 2, (50, 4)).astype(np.float32)
    fitted = fnn.Standardize.fit(data)
    torch.testing.assert_close(fitted.std, torch.from_numpy(data).std(0))
    assert fnn.Permutation(np.array([1, 0])).order.tolist() == [1, 0]
    assert fnn.MADE(3, hidden=torch.tensor([8]), order=np.array([2, 0, 1])).order.tolist() == [2, 0, 1]
    with torch.device("meta"):
        assert fnn.Reverse(3).order.is_meta
