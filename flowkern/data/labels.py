"""Labels of rows, which a model can be given: classes, as whole numbers from 0 on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from flowkern.data.dataset import DataError

LABEL, SPEAKER = "label", "speaker"
MEANING = {LABEL: "the class of each row", SPEAKER: "who is heard in each recording"}
MOST_CLASSES = 1000


def wanted(source: str | Path, given: Sequence[str], name: str = LABEL) -> bool:
    """Whether the labels of data, under their name, are asked for; nothing else can be given.

    Raises:
        DataError: for any other name.
    """
    if given and tuple(given) != (name,):
        raise DataError(f"{source}: given: expected {name}, {MEANING[name]}, got {', '.join(given)}")
    return bool(given)


def of_folders(
    name: str, parts: Mapping[str, Path], files: Mapping[str, Sequence[Path]]
) -> tuple[dict[str, list[int]], list[str]]:
    """The labels of each part's files, and what they stand for: the folders directly below that for training, by their names.

    Raises:
        DataError: for a file that lies in none of these.
    """
    inside = {part: [file.relative_to(parts[part]).parts[:-1] for file in of_part] for part, of_part in files.items()}
    classes = sorted({folders[0] for folders in inside["train"] if folders})
    labels = {one: label for label, one in enumerate(classes)}
    for part, of_part in files.items():
        for file, folders in zip(of_part, inside[part], strict=True):
            if not folders or folders[0] not in labels:
                found = f", {', '.join(classes)}" if classes else "; there are none"
                kind = "class" if name == LABEL else name
                raise DataError(f"{file}: given: {name}: expected it in one of the folders of a {kind}{found}")
    return {part: [labels[folders[0]] for folders in of_part] for part, of_part in inside.items()}, classes


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
