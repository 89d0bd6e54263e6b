"""Tables that commands write."""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path

import pytest
import torch

from flowkern.cli import tables
from flowkern.cli.errors import CommandError


@pytest.mark.parametrize(
    ("values", "written"),
    [
        ([0.0, 16.0], ["0", "16"]),
        ([0.1, 16.0], ["0.1", "16.0"]),
        ([1.7e9 + 1e-6, -2.0], ["1700000000.000001", "-2.0"]),
        ([1e300, 2.0], ["1e+300", "2.0"]),  # whole, but no int64
        ([-math.inf, 2.0], ["-inf", "2.0"]),
    ],
)
def test_numbers_are_written_with_all_digits(values: list[float], written: list[str], tmp_path: Path) -> None:
    tables.write(str(tmp_path / "t.csv"), torch.tensor(values, dtype=torch.float64)[:, None], ["a"])
    with (tmp_path / "t.csv").open() as file:
        assert [row for (row,) in csv.reader(file)] == ["a", *written]
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def test_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "t.parquet")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(CommandError, match=r"pip install 'flowkern\[parquet\]'"):
            tables.check(path)
    parquet = pytest.importorskip("pyarrow.parquet")
    tables.write(path, torch.tensor([[1.5, 2.0], [3.0, 4.0]]), ["a", "b"])
    assert parquet.read_table(path).to_pydict() == {"a": [1.5, 3.0], "b": [2.0, 4.0]}
