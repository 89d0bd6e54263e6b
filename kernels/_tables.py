"""What the masked-network kernels read of a plan: index tables on the device, made once per plan and block size.

Features and every hidden layer are *sections* of columns, their units sorted by level and padded to whole blocks. A
weight matrix is the list of its blocks [BLOCK, BLOCK] that hold an unmasked weight, row by row; with sorted units those
of a row are its first ``count``. Output rows lie as [group of features][kind of parameter][feature][parameter]: a block of rows
is one kind of a group's parameters, so that a group has as many features as a block has room for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from flowkern.kernels import _launch
from flowkern.kernels.maps import Kinds
from flowkern.plan import AutoregressivePlan, MadeOnce

# One record of FIELDS integers per linear map; _network.py names them in order.
READERS, FIELDS = 11, 16


@dataclass(frozen=True)
class Config:
    """Rows of a batch tile, edge of a weight block, warps and pipeline stages."""

    block_m: int
    block: int
    warps: int
    stages: int


def config_of(plans: Sequence[AutoregressivePlan], kinds: Kinds, dtype: torch.dtype, precision: str) -> Config:
    """The launch heuristic: keyed on the widest layer of all networks and on how products are multiplied.

    Blocks of 64 x 64 weights skip most of what a mask leaves empty from 256 units on; narrow networks, and products
    without matrix instructions, take blocks of 32. Tiles hold 32 rows, so that a batch of 4,096 covers the
    multiprocessors of an H200, and 64 in half precision, whose products are over before the weights have come; 16 in double.
    Eight warps, and fewer rows where a context is added or a spline follows, since registers would spill otherwise. A feature
    of a spline with more than 32 columns needs a block of as many.
    """
    context = any(plan.addend_widths for plan in plans)
    least = max(32, kinds.columns)
    spline = kinds.columns > 1
    warps = 4 if spline and _launch.GPU == "hip" else 8
    if dtype == torch.float64:
        return Config(16, least, warps, 2)
    if dtype == torch.float32 and precision == "ieee":
        return Config(16 if context else 32, least, warps, 2)
    rows_of_splines = 16 if context or least > 32 else 32
    block_m = rows_of_splines if spline else 32 if dtype == torch.float32 or context else 64
    wide = max(plan.widest for plan in plans) >= 256 or least > 32
    if _launch.GPU == "hip":  # pipelines hold the next block in registers, and fewer warps have more of these
        return Config(block_m, 64 if wide and not spline else least, 4, 2)
    return Config(block_m, 64, 8, 3) if wide else Config(block_m, 32, 4, 3)


class Tables:
    """Index tables of one plan for one block size, as numpy arrays."""

    def __init__(self, plan: AutoregressivePlan, kinds: Kinds, block: int) -> None:
        self.plan, self.block = plan, block
        self.depth = len(plan.units)
        self.words: list[np.ndarray] = []
        self.length = 0
        self.linears = len(plan.masks)
        self.biased = plan.biases
        self._put(np.zeros(self.linears * FIELDS, dtype=np.int64))
        orders = [plan.feature_order.numpy(), *(o.numpy() for o in plan.unit_orders)]
        self.orders = [self._padded(o) for o in orders]  # original unit of every place, -1 where there is none
        self.starts = np.concatenate([[0], np.cumsum([len(o) for o in self.orders])]).tolist()
        self.width = int(self.starts[-1])
        size = block // kinds.columns  # of a group
        self.groups = -(-plan.features // size)
        self.outputs = self._output_rows(kinds).reshape(self.groups, size, -1, kinds.columns).transpose(0, 2, 1, 3).reshape(-1)
        self.all_width = self.width + len(self.outputs)
        self.order_at = [self._put(o) for o in self.orders]
        self.output_at = self._put(self.outputs)
        self._linears()
        self.table = np.concatenate(self.words).astype(np.int32)

    def _padded(self, order: np.ndarray) -> np.ndarray:
        size = max(-(-len(order) // self.block), 1) * self.block
        return np.concatenate([order, np.full(size - len(order), -1)])

    def _output_rows(self, kinds: Kinds) -> np.ndarray:
        """[place][kind][column]: the row of each parameter of the sorted features, -1 where there is none."""
        features = self.orders[0][: self.groups * (self.block // kinds.columns)]
        rows = np.where(features[:, None] >= 0, self.plan.parameter_rows.numpy()[features], -1)
        found = np.full((len(features), len(kinds.counts), kinds.columns), -1)
        for kind, own in enumerate(np.split(rows, np.cumsum(kinds.counts)[:-1], 1)):
            found[:, kind, : own.shape[1]] = own
        return found

    def _put(self, values: np.ndarray) -> int:
        values = np.asarray(values).reshape(-1)
        self.words.append(values)
        at, self.length = self.length, self.length + len(values)
        return at

    def _linears(self) -> None:
        plan, block, depth = self.plan, self.block, self.depth
        records = self.words[0]
        sources, targets, tile_biases, gathered, bias_gathered, self.tile_linear = [], [], [], [], [], []
        blocks = bias = 0
        dense = 0
        self.dense_starts = [0]
        for i, mask in enumerate(plan.masks):
            source = 0 if i == depth + 1 else i
            output = i >= depth
            rows = self.outputs if output else self.orders[i + 1]
            columns = self.orders[source]
            target = self.width if output else self.starts[i + 1]
            visible = mask.numpy()[rows][:, columns] & (rows >= 0)[:, None] & (columns >= 0)
            n, k = len(rows) // block, len(columns) // block
            counts = visible.reshape(n, block, k, block).any((1, 3))
            counts = np.where(counts.any(1), k - counts[:, ::-1].argmax(1), 1)
            counts = np.maximum.accumulate(counts)  # no row of blocks is narrower than the one before, also where it has holes
            bases = blocks + np.concatenate([[0], np.cumsum(counts)[:-1]])
            first = np.searchsorted(counts, np.arange(k), side="right")  # first row block that reads a column block
            index = np.where(visible, rows[:, None] * mask.shape[1] + columns, -1)
            index = index.reshape(n, block, k, block).transpose(0, 2, 1, 3)
            for r in range(n):
                for c in range(counts[r]):
                    sources.append(self.starts[source] + c * block)
                    targets.append(target + r * block)
                    tile_biases.append(bias + r * block if c == 0 and i <= depth else -1)
                    gathered.append(index[r, c])
                    self.tile_linear.append(i)
            blocks += int(counts.sum())
            if i <= depth:
                bias_gathered.append(rows if plan.biases[i] else np.full(len(rows), -1))
            record = records[i * FIELDS : (i + 1) * FIELDS]
            record[:READERS] = [
                self.starts[source], target, n,
                self._put(np.concatenate([counts, bases, first])),
                bias, *self._hidden(i), self.output_at if output else self.order_at[i + 1],
            ]  # fmt: skip
            bias += len(rows) if i <= depth else 0
            dense += mask.numel()
            self.dense_starts.append(dense)
        for i in range(depth):  # who adds this layer: sections, and for each place of this layer the place there
            readers = [later for later, source in enumerate(plan.residuals) if source == i]
            inverse = [self._put(self._places(i + 1, later + 1)) for later in readers]
            pairs = [v for later, at in zip(readers, inverse, strict=True) for v in (self.starts[later + 1], at)]
            records[i * FIELDS + READERS] = self._put(np.array([len(readers), *pairs]))
        self.blocks, self.bias_size = blocks, bias
        self.gathered = np.stack(gathered).reshape(-1)
        self.bias_gathered = np.concatenate(bias_gathered)
        self.sources, self.targets, self.tile_biases = map(np.array, (sources, targets, tile_biases))
        self.bias_linear = np.concatenate([np.full(len(b) // block, i) for i, b in enumerate(bias_gathered)])
        self.sources_at, self.targets_at = self._put(self.sources), self._put(self.targets)
        self.tile_biases_at = self._put(self.tile_biases)
        self.tile_linear_at = self._put(np.array(self.tile_linear))
        self.bias_linear_at = self._put(self.bias_linear)

    def _hidden(self, layer: int) -> list[int]:
        """ACTIVATED, RESIDUAL, RESIDUAL_UNITS, ADDEND, GATE."""
        plan = self.plan
        addend = plan.addends.index(layer) if layer in plan.addends else -1
        if layer >= self.depth:
            return [0, -1, -1, addend, -1]
        source = plan.residuals[layer]
        gate = len(plan.addends) + plan.gates.index(layer) if layer in plan.gates else -1
        if source is None:
            return [int(plan.activated[layer]), -1, -1, addend, gate]
        places = self._put(self._places(layer + 1, source + 1))
        return [int(plan.activated[layer]), self.starts[source + 1], places, addend, gate]

    def _places(self, section: int, other: int) -> np.ndarray:
        """For each place of a section the place of the same unit in another section, -1 where it has none."""
        found = {int(unit): place for place, unit in enumerate(self.orders[other]) if unit >= 0}
        return np.array([found.get(int(unit), -1) for unit in self.orders[section]])

    @cached_property
    def positions(self) -> np.ndarray:
        """Where each dense weight, then each bias, lies among the packed ones; -1 for those that have no effect."""
        plan = self.plan
        packed = np.arange(len(self.gathered))
        linear = np.repeat(np.array(self.tile_linear), self.block**2)
        dense = np.full(self.dense_starts[-1], -1)
        used = self.gathered >= 0
        dense[np.array(self.dense_starts)[linear[used]] + self.gathered[used]] = packed[used]
        parts, at = [dense], len(self.gathered)
        for i in range(self.depth + 1):
            rows = self.outputs if i == self.depth else self.orders[i + 1]
            if plan.biases[i]:
                places = np.full(plan.masks[i].shape[0], -1)
                places[rows[rows >= 0]] = at + np.flatnonzero(rows >= 0)
                parts.append(places)
            at += len(rows)
        return np.concatenate(parts)


class HostTables(Protocol):
    """What packing and the gradients of weights read of tables, of one network or of a chain."""

    table: np.ndarray
    blocks: int  # of weights
    gathered: np.ndarray  # for each packed weight its place in its matrix, -1 where there is none
    bias_gathered: np.ndarray
    bias_size: int
    biased: Sequence[bool]  # for each list of sorted biases, whether the call brings a tensor
    dense_starts: Sequence[int]  # the last one is the number of weights
    sources_at: int
    targets_at: int
    tile_biases_at: int
    tile_linear_at: int
    bias_linear_at: int

    @property
    def positions(self) -> np.ndarray: ...  # of each dense weight, then each bias, among the packed ones


@dataclass(frozen=True)
class DeviceTables:
    """The tables on a device."""

    host: HostTables
    config: Config
    table: Tensor
    gathered: Tensor
    bias_gathered: Tensor
    positions: Tensor


def host_tables(plan: AutoregressivePlan, kinds: Kinds, block: int) -> Tables:
    """The tables of a plan for one block size; the first call makes them."""
    return plan.at_first_call((kinds, block), torch.device("cpu"), lambda: Tables(plan, kinds, block))


def device_tables(plan: MadeOnce, host: HostTables, kinds: Kinds, config: Config, device: torch.device) -> DeviceTables:
    """The tables of a plan, or of a chain, on a device."""

    def make() -> DeviceTables:
        arrays = (host.table, host.gathered, host.bias_gathered, host.positions)
        return DeviceTables(host, config, *(torch.from_numpy(a.astype(np.int32)).to(device) for a in arrays))

    return plan.at_first_call((kinds, config, device), device, make)
