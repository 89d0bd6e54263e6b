"""log_det and normal_log_prob against their float64 oracle."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accuracy import KERNELS, check_rule, device_of
from networks import strided

import flowkern as fk

Case = tuple[torch.Tensor, torch.Tensor]


def call(name: str, z: torch.Tensor, log_det: torch.Tensor) -> torch.Tensor:
    return fk.ops.log_det(z) if name == "log_det" else fk.ops.normal_log_prob(z, log_det)


@pytest.mark.parametrize("name", ["log_det", "normal_log_prob"])
@KERNELS
@pytest.mark.parametrize("columns", [1, 7, 8, 63, 1000, 20_000])
@pytest.mark.parametrize("how", ["contiguous", "transposed", "sliced"])
def test_rows(name: str, columns: int, how: str, dtype: torch.dtype, kernels: str) -> None:
    def cases() -> Iterator[Case]:
        for _ in range(60):
            yield torch.randn(33, columns, dtype=torch.float64), torch.randn(33, dtype=torch.float64)

    def evaluate(case: Case, t: torch.dtype, backend: str) -> dict[str, torch.Tensor]:
        z, log_det = (c.to(device_of(backend), t, copy=True) for c in case)
        z, log_det = strided(z, how).requires_grad_(), log_det.requires_grad_()
        with fk.backend(backend):
            out = call(name, z, log_det)
        grads = torch.autograd.grad((out * out.detach().sign()).sum(), (z, log_det), allow_unused=True)
        return {"out": out.detach().cpu(), "gradient": grads[0].cpu()}

    check_rule(cases(), evaluate, dtype, kernels)


@pytest.mark.parametrize("name", ["log_det", "normal_log_prob"])
def test_shapes_dtypes_and_derivatives(name: str) -> None:
    assert call(name, torch.ones(0, 3), torch.zeros(0)).shape == (0,)
    assert call(name, torch.ones(2, 3, 4), torch.zeros(2, 3)).shape == (2, 3)
    assert call(name, torch.ones(4), torch.tensor(0.0)).shape == ()
    assert call(name, torch.ones(4, 0), torch.zeros(4)).tolist() == [0, 0, 0, 0]
    assert call(name, torch.ones(2, 3).half(), torch.zeros(2).half()).dtype == torch.float16
    inputs = torch.randn(3, 4, dtype=torch.float64, requires_grad=True), torch.randn(3, dtype=torch.float64, requires_grad=True)
    function: Any = fk.ops.log_det if name == "log_det" else fk.ops.normal_log_prob
    given = inputs[:1] if name == "log_det" else inputs
    assert torch.autograd.gradcheck(function, given)
    assert torch.autograd.gradgradcheck(function, given)


def test_values_by_hand() -> None:
    assert fk.ops.normal_log_prob(torch.zeros(1)).item() == pytest.approx(-0.9189385)
    assert fk.ops.normal_log_prob(torch.tensor([1.0, 2.0]), torch.tensor(0.5)).item() == pytest.approx(-2.5 - 1.8378771 + 0.5)
    assert fk.ops.log_det(torch.tensor([1.0, 2.5])).item() == 3.5


def test_threads_do_not_matter() -> None:
    x = torch.randn(2000, 77)
    threads = torch.get_num_threads()
    try:
        found = []
        for n in (1, 2):
            torch.set_num_threads(n)
            found.append((fk.ops.log_det(x), fk.ops.normal_log_prob(x)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.slow
def test_more_than_two_to_the_31_elements() -> None:
    many = torch.ones(1, 1).expand(3, 2**30)
    assert fk.ops.log_det(many).tolist() == [2.0**30] * 3


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fk.ops.log_det(torch.ones(3).long()), TypeError, "log_scale: expected a floating"),
        (lambda: fk.ops.log_det(torch.tensor(1.0)), ValueError, "log_scale: expected shape"),
        (
            lambda: fk.ops.normal_log_prob(torch.ones(2, 3), torch.ones(3)),
            ValueError,
            r"log_det: expected shape \(2,\), got \(3,\)",
        ),
        (lambda: fk.ops.normal_log_prob(torch.ones(2, 3), torch.ones(2).double()), TypeError, "log_det: expected dtype"),
        (lambda: fk.ops.normal_log_prob(torch.ones(2, 3).int()), TypeError, "z: expected a floating"),
    ],
)
def test_bad_arguments_are_named(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
