"""Every operator's errors: what is wrong with an argument, and which kernels do not exist."""

from __future__ import annotations

import pytest
import torch
from case import Bad, Case
from contract import CASES, EACH_CASE

import flowkern as fk

TABLE = [pytest.param(case, bad, id=f"{case.name}-{name}") for case in CASES for name, bad in case.bad.items()]


@pytest.mark.parametrize("grads", [False, True], ids=["no gradient", "gradient"])
@pytest.mark.parametrize(("case", "bad"), TABLE)
def test_bad_arguments_are_named(case: Case, bad: Bad, grads: bool) -> None:
    change, error, message = bad
    example = case.draw(3, 0)
    with torch.set_grad_enabled(grads):
        arguments = example.arguments(example.leaves(torch.float32, grads=grads))
        case.operator(**arguments)
        with pytest.raises(error, match=message):
            case.operator(**{**arguments, **change(arguments)})


@EACH_CASE
def test_kernels_that_a_case_leaves_out_do_not_exist(case: Case) -> None:
    example = case.draw(3, 0)
    arguments = example.arguments(example.leaves(torch.float32, grads=False))
    for backend in ("native", "triton"):
        if backend in (*case.kernels, *case.leaves_out):
            continue
        with fk.backend(backend), torch.no_grad(), pytest.raises(RuntimeError, match=f"(?i)has no {backend} kernel"):
            case.operator(**arguments)
