"""Tables in text files."""

from __future__ import annotations

import codecs
import csv
import io
import re
from pathlib import Path

import torch

from flowkern.data.dataset import DataError
from flowkern.data.tables import Table


def read(path: Path) -> dict[str, Table]:
    """The numbers of a text as the table ``train``.

    Args:
        path: text in UTF-8, or UTF-16 with a byte-order mark; one row per line, separated by tabs, semicolons, commas or spaces
            (the first of these that is in the second line); decimal points; quotes as in CSV files. A first line without any
            number names the columns. Blank lines and those that begin with # are skipped.

    Raises:
        DataError: if the file holds anything else; the message names its line.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        ...     print("# from numpy.savetxt", "1.5 -2", "3e-4  4", sep="\\n", file=file, flush=True)
        ...     read(Path(file.name))["train"].values
        tensor([[ 1.5000e+00, -2.0000e+00],
                [ 3.0000e-04,  4.0000e+00]], dtype=torch.float64)
    """
    rows, starts = _cells(path)
    width = len(rows[0]) if rows else 0
    for cells, start in zip(rows, starts, strict=True):
        if len(cells) != width:
            raise DataError(f"{path}: line {start} has {len(cells)} columns, line {starts[0]} has {width}")
    header = None
    if rows and all(_number(cell) is None for cell in rows[0]):
        header, rows, starts = rows[0], rows[1:], starts[1:]
    numbers = [[_number(cell) for cell in cells] for cells in rows]
    for i, row in enumerate(numbers):
        if None in row:
            j = row.index(None)
            raise DataError(f"{path}: line {starts[i]}, column {j + 1} {_fault(rows[i][j])}")
    values = torch.tensor(numbers, dtype=torch.float64).reshape(len(rows), width)
    return {"train": Table(str(path), values, header, starts)}


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
