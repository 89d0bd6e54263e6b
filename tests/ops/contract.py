"""The operators that are held to the contract, and what its files share."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accuracy import check_rule, stands_in, using
from calls import Example, outputs_of
from case import Case, Variation
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

_FOLDER = Path(__file__).parent / "cases"
CASES: list[Case] = [importlib.import_module(f"cases.{m.name}").CASE for m in pkgutil.iter_modules([str(_FOLDER)])]


def on_each_kernel(
    table: Callable[[Case], Mapping[str, Any]] | None = None,
    only: Callable[[str], bool] = bool,
    cases: Sequence[Case] = CASES,
) -> Any:
    """Parametrises a test by ``case`` and ``kernels``, and with ``table`` by every ``entry`` of a case's table."""

    def pairs() -> Iterator[Any]:
        for case in cases:
            for kernels in filter(only, case.kernels):
                marks = [pytest.mark.gpu] if kernels != "native" else []
                for name, entry in (table(case) if table else {"": None}).items():
                    values = (case, kernels, entry) if table else (case, kernels)
                    yield pytest.param(*values, marks=marks, id="-".join(filter(None, (case.name, kernels, name))))

    return pytest.mark.parametrize(("case", "kernels", "entry") if table else ("case", "kernels"), list(pairs()))


NATIVE_CASES = [case for case in CASES if "native" in case.kernels]
EACH_CASE = pytest.mark.parametrize("case", NATIVE_CASES, ids=lambda case: case.name)


def check(
    case: Case,
    kernels: str,
    rows: int | None = None,
    *,
    most: int = 40,
    least: int = 1,
    variation: Variation | None = None,
    dtypes: Sequence[torch.dtype] | None = None,
    **options: Any,
) -> None:
    """The rule of accuracy for calls of as many seeds as it takes; see :func:`calls.evaluate` for the options."""
    if rows is None:  # several tiles and a part of one, also in the stand-ins of GPU kernels, which are slow
        rows = case.rows(kernels, 40 if stands_in(kernels) else 120)
    examples = (case.draw(rows, seed, **(variation or {})) for seed in range(most))

    def evaluate(example: Example, dtype: torch.dtype, backend: str) -> dict[str, Tensor]:
        whole = {"batch": None} if backend == "reference" else {}
        return case.evaluate(example, dtype, backend, **{**options, **whole})

    check_rule(examples, evaluate, *(dtypes or case.dtypes(variation or {})), kernels=kernels, least=least)


class Recorder(TorchDispatchMode):
    """Notes the calls of flowkern's registered operators, whatever their schemas are."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace.startswith("flowkern"):
            alone = [tree_map_only(Tensor, lambda t: t.detach().clone(), part) for part in (args, kwargs or {})]
            self.calls.append((func, *alone))
        return func(*args, **(kwargs or {}))


def check_registered(case: Case, kernels: str, variation: Variation) -> None:
    """opcheck for the operators that a call reaches: without gradients, with all of them, with those of rows only."""
    example = case.draw(5, 0, **variation)
    recorder = Recorder()
    for needed in ([], list(example.tensors), list(example.rows)):
        plain = example.leaves(torch.float32, kernels, grads=False)
        leaves = {k: t.requires_grad_(k in needed) for k, t in plain.items()}
        with using(kernels), recorder, torch.set_grad_enabled(bool(needed)):
            outputs = outputs_of(case.operator(**example.arguments(leaves)))
            if needed:
                total = sum(o.square().sum() for o in outputs)
                torch.autograd.grad(total, [leaves[k] for k in needed], allow_unused=True)
    assert recorder.calls
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    with using(kernels):
        for operator, args, kwargs in recorder.calls:
            torch.library.opcheck(operator, args, kwargs, test_utils=checks)
