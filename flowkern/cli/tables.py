"""Tables that commands write: the kind of file follows from its name."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from flowkern._optional import optional
from flowkern.cli.errors import CommandError, require
from flowkern.cli.output import write_whole

SUFFIXES = (".csv", ".npy", ".parquet")


def check(path: str) -> None:
    """Raises for a name of no kind of table, or in a folder that is not there, before any work."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise CommandError(f"--output: expected a name that ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}, got {path!r}")
    check_folder(Path(path))
    if suffix == ".parquet":
        require(("pyarrow",), "parquet")


def check_folder(path: Path) -> None:
    """Raises for a file in a folder that is not there."""
    if not path.parent.is_dir():
        raise CommandError(f"--output: there is no folder {os.fspath(path.parent)!r}")


def write(path: str, rows: Tensor, columns: Sequence[str] | None) -> None:
    """Writes rows (n, ...) whole or not at all; .csv and .parquet have columns with names."""
    write_whole(Path(path), _content(Path(path).suffix.lower(), rows, columns))


def _content(suffix: str, rows: Tensor, columns: Sequence[str] | None) -> bytes:
    import numpy as np

    file = io.BytesIO()
    values = rows.numpy()
    if suffix == ".npy":
        np.save(file, values)
        return file.getvalue()
    flat = values.reshape(len(values), -1)
    names = list(columns or [f"x{i}" for i in range(flat.shape[1])])
    if suffix == ".csv":
        whole = bool(((flat == flat.round()) & (np.abs(flat) < 2**53)).all())  # and none beyond int64
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(names)
        writer.writerows(flat.astype(np.int64 if whole else np.float64).tolist())  # with all digits
        return text.getvalue().encode()
    arrow, parquet = optional("pyarrow", "parquet"), optional("pyarrow.parquet", "parquet")
    parquet.write_table(arrow.table(dict(zip(names, flat.T, strict=True))), file)
    return file.getvalue()
