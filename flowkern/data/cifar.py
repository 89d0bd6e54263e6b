"""Images of CIFAR-10 and CIFAR-100 in their binary version."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from flowkern.data.dataset import DataError, Dataset
from flowkern.data.images import image_dataset
from flowkern.data.labels import wanted

WANTED_FOLDER = "CIFAR's binary version (data_batch_*.bin and test_batch.bin, or train.bin and test.bin)"
SHAPE = (3, 32, 32)
# Files for training, those for the test, bytes of labels before each image.
VERSIONS = (("data_batch_*.bin", "test_batch.bin", 1), ("train.bin", "test.bin", 2))


def found(path: Path) -> bool:
    """Whether there is a folder of such files, of the binary version or Python's."""
    return path.is_dir() and (any(any(path.glob(train)) for train, _, _ in VERSIONS) or _pickled(path))


def _pickled(folder: Path) -> bool:
    return (folder / "data_batch_1").is_file() or all((folder / name).is_file() for name in ("train", "meta"))


def load(path: Path, seed: int | None, given: Sequence[str]) -> Dataset:
    """The images of a folder, with those for the test where they are there."""
    labelled = wanted(path, given)
    for train, test, before in VERSIONS:
        files = {"train": sorted(path.glob(train)), "test": sorted(path.glob(test))}
        if files["train"]:
            parts = {part: torch.cat([read(file, before) for file in files[part]]) for part in files if files[part]}
            images = {part: records[:, before:].reshape(-1, *SHAPE) for part, records in parts.items()}
            # The last of them is the finest, of CIFAR-100 the class within a group.
            labels = {part: records[:, before - 1] for part, records in parts.items()} if labelled else None
            return image_dataset(path, images, seed, labels=labels)
    raise DataError(f"{path}: holds CIFAR's version for Python, pickles that could run anything; take the binary version")


def read(path: Path, labels: int) -> Tensor:
    """The records of a file, (n, labels + 3 * 32 * 32) of uint8: some bytes of labels, then an image.

    Raises:
        DataError: if its length is not that of whole images.
    """
    size, record = path.stat().st_size, labels + torch.Size(SHAPE).numel()
    if size == 0 or size % record:
        raise DataError(f"{path}: expected a multiple of {record} bytes ({labels} for labels, then an image), got {size}")
    content = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
    return content.reshape(-1, record)
