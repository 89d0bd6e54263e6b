"""Every operator in what PyTorch puts around it: opcheck, torch.compile, autocast, inference mode, tensors without values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accuracy import device_of, using
from calls import Example, outputs_of
from case import Case, Variation
from contract import CASES, EACH_CASE, check_registered, on_each_kernel
from torch import Tensor

import flowkern as fk


@on_each_kernel(lambda case: case.compiled)
def test_opcheck(case: Case, kernels: str, entry: Variation) -> None:
    check_registered(case, kernels, entry)


def loss(outputs: tuple[Tensor, ...]) -> Tensor:
    total = sum(o.square().mean() for o in outputs)
    assert isinstance(total, Tensor)
    return total


@on_each_kernel(lambda case: case.compiled)
@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_without_graph_breaks(case: Case, kernels: str, entry: Variation, compiler: str) -> None:
    if kernels == "triton" and compiler == "inductor" and device_of(kernels).type == "cpu":
        pytest.skip("the interpreter cannot run inside Inductor's code")
    torch._dynamo.reset()  # one code object, more cases than it may be compiled for
    example = case.draw(case.rows(kernels, 40), 0, **entry)
    leaves = example.leaves(torch.float32, kernels)

    def call(*tensors: Tensor) -> Tensor:
        given = {k: t * 2 if k in example.rows else t for k, t in zip(leaves, tensors, strict=True)}
        return loss(outputs_of(case.operator(**example.arguments(given))))

    tensors = list(leaves.values())
    options: Any = {"allow_unused": True, "materialize_grads": True}
    torch.compiler.reset()  # torch counts all operators as recompilations of one function
    with using(kernels):
        compiled = torch.compile(call, fullgraph=True, backend=compiler)
        expected, found = call(*tensors), compiled(*tensors)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(
            torch.autograd.grad(found, tensors, **options), torch.autograd.grad(expected, tensors, **options)
        )
        with torch.no_grad():
            torch.testing.assert_close(compiled(*tensors), expected)


@pytest.mark.parametrize("case", [case for case in CASES if case.oracle_compiles], ids=lambda case: case.name)
def test_a_forced_oracle_compiles(case: Case) -> None:
    torch.compiler.reset()  # torch counts all operators as recompilations of one function
    example = case.draw(5, 0, **next(iter(case.smooth.values())))
    leaves = example.leaves(torch.float64)

    def call(tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return outputs_of(case.operator(**example.arguments(tensors)))

    with fk.backend("reference"):
        torch.testing.assert_close(torch.compile(call, fullgraph=True, backend="aot_eager")(leaves), call(leaves))


@on_each_kernel()
def test_autocast_keeps_the_maps_exact_and_gradients_in_their_dtype(case: Case, kernels: str) -> None:
    device = device_of(kernels)
    example = case.draw(case.rows(kernels, 50), 0, **next(iter(case.smooth.values())))
    found = {}
    for backend in (kernels, "reference"):
        leaves = example.leaves(torch.float32, kernels)
        with using(backend), torch.autocast(device.type, torch.bfloat16):
            outputs = outputs_of(case.operator(**example.arguments(leaves)))
        assert all(o.dtype == torch.float32 for o in outputs)
        total = sum(o.sin().sum() for o in outputs)
        options: Any = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
        with using(backend):
            grads = torch.autograd.grad(total, list(leaves.values()), **options)
            graphed = torch.autograd.grad(total, list(leaves.values()), create_graph=True, **options)
            second = sum(g.square().sum() for g in graphed)
            again = torch.autograd.grad(second, list(leaves.values()), **options)
        assert all(g.dtype == torch.float32 for g in grads)
        assert all(torch.isfinite(g).all() for g in again)
        torch.testing.assert_close(grads, graphed, rtol=0.05, atol=0.02 * max(float(g.abs().max()) for g in grads))
        found[backend] = [*outputs, *grads]
    for kernel, oracle in zip(found[kernels], found["reference"], strict=True):
        torch.testing.assert_close(kernel, oracle, rtol=0.05, atol=0.02 * float(oracle.detach().abs().max()))


def without_gradient(case: Case, example: Example, tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return outputs_of(case.operator(**example.arguments(tensors)))


@on_each_kernel()
def test_inference_mode(case: Case, kernels: str) -> None:
    example = case.draw(5, 0)
    with using(kernels):
        expected = without_gradient(case, example, example.leaves(torch.float32, kernels, grads=False))
        with torch.inference_mode():
            inside = example.leaves(torch.float32, kernels, grads=False)
            found = outputs_of(case.operator(**example.arguments(inside)))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@EACH_CASE
def test_tensors_without_values_have_shapes(case: Case) -> None:
    example = case.draw(5, 0)
    leaves = example.leaves(torch.float32, grads=False)
    expected = without_gradient(case, example, leaves)
    found = without_gradient(case, example, {k: t.to("meta") for k, t in leaves.items()})
    assert [(o.shape, o.dtype, o.device.type) for o in found] == [(o.shape, o.dtype, "meta") for o in expected]
