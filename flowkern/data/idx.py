"""Images in IDX files, the format of MNIST and Fashion-MNIST."""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from flowkern.data.dataset import DataError, Dataset
from flowkern.data.images import image_dataset
from flowkern.data.labels import wanted

WANTED_FILE = "images in IDX format (*-idx3-ubyte, *-idx3-ubyte.gz)"
WANTED_FOLDER = "IDX files train-images-idx3-ubyte and perhaps t10k-images-idx3-ubyte (or with .gz)"
NAME = re.compile(r"(.*)[-.]idx\d-ubyte(\.gz)?")
PARTS = {"train": "train-images", "test": "t10k-images"}
CHUNK = 2**20  # bytes


def found(path: Path) -> bool:
    """Whether there is such a file, or a folder with one for training."""
    return "train" in _parts(path) if path.is_dir() else NAME.fullmatch(path.name.lower()) is not None


def load(path: Path, seed: int | None, given: Sequence[str]) -> Dataset:
    """The images of one file, or of a folder with those for training and for the test; labels are in files beside theirs."""
    files = _parts(path) if path.is_dir() else {"train": path}
    images = {part: read(file) for part, file in files.items()}
    labels = {part: read_labels(_beside(file)) for part, file in files.items()} if wanted(path, given) else None
    return image_dataset(path, images, seed, labels=labels)


def _parts(folder: Path) -> dict[str, Path]:
    names = _names(folder)
    return {part: names[name] for part, name in PARTS.items() if name in names}


def _names(folder: Path) -> dict[str, Path]:
    """The IDX files in a folder by what their names begin with, such as train-images."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    return {match[1]: path for path in files if (match := NAME.fullmatch(path.name.lower()))}


def _beside(file: Path) -> Path:
    """The file with the labels of images."""
    name = NAME.fullmatch(file.name.lower())[1].replace("images", "labels")  # type: ignore[index]
    beside = _names(file.parent)
    if name not in beside:
        raise DataError(f"{file}: given: label: expected a file {name}-idx1-ubyte beside it")
    return beside[name]


def read(path: Path) -> Tensor:
    """The images of a file as (n, 1, height, width), uint8.

    Raises:
        DataError: if the file is damaged, holds anything else, or has less or more than its header says.
    """
    n, height, width, content = _content(path, 3, "images")
    return content.reshape(n, 1, height, width)


def read_labels(path: Path) -> Tensor:
    """The labels of a file as (n,), uint8; refuses what :func:`read` does."""
    return _content(path, 1, "labels")[-1]


def _content(path: Path, dimensions: int, what: str) -> tuple[Any, ...]:
    """The sizes of a file of so many dimensions, and its bytes."""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            return _read(path, file, dimensions, what)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"cannot read {path}: {error}") from None


def _read(path: Path, file: BinaryIO | gzip.GzipFile, dimensions: int, what: str) -> tuple[Any, ...]:
    begin, header = bytes((0, 0, 8, dimensions)), file.read(4 + 4 * dimensions)
    if header[:4] != begin:
        raise DataError(
            f"{path}: expected IDX {what}, which begin with the bytes {begin.hex()}, got {header[:4].hex() or 'nothing'}"
        )
    if len(header) < 4 + 4 * dimensions:
        raise DataError(f"{path}: ends within its header, after {len(header)} bytes")
    sizes = struct.unpack(f">{dimensions}I", header[4:])
    claimed, content = math.prod(sizes), bytearray()
    held = f"{sizes[0]} {what}" if dimensions == 1 else f"{sizes[0]} {what} of {sizes[1]} x {sizes[2]} pixels"
    if claimed == 0:
        raise DataError(f"{path}: expected {what}, its header says {held}")
    # By and by: a header may claim more than there is memory for.
    while len(content) <= claimed and (more := file.read(min(CHUNK, claimed + 1 - len(content)))):
        content += more
    if len(content) != claimed:
        has = "more" if len(content) > claimed else f"{len(content)} bytes of them"
        raise DataError(f"{path}: expected {held}, as its header says; the file has {has}")
    return *sizes, torch.frombuffer(content, dtype=torch.uint8)
