"""Images of whole numbers, wherever they come from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from flowkern.data.dataset import DataError, Dataset, divide, printable
from flowkern.data.tables import LEAST_ROWS


def image_dataset(source: str | Path, parts: Mapping[str, Tensor], seed: int | None, levels: int = 256) -> Dataset:
    """The data set of images (n, channels, height, width), uint8.

    Args:
        source: a name, or where they are from.
        parts: ``train`` and perhaps ``validation`` and ``test``.
        seed: draws the parts that are not given; ``None`` for images that are not to be trained on.
        levels: pixels are from 0 to levels - 1.

    Raises:
        DataError: if there are fewer than 20 images for training or none in another part, or if their shapes differ.
    """
    shape = tuple(parts["train"].shape[1:])
    for part, images in parts.items():
        least = LEAST_ROWS if part == "train" and seed is not None else 1
        if len(images) < least or not shape[1] * shape[2]:
            raise DataError(f"{source}: expected at least {least} images for {part}, got {len(images)} of shape {shape}")
        if images.shape[1:] != shape:
            raise DataError(f"{source}: images for {part} have shape {tuple(images.shape[1:])}, those for training {shape}")
    return Dataset(printable(source), *divide(parts, seed), levels=levels)
