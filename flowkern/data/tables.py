"""Tables of numbers from files: reading, checking, standardising."""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor

from flowkern._optional import optional
from flowkern.data.dataset import DataError, Dataset, split

TEXT = (".csv", ".tsv", ".txt", ".dat")
SUFFIXES = (".npy", *TEXT)
LEAST_ROWS = 20
QUANTILES = 1000  # of a column, at which its precision is checked


@dataclass
class Standardised:
    """z = (x - mean) / std, in float64; only then rounded to a flow's float32.

    Args:
        mean, std: (features,), float64.

    Example:
        >>> x = 1.7e9 + 60 * torch.randn(1000, 2, dtype=torch.float64)  # times in seconds: 4 numbers in float32
        >>> scale = Standardised.fit(x)
        >>> z = scale.encode(x)
        >>> z.dtype, bool((scale.decode(z) - x).abs().max() < 1e-4)
        (torch.float32, True)
    """

    mean: Tensor
    std: Tensor
    space: ClassVar[str] = "standardised"

    @classmethod
    def fit(cls, rows: Tensor) -> Standardised:
        """Mean and deviation of rows (n, features), float64. No column may be constant.

        Values of any size: each column is divided by its largest, lest squares leave the range of float64.
        """
        largest = rows.abs().amax(0)
        scaled = rows / largest
        return cls(scaled.mean(0) * largest, scaled.std(0) * largest)

    def encode(self, rows: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Rows (n, features) standardised, float32."""
        return ((rows - self.mean) / self.std).float()

    def decode(self, z: Tensor) -> Tensor:
        """Samples (n, features) in the units of the table, float64."""
        return z * self.std + self.mean

    def log_det(self, z: Tensor) -> Tensor:
        """log |dz / dx| per row, the same for all."""
        return -self.std.log().sum().expand(len(z))

    def constants(self) -> dict[str, Any]:
        """Mean and deviation."""
        return {"mean": self.mean, "std": self.std}


@dataclass
class Table:
    """The numbers of a file (rows, columns), float64; of a text also the line that each row begins in, counted from 1."""

    path: Path
    values: Tensor
    lines: list[int] | None = None

    def place(self, row: int, column: int) -> str:
        """Where a value stands, in words."""
        where = f"row {row + 1} of {len(self.values)}" if self.lines is None else f"line {self.lines[row]}"
        return f"{self.path}: {where}, column {column + 1}"


def table(path: str | os.PathLike[str], seed: int) -> Dataset:
    """The table of a file, split by the seed and standardised by its training part.

    Args:
        path: see :func:`read_table`.
        seed: see :func:`split`.

    Raises:
        DataError: as :func:`read_table`, and if there are fewer than 20 rows, if a column is constant, or if a value is
            so far from the others of its column that float32 does not tell those apart any more.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
        ...     print("length;weight", *(f"{i};{i * i}" for i in range(50)), sep="\\n", file=file, flush=True)
        ...     data = table(file.name, seed=0)
        >>> data.train.shape, data.validation.shape, data.test.shape
        (torch.Size([40, 2]), torch.Size([5, 2]), torch.Size([5, 2]))
        >>> z = data.encoding.encode(data.train)
        >>> bool(torch.allclose(z.mean(0), torch.zeros(2), atol=1e-6)), bool(torch.allclose(z.std(0), torch.ones(2)))
        (True, True)
    """
    found = read_table(path)
    x = found.values
    rows, columns = x.shape
    if rows < LEAST_ROWS or columns < 1:
        raise DataError(f"{found.path}: expected at least {LEAST_ROWS} rows of one or more columns, got {rows} of {columns}")
    train, validation, test = split(rows, seed)
    constant = x[train].amin(0) == x[train].amax(0)
    if constant.any():
        raise DataError(
            f"{found.path}: column {int(constant.nonzero()[0]) + 1} is constant in the rows for training; it has no density"
        )
    _check_precision(found)
    encoding = Standardised.fit(x[train])
    bad = ~encoding.encode(x).isfinite()
    if bad.any():
        _refuse_extreme(found, int(bad.any(0).nonzero()[0]))
    name = os.fsencode(found.path.name).decode(errors="replace")  # a name of any bytes can be printed
    return Dataset(name, x[train], x[validation], x[test], encoding)


def _check_precision(found: Table) -> None:
    """Refuses a column if float32 loses at least half of the steps between its quantiles.

    Quantiles, since a large table has more values than float32 has numbers, and may. Heavy tails alone pass: most of a
    column must have become one number, as beside a single 1e30. By the deviation of all rows, so that no seed decides.
    """
    x = found.values
    rows = torch.linspace(0, len(x) - 1, min(len(x), QUANTILES), dtype=torch.float64).round().long()
    before = x.sort(0).values[rows]
    after = Standardised.fit(x).encode(before)
    steps = before.diff(dim=0) != 0
    lost = steps & (after.diff(dim=0) == 0)
    refused = 2 * lost.sum(0) >= steps.sum(0)
    if refused.any():
        _refuse_extreme(found, int(refused.nonzero()[0]))


def _refuse_extreme(found: Table, column: int) -> NoReturn:
    values = found.values[:, column]
    row = int((values - values.median()).abs().argmax())
    raise DataError(
        f"{found.place(row, column)}: {values[row]:g} is so far from the rest of its column that float32 does not "
        "tell most of it apart once it is standardised; mend or remove it, or transform the column (by a logarithm, say)"
    )


def read_table(path: str | os.PathLike[str]) -> Table:
    """The finite numbers of a file.

    Args:
        path: a regular file whose name ends, in any case, in .npy for an array (rows, columns) of real numbers, or in .csv,
            .tsv, .txt or .dat for text: UTF-8, or UTF-16 with a byte-order mark; one row per line, separated by tabs,
            semicolons, commas or spaces (the first of these that is in the second line); decimal points; quotes
            as in CSV files. A first line without any number is a header. Blank lines and those that begin with # are skipped.

    Raises:
        DataError: if the file cannot be read, or holds anything else; the message names its line, or the array's row.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        ...     print("# from numpy.savetxt", "1.5 -2", "3e-4  4", sep="\\n", file=file, flush=True)
        ...     read_table(file.name).values
        tensor([[ 1.5000e+00, -2.0000e+00],
                [ 3.0000e-04,  4.0000e+00]], dtype=torch.float64)
    """
    if not os.fspath(path):
        raise DataError("expected the name of a file, got ''")
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(f"{path}: expected a regular file, got a {'folder' if path.is_dir() else 'pipe or a device'}")
        if path.suffix.lower() not in SUFFIXES:
            raise DataError(f"{path}: expected a file that ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
        found = _read_npy(path) if path.suffix.lower() == ".npy" else _read_text(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    bad = (~found.values.isfinite()).nonzero()
    if len(bad):
        raise DataError(f"{found.place(*bad[0].tolist())} is missing or not finite ({len(bad)} such values)")
    return found


def _read_npy(path: Path) -> Table:
    numpy = optional("numpy", "demo")
    try:
        with path.open("rb") as file:
            values = numpy.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, MemoryError, OverflowError) as error:
        raise DataError(f"cannot read {path}: {error}") from None
    if values.dtype.kind not in "fiub" or values.ndim != 2:
        raise DataError(f"{path}: expected real numbers (rows, columns), got {values.dtype} of shape {values.shape}")
    with numpy.errstate(over="ignore"):  # of wider floats; found with what else is not finite
        return Table(path, torch.from_numpy(values.astype(numpy.float64)))


def _read_text(path: Path) -> Table:
    rows, starts = _cells(path)
    width = len(rows[0]) if rows else 0
    for cells, start in zip(rows, starts, strict=True):
        if len(cells) != width:
            raise DataError(f"{path}: line {start} has {len(cells)} columns, line {starts[0]} has {width}")
    if rows and all(_number(cell) is None for cell in rows[0]):
        del rows[0], starts[0]  # the header
    numbers = [[_number(cell) for cell in cells] for cells in rows]
    for i, row in enumerate(numbers):
        if None in row:
            j = row.index(None)
            raise DataError(f"{path}: line {starts[i]}, column {j + 1} {_fault(rows[i][j])}")
    return Table(path, torch.tensor(numbers, dtype=torch.float64).reshape(len(rows), width), starts)


def _cells(path: Path) -> tuple[list[list[str]], list[int]]:
    """What each row of a text consists of, and the line that it begins in."""
    lines = [line.strip(" \n") for line in io.StringIO(_decode(path), newline=None)]
    lines = ["" if line.startswith("#") else line for line in lines]
    reader = csv.reader(lines, delimiter=_separator(lines), skipinitialspace=True, strict=True)
    rows, starts, start = [], [], 1
    try:
        for cells in reader:
            if cells:
                rows.append(cells)
                starts.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}: line {start}: {error}") from None
    return rows, starts


def _decode(path: Path) -> str:
    content = path.read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not text in UTF-8, nor in UTF-16 with a byte-order mark: {error.reason} at byte {error.start}"
        ) from None
    if "\0" in text:
        raise DataError(f"{path}: holds zero bytes; expected text in UTF-8, or in UTF-16 with a byte-order mark")
    return text


def _separator(lines: list[str]) -> str:
    """The first of tab, semicolon, comma and space that is in the second line: that one is no header, but numbers.

    A decimal comma may stand beside a tab or a semicolon, so these come first.
    """
    written = [line for line in lines if line][:2]
    return next((c for c in "\t;, " if written and c in written[-1]), ",")


def _number(cell: str) -> float | None:
    try:
        return None if "_" in cell else float(cell)  # 1_000 is Python's
    except ValueError:
        return None


def _fault(cell: str) -> str:
    if not cell.strip():
        return "is missing"
    comma = re.fullmatch(r"\s*[+-]?\d*,\d+(e[+-]?\d+)?\s*", cell, re.IGNORECASE)
    return f"is no number: {cell!r}" + ("; expected a decimal point" if comma else "")
