"""Tables that commands write: the kind of file follows from its name."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from flowkern._optional import optional
from flowkern.cli.errors import CommandError

SUFFIXES = (".csv", ".npy", ".parquet")


def check(path: str) -> None:
    """Raises for a name of no kind of table, or in a folder that is not there, before any work."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise CommandError(f"--output: expected a name that ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}, got {path!r}")
    if not Path(path).parent.is_dir():
        raise CommandError(f"--output: there is no folder {os.fspath(Path(path).parent)!r}")
    if suffix == ".parquet":
        try:
            optional("pyarrow", "train")
        except ImportError:
            raise CommandError("--output: .parquet needs pyarrow: pip install pyarrow") from None


def write(path: str, rows: Tensor, columns: Sequence[str] | None) -> None:
    """Writes rows (n, ...) whole or not at all; .csv and .parquet have columns with names."""
    content = _content(Path(path).suffix.lower(), rows, columns)
    part = Path(path).with_name(f".{Path(path).name}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise CommandError(f"cannot write {path}: {error.strerror or error}", status=1) from None


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
        whole = bool((flat == flat.round()).all() and (np.abs(flat) < 2**53).all())  # larger ones are whole, and no counts
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(names)
        writer.writerows(flat.astype(np.int64 if whole else np.float64).tolist())  # with all digits
        return text.getvalue().encode()
    arrow, parquet = optional("pyarrow", "train"), optional("pyarrow.parquet", "train")
    parquet.write_table(arrow.table(dict(zip(names, flat.T, strict=True))), file)
    return file.getvalue()
