"""Tables of numbers, wherever they come from: what is asked of them before a model sees them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from flowkern._checks import meant
from flowkern.data import labels as labels_of
from flowkern.data.dataset import CHUNK, DataError, Dataset, Rows, divide, printable
from flowkern.data.encodings import Standardised, constant_column

LEAST_ROWS = 20
MOST_LEVELS = 256
QUANTILES = 1000  # of a column, at which its precision is checked


@dataclass
class Table:
    """Numbers (rows, columns) of any real dtype, perhaps mapped from a file, and where they come from.

    Args:
        name: the file, and what in it, for messages.
        values: the numbers.
        columns: their names.
        lines: of a text, the line that each row begins in, counted from 1.
    """

    name: str
    values: Tensor
    columns: Sequence[str] | None = None
    lines: Sequence[int] | None = None

    def place(self, row: int, column: int) -> str:
        """Where a value stands, in words."""
        where = f"row {row + 1} of {len(self.values)}" if self.lines is None else f"line {self.lines[row]}"
        return f"{self.name}: {where}, column {column + 1}"

    @cached_property
    def extremes(self) -> tuple[Tensor, Tensor]:
        """See :meth:`Rows.extremes`."""
        return Rows(self.values).extremes

    def find(self, sought: Callable[[Tensor], Tensor]) -> tuple[int, int, int]:
        """Row and column of the first value for which a function of rows is true, and the number of such values."""
        first, count, start = (-1, -1), 0, 0
        for chunk in Rows(self.values).chunks():
            found = sought(chunk.double())
            if count == 0 and found.any():
                row, column = found.nonzero()[0].tolist()
                first = start + row, column
            count += int(found.sum())
            start += len(chunk)
        return *first, count


def table_dataset(
    source: str | Path,
    tables: Mapping[str, Table],
    seed: int | None,
    given: Sequence[str] = (),
    labels: Tensor | None = None,
) -> Dataset:
    """The data set of a table, or of one for each part.

    Args:
        source: a name, or where they are from.
        tables: ``train`` and perhaps ``validation`` and ``test``.
        seed: draws the parts that are not given; ``None`` for rows that are not to be trained on, of which less is asked.
        given: columns that are no part of the rows but what each row is given, by their names or their numbers, from 1 on.
        labels: of the rows of ``train``, the only table, (n,), which the rows are given instead.

    Raises:
        DataError: if there are fewer than 20 rows for training or none in another part, if numbers of columns differ or a value
            is not finite; if a given column is none, or all are given; and, of real numbers, if a column is constant in the
            rows for training, or a value so far from the others of its column that float32 does not tell those apart any more.
    """
    for part, table in tables.items():
        _check_shape(table, tables["train"], LEAST_ROWS if part == "train" and seed is not None else 1)
        _check_finite(table)
    kept, held = _columns(tables["train"], given)
    contexts, classes = None, None
    if labels is not None:
        contexts, classes = labels_of.contexts(source, {"train": labels}, {"train": len(labels)})
    train, validation, test = parts = divide({part: table.values for part, table in tables.items()}, seed, contexts)
    levels = _levels(list(tables.values()), kept)
    if levels is None and seed is not None:
        constant = constant_column(train)
        if constant is not None:
            raise DataError(f"{tables['train'].name}: {constant}")
        _check_precision(tables["train"])
        _check_range(list(tables.values()), Standardised.fit(train))
    if given:
        train, validation, test = (replace(rows, columns=kept, context=replace(rows, columns=held)) for rows in parts)
    names = tables["train"].columns
    return Dataset(
        printable(source),
        train,
        validation,
        test,
        levels=levels,
        columns=None if names is None else [names[i] for i in kept],
        given=_lasting_names(tables["train"], given, held) if labels is None else (labels_of.LABEL,),
        classes=classes,
    )


def given_columns(table: Table, given: Sequence[str]) -> Tensor:
    """What a table gives to a model that is given some columns, (rows, numbers of each) of float64.

    Args:
        table: of which other columns may be anything.
        given: names or numbers of the columns. A single column, and as many as these without names, are taken as they are;
            so are all where nothing is named.

    Raises:
        DataError: for no rows, a column that is none, or a value that is missing or not finite.
    """
    _check_shape(table, table, 1)
    count = table.values.shape[1]
    as_it_is = not given or count == 1 or (not table.columns and count == len(given))
    held = list(range(count)) if as_it_is else _numbers_of(table, given)
    _check_finite(table, held)
    return table.values[:, held].double()


def _columns(table: Table, given: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The numbers of the columns that are rows, and of those that rows are given, in the order in which they are named."""
    count, held = table.values.shape[1], _numbers_of(table, given)
    kept = [i for i in range(count) if i not in held]
    if not kept:
        raise DataError(f"{table.name}: given: all {count} columns; none is left to be modelled")
    return torch.tensor(kept), torch.tensor(held, dtype=torch.int64)


def _numbers_of(table: Table, given: Sequence[str]) -> list[int]:
    """The columns that are named, or numbered from 1 on, counted from 0."""
    count, names = table.values.shape[1], list(table.columns or ())
    found: list[int] = []
    for name in given:
        number = int(name) - 1 if name not in names and name.isascii() and name.isdecimal() else -1
        at = names.index(name) if name in names else number
        if not 0 <= at < count:
            known = [*names, *map(str, range(1, count + 1))]
            raise DataError(f"{table.name}: given: no column is called {name!r}; {meant(name, 'columns', known)}")
        if names.count(name) > 1:
            raise DataError(f"{table.name}: given: {names.count(name)} columns are called {name!r}; name one by its number")
        if at in found:
            raise DataError(f"{table.name}: given: expected each column once, got {name!r} twice")
        found.append(at)
    return found


def _lasting_names(table: Table, given: Sequence[str], held: Tensor) -> tuple[str, ...]:
    """What to call given columns in any table: their names, lest a number means another column in it."""
    names = list(table.columns or ())
    found = zip(given, (names[i] if names else "" for i in held), strict=True)
    return tuple(name if names.count(name) == 1 else known for known, name in found)


def _check_shape(table: Table, train: Table, least: int) -> None:
    rows, columns = table.values.shape
    if rows < least or columns < 1:
        needed = f"{least} rows" if least > 1 else "one row"
        raise DataError(f"{table.name}: expected at least {needed} of one or more columns, got {rows} of {columns}")
    if columns != train.values.shape[1]:
        raise DataError(f"{table.name}: has {columns} columns, {train.name} has {train.values.shape[1]}")


def _check_finite(table: Table, columns: Sequence[int] | None = None) -> None:
    """Raises for a value that is not finite in some columns, or in any."""
    asked = torch.ones(table.values.shape[1], dtype=torch.bool)
    if columns is not None:
        asked = torch.zeros_like(asked).index_fill_(0, torch.tensor(columns), True)
    if not torch.stack(table.extremes)[:, asked].isfinite().all():
        row, column, count = table.find(lambda x: ~x.isfinite() & asked)
        raise DataError(f"{table.place(row, column)} is missing or not finite ({count} such values)")


def _levels(tables: list[Table], columns: Tensor) -> int | None:
    """How many values there are if all are whole numbers from 0 on; ``None`` of other numbers, or more than 256."""
    low = min(float(table.extremes[0][columns].min()) for table in tables)
    high = max(float(table.extremes[1][columns].max()) for table in tables)
    if low < 0 or not 1 <= high < MOST_LEVELS:
        return None
    parts = [Rows(table.values, columns=columns) for table in tables]
    whole = all(bool((chunk == chunk.double().round()).all()) for rows in parts for chunk in rows.chunks())
    return int(high) + 1 if whole else None


def _check_precision(table: Table) -> None:
    """Refuses a column if float32 loses at least half of the steps between its quantiles.

    Quantiles, since a large table has more values than float32 has numbers, and may. Heavy tails alone pass: most of a
    column must have become one number, as beside a single 1e30. By the deviation of all rows, so that no seed decides.
    """
    rows = Rows(table.values)  # of large ones a sample
    sample = rows[_spread(len(rows), max(QUANTILES, CHUNK // rows.event_shape.numel()))].double().sort(0).values
    before = sample[_spread(len(sample), QUANTILES)]
    after = Standardised.fit(rows).encode(before)
    steps = before.diff(dim=0) != 0
    lost = steps & (after.diff(dim=0) == 0)
    refused = (2 * lost.sum(0) >= steps.sum(0)) & steps.any(0)
    if refused.any():
        column = int(refused.nonzero()[0])
        low, high = (float(end[column]) for end in table.extremes)
        middle = float(sample[len(sample) // 2, column])
        _refuse(table, column, low if middle - low > high - middle else high)


def _check_range(tables: list[Table], scale: Standardised) -> None:
    """Refuses what is held out and not finite in float32 by the deviation of the rows for training."""
    for table in tables:
        for end in table.extremes:
            bad = (~scale.encode(end[None])[0].isfinite()).nonzero()
            if len(bad):
                _refuse(table, int(bad[0]), float(end[bad[0]]))


def _refuse(table: Table, column: int, value: float) -> NoReturn:
    where = torch.arange(table.values.shape[1]) == column
    row, *_ = table.find(lambda x: (x == value) & where)
    raise DataError(
        f"{table.place(row, column)}: {value:g} is so far from the rest of its column that float32 does not "
        "tell most of it apart once it is standardised; mend or remove it, or transform the column (by a logarithm, say)"
    )


def _spread(rows: int, most: int) -> Tensor:
    """At most so many row numbers, from the first to the last."""
    return torch.linspace(0, rows - 1, min(rows, most), dtype=torch.float64).round().long()
