"""Rows as a model sees them, batch by batch, in an order that the seed gives; the part of each that a process takes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from flowkern.data.dataset import Indexed
from flowkern.training.distributed import Processes

# In the place of an epoch's number, for what belongs to no epoch; see seeded.
IN_ORDER, CHOSEN, SPLIT, INSIDE = -1, -2, -3, -4
BLOCK = 2**21  # numbers that are encoded at once: a batch of a small flow then costs a slice


class Rows(Protocol):
    """Data of any size: see :class:`flowkern.data.Rows`."""

    @property
    def context(self) -> Indexed | None: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor) -> Tensor: ...


class Encoder(Protocol):
    """From the data's units to a model's: see :class:`flowkern.data.Encoding`."""

    def noise(self, rows: int, generator: torch.Generator | None = None) -> Tensor | None: ...

    def encode(self, rows: Tensor, noise: Tensor | None = None) -> Tensor: ...


class Batch(NamedTuple):
    """The part of a batch that is this process's."""

    parts: tuple[Tensor, ...]  # x, and the context where there is one
    weight: float  # of its mean loss in the mean over the processes
    rows: int  # of the whole batch


def seeded(*numbers: int) -> torch.Generator:
    """A generator for a place in the work: what is drawn there depends neither on what was drawn before nor on the process."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


class Batches:
    """Batches of rows.

    The noise of an encoding is drawn for whole blocks of batches from a seed for each block, so that a run that is continued,
    or shared by another number of processes, sees the numbers of an unbroken run of one process.

    Args:
        rows: all of them, in the data's units.
        encoding: to the model's units, or None.
        batch_size: rows of a batch, over all processes.
        event_shape: of the model.
        seed: of the order and the noise.
        processes: this one among the others.
    """

    def __init__(
        self,
        rows: Rows,
        encoding: Encoder | None,
        batch_size: int,
        event_shape: torch.Size,
        seed: int,
        processes: Processes,
    ) -> None:
        self.rows, self.encoding, self.batch_size, self.event_shape = rows, encoding, batch_size, event_shape
        self.seed, self.processes = seed, processes

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def epoch(self, number: int, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch in its order, from the one with the number ``first`` on."""
        return self._batches(torch.randperm(len(self.rows), generator=seeded(self.seed, number)), number, first)

    def in_order(self) -> Iterator[Batch]:
        """The batches of all rows, in their own order and with the same noise each time."""
        return self._batches(torch.arange(len(self.rows)), IN_ORDER, 0)

    def chosen(self, index: Tensor) -> tuple[Tensor, ...]:
        """Some rows, all of them in each process, with the same noise each time."""
        everywhere = torch.arange(len(index))
        return self._encoded(index, everywhere, seeded(self.seed, CHOSEN), [len(index)])[0]

    @property
    def _per_block(self) -> int:
        return max(1, BLOCK // (self.batch_size * self.event_shape.numel()))  # batches

    def _batches(self, order: Tensor, epoch: int, first: int) -> Iterator[Batch]:
        blocks = order.split(self.batch_size * self._per_block)
        for i in range(first // self._per_block, len(blocks)):
            block = self._block(blocks[i], seeded(self.seed, epoch, i))
            yield from block[max(first - i * self._per_block, 0) :]

    def _block(self, index: Tensor, generator: torch.Generator) -> list[Batch]:
        batches = torch.arange(len(index)).split(self.batch_size)
        places = [self._own(batch) for batch in batches]
        parts = self._encoded(index, torch.cat(places), generator, [len(p) for p in places])
        return [Batch(p, self._weight(batch), len(batch)) for p, batch in zip(parts, batches, strict=True)]

    def _encoded(self, index: Tensor, own: Tensor, generator: torch.Generator, sizes: list[int]) -> list[tuple[Tensor, ...]]:
        """The rows index[own] and their context in parts of the sizes; the noise is that of all rows of the index."""
        noise = None if self.encoding is None else self.encoding.noise(len(index), generator)
        rows = self.rows[index[own]]
        x = rows if self.encoding is None else self.encoding.encode(rows, None if noise is None else noise[own])
        tensors = [x.reshape(len(own), *self.event_shape)]
        if self.rows.context is not None:
            tensors.append(self.rows.context[index[own]])
        return list(zip(*(t.to(self.processes.device).split(sizes) for t in tensors), strict=True))

    def _own(self, batch: Tensor) -> Tensor:
        """Where the rows of this process are; one row of no weight where a batch has fewer rows than there are processes."""
        own = batch.tensor_split(self.processes.count)[self.processes.rank]
        return own if len(own) else batch[:1]

    def _weight(self, batch: Tensor) -> float:
        own = len(batch.tensor_split(self.processes.count)[self.processes.rank])
        return own * self.processes.count / len(batch)
