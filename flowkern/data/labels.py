"""Labels of rows, which a model can be given: classes, as whole numbers from 0 on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from flowkern.data.dataset import DataError

LABEL = "label"
MOST_CLASSES = 1000


def wanted(source: str | Path, given: Sequence[str]) -> bool:
    """Whether the labels of data are asked for, which can be given nothing else.

    Raises:
        DataError: for any other name.
    """
    if given and tuple(given) != (LABEL,):
        raise DataError(f"{source}: given: expected {LABEL}, the class of each row, got {', '.join(given)}")
    return bool(given)


def contexts(source: str | Path, labels: Mapping[str, Tensor], rows: Mapping[str, int]) -> tuple[dict[str, Tensor], int]:
    """The labels of each part as contexts (n, 1), and the number of classes.

    Raises:
        DataError: if a part has more or fewer labels than rows, or none, if there are too many classes, or if a label in
            another part is none of those for training.
    """
    for part, n in rows.items():
        if part not in labels or len(labels[part]) != n:
            has = len(labels[part]) if part in labels else "none"
            raise DataError(f"{source}: expected {n} labels for {part}, one for each row, got {has}")
    classes = int(labels["train"].max()) + 1
    if classes > MOST_CLASSES:
        raise DataError(f"{source}: expected labels of at most {MOST_CLASSES:,} classes, got {classes:,}")
    for part, found in labels.items():
        if int(found.max()) >= classes:
            raise DataError(
                f"{source}: a row for {part} has label {int(found.max())}; those for training have up to {classes - 1}"
            )
    return {part: found.long().reshape(-1, 1) for part, found in labels.items()}, classes
