"""Run by test_second_family.py in a copy of the package to which the family's three files were added."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accuracy import check_rule, using
from torch import Tensor

import flowkern as fk
from flowkern.univariate.two_sided import TwoSided

MAP = TwoSided(0.25)
FEATURES, BATCH = 5, 37
Case = tuple[Callable[..., Any], list[Tensor]]


def autoregressive(operator: Callable[..., Any]) -> Case:
    layer = fk.nn.MaskedAutoregressive(FEATURES, (16, 16), map=MAP)
    given, count = layer.arguments(), 3
    call = lambda x, *rest: operator(x, rest[:count], rest[count:], given["plan"], map=MAP)  # noqa: E731
    parameters = [torch.randn_like(t) * 0.2 for t in (*given["weights"], *given["biases"])]
    return call, [torch.randn(BATCH, FEATURES), *parameters]


def coupling(inverse: bool) -> Case:
    call = lambda x, *p: fk.ops.coupling(x, *p, transformed=slice(1, None, 2), map=MAP, inverse=inverse)  # noqa: E731
    return call, [torch.randn(BATCH, FEATURES), *(torch.randn(BATCH, 2) for _ in MAP.names)]


CASES: dict[str, Callable[[], Case]] = {
    "autoregressive": lambda: autoregressive(fk.ops.autoregressive),
    "autoregressive_inverse": lambda: autoregressive(fk.ops.autoregressive_inverse),
    "coupling": lambda: coupling(False),
    "inverse coupling": lambda: coupling(True),
}
PAIRS = [(name, kernels) for name in CASES for kernels in ("native", "cuda" if name == "autoregressive_inverse" else "triton")]


@pytest.mark.parametrize(("name", "kernels"), PAIRS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients(name: str, kernels: str, dtype: torch.dtype) -> None:
    def evaluate(seed: int, dtype: torch.dtype, kernels: str) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        call, inputs = CASES[name]()
        leaves = [t.to(dtype).requires_grad_() for t in inputs]
        with using(kernels):
            z, log_det = call(*leaves)
            grads = torch.autograd.grad((z * torch.arange(1, FEATURES + 1)).sum() + (log_det * 1.5).sum(), leaves)
        named = {f"gradient {i}": g for i, g in enumerate(grads)}
        return {"value": z.detach(), "log_det": log_det.detach(), **named}

    check_rule(itertools.islice(itertools.count(), 40), evaluate, dtype, kernels=kernels)


@pytest.mark.parametrize("name", CASES)
def test_first_and_second_derivatives(name: str) -> None:
    call, inputs = CASES[name]()
    leaves = [(t[:3] if t.shape[0] == BATCH else t).double().requires_grad_() for t in inputs]
    torch.autograd.gradcheck(call, leaves)
    torch.autograd.gradgradcheck(call, leaves[:1] + [t.detach() for t in leaves[1:]])


def test_a_flow_of_such_layers() -> None:
    flow = fk.flows.Flow(
        [
            fk.nn.MaskedAutoregressive(4, (16,), map=MAP),
            fk.nn.Reverse(4),
            fk.nn.Coupling(4, MAP, hidden=(16,)),
            fk.nn.InverseAutoregressive(4, (16,), map=TwoSided()),
        ]
    )
    x = torch.randn(9, 4)
    assert torch.allclose(torch.compile(flow.log_prob, fullgraph=True)(x), flow.log_prob(x), atol=1e-5)
    with torch.no_grad():  # neighbours in one call
        z, log_det = flow.transform(x)
        back, log_det_back = flow.transform.inverse(z)
    assert torch.allclose(back, x, atol=1e-4)
    assert torch.allclose(log_det, -log_det_back, atol=1e-4)
    flow.log_prob(x).sum().backward()
    assert all(p.grad is not None for p in flow.parameters())


def test_a_build_without_its_kernels_uses_plain_pytorch() -> None:
    class Unbuilt(TwoSided):
        kind = 1001

    layer = fk.nn.MaskedAutoregressive(4, (16,), map=Unbuilt())
    other = fk.nn.MaskedAutoregressive(4, (16,), map=TwoSided())
    other.load_state_dict(layer.state_dict())
    x = torch.randn(6, 4)
    with pytest.warns(RuntimeWarning, match="this build has no kernels for two_sided maps"):
        z, log_det = layer(x)
    assert torch.allclose(z, other(x)[0], atol=1e-5)
    assert torch.allclose(log_det, other(x)[1], atol=1e-5)
