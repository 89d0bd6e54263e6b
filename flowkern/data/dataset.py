"""What every data set has: three parts, whose rows are read when they are asked for."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

PARTS = ("train", "validation", "test")
CHUNK = 2**18  # numbers read at once from what may be larger than memory


class DataError(ValueError):
    """Data that cannot be used: the message says which, where in it, and why."""


@dataclass
class Rows:
    """Rows of a source, in the units of the data.

    Args:
        source: (n, *event_shape), any real dtype; may lie in a file that is mapped into memory.
        index: which of them and in which order, (rows,) of int64; ``None`` for all.
        context: conditions (rows, context features), one for each row.

    Example:
        >>> rows = Rows(torch.arange(10.0).reshape(5, 2), index=torch.tensor([4, 0, 2]))
        >>> len(rows), rows[torch.tensor([0, 1])].tolist()
        (3, [[8.0, 9.0], [0.0, 1.0]])
    """

    source: Tensor
    index: Tensor | None = None
    context: Tensor | None = None

    def __len__(self) -> int:
        return len(self.source if self.index is None else self.index)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """A copy of the rows of these numbers (k,), as (k, *event_shape), where the source is."""
        return self.source.index_select(0, (rows if self.index is None else self.index[rows]).to(self.source.device))

    @property
    def event_shape(self) -> torch.Size:
        """The shape of one row."""
        return self.source.shape[1:]

    def chunks(self) -> Iterator[Tensor]:
        """Copies of all rows, about 260,000 numbers at a time, in the order of the source, as a file is read fast."""
        index = torch.arange(len(self)) if self.index is None else self.index.sort().values
        for part in index.split(max(1, CHUNK // max(1, self.event_shape.numel()))):
            yield self.source.index_select(0, part)

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
        notes: what a user should know of how the data were read, a line each.
    """

    name: str
    train: Rows
    validation: Rows
    test: Rows
    levels: int | None = None
    columns: Sequence[str] | None = None
    rate: int | None = None
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


def divide(given: Mapping[str, Tensor], seed: int | None) -> tuple[Rows, Rows, Rows]:
    """Training, validation and test; what is not given of them is 10 % of ``train`` each, drawn by the seed.

    Args:
        given: ``train`` and perhaps ``validation`` and ``test``, each (n, *event_shape).
        seed: see :func:`split`, whose parts these are where only ``train`` is given; ``None`` leaves other parts empty.
    """
    train = given["train"]
    parts = {name: Rows(given[name]) for name in ("validation", "test") if name in given}
    if seed is None:
        return Rows(train), *(parts.get(name, Rows(train[:0])) for name in ("validation", "test"))  # type: ignore[return-value]
    order, held = row_order(len(train), seed)
    for name in ("test", "validation"):
        if name not in given:
            parts[name], order = Rows(train, order[:held]), order[held:]
    return Rows(train, order if len(order) < len(train) else None), parts["validation"], parts["test"]


def row_order(rows: int, seed: int) -> tuple[Tensor, int]:
    """An order of the rows, and how many of them a part that is held out takes."""
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed)), max(rows // 10, 1)
