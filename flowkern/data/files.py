"""Tables in files: which reader serves which, and folders with a file for each part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flowkern.data import arrays, parquet, text
from flowkern.data.dataset import PARTS, DataError, Dataset
from flowkern.data.tables import Table, table_dataset

READERS = {
    ".npy": arrays.read_npy,
    ".npz": arrays.read_npz,
    ".csv": text.read,
    ".tsv": text.read,
    ".txt": text.read,
    ".dat": text.read,
    ".parquet": parquet.read,
}
WANTED_FILE = f"a table ({', '.join(READERS)})"
WANTED_FOLDER = f"tables train.* and perhaps validation.* and test.* ({', '.join(READERS)})"


def found(path: Path) -> bool:
    """Whether there is a table, or a folder with one for training."""
    return bool(_parts(path)["train"]) if path.is_dir() else path.suffix.lower() in READERS


def load(path: Path, seed: int | None, given: Sequence[str]) -> Dataset:
    """The data set of a table, or of a folder of tables."""
    return table_dataset(path, _read_folder(path) if path.is_dir() else read(path), seed, given)


def read(path: Path) -> dict[str, Table]:
    """The tables of a file, by the name of their part."""
    return READERS[path.suffix.lower()](path)


def _parts(folder: Path) -> dict[str, list[Path]]:
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in READERS and path.is_file()]
    return {part: [path for path in files if path.stem.lower() == part] for part in PARTS}


def _read_folder(folder: Path) -> dict[str, Table]:
    tables = {}
    for part, paths in _parts(folder).items():
        if len(paths) > 1:
            raise DataError(f"{folder}: expected one table named {part}.*, got {' and '.join(path.name for path in paths)}")
        for path in paths:
            read_here = read(path)
            if read_here.keys() != {"train"}:
                raise DataError(
                    f"{path}: expected one array, since the folder's files are the parts, got {', '.join(read_here)}"
                )
            tables[part] = read_here["train"]
    return tables
