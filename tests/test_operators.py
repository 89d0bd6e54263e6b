"""The table of operators: every row is there in all rooms, and nothing is there that has no row."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from host_run import in_place_of_a_gpu

import flowkern as fk
from flowkern import _library, reference
from flowkern.operators import OPERATORS

ROOT = Path(fk.__file__).parents[1]
ROWS = pytest.mark.parametrize("row", OPERATORS.values(), ids=OPERATORS)
NATIVE, TRITON, CUDA = torch.ops.flowkern, torch.ops.flowkern_triton, torch.ops.flowkern_cuda


def test_every_public_operator_has_a_row() -> None:
    assert {name for name in fk.ops.__all__ if name.islower()} == set(OPERATORS)


@ROWS
def test_a_row_is_in_every_room(row: fk.operators.Operator) -> None:
    package = Path(fk.__file__).parent
    assert (package / "ops" / f"{row.name}.py").exists()
    assert (package / "bindings" / f"{row.family}.py").exists()
    assert row.name == "pack" or hasattr(reference, row.name)  # what packs weights has no formula
    if (ROOT / "csrc").exists():
        assert (ROOT / "csrc" / "cpu" / row.family / "kernels.h").exists()
        assert (ROOT / "csrc" / "cuda" / f"{row.name}.cu").exists() == ("cuda" in row.kernels or row.name == "pack")
    if (ROOT / "tests").exists():
        assert (ROOT / "tests" / "ops" / "cases" / f"{row.name}.py").exists() == row.gradients
        assert (ROOT / "bench" / f"bench_{row.family}.py").exists()


@ROWS
def test_the_kernels_of_a_row_are_registered(row: fk.operators.Operator) -> None:
    assert hasattr(TRITON, row.registered("triton")) == ("triton" in row.kernels)
    assert hasattr(CUDA, row.registered("cuda")) == ("cuda" in row.kernels)
    if _library._C is not None:
        assert hasattr(NATIVE, row.registered("cpu")) == ("cpu" in row.kernels)


@ROWS
def test_the_host_in_the_place_of_a_gpu_serves_what_a_gpu_would(row: fk.operators.Operator) -> None:
    """The CPU's kernels must not answer there: a test of a CUDA operator that is not registered would pass."""
    x = torch.ones(2, 3)
    with in_place_of_a_gpu(), fk.backend("native"):
        if "cuda" in row.kernels:
            assert fk.backends.kernels_for(x, row.name).namespace == "flowkern_cuda"
        else:
            with pytest.raises(RuntimeError, match=f"{row.name} has no native kernel for device 'cuda'"):
                fk.backends.kernels_for(x, row.name)
