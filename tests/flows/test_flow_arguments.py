"""Errors name the argument, what was expected and what came."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import Normal

import flowkern as fk
from flowkern import nn as fnn
from flowkern.flows import IAF, MAF, Flow, PartlyUniform, StandardNormal
from flowkern.models import MADE

X, CONTEXT = torch.randn(5, 4), torch.randn(5, 2)
NEITHER_TENSOR = [(X.numpy(), "ndarray"), (X.tolist(), "list"), (None, "NoneType")]
GRADIENT = pytest.mark.parametrize("gradient", [True, False], ids=["with gradient", "without"])


def densities() -> dict[str, Any]:
    categorical = MADE(4, "categorical", (8,), categories=3)
    return {
        "maf": MAF(4, 2, (8,)),
        "iaf": IAF(4, 2, (8,)),
        "made": MADE(4, "gaussian", (8,)),
        "categorical": categorical,
        "coupling": Flow([fnn.AffineCoupling(4, (8,))]),
        "mixed": Flow([fnn.MaskedAutoregressive(4, (8,)), fnn.Reverse(4)]),
    }


@GRADIENT
@pytest.mark.parametrize("name", densities())
def test_densities_of_what_is_no_fitting_tensor(name: str, gradient: bool) -> None:
    model = densities()[name]
    with torch.set_grad_enabled(gradient):
        for value, kind in NEITHER_TENSOR:
            with pytest.raises(TypeError, match=f"^x: expected a torch.Tensor, got {kind}$"):
                model.log_prob(value)
        with pytest.raises(ValueError, match=r"^x: expected shape \(\.\.\., 4\), got \(5, 3\)$"):
            model.log_prob(X[:, :3])
        with pytest.raises(TypeError, match=r"^x: expected dtype torch.float32 like .*, got torch.float64$"):
            model.log_prob(X.double())


@GRADIENT
@pytest.mark.parametrize("kind", [MAF, IAF, MADE])
def test_contexts(kind: Any, gradient: bool) -> None:
    model, free = kind(4, hidden=(8,), context=2), kind(4, hidden=(8,))
    with torch.set_grad_enabled(gradient):
        for value, name in NEITHER_TENSOR[:2]:
            for call in (lambda c: model.log_prob(X, c), lambda c: model.sample((2,), c), lambda c: free.log_prob(X, c)):
                with pytest.raises(TypeError, match=f"^context: expected a torch.Tensor, got {name}$"):
                    call(value)
        with pytest.raises(
            ValueError, match=r"^context: expected batch shapes that broadcast with \(5,\), got shapes \(3, 2\)$"
        ):
            model.log_prob(X, CONTEXT[:3])
        with pytest.raises(ValueError, match=r"^context: expected shape \(\.\.\., 2\), got \(5, 3\)$"):
            model.log_prob(X, torch.randn(5, 3))


@GRADIENT
def test_models_without_values(gradient: bool) -> None:
    """On the meta device a model gives tensors without values, as torch's modules do, and takes no others."""
    with torch.set_grad_enabled(gradient):
        for name, model in densities().items():
            model.to("meta")
            with pytest.raises(ValueError, match=r"^x: expected device meta like .*, got cpu$"):
                model.log_prob(X)
            assert model.log_prob(X.to("meta")).is_meta
            if name != "categorical":  # torch.multinomial needs values
                assert model.sample((2,)).is_meta
            with pytest.raises(ValueError, match=r"^x: expected device cpu like .*, got meta$"):
                densities()[name].log_prob(X.to("meta"))


@pytest.mark.parametrize(
    ("shape", "error", "message"),
    [
        (3, TypeError, "shape: expected a tuple of sizes such as (3,), got 3"),
        (2.5, TypeError, "shape: expected a tuple of sizes such as (3,), got 2.5"),
        ((2.5,), TypeError, "shape: expected a tuple of sizes such as (3,), got (2.5,)"),
        ("ab", TypeError, "shape: expected a tuple of sizes such as (3,), got 'ab'"),
        (None, TypeError, "shape: expected a tuple of sizes such as (3,), got None"),
        ((-1,), ValueError, "shape: expected sizes of at least 0, got (-1,)"),
        ((2, -3), ValueError, "shape: expected sizes of at least 0, got (2, -3)"),
    ],
)
def test_sample_shapes(shape: Any, error: type[Exception], message: str) -> None:
    flow, made = MAF(4, 1, (8,)), MADE(4, "gaussian", (8,))
    for draw in (flow.sample, flow.rsample, flow.rsample_and_log_prob, made.sample, StandardNormal(4).rsample):
        with pytest.raises(error, match=f"^{re.escape(message)}$"):
            draw(shape)


def test_sizes_of_every_kind_are_taken() -> None:
    flow = MAF(np.int64(4), np.int64(1), np.array([8, 8]), context=np.int32(2))
    assert flow.features == 4
    for shape in ([2, 3], torch.Size((2, 3)), (np.int64(2), np.int64(3)), torch.tensor([2, 3])):
        assert flow.sample(shape, CONTEXT).shape == (2, 3, 5, 4)


@pytest.mark.parametrize("generator", [3, np.random.default_rng(0)])
def test_generators(generator: Any) -> None:
    expected = rf"^generator: expected a torch\.Generator such as .*, got {type(generator).__name__}$"
    flow, made = MAF(4, 1, (8,)), MADE(4, "gaussian", (8,))
    for draw in (flow.sample, flow.rsample, flow.rsample_and_log_prob, made.sample):
        with pytest.raises(TypeError, match=expected):
            draw((2,), generator=generator)
    for kind in (MAF, IAF, MADE, fnn.MADE, fnn.MaskedAutoregressive):
        with pytest.raises(TypeError, match=expected):
            kind(4, hidden=(8,), generator=generator)


@pytest.mark.parametrize("chunk_size", [0, -1, 2.5, "3", True])
def test_chunk_sizes(chunk_size: Any) -> None:
    for model in (MAF(4, 1, (8,)), MADE(4, "gaussian", (8,))):
        with pytest.raises(ValueError, match=f"^chunk_size: expected a whole number of at least 1, got {chunk_size!r}$"):
            model.sample((3,), chunk_size=chunk_size)


class Short:
    """A base whose samples lack a feature."""

    def log_prob(self, z: torch.Tensor) -> torch.Tensor:
        return z.sum(-1)

    def rsample(self, shape: torch.Size) -> torch.Tensor:
        return torch.randn(*shape, 3)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: MAF(4, transforms=2.0), ValueError, "transforms: expected a whole number of at least 1, got 2.0"),
        (lambda: MAF(4, order=[0, 1]), ValueError, "order: expected one of natural, reverse, random, got [0, 1]"),
        (lambda: MAF(4, constants=3), ValueError, "constants: expected numbers, got 3"),
        (
            lambda: MAF(4, constants=(0,)),
            ValueError,
            "constants: the scale map 'soft_clipped_exp' takes numbers but 0, got (0.0,)",
        ),
        (
            lambda: MAF(4, scale="clamped_exp", constants=(1, -1)),
            ValueError,
            "constants: the scale map 'clamped_exp' takes numbers in order, got (1.0, -1.0)",
        ),
        (lambda: MAF(4, activation={}), ValueError, "activation: expected one of "),
        (lambda: IAF(4, scale=""), ValueError, "scale: expected one of "),
        (lambda: PartlyUniform(4, [4], (0, 1)), ValueError, "uniform: expected True or distinct features from 0 to 3, got [4]"),
        (lambda: PartlyUniform(4, [0], 1), ValueError, "interval: expected two numbers such as (-5, 5), got 1"),
        (lambda: MAF(4, standardize=3), TypeError, "standardize: expected a flowkern.nn.Standardize, got int"),
        (lambda: MAF(4, embedding=3), TypeError, "embedding: expected a torch.nn.Module, got int"),
        (lambda: MAF(4, base="normal"), TypeError, "base: expected an object with log_prob and rsample, got str"),
        (lambda: MAF(4, base=MAF(3)), ValueError, "base: expected event shape (4,), got (3,)"),
        (lambda: MAF(4, base=Normal(0, 1)), ValueError, "base: expected event shape (4,), got (); a distribution of"),
        (lambda: MAF(4, base=Short()).sample((2,)), ValueError, "base: expected samples of shape (2, 4), got (2, 3)"),
        (lambda: Flow(fnn.Reverse(4)), TypeError, "transforms: expected a sequence of transforms, got Reverse"),
        (lambda: Flow([fnn.Reverse(4), 3]), TypeError, "transforms[1]: expected a flowkern.nn.Transform, got int"),
        (
            lambda: MADE(4, head=fnn.Gaussian),
            ValueError,
            "head: expected one of bernoulli, categorical, gaussian, mixture, logistics or",
        ),
        (
            lambda: MADE(4, "categorical", categories=2.5),
            ValueError,
            "categories: expected a whole number of at least 2, got 2.5",
        ),
        (lambda: MADE(4, categories=1), ValueError, "categories: expected a whole number of at least 2, got 1"),
        (lambda: MADE(4, levels="8"), ValueError, "levels: expected a whole number of at least 2, got '8'"),
        (lambda: MADE(4, "mixture", components=0), ValueError, "components: expected a whole number of at least 1, got 0"),
        (lambda: StandardNormal(2.5), ValueError, "event_shape: expected a whole number of at least 1, got 2.5"),
        (lambda: StandardNormal(4).log_prob(X[:, :3]), ValueError, "z: expected shape (..., 4), got (5, 3)"),
        (lambda: MAF(4).calibrate(X.numpy()), TypeError, "x: expected a torch.Tensor, got ndarray"),
        (lambda: MAF(4).calibrate(X[0]), ValueError, "x: expected shape (n, 4) with at least one row, got (4,)"),
        (lambda: MAF(4).calibrate(X, batch_size=0), ValueError, "batch_size: expected a whole number of at least 1, got 0"),
        (
            lambda: MAF(4, context=2).calibrate(X, CONTEXT[:3]),
            ValueError,
            "context: expected one row, or 5 like x, got shape (3, 2)",
        ),
        (lambda: fk.frozen(3).__enter__(), TypeError, "model: expected a torch.nn.Module, got int"),
    ],
)
def test_what_else_does_not_fit(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        make()
