"""The oracles themselves: values by hand, and the Jacobian from autograd."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from networks import network

from flowkern import reference
from flowkern.ops._network import optional_biases
from flowkern.univariate import Affine

MASKS = [torch.tensor([[1, 0]], dtype=torch.bool), torch.tensor([[0], [0], [1], [1]], dtype=torch.bool)]
WEIGHTS = [torch.tensor([[2.0, 9.0]]), torch.tensor([[9.0], [9.0], [0.5], [0.25]])]
BIASES = [torch.tensor([1.0]), torch.tensor([0.1, 0.2, 0.3, 0.4])]


def test_a_network_by_hand() -> None:
    # h = relu(2 x0 + 1); (t0, a0) = (0.1, 0.2); (t1, a1) = (0.5 h + 0.3, 0.25 h + 0.4)
    out = reference.masked_mlp(torch.tensor([[1.5, 7.0]]), WEIGHTS, BIASES, MASKS)
    torch.testing.assert_close(out, torch.tensor([[0.1, 0.2, 2.3, 1.4]]))


def test_a_flow_by_hand() -> None:
    x = torch.tensor([[1.5, 7.0]])
    z, log_det = reference.autoregressive(x, WEIGHTS, BIASES, MASKS)
    torch.testing.assert_close(z, torch.tensor([[1.4 * math.exp(-0.2), 4.7 * math.exp(-1.4)]]))
    torch.testing.assert_close(log_det, torch.tensor([-1.6]))
    back, inverse_log_det = reference.autoregressive_inverse(z, WEIGHTS, BIASES, MASKS)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(inverse_log_det, torch.tensor([1.6]))


@pytest.mark.parametrize("normal", [None, "output", "input"])
def test_a_chain_by_hand(normal: str | None) -> None:
    # (1.5, 7) -> (7, 1.5) -> (-3, 10) -> (2, 5.5) -> as above with h = relu(2 * 2 + 1)
    x = torch.tensor([[1.5, 7.0]])
    shift, scale = torch.tensor([1.0, -1.0]), torch.tensor([-2.0, 0.25])
    steps = [
        partial(reference.permutation, order=(1, 0)),
        partial(reference.elementwise, shift=shift, scale=scale, inverse=True),
        partial(reference.elementwise, shift=torch.tensor([-1.0, 0.5]), scale=torch.tensor([-1.0, 0.5])),
        partial(reference.autoregressive, weights=WEIGHTS, biases=BIASES, masks=MASKS),
    ]
    z, total = reference.autoregressive_chain(x, steps, normal)
    expected = torch.tensor([[1.9 * math.exp(-0.2), (5.5 - 2.8) * math.exp(-1.65)]])
    log_det = -math.log(2 * 0.25) + math.log(0.5) - 0.2 - 1.65
    log_normal = {None: 0.0, "output": -0.5 * float(expected.square().sum()), "input": -0.5 * (1.5**2 + 7**2)}[normal]
    sign = -1 if normal == "input" else 1
    constant = 0 if normal is None else -math.log(2 * math.pi)
    torch.testing.assert_close(z, expected)
    torch.testing.assert_close(total, torch.tensor([log_normal + constant + sign * log_det]))


def test_activations_by_hand() -> None:
    from flowkern.reference.masked_mlp import activate

    x = torch.tensor([-1.0, 2.0])
    expected = {
        "identity": [-1, 2],
        "relu": [0, 2],
        "leaky_relu": [-0.01, 2],
        "elu": [math.expm1(-1), 2],
        "gelu": [-0.5 * math.erfc(1 / math.sqrt(2)), 2 - math.erfc(2 / math.sqrt(2))],
        "silu": [-1 / (1 + math.e), 2 / (1 + math.exp(-2))],
        "tanh": [math.tanh(-1), math.tanh(2)],
        "sigmoid": [1 / (1 + math.e), 1 / (1 + math.exp(-2))],
        "softplus": [math.log1p(math.exp(-1)), math.log1p(math.exp(2))],
    }
    for name, values in expected.items():
        constant = {"leaky_relu": 0.01, "elu": 1.0}.get(name, 0.0)
        torch.testing.assert_close(activate(name, x, constant), torch.tensor(values, dtype=torch.float32))


@pytest.mark.parametrize("function", [reference.autoregressive, reference.autoregressive_inverse])
@pytest.mark.parametrize("masks", ["made", "dag"])
def test_jacobian_and_log_det(function, masks: str) -> None:  # type: ignore[no-untyped-def]
    net = network(6, (20, 20), masks=masks, activation="tanh", seed=4)
    x = torch.randn(6, dtype=torch.float64)

    def call(v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        biases = optional_biases(net.plan, net.biases)
        return function(v, net.weights, biases, net.plan.masks, **net.plan.structure)

    jacobian = torch.autograd.functional.jacobian(lambda v: call(v)[0], x)
    level = net.plan.feature_levels
    upper = (level[None, :] >= level[:, None]) & ~torch.eye(6, dtype=torch.bool)
    assert (jacobian[upper] == 0).all()
    torch.testing.assert_close(call(x)[1], torch.linalg.slogdet(jacobian).logabsdet)


def test_one_sweep_in_plain_torch_is_the_oracle() -> None:
    """The fall-back of the inverse, with everything that a network can have."""
    from flowkern.ops.autoregressive_inverse import _sweep_inverse

    for options in ({}, {"masks": "dag"}, {"hidden": (9, 9, 9), "residual": True}, {"skip": True}, {"hidden": ()}):
        net = network(7, **{"hidden": (12, 9), "addends": (0,), **options})  # type: ignore[arg-type]
        z, addend = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, net.plan.addend_widths[0], dtype=torch.float64)
        found = partial(_sweep_inverse, net.plan, Affine())(z, net.weights, net.biases, [addend])
        exact = reference.autoregressive_inverse(
            z, net.weights, optional_biases(net.plan, net.biases), net.plan.masks, addends={0: addend}, **net.plan.structure
        )
        torch.testing.assert_close(found, exact)
