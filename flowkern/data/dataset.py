"""What every data set has: three parts, whose rows are read when they are asked for."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

PARTS = ("train", "validation", "test")
CHUNK = 2**18  # numbers read at once from what may be larger than memory


class DataError(ValueError):
    """Data that cannot be used: the message says which, where in it, and why."""


@contextmanager
def reading(source: str | os.PathLike[str]) -> Iterator[None]:
    """What goes wrong with files, or for want of a package, as a DataError that names the file."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot read {error.filename or source}: {error.strerror or error}") from None
    except ImportError as error:
        raise DataError(f"{source}: {error}") from None


class Indexed(Protocol):
    """What gives the rows of some numbers (k,), such as a tensor."""

    def __getitem__(self, rows: Tensor, /) -> Tensor: ...


@dataclass
class Rows:
    """Rows of a source, in the units of the data.

    Args:
        source: (n, *event_shape), any real dtype; may lie in a file that is mapped into memory.
        index: which of them and in which order, (rows,) of int64; ``None`` for all.
        columns: of a table, which of its columns, (columns,) of int64; ``None`` for all.
        context: what each row is given, (rows, context features): a tensor, or what gives its rows as one does.

    Example:
        >>> rows = Rows(torch.arange(10.0).reshape(5, 2), index=torch.tensor([4, 0, 2]))
        >>> len(rows), rows[torch.tensor([0, 1])].tolist()
        (3, [[8.0, 9.0], [0.0, 1.0]])
    """

    source: Tensor
    index: Tensor | None = None
    columns: Tensor | None = None
    context: Indexed | None = None

    def __len__(self) -> int:
        return len(self.source if self.index is None else self.index)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """A copy of the rows of these numbers (k,), as (k, *event_shape), where the source is."""
        return self._read(rows if self.index is None else self.index[rows])

    @property
    def event_shape(self) -> torch.Size:
        """The shape of one row."""
        return self.source.shape[1:] if self.columns is None else self.columns.shape

    def _read(self, index: Tensor) -> Tensor:
        rows = self.source.index_select(0, index.to(self.source.device))
        return rows if self.columns is None else rows.index_select(1, self.columns.to(rows.device))

    def chunks(self) -> Iterator[Tensor]:
        """Copies of all rows, about 260,000 numbers at a time, in the order of the source, as a file is read fast."""
        index = torch.arange(len(self)) if self.index is None else self.index.sort().values
        for part in index.split(max(1, CHUNK // max(1, self.event_shape.numel()))):
            yield self._read(part)

    @cached_property
    def extremes(self) -> tuple[Tensor, Tensor]:
        """The least and the largest value of every feature, (*event_shape) of float64; NaN where one is NaN."""
        low = torch.full(self.event_shape, math.inf, dtype=torch.float64)
        high = -low
        for chunk in self.chunks():
            least, largest = chunk.aminmax(dim=0)
            # In place: small tensors kept from every chunk would be scattered over memory, and large ones find no room between.
            torch.minimum(low, least, out=low)
            torch.maximum(high, largest, out=high)
        return low, high


@dataclass
class Dataset:
    """Three parts in the units of the data.

    Args:
        name: what to call it.
        train, validation, test: the parts, of rows of one shape: (columns,) of a table, (channels, height, width) of images,
            (samples,) of audio, float32 in [-1, 1].
        levels: every value is a whole number from 0 to levels - 1; ``None`` for real numbers.
        columns: the names of a table's columns, where it has some.
        rate: of audio, in Hz; ``None`` of other data.
        given: what its rows are given, in their ``context``: names of columns, ``("label",)`` or ``("speaker",)``.
        classes: of labels or speakers, whole numbers from 0 to classes - 1; ``None`` where real numbers are given, or nothing.
        class_names: what the classes are called, where they have names.
        notes: what a user should know of how the data were read, a line each.
    """

    name: str
    train: Rows
    validation: Rows
    test: Rows
    levels: int | None = None
    columns: Sequence[str] | None = None
    rate: int | None = None
    given: Sequence[str] = ()
    classes: int | None = None
    class_names: Sequence[str] | None = None
    notes: Sequence[str] = ()

    @property
    def event_shape(self) -> torch.Size:
        """The shape of one row."""
        return self.train.event_shape

    @property
    def images(self) -> bool:
        """Whether its rows are images."""
        return len(self.event_shape) == 3


def printable(source: str | Path) -> str:
    """What to call the data of a path: the name of the file or the folder, of which any bytes can be printed."""
    return os.fsencode(Path(source).absolute().name).decode(errors="replace")


def split(rows: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Row numbers for training, validation and test: 80, 10 and 10 % in an order that the seed gives.

    Example:
        >>> [len(part) for part in split(50, seed=0)]
        [40, 5, 5]
    """
    order, held = row_order(rows, seed)
    return order[2 * held :], order[held : 2 * held], order[:held]


def divide(
    given: Mapping[str, Tensor], seed: int | None, labels: Mapping[str, Tensor] | None = None
) -> tuple[Rows, Rows, Rows]:
    """Training, validation and test; what is not given of them is 10 % of ``train`` each, drawn by the seed.

    Args:
        given: ``train`` and perhaps ``validation`` and ``test``, each (n, *event_shape).
        seed: see :func:`split`, whose parts these are where only ``train`` is given; ``None`` leaves other parts empty.
        labels: of the rows of each part, (n, 1): their context.
    """

    def rows(part: str, index: Tensor | None = None) -> Rows:
        return Rows(given[part], index, context=None if labels is None else Rows(labels[part], index))

    parts = {part: rows(part) for part in given}
    train = len(given["train"])
    order, held = (torch.arange(train), 0) if seed is None else row_order(train, seed)
    for part in ("test", "validation"):
        if part not in given:
            parts[part], order = rows("train", order[:held]), order[held:]
    if len(order) < train:
        parts["train"] = rows("train", order)
    return parts["train"], parts["validation"], parts["test"]


def row_order(rows: int, seed: int) -> tuple[Tensor, int]:
    """An order of the rows, and how many of them a part that is held out takes."""
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed)), max(rows // 10, 1)
