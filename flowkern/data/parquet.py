"""Tables in Parquet files."""

from __future__ import annotations

from pathlib import Path

import torch

from flowkern._optional import optional
from flowkern.data.dataset import DataError
from flowkern.data.tables import Table


def read(path: Path) -> dict[str, Table]:
    """The columns of a .parquet file as the table ``train``, float64; what is missing is NaN.

    Raises:
        DataError: if the file is damaged, or a column holds anything but real numbers.
    """
    pyarrow, parquet = optional("pyarrow", "parquet"), optional("pyarrow.parquet", "parquet")
    try:
        found = parquet.ParquetFile(path).read()
        columns = [column.cast(pyarrow.float64(), safe=False).to_numpy() for column in found.columns]
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        raise DataError(f"cannot read {path}: {str(error).splitlines()[0]}") from None
    values = torch.stack([torch.tensor(column) for column in columns], 1) if columns else torch.empty(found.num_rows, 0)
    return {"train": Table(str(path), values, found.column_names)}
