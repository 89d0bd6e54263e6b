"""Every operator's derivatives: of every order, of some inputs only, and under torch.func."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from accuracy import stands_in, using
from calls import Example, outputs_of
from case import Case, Variation
from contract import EACH_CASE, on_each_kernel
from torch import Tensor


def as_function(case: Case, example: Example, kernels: str = "native") -> tuple[Callable[..., Any], list[Tensor]]:
    """The operator as a function of all its tensors in float64, and these; of its outputs those that depend on something."""
    leaves = example.leaves(torch.float64, kernels)

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        with using(kernels):
            outputs = outputs_of(case.operator(**example.arguments(dict(zip(leaves, tensors, strict=True)))))
        # The log-determinant of an additive map is a constant.
        return tuple(o for o in outputs if o.requires_grad) if any(t.requires_grad for t in tensors) else outputs

    return call, list(leaves.values())


@on_each_kernel(lambda case: case.smooth)
def test_gradcheck_and_gradgradcheck(case: Case, kernels: str, entry: Variation) -> None:
    function, leaves = as_function(case, case.draw(3, 0, **entry), kernels)
    # Every entry for the first variation, random directions for others, and for Triton's kernels, whose interpreter is slow.
    first = entry == next(iter(case.smooth.values()))
    fast = not first or kernels == "triton"
    assert torch.autograd.gradcheck(function, leaves, fast_mode=fast)
    # What is differentiated twice is the oracle's; one call shows that kernels in a stand-in come to it, which takes them long.
    if first or not stands_in(kernels):
        assert torch.autograd.gradgradcheck(function, leaves, fast_mode=fast)


@EACH_CASE
def test_third_derivatives_are_those_of_the_oracle(case: Case) -> None:
    for variation in case.smooth.values():
        example = case.draw(4, 0, **variation)

        def third(kernels: str, example: Example = example) -> list[Tensor]:
            function, leaves = as_function(case, example, kernels)
            total = sum(o.sin().sum() for o in function(*leaves))
            for _ in range(3):
                found = torch.autograd.grad(total, leaves, create_graph=True, allow_unused=True, materialize_grads=True)
                total = sum(g.sin().sum() for g in found)
            return list(found)

        torch.testing.assert_close(third("native"), third("reference"))


@on_each_kernel()
def test_gradients_where_only_some_inputs_need_them(case: Case, kernels: str) -> None:
    example = case.draw(3, 0, **next(iter(case.smooth.values())))
    function, leaves = as_function(case, example, kernels)

    def gradients(needed: list[int]) -> list[Tensor]:
        tensors = [t.detach().requires_grad_(i in needed) for i, t in enumerate(leaves)]
        total = sum(o.sum() for o in function(*tensors))
        return list(torch.autograd.grad(total, [tensors[i] for i in needed], allow_unused=True, materialize_grads=True))

    everything = gradients(list(range(len(leaves))))
    for i in range(len(leaves)):
        torch.testing.assert_close(gradients([i])[0], everything[i])


@on_each_kernel()
def test_first_derivatives_after_second_ones_are_the_kernels_own(case: Case, kernels: str) -> None:
    """A backward pass that will be differentiated runs in plain PyTorch: the same gradients."""
    function, leaves = as_function(case, case.draw(3, 0, **next(iter(case.smooth.values()))), kernels)
    total = sum(o.sin().sum() for o in function(*leaves))
    options: Any = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    plain = torch.autograd.grad(total, leaves, create_graph=True, **options)
    torch.testing.assert_close(plain, torch.autograd.grad(total, leaves, **options))


def of_rows(case: Case, example: Example) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """The first output as a function of the tensors of rows, the parameters being constants."""
    leaves = example.leaves(torch.float64, grads=False)

    def call(*rows: Tensor) -> Tensor:
        given: Mapping[str, Tensor] = {**leaves, **dict(zip(example.rows, rows, strict=True))}
        return outputs_of(case.operator(**example.arguments(given)))[0]

    return call, tuple(leaves[name] for name in example.rows)


@EACH_CASE
def test_torch_func_transforms(case: Case) -> None:
    for variation in case.smooth.values():
        check_transforms(*of_rows(case, case.draw(5, 0, **variation)))


def check_transforms(call: Callable[..., Tensor], rows: tuple[Tensor, ...]) -> None:
    jacobian = torch.autograd.functional.jacobian
    expected = torch.stack([jacobian(lambda v, row=row: call(v, *row[1:]), row[0]) for row in zip(*rows, strict=True)])
    torch.testing.assert_close(torch.func.vmap(call)(*rows), call(*rows))
    torch.testing.assert_close(torch.func.vmap(torch.func.jacrev(call))(*rows), expected)
    torch.testing.assert_close(torch.func.vmap(torch.func.jacfwd(call))(*rows), expected)
    first, *rest = rows
    event = tuple(range(1 - first.dim(), 0))  # the dimensions of a row
    outputs = tuple(range(1, expected.dim() - len(event)))
    summed = expected.sum(outputs) if outputs else expected
    torch.testing.assert_close(torch.func.grad(lambda v: call(v, *rest).sum())(first), summed)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(first, torch.ones_like(first))
        tangent = torch.autograd.forward_ad.unpack_dual(call(dual, *rest)).tangent
    torch.testing.assert_close(tangent, expected.sum(event))


@on_each_kernel()
def test_kernels_under_a_transform_are_an_error_where_they_were_forced(case: Case, kernels: str) -> None:
    call, rows = of_rows(case, case.draw(5, 0))
    with using(kernels), pytest.raises(RuntimeError, match=r"torch\.func transforms have rules for plain PyTorch only"):
        torch.func.vmap(call)(*rows)


@EACH_CASE
def test_batched_cotangents(case: Case) -> None:
    call, rows = of_rows(case, case.draw(5, 0, **next(iter(case.smooth.values()))))
    jacobian = torch.autograd.functional.jacobian
    torch.testing.assert_close(jacobian(call, rows, vectorize=True), jacobian(call, rows))
