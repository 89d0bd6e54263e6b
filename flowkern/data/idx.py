"""Images in IDX files, the format of MNIST and Fashion-MNIST."""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from flowkern.data.dataset import DataError, Dataset
from flowkern.data.images import image_dataset

WANTED_FILE = "images in IDX format (*-idx3-ubyte, *-idx3-ubyte.gz)"
WANTED_FOLDER = "IDX files train-images-idx3-ubyte and perhaps t10k-images-idx3-ubyte (or with .gz)"
NAME = re.compile(r"(.*)[-.]idx\d-ubyte(\.gz)?")
PARTS = {"train": "train-images", "test": "t10k-images"}
CHUNK = 2**20  # bytes


def found(path: Path) -> bool:
    """Whether there is such a file, or a folder with one for training."""
    return "train" in _parts(path) if path.is_dir() else NAME.fullmatch(path.name.lower()) is not None


def load(path: Path, seed: int | None) -> Dataset:
    """The images of one file, or of a folder with those for training and for the test."""
    files = _parts(path) if path.is_dir() else {"train": path}
    return image_dataset(path, {part: read(file) for part, file in files.items()}, seed)


def _parts(folder: Path) -> dict[str, Path]:
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    names = {match[1]: path for path in files if (match := NAME.fullmatch(path.name.lower()))}
    return {part: names[name] for part, name in PARTS.items() if name in names}


def read(path: Path) -> Tensor:
    """The images of a file as (n, 1, height, width), uint8.

    Raises:
        DataError: if the file is damaged, holds anything else, or has less or more than its header says.
    """
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            return _images(path, file)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"cannot read {path}: {error}") from None


def _images(path: Path, file: BinaryIO | gzip.GzipFile) -> Tensor:
    header = file.read(16)
    if header[:4] != b"\0\0\x08\x03":
        raise DataError(
            f"{path}: expected IDX images, which begin with the bytes 00000803, got {header[:4].hex() or 'nothing'}"
        )
    if len(header) < 16:
        raise DataError(f"{path}: ends within its header, after {len(header)} bytes")
    n, height, width = struct.unpack(">III", header[4:])
    claimed, content = n * height * width, bytearray()
    if claimed == 0:
        raise DataError(f"{path}: expected images, its header says {n} of {height} x {width} pixels")
    # By and by: a header may claim more than there is memory for.
    while len(content) <= claimed and (more := file.read(min(CHUNK, claimed + 1 - len(content)))):
        content += more
    if len(content) != claimed:
        held = "more" if len(content) > claimed else f"{len(content)} bytes of them"
        raise DataError(f"{path}: expected {n} images of {height} x {width} pixels, as its header says; the file has {held}")
    return torch.frombuffer(content, dtype=torch.uint8).reshape(n, 1, height, width)
