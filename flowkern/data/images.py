"""Images of whole numbers, wherever they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from flowkern.data import labels as labels_of
from flowkern.data.dataset import DataError, Dataset, divide, printable
from flowkern.data.tables import LEAST_ROWS


def image_dataset(
    source: str | Path,
    parts: Mapping[str, Tensor],
    seed: int | None,
    levels: int = 256,
    labels: Mapping[str, Tensor] | None = None,
    class_names: Sequence[str] | None = None,
) -> Dataset:
    """The data set of images (n, channels, height, width), uint8.

    Args:
        source: a name, or where they are from.
        parts: ``train`` and perhaps ``validation`` and ``test``.
        seed: draws the parts that are not given; ``None`` for images that are not to be trained on.
        levels: pixels are from 0 to levels - 1.
        labels: of the images of each part, (n,), whole numbers from 0 on, which the images are given.
        class_names: what they stand for.

    Raises:
        DataError: if there are fewer than 20 images for training or none in another part, if their shapes differ, or for labels
            that :func:`flowkern.data.labels.contexts` refuses.
    """
    shape = tuple(parts["train"].shape[1:])
    for part, images in parts.items():
        least = LEAST_ROWS if part == "train" and seed is not None else 1
        if len(images) < least or not shape[1] * shape[2]:
            raise DataError(f"{source}: expected at least {least} images for {part}, got {len(images)} of shape {shape}")
        if images.shape[1:] != shape:
            raise DataError(f"{source}: images for {part} have shape {tuple(images.shape[1:])}, those for training {shape}")
    if labels is None:
        return Dataset(printable(source), *divide(parts, seed), levels=levels)
    contexts, classes = labels_of.contexts(source, labels, {part: len(images) for part, images in parts.items()})
    rows = divide(parts, seed, contexts)
    return Dataset(printable(source), *rows, levels=levels, given=(labels_of.LABEL,), classes=classes, class_names=class_names)
