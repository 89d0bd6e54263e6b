"""Folders with a file for each row, or for some: their parts, and the files in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from flowkern.data.dataset import PARTS


def parts(path: Path) -> dict[str, Path]:
    """The folders named like the parts of a data set, where one is for training, or else the folder itself."""
    found = {part: path / part for part in PARTS if (path / part).is_dir()}
    return found if "train" in found else {"train": path}


def files(folder: Path, suffixes: Sequence[str]) -> Iterator[Path]:
    """All files of some kinds, in other folders too; names that begin with a dot are the system's own."""
    return (p for p in folder.rglob("*") if p.suffix.lower() in suffixes and p.name[0] != "." and p.is_file())
