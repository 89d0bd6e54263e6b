"""Every operator's numbers: the rule of accuracy for any call, on each kernel, with and without gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from accuracy import DEVICE, Pool, device_of, stands_in
from calls import Example
from case import Case, Variation
from contract import CASES, EACH_CASE, check, on_each_kernel
from hypothesis import given, settings
from hypothesis import strategies as st

from flowkern.operators import OPERATORS

BATCHES = (1, 2, 3, 4, 5, 8, 9, 15, 16, 31, 32, 33, 64, 100)
LAYOUTS = ("transposed", "sliced", "expanded")
LOW = pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])


def test_every_operator_has_a_case() -> None:
    assert {case.name for case in CASES} == {row.name for row in OPERATORS.values() if row.gradients}


@on_each_kernel(lambda case: case.variations)
def test_variations_with_and_without_gradient(case: Case, kernels: str, entry: Variation) -> None:
    check(case, kernels, variation=entry)
    # The stand-ins of GPU kernels are slow: without a gradient, where these do the same but keep less, one dtype is enough.
    check(case, kernels, variation=entry, grads=False, dtypes=case.dtypes(entry)[:1] if stands_in(kernels) else None)


@EACH_CASE
@pytest.mark.parametrize("batch", BATCHES)
def test_batches_with_and_without_gradient(case: Case, batch: int) -> None:
    for grads in (True, False):  # one or two rows make many calls of a seed
        check(case, "native", batch=batch, grads=grads, most=2 if batch < 3 else 40)


def layouts(case: Case) -> Mapping[str, tuple[Variation, str]]:
    return {f"{name} {how}": (variation, how) for name, variation in case.layouts.items() for how in LAYOUTS}


@on_each_kernel(layouts)
def test_strides(case: Case, kernels: str, entry: tuple[Variation, str]) -> None:
    variation, how = entry
    check(case, kernels, variation=variation, how=how, least=10 if how == "expanded" else 1)  # whose rows are all the same


@EACH_CASE
@settings(max_examples=8)  # each pools a thousand elements in both dtypes
@given(data=st.data())
def test_any_call(case: Case, data: st.DataObject) -> None:
    any_call(case, "native", data.draw)


@on_each_kernel(only=lambda kernels: kernels != "native")
@settings(max_examples=8 if DEVICE.type == "cuda" else 2)  # each costs compilations on a GPU, and time in the interpreter
@given(data=st.data())
def test_any_call_on_a_gpu(case: Case, kernels: str, data: st.DataObject) -> None:
    any_call(case, kernels, data.draw)


def any_call(case: Case, kernels: str, draw: Any) -> None:
    variation, batch = case.any(draw), case.rows(kernels, draw(st.sampled_from([3, 0, 17, 40, 65])))
    grads, how = draw(st.booleans()), draw(st.sampled_from(["contiguous", *LAYOUTS]))
    rows = case.rows(kernels, 250) if kernels == "native" and batch else batch  # the stand-ins take what a single call takes
    check(case, kernels, rows, variation=variation, batch=batch or None, how=how, grads=grads)


def rounded(example: Example, low: torch.dtype) -> Example:
    """The example with numbers that a lower precision holds exactly."""

    def change(t: torch.Tensor) -> torch.Tensor:
        return (0.5 * t).to(low).double()

    parameters = {k: change(t) for k, t in example.parameters.items()}
    return Example({k: change(t) for k, t in example.rows.items()}, parameters, example.arguments)


@LOW
@pytest.mark.parametrize("case", [case for case in CASES if case.rounds_once], ids=lambda case: case.name)
def test_half_precision_rounds_only_inputs_and_outputs(case: Case, low: torch.dtype) -> None:
    example = rounded(case.draw(50, 0), low)
    half, exact = (case.evaluate(example, *how) for how in ((low, "native"), (torch.float64, "reference")))
    for name, value in exact.items():
        assert half[name].dtype == low
        bound = 2 * torch.finfo(low).eps * value.abs() + 1e-5
        assert ((half[name].double() - value).abs() <= bound).all(), name


@LOW
@on_each_kernel(lambda case: case.low, only=lambda kernels: kernels != "native")
def test_low_precision_is_as_exact_as_its_oracle(case: Case, kernels: str, entry: Variation, low: torch.dtype) -> None:
    """GPU kernels multiply in the low precision itself, so the rule compares with an oracle of that precision."""
    pools: dict[str, Pool] = {}
    for seed in range(3 if device_of(kernels).type == "cpu" else 60):
        example = rounded(case.draw(case.rows(kernels, 50), seed, **entry), low)
        ways = ((low, kernels), (low, "reference"), (torch.float64, "reference"))
        kernel, oracle, exact = (case.evaluate(example, *how) for how in ways)
        for name, value in exact.items():
            pools.setdefault(name, Pool()).add(kernel[name], oracle[name], value)
    for name, pool in pools.items():
        pool.check(name, low, oracles=low)
